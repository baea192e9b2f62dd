"""When a job is retried, and the wait queues that it is in until then.

`delay = min(base * 2^n + jitter, cap)` with `jitter` in `[0, 0.3 * base * 2^n]`, n being the retries already made.
Every wait queue has one time to live, so that no message waits behind a longer one. The retry delays are the ends
of the slices into which each retry's jitter range is cut, so that a wait is late by one slice at most. There are as
few as keep that below 10 % of the delay and 50 ms, because each wait queue takes file descriptors of the broker: two or
three for each retry.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

JITTER = 0.3
_LATE, _LATE_MS = 0.1, 50
"""A wait may be late by a tenth of the delay and 250 ms: 200 ms are left for the broker."""
_EARLIER_SLICES = 4
"""Slices of each retry's jitter range in earlier versions."""


@dataclass(frozen=True)
class Backoff:
    """The retry formula with its settings; delays are milliseconds."""

    base_ms: int
    cap_ms: int
    max_retries: int
    retry_greylisted: bool = False
    """Whether a mail that is greylisted is tried again, every `cap_ms`, until its code expires."""

    def delay_ms(self, retries_made: int, fraction: float) -> int:
        """Return the wait before the next try; `fraction` in [0, 1) is the jitter's share of its range."""
        step = self.base_ms * 2 ** min(retries_made, 63)
        return min(round(step + fraction * JITTER * step), self.cap_ms)

    @cached_property
    def retry_delays_ms(self) -> tuple[int, ...]:
        """Every wait queue's time to live, ascending; the longest is the cap or the last retry's longest delay."""
        return self._delays_ms(lambda step: math.ceil(JITTER * step / (_LATE * step + _LATE_MS)))

    @property
    def earlier_retry_delays_ms(self) -> tuple[int, ...]:
        """The retry delays of earlier versions with these settings: their wait queues may still exist."""
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
        """Every wait queue's time to live, ascending: those of the formula, and the cap where greylisting needs it."""
        return tuple(sorted({*self.retry_delays_ms, self.cap_ms})) if self.retry_greylisted else self.retry_delays_ms

    def wait_ms(self, delay_ms: int) -> int:
        """Return the shortest wait queue that is not shorter than `delay_ms` (the longest, if none is)."""
        place = bisect_left(self.waits_ms, delay_ms)
        return self.waits_ms[min(place, len(self.waits_ms) - 1)]

    def longest_wait_ms(self, limit_ms: int) -> int | None:
        """Return the longest wait that is shorter than `limit_ms`; `None` when none is."""
        place = bisect_left(self.retry_delays_ms, limit_ms)
        return self.retry_delays_ms[place - 1] if place else None
