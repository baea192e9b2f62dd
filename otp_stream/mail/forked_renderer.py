"""Renders operators' templates in child processes, forked from the worker.

Python cannot interrupt one long call of C code, such as the comparison of deeply nested lists, but a process can be
killed. Nothing that a template changes there reaches the worker, or the templates of other folders.
"""

import gc
import json
import os
import pickle
import resource
import select
import signal
import struct
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from otp_stream.core.mail import ComposeError

from .sandbox import MEMORY, CpuLimitError, address_space, run_limited

_EXTRA_CPU_S = 0.5
"""CPU time beyond the limit after which a process is killed, because it cannot be interrupted."""
_CHECK_S = 0.1
_TIMEOUT_S = 5.0
_TRIES = 2
"""Another program may kill a process, and time passes while the machine is suspended."""
_MAX_CHILDREN = 4
"""Each takes 10 to 60 MiB, because memory that it shares with the worker changes."""
_CHUNK = 1 << 16
_LENGTH = struct.Struct("!I")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Work = Callable[[Any], Sequence[str]]


class ForkedRenderer:
    """Runs `work` in a child process. It is forked when it is needed, with what `work` uses at that time."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._child: _Child | None = None

    def run(self, cpu_s: float, request: object) -> list[str]:
        """Return the texts that `work` returns for the request.

        Raises `ComposeError` with the text of that of `work`; `CpuLimitError` after `cpu_s` seconds of CPU time;
        `MemoryError` as `run_limited` does. If no process can be started, or two neither crash nor reply, `work`
        runs in this one, because someone waits for the code.
        """
        crashed = False
        for _ in range(_TRIES):
            try:
                child = self._started()
            except OSError:
                break
            try:
                return _texts(*child.request(cpu_s, request, _TIMEOUT_S))
            except CpuLimitError:
                self.close()
                raise
            except (OSError, ValueError):
                crashed = self.close()
        if crashed:
            raise ComposeError("composing it ended its process")
        return list(run_limited(cpu_s, lambda: self._work(request)))

    def close(self) -> bool:
        """Kill the child process. Returns whether another signal had ended it before."""
        _WITH_CHILD.pop(self, None)
        child, self._child = self._child, None
        return child is not None and child.kill()

    def _started(self) -> "_Child":
        if self._child is None or self._child.parent != os.getpid():  # this object was forked, too
            self._child = _Child(self._work)
        _WITH_CHILD[self] = None
        _WITH_CHILD.move_to_end(self)
        if len(_WITH_CHILD) > _MAX_CHILDREN:
            next(iter(_WITH_CHILD)).close()
        return self._child


_WITH_CHILD: OrderedDict[ForkedRenderer, None] = OrderedDict()
"""The renderers that have a child process, the most recently used one last."""


def run_once(work: Callable[[], Sequence[str]], cpu_s: float, timeout_s: float) -> list[str]:
    """Return the texts that `work` returns in a new child process; can be called in a thread.

    Raises as `ForkedRenderer.run` does, and `OSError` if no process can be started, or it neither crashes nor replies.
    """
    child = _Child(lambda _: work())
    try:
        return _texts(*child.request(cpu_s, None, timeout_s))
    except (ConnectionError, ValueError):
        if child.kill():
            raise ComposeError("its process crashed") from None
        raise OSError("its process ended") from None
    finally:
        child.kill()


def failure_text(error: CpuLimitError | MemoryError | ComposeError, action: str, cpu_s: float) -> str:
    """Return why `run_once` failed, and the fix. `action` is what it did with the templates of a folder."""
    match error:
        case CpuLimitError():
            return f"{action} its templates takes more than {cpu_s:g} s of CPU time; shorten them"
        case MemoryError():
            return f"{action} its templates takes more than {MEMORY >> 20} MiB of memory; shorten them"
        case _:
            return f"{action} its templates crashes the process; nest HTML and Jinja less deeply"


class _Child:
    """One child process. Raises `OSError` if it cannot be forked."""

    def __init__(self, work: Work) -> None:
        self.parent = os.getpid()
        self._killed = False
        requests, self._requests = os.pipe()
        try:
            self._replies, replies = os.pipe()
        except OSError:
            os.close(requests)
            os.close(self._requests)
            raise
        os.set_blocking(self._requests, False)
        # the event loop's handlers would report a signal to the child as one to the worker
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            with warnings.catch_warnings():
                # Python 3.12 warns of locks that other threads hold: rendering takes none of them
                warnings.simplefilter("ignore", DeprecationWarning)
                self._pid = os.fork()
            if not self._pid:
                _serve(work, requests, replies)
        except OSError:
            os.close(self._requests)
            os.close(self._replies)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(requests)
            os.close(replies)

    def request(self, cpu_s: float, request: object, timeout_s: float) -> tuple[str, Any]:
        """Return kind and content of the reply. Raises `CpuLimitError`, and `OSError` if there is none."""
        began, ends = self._used_s(), time.monotonic() + timeout_s
        self._send(pickle.dumps((cpu_s, request)), ends)
        poll, content = select.poll(), bytearray()
        poll.register(self._replies, select.POLLIN)
        while len(content) < _LENGTH.size or len(content) < _LENGTH.size + _LENGTH.unpack_from(content)[0]:
            if poll.poll(_CHECK_S * 1000):
                if not (chunk := os.read(self._replies, _CHUNK)):
                    raise ConnectionError
                content += chunk
                continue
            used_s = self._used_s() - began
            is_late = time.monotonic() > ends
            # on a busy machine it does not get all its time; one that has got little has only waited
            if used_s > cpu_s + _EXTRA_CPU_S or (is_late and used_s > cpu_s / 10):
                raise CpuLimitError
            if is_late:
                raise TimeoutError
        return tuple(json.loads(content[_LENGTH.size :]))

    def _send(self, request: bytes, ends: float) -> None:
        """Write a request, which may be larger than the pipe. Raises `TimeoutError` if the child does not read it."""
        left = memoryview(_LENGTH.pack(len(request)) + request)
        poll = select.poll()
        poll.register(self._requests, select.POLLOUT)
        while left:
            if not poll.poll(max(0.0, ends - time.monotonic()) * 1000):
                raise TimeoutError
            left = left[os.write(self._requests, left) :]

    def _used_s(self) -> float:
        """Return the CPU time that the child has used (Linux: clock_getcpuclockid(3)); elsewhere the time."""
        with suppress(OSError):
            return time.clock_gettime((~self._pid << 3) | 2)
        return time.monotonic()

    def kill(self) -> bool:
        """Kill it, and reap it. Returns whether another signal had ended it before."""
        if self.parent != os.getpid() or self._killed:
            return False
        self._killed = True
        os.close(self._requests)
        # it holds the other end as long as it runs
        poll = select.poll()
        poll.register(self._replies, select.POLLHUP)
        had_ended = any(events & select.POLLHUP for _, events in poll.poll(0))
        os.close(self._replies)
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        try:
            _, status = os.waitpid(self._pid, 0)
        except ChildProcessError:  # SIGCHLD is ignored
            return had_ended
        return had_ended and os.WIFSIGNALED(status)


def _texts(kind: str, content: Any) -> list[str]:
    match kind:
        case "texts":
            return content
        case "cpu":
            raise CpuLimitError
        case "memory":
            raise MemoryError
        case _:
            raise ComposeError(content)


def _serve(work: Work, requests: int, replies: int) -> NoReturn:
    """Serve requests in the child until the worker closes the pipe; then exit without the worker's exit handlers."""
    try:
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        gc.freeze()  # no object of the worker may be finalized here
        _close_others(requests, replies)
        largest = _address_space() + MEMORY
        # what Jinja keeps, such as the files that templates include, must not grow with each request without a limit
        while _address_space() <= largest and (head := os.read(requests, _LENGTH.size)):
            cpu_s, request = pickle.loads(_read(requests, _LENGTH.unpack(head)[0]))  # noqa: S301 - the worker wrote it
            _limit_cpu(cpu_s)
            _write(replies, json.dumps(_reply(work, cpu_s, request)).encode())
    finally:
        os._exit(0)


