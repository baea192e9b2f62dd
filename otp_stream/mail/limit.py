"""A limit on the processor time of one piece of work."""

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


class TooLongError(Exception):
    """The work took more processor time than it may."""


class _Alarm:
    armed = False
    set_up = False


def within(cpu_s: float, work: Callable[[], T]) -> T:
    """Do the work, for at most `cpu_s` seconds of processor time. Raises `TooLongError`.

    Processor time, not time on the clock: a process that was frozen is no slow template. Outside the main thread, where
    Python takes no signals, there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    if not _Alarm.set_up:
        signal.signal(signal.SIGVTALRM, _ring)
        _Alarm.set_up = True
    _Alarm.armed = True
    signal.setitimer(signal.ITIMER_VIRTUAL, cpu_s)
    try:
        return work()
    finally:
        _Alarm.armed = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _ring(*_: object) -> None:
    if _Alarm.armed:  # one that rings late belongs to nobody
        raise TooLongError


def limit_memory(size: int) -> None:
    """Let this process have `size` bytes of address space at most, where the system knows such a limit."""
    with suppress(ImportError, OSError, ValueError):
        import resource  # noqa: PLC0415 - not everywhere

        resource.setrlimit(resource.RLIMIT_AS, (size, size))
