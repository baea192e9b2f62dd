"""Composes the mails of suspects in a process of their own, which may die of it.

A job that comes again without a settlement may be the one that killed the worker which had it. Templates are code of
others, and composing is the one step at which they run: so that step is made apart, and a worker dies once of a job.
"""

import asyncio
import contextlib
import pickle
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol

import structlog

from otp_stream.core.job import Job
from otp_stream.core.mail import ComposeError, Mail

from .limit import limit_memory

_PATIENCE_S = 10.0
"""For one mail. A template that only burns time ends sooner, by the limit that holds everywhere."""
_START_S = 30.0
_REST_S = 30.0
"""How long a process without work is kept."""
_MEMORY = 1 << 30
_LENGTH = struct.Struct("!I")


class Composer(Protocol):
    """Makes mails."""

    def compose(self, job: Job) -> Mail:
        """Return the message. Raises `ComposeError`."""
        ...


class Apart:
    """One process at a time, started when it is wanted; `make` makes its composer there, and is pickled."""

    def __init__(self, make: Callable[[], Composer]) -> None:
        self._make = make
        self._child: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._rest: asyncio.TimerHandle | None = None

    async def compose(self, job: Job) -> Mail:
        """Return the message. Raises `ComposeError`, also when the process dies of it, and `OSError` without one."""
        async with self._turn:
            # A process can die of something else, and time passes while a machine stands still: the job is to blame
            # when it happens twice.
            answer = await self._ask(job, again=True) or await self._ask(job)
        if isinstance(answer, ComposeError):
            raise answer
        return answer

    async def _ask(self, job: Job, *, again: bool = False) -> Any:
        """Return the child's answer; `None` where the child failed and it is to be asked `again`."""
        if self._rest is not None:
            self._rest.cancel()
        child = self._child or await self._start()
        try:
            answer = await _ask(child, pickle.dumps(job), _PATIENCE_S)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            told = await self._end()
            if again:
                return None
            raise ComposeError(f"composing it {told}") from None
        except BaseException:
            await self._end()
            raise
        self._rest = asyncio.get_running_loop().call_later(_REST_S, self._let_go)
        return answer

    def _let_go(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()

    async def close(self) -> None:
        """End the process."""
        async with self._turn:
            await self._end()

    async def _start(self) -> asyncio.subprocess.Process:
        self._child = child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            # what it writes when it dies may hold a code
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        structlog.get_logger(__name__).info(
            "composing in a process apart: jobs that come again, and previews", pid=child.pid
        )
        try:
            await _ask(child, pickle.dumps(self._make), _START_S)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            raise OSError(f"the process for suspects {await self._end()}") from None
        return child

    async def _end(self) -> str:
        """End the process and tell how it ended, as the end of a sentence."""
        child, self._child = self._child, None
        if child is None:
            return "was not begun"
        # one that dies by itself has closed its pipe by now, but may not have been waited for
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.wait(), 0.5 if child.stdout is not None and child.stdout.at_eof() else 0)
        if child.returncode is None:
            child.kill()
            await child.wait()
            return f"took more than {_PATIENCE_S:g} s"
        code = child.returncode
        return f"killed the process ({signal.Signals(-code).name})" if code < 0 else f"ended the process ({code})"


async def _ask(child: asyncio.subprocess.Process, question: bytes, patience_s: float) -> Any:
    assert child.stdin is not None and child.stdout is not None  # noqa: S101, PT018 - told to the type checker only
    async with asyncio.timeout(patience_s):
        child.stdin.write(_LENGTH.pack(len(question)) + question)
        await child.stdin.drain()
        (length,) = _LENGTH.unpack(await child.stdout.readexactly(_LENGTH.size))
        return pickle.loads(await child.stdout.readexactly(length))  # noqa: S301 - our own process wrote it


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer in the child: first how mails are made, then one job after the other, until the parent is gone."""
    limit_memory(_MEMORY)
    composer: Composer = _read(questions)()
    _write(answers, None)
    with contextlib.suppress(EOFError):
        while True:
            job: Job = _read(questions)
            try:
                _write(answers, composer.compose(job))
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
