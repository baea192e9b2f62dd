"""The producer API for programs without asyncio, such as Django and Flask applications."""

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any, Self, TypeVar

from otp_stream.core.job_event import JobEvent
from otp_stream.core.otp_job import OtpJob

from .errors import ClientError
from .otp_client import SEND_S, OtpClient

T = TypeVar("T")

_JOIN_S = 5
"""How long `close` waits for the thread. The connection is closed, or given up, before that."""


class SyncOtpClient:
    """`OtpClient` with blocking methods, for any number of threads.

    Takes the same arguments. One thread, started at the first use, runs the connection; it ends with `close` or with
    the process. After a fork, the child opens its own connection. Create one client for each application, not for each
    request.
    """

    def __init__(self, url: str = "amqp://guest:guest@localhost:5672/", **options: Any) -> None:
        self._new_client = partial(OtpClient, url, **options)
        self._new_client()  # raises for an invalid argument
        self._lock = threading.Lock()
        self._thread: _ClientThread | None = None
        after_fork = weakref.WeakMethod(self._after_fork)
        if hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(after_in_child=lambda: (method := after_fork()) and method())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> None:
        """Connect now instead of at the first use. Raises `ClientError`."""
        self._call(lambda client: client.connect())

    def publish(self, job: OtpJob | bytes, *, high_lane: bool = False) -> None:
        """Publish a job and wait until RabbitMQ has confirmed it: see `OtpClient.publish`. Raises `ClientError`."""
        self._call(lambda client: client.publish(job, high_lane=high_lane))

    def send(self, job: OtpJob, *, high_lane: bool = False, timeout_s: float = SEND_S) -> JobEvent:
        """Publish a job and return its final event: see `OtpClient.send`. Raises `ClientError`."""
        return self._call(lambda client: client.send(job, high_lane=high_lane, timeout_s=timeout_s))

    def close(self) -> None:
        """Close the connection; calls in progress raise `ClientError`. The next use opens another one."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                thread.end()
        if thread is not None:
            thread.join()

    def _call(self, work: Callable[[OtpClient], Coroutine[Any, Any, T]]) -> T:
        with self._lock:  # so that the thread does not end before it has the call
            if self._thread is None:
                self._thread = _ClientThread(self._new_client())
                weakref.finalize(self, self._thread.close)  # at the end of the process, too
            future = self._thread.submit(work)
        try:
            return future.result()
        except CancelledError:
            raise ClientError(
                "the client was closed during the call, so the job may have been published; publish it again with the "
                "same job_id"
            ) from None
        finally:
            future.cancel()  # Ctrl-C ends the call, too

    def _after_fork(self) -> None:
        # the thread does not exist in the child, and another thread may have held the lock
        self._lock, self._thread = threading.Lock(), None


class _ClientThread:
    """A thread whose event loop runs a client until `close`."""

    def __init__(self, client: OtpClient) -> None:
        self.client = client
        self._pid = os.getpid()
        self._started = threading.Event()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="otp-stream-client", daemon=True)
        self._thread.start()
        self._started.wait()

    def submit(self, work: Callable[[OtpClient], Coroutine[Any, Any, T]]) -> Future[T]:
        """Start a call of the client, in the caller's context."""
        return asyncio.run_coroutine_threadsafe(work(self.client), self._loop)

    def close(self) -> None:
        """End the connection and the thread. Does nothing in a process that was forked from its own."""
        if self._pid == os.getpid():
            self.end()
            self.join()

    def end(self) -> None:
        """Let the thread close the connection and end."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)

    def join(self) -> None:
        """Wait until the thread has ended."""
        if threading.current_thread() is not self._thread:  # garbage collection, which closes it, runs in any thread
            self._thread.join(_JOIN_S)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._started.set()
        async with self.client:
            await self._closing.wait()