def _close_others(*kept: int) -> None:
    """Close the worker's connections and sockets: clients and the next worker would wait for them."""
    with suppress(OSError):  # where there is no /proc
        for descriptor in [int(it.name) for it in Path("/proc/self/fd").iterdir()]:
            if descriptor not in kept:
                with suppress(OSError):  # the descriptor of the listing itself
                    os.close(descriptor)


def _address_space() -> int:
    # without /proc there is no size, so no process is replaced
    with suppress(OSError):
        return address_space()
    return 0


def _limit_cpu(cpu_s: float) -> None:
    """Have the kernel kill this process if it still loops after the worker's end. Some systems do not permit limits."""
    with suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + cpu_s) + 2, hard))


def _reply(work: Work, cpu_s: float, request: Any) -> tuple[str, Any]:
    try:
        return "texts", list(run_limited(cpu_s, lambda: work(request)))
    except ComposeError as error:
        return "error", str(error)
    except CpuLimitError:
        return "cpu", None
    except MemoryError:
        return "memory", None


def _write(to: int, content: bytes) -> None:
    left = memoryview(_LENGTH.pack(len(content)) + content)
    while left:
        left = left[os.write(to, left) :]


def _read(of: int, size: int) -> bytes:
    content = b""
    while len(content) < size and (chunk := os.read(of, size - len(content))):
        content += chunk
    return content
