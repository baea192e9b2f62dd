"""Composes e-mails in a separate process, which may crash without harm.

A job that is redelivered without a settlement may have crashed its worker. Templates are foreign code, which only runs
when the e-mail is composed. For such jobs, that step runs in a separate process, so that one job crashes a worker at
most once.
"""

import asyncio
import contextlib
import pickle
import signal
import struct
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO, Protocol

from otp_stream.core.job import Job
from otp_stream.core.mail import ComposeError, Mail

from .identity import MailIdentity
from .sandbox import limit_memory

_TIMEOUT_S = 10.0
"""Time limit for one e-mail. A template that uses too much CPU time fails earlier, by the limit of all processes."""
_START_TIMEOUT_S = 30.0
_IDLE_S = 30.0
"""How long an idle process is kept."""
_MEMORY = 1 << 30
_LENGTH = struct.Struct("!I")


class Composes(Protocol):
    """Composes e-mails."""

    def compose(self, job: Job, identity: MailIdentity) -> Mail:
        """Return the message. Raises `ComposeError`."""
        ...


class RenderProcess:
    """At most one process, started on demand; `make` is pickled, and creates the composer for the first job there."""

    def __init__(self, make: Callable[[MailIdentity], Composes]) -> None:
        self._make = make
        self._child: asyncio.subprocess.Process | None = None
        self._outdated: asyncio.subprocess.Process | None = None
        """The process that ends after the job that it is composing."""
        self._lock = asyncio.Lock()
        self._idle_timer: asyncio.TimerHandle | None = None

    def renew(self) -> None:
        """Use another process from the next job on, because templates may have changed."""
        if self._lock.locked():
            self._outdated = self._child
        else:
            self._stop_idle()

    async def compose(self, job: Job, identity: MailIdentity) -> Mail:
        """Return the message. Raises `ComposeError`, also if the process crashes, and `OSError` if it cannot start."""
        async with self._lock:
            # only a second failure is the job's fault: the process may have been killed from outside, or have timed out
            # because the machine was suspended
            answer = await self._compose(job, identity, retry=True) or await self._compose(job, identity)
        if isinstance(answer, ComposeError):
            raise answer
        return answer

    async def _compose(self, job: Job, identity: MailIdentity, *, retry: bool = False) -> Any:
        """Return the child's answer, or `None` if the child failed and the caller will `retry`."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        child = self._child or await self._start(identity)
        try:
            answer = await _request(child, pickle.dumps((job, identity)), _TIMEOUT_S)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            ending = await self._end()
            if retry:
                return None
            raise ComposeError(f"composing it {ending}") from None
        except BaseException:
            await self._end()
            raise
        if child is self._outdated:
            self._stop_idle()
        else:
            self._idle_timer = asyncio.get_running_loop().call_later(_IDLE_S, self._stop_idle)
        return answer

    def _stop_idle(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()

    async def close(self) -> None:
        """Stop the process."""
        async with self._lock:
            await self._end()

    async def _start(self, identity: MailIdentity) -> asyncio.subprocess.Process:
        import structlog  # noqa: PLC0415 - takes a third of the start of the process, which logs nothing

        self._child = child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            # the output of a crash may contain a code
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        structlog.get_logger(__name__).info("started a render process for redelivered jobs and previews", pid=child.pid)
        try:
            await _request(child, pickle.dumps(partial(self._make, identity)), _START_TIMEOUT_S)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            raise OSError(f"the render process {await self._end()}") from None
        return child

    async def _end(self) -> str:
        """Stop the process and return how it ended, as the end of a sentence."""
        child, self._child = self._child, None
        if child is None:
            return "was not started"
        # a crashed process has closed its pipe, but may not have been waited for
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.wait(), 0.5 if child.stdout is not None and child.stdout.at_eof() else 0)
        if child.returncode is None:
            child.kill()
            await child.wait()
            return f"took more than {_TIMEOUT_S:g} s"
        code = child.returncode
        return f"killed the process ({signal.Signals(-code).name})" if code < 0 else f"ended the process ({code})"


async def _request(child: asyncio.subprocess.Process, message: bytes, timeout_s: float) -> Any:
    assert child.stdin is not None and child.stdout is not None  # noqa: S101, PT018 - for the type checker
    async with asyncio.timeout(timeout_s):
        child.stdin.write(_LENGTH.pack(len(message)) + message)
        await child.stdin.drain()
        (length,) = _LENGTH.unpack(await child.stdout.readexactly(_LENGTH.size))
        return pickle.loads(await child.stdout.readexactly(length))  # noqa: S301 - our own process wrote it


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Run the child: read the composer's constructor, then one job after another, until the parent exits."""
    limit_memory(_MEMORY)
    composer: Composes = _read(requests)()
    _write(answers, None)
    with contextlib.suppress(EOFError):
        while True:
            job, identity = _read(requests)
            try:
                _write(answers, composer.compose(job, identity))
            except ComposeError as error:
                _write(answers, ComposeError(str(error)))


def _read(stream: BinaryIO) -> Any:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    return pickle.loads(stream.read(_LENGTH.unpack(head)[0]))  # noqa: S301 - our own parent wrote it


def _write(stream: BinaryIO, answer: object) -> None:
    pickled = pickle.dumps(answer)
    stream.write(_LENGTH.pack(len(pickled)) + pickled)
    stream.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
