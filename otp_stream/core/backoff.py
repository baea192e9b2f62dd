"""When a failed job is retried, and the wait queues that hold it until then.

`delay = min(base * 2^n + jitter, cap)` with `jitter` in `[0, 0.3 * base * 2^n]`, n being the retries already made.
Each wait queue has one time to live, so that no message waits behind one with a longer delay. The jitter range of each
retry is cut into slices, with one wait queue for the end of each, so that a wait is late by one slice at most. A slice
is at most 10 % of the delay plus 50 ms. Two or three slices per retry suffice for that; more queues would only take
more file descriptors of the broker.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

JITTER = 0.3
_LATE, _LATE_MS = 0.1, 50
"""A wait may be late by 10 % of the delay plus 250 ms, of which 200 ms are left for the broker."""
_EARLIER_SLICES = 4
"""Slices of each retry's jitter range in earlier versions."""


@dataclass(frozen=True)
class Backoff:
    """The retry formula with its settings; delays are milliseconds."""

    base_ms: int
    cap_ms: int
    max_retries: int
    retry_greylisted: bool = False
    """Whether a greylisted mail is retried every `cap_ms` until its code expires."""

    def delay_ms(self, retries_made: int, fraction: float) -> int:
        """Return the delay before the next attempt; `fraction` in [0, 1) scales the jitter."""
        step = self.base_ms * 2 ** min(retries_made, 63)
        return min(round(step + fraction * JITTER * step), self.cap_ms)

    @cached_property
    def retry_delays_ms(self) -> tuple[int, ...]:
        """The times to live that the formula needs, ascending, up to the cap or the last retry's longest delay."""
        return self._delays_ms(lambda step: math.ceil(JITTER * step / (_LATE * step + _LATE_MS)))

    @property
    def earlier_retry_delays_ms(self) -> tuple[int, ...]:
        """The times to live that earlier versions used with these settings: their wait queues may still exist."""
        return self._delays_ms(lambda _: _EARLIER_SLICES)

    def _delays_ms(self, slices: Callable[[int], int]) -> tuple[int, ...]:
        delays: set[int] = set()
        for retries_made in range(max(self.max_retries, 1)):
            step = self.base_ms * 2 ** min(retries_made, 63)
            cuts = slices(step)
            delays |= {min(-int(-(step + JITTER * step * cut / cuts) // 1), self.cap_ms) for cut in range(1, cuts + 1)}
            if step >= self.cap_ms:
                break
        return tuple(sorted(delays))

    @cached_property
    def waits_ms(self) -> tuple[int, ...]:
        """Every wait queue's time to live, ascending: the formula's, and the cap if greylisted mail is retried."""
        return tuple(sorted({*self.retry_delays_ms, self.cap_ms})) if self.retry_greylisted else self.retry_delays_ms

    def wait_ms(self, delay_ms: int) -> int:
        """Return the time to live of the wait queue for a delay: the shortest that is long enough, else the longest."""
        place = bisect_left(self.waits_ms, delay_ms)
        return self.waits_ms[min(place, len(self.waits_ms) - 1)]

    def longest_wait_ms(self, limit_ms: int) -> int | None:
        """Return the longest wait that is shorter than `limit_ms`, or `None`."""
        place = bisect_left(self.retry_delays_ms, limit_ms)
        return self.retry_delays_ms[place - 1] if place else None
