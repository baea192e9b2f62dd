"""The wall clock. `core` never reads it: there, the time is an argument."""

import time
from collections.abc import Callable

_NOISE_MS = 1_000
"""A correction is measured over a network: a smaller change is none, so that the time does not go back and forth."""


class MachineClock:
    """The clock of this machine, and a correction for it. `time_ns` reads it (nanoseconds since 1970)."""

    def __init__(self, time_ns: Callable[[], int] = time.time_ns) -> None:
        self._time_ns = time_ns
        self._offset_ms: int | None = None
        """The corrected time minus the monotonic clock; `None` if the machine's clock is right."""

    def uncorrected_ms(self) -> int:
        """Return what the machine's clock shows (milliseconds since 1970)."""
        return self._time_ns() // 1_000_000

    def now_ms(self) -> int:
        """Return milliseconds since 1970."""
        # a job asks a dozen times, so `uncorrected_ms` is not called
        return self._time_ns() // 1_000_000 if self._offset_ms is None else _monotonic_ms() + self._offset_ms

    def correct(self, ahead_ms: int) -> None:
        """Take the machine's clock to be ahead by this much. A later change of the machine's clock has no effect."""
        offset_ms = self.uncorrected_ms() - ahead_ms - _monotonic_ms()
        if self._offset_ms is None or abs(offset_ms - self._offset_ms) > _NOISE_MS:
            self._offset_ms = offset_ms

    def trust(self) -> None:
        """Take the machine's clock to be right."""
        self._offset_ms = None


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


MACHINE = MachineClock()
"""The clock of this process."""

now_ms = MACHINE.now_ms
