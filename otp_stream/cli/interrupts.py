"""Signals that end a recorded command: the first one interrupts it, and later ones change nothing."""

import asyncio
import signal
import threading
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN_S = 5.0
"""When work is cancelled again, because in Python 3.11 a `wait_for` can suppress a cancellation."""


@dataclass(slots=True)
class Interrupts:
    """Raises one `KeyboardInterrupt` at most, also for SIGTERM and SIGHUP, so that no second one stops a clean-up."""

    ignored: bool = False
    """Whether a signal changes nothing from now on."""
    interrupted: bool = False
    _task: asyncio.Task[Any] | None = None
    _previous: dict[signal.Signals, Any] = field(default_factory=dict[signal.Signals, Any])

    @contextmanager
    def handled(self) -> Generator[None]:
        """Handle the signals. One that the process ignores, as with nohup, stays ignored."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in self._previous.items():
                if not self.interrupted:  # else the command ends now, and says so first
                    signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.ignored:
            return
        self.ignored = self.interrupted = True
        if self._task is None:
            raise KeyboardInterrupt
        self._task.get_loop().call_soon_threadsafe(self._cancel, self._task)

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        if not task.done():
            task.cancel()
            task.get_loop().call_later(_AGAIN_S, self._cancel, task)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work`, which a signal cancels. Raises `KeyboardInterrupt` then."""

        async def main() -> T:
            self._task = asyncio.current_task()
            try:
                return await work
            finally:
                self._task = None

        try:
            result = asyncio.run(main())
        except asyncio.CancelledError:
            if self.interrupted:
                raise KeyboardInterrupt from None
            raise
        if self.interrupted:  # at the very end of the work
            raise KeyboardInterrupt
        return result


_current: list[Interrupts] = [Interrupts()]
"""The last one is in use, and the first one handles no signal. Signals concern the whole process, and so does this."""


@contextmanager
def interruptible() -> Generator[Interrupts]:
    """Handle signals meanwhile."""
    interrupts = Interrupts()
    _current.append(interrupts)
    try:
        with interrupts.handled():
            yield interrupts
    finally:
        _current.remove(interrupts)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`; in a recorded command, a signal cancels it and raises `KeyboardInterrupt`."""
    return _current[-1].run(work)
