"""Background tasks that run as long as the process, and their cancellation."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import structlog

T = TypeVar("T")

_PAUSE_S = 1.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def forever(work: Callable[[], Awaitable[object]], name: str) -> None:
    """Run `work` again whenever it ends, until this task is cancelled.

    A lost AMQP connection raises `CancelledError` in a task that waits for it, although no one has cancelled the task.
    Without this, a background task would end silently.
    """
    while True:
        try:
            await work()
        except asyncio.CancelledError:
            if is_cancelled():
                raise
        except Exception as error:  # noqa: BLE001 - no error may end the task; its text may contain secrets, so only the type is logged
            _log.error("background task failed and starts again", task=name, error=type(error).__name__)
        await asyncio.sleep(_PAUSE_S)


class Turns:
    """Lets everything else run between steps that take milliseconds: heartbeats, probes and other jobs."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def next(self) -> None:
        """Wait until no other step is before this one, and for the next turn of the event loop."""
        async with self._lock:
            await asyncio.sleep(0)


async def in_thread(work: Callable[[], T], name: str) -> T:
    """Run `work` in a thread that, unlike one of `asyncio.to_thread`, does not delay the end of the process."""
    return await asyncio.wrap_future(start_thread(work, name))


def start_thread(work: Callable[[], T], name: str) -> Future[T]:
    """Start such a thread, and return its result, which can be awaited more than once and cannot be cancelled."""
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(work())
        except Exception as error:  # noqa: BLE001 - raised again where it is awaited
            done.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return done


def is_cancelled() -> bool:
    """Return whether the current task was cancelled. If not, a `CancelledError` came from what it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _LostConnectionAsError:
    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, asyncio.CancelledError) and not is_cancelled():
            raise ConnectionError("the connection was lost") from None


_LOST_CONNECTION_AS_ERROR = _LostConnectionAsError()


def lost_connection_as_error() -> AbstractContextManager[None]:
    """Convert the `CancelledError` that a lost AMQP connection raises in a running task to `ConnectionError`."""
    return _LOST_CONNECTION_AS_ERROR


async def cancel_and_wait(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait for their end.

    A task is cancelled repeatedly until it ends, because in Python 3.11 a `wait_for` that completes at that moment
    suppresses the cancellation.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_PAUSE_S)
    await asyncio.gather(*tasks, return_exceptions=True)
