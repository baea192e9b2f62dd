"""Limits on CPU time and memory while a template is rendered.

They cannot stop one long call of C code that stays within the memory limit: Python handles signals only between its own
instructions.
"""

import os
import resource
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import TypeVar

T = TypeVar("T")

MEMORY = 64 << 20
"""Bytes that one e-mail may allocate."""
_REPEAT_S = 0.1


class CpuLimitError(Exception):
    """The work took more CPU time than it may."""


class _Alarm:
    armed = False
    set_up = False


def run_limited(cpu_s: float, work: Callable[[], T]) -> T:
    """Return the result of `work`. Raises `CpuLimitError` after `cpu_s` seconds of CPU time.

    Raises `MemoryError` if it allocates more than `MEMORY`.

    CPU time, not elapsed time: if the process was stopped, the template is not to blame. Outside the main thread, where
    Python handles no signals, there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    if not _Alarm.set_up:
        signal.signal(signal.SIGVTALRM, _on_alarm)
        _Alarm.set_up = True
    _Alarm.armed = True
    # repeated, because code that catches every exception would continue after the first
    signal.setitimer(signal.ITIMER_VIRTUAL, cpu_s, _REPEAT_S)
    try:
        with _bounded_memory():
            return work()
    finally:
        _Alarm.armed = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _on_alarm(*_: object) -> None:
    if _Alarm.armed:  # a late signal must not interrupt other code
        raise CpuLimitError


def limit_memory(size: int) -> None:
    """Limit the address space of this process to `size` bytes, if the system supports it."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _pages() -> int:
    # a third of the time that `Path.read_bytes` takes
    statm = os.open("/proc/self/statm", os.O_RDONLY)
    try:
        return int(os.read(statm, 100).partition(b" ")[0])
    finally:
        os.close(statm)


@contextmanager
def _bounded_memory() -> Generator[None]:
    """Limit the address space of this process to `MEMORY` more bytes than now; on Linux only."""
    try:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = _pages() * resource.getpagesize() + MEMORY
        if soft == resource.RLIM_INFINITY or limit < soft:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (OSError, ValueError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
