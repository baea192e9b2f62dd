"""The rate of mail to one relay, and when the next mail may be sent. Pure: `now` is monotonic seconds."""

import math
from collections import deque
from collections.abc import Callable

from otp_stream.core.rate import APART_S, CHUNK_S, RECOVERY_S, Grant, floor, slope

_EARLY_S = 0.002
"""How early a slot may be used, so that the inaccuracy of timers does not add up."""
_GRAIN_S = 0.01
_LATE_S = 0.25
"""How long after its time a granted slot can be used."""
_MEASURED_S = 3.0
_MIN_MEASURED = 1.0
"""A measured rate below this is not reduced (mails per second)."""


class Rate:
    """Additive increase, multiplicative decrease below `ceiling` (mails per second; `None`: no limit).

    Slots are evenly spaced, and an unused one expires, so an idle worker collects no burst. Without a ceiling, a
    throttle sets a temporary one: the rate that the relay accepted recently. Alone, a worker has its own schedule, with
    its part of the rate (`share` returns how many workers use the relay); otherwise slots are granted.
    """

    def __init__(
        self, ceiling: float | None, *, recovery_s: float = RECOVERY_S, share: Callable[[], int] = lambda: 1
    ) -> None:
        self.ceiling = ceiling
        self.limited = ceiling is not None
        """Whether there is a limit now. An attribute, because it is read for every mail."""
        self.alone = True
        """Whether slots are on our own schedule instead of granted."""
        self.slowed = False
        """Whether the rate was below the full one at the last `update`."""
        self._recovery_s = recovery_s
        self._share = share
        self._full = self._base = ceiling or 0.0
        self._since = 0.0
        """The time from which `_base` grows; infinite while the circuit breaker is open."""
        self._decreased_at = self._last = -math.inf
        """`_last`: the scheduled time of the last used slot."""
        self._unused_since: float | None = None
        self._granted: deque[float] = deque()
        self._taken: deque[tuple[float, int]] = deque()

    def allowed(self, now: float) -> float | None:
        """Return the mails per second that all workers together may send, or `None` without a limit."""
        return self._allowed(now) if self.limited else None

    def slots(self, now: float) -> int:
        """Return how many mails may be sent now."""
        if self.alone:
            every, early = self._spacing(now)
            spare = now + early - max(self._last + every, now)
            return int(spare / every) + 1 if spare >= 0 else 0
        while self._granted and self._granted[0] < now - _LATE_S:
            self._granted.popleft()
        return sum(at <= now + _EARLY_S for at in self._granted)

    def lacking(self, now: float) -> int:
        """Return how many more connections could be used: for slots that are due, or expired for lack of one."""
        slots = self.slots(now)
        if not slots:
            return 0
        if self._unused_since is None:
            self._unused_since = now
        return slots + int((now - self._unused_since) / self._spacing(now)[0])

    def wait_s(self, now: float) -> float | None:
        """Return in how many seconds to check for a slot again, or `None` if one must be granted first."""
        every, early = self._spacing(now)
        if self.alone:
            wait = self._last + every - early - now
        elif self._granted:
            wait = self._granted[0] - now
        else:
            return None
        return max(wait, min(early / 2, _GRAIN_S))

    def use(self, now: float) -> None:
        """Use a slot."""
        self._unused_since = None
        if self.alone:
            self._last = max(self._last + self._spacing(now)[0], now)
        else:
            self._last = now
            if self._granted:
                self._granted.popleft()

    def slow(self, now: float) -> None:
        """Halve the rate, because the relay throttles."""
        if now - self._decreased_at < APART_S:
            return
        if not self.limited:
            taken = self._measured(now)
            if taken < _MIN_MEASURED:
                return
            self._full = self._base = taken
            self.limited = True
        self._decreased_at = now
        self._base = max(floor(self._full), self._allowed(now) / 2)
        self._since = now

    def update(self, now: float) -> bool:
        """Lift a temporary limit that has reached the full rate. Returns whether `slowed` has changed."""
        before = self.slowed
        # a rate that other workers stored may be rounded
        self.slowed = self.limited and self._allowed(now) < self._full * 0.999
        if self.ceiling is None and not self.slowed:
            self.limited = False
        return self.slowed != before

    def hold(self, now: float) -> None:
        """Stop raising the rate: while the circuit breaker is open, nothing shows that the relay would take more."""
        self._base, self._since = self._allowed(now), math.inf
        self._granted.clear()

    def resume(self, now: float) -> None:
        """Raise the rate again, because the circuit breaker lets mail pass."""
        self._since = min(self._since, now)

    def count(self, total: int, now: float) -> None:
        """Record the total number of mails that the relay has replied to, from which its rate is measured."""
        self._taken.append((now, total))
        while self._taken[0][0] < now - _MEASURED_S:
            self._taken.popleft()

    def slots_to_reserve(self, waiting: int, now: float) -> int:
        """Return how many slots to reserve for `waiting` jobs; 0 while enough are reserved."""
        if self._granted and self._granted[-1] > now + CHUNK_S:
            return 0
        worth = max(int(self._allowed(now) * CHUNK_S), 1)
        return min(waiting - len(self._granted), worth)

    def take(self, grant: Grant, now: float, *, newer: bool) -> None:
        """Add granted slots; `newer`: whether the grant's rate is newer than ours."""
        self.alone = False
        held = self._since == math.inf
        if newer:
            self._base, self._since = min(grant.allowed, self._full), math.inf if held else now
        if not held:
            self._granted.extend(now + grant.first_in_s + at * grant.every_s for at in range(grant.count))

    def no_grants(self) -> None:
        """Use our own schedule."""
        self.alone = True
        self._granted.clear()

    def _allowed(self, now: float) -> float:
        return min(self._full, self._base + slope(self._full, self._recovery_s) * max(now - self._since, 0.0))

    def _spacing(self, now: float) -> tuple[float, float]:
        """Return the time between two slots of our schedule, and how early a slot may be used."""
        every = max(self._share(), 1) / self._allowed(now)
        return every, max(CHUNK_S - every, _EARLY_S)

    def _measured(self, now: float) -> float:
        taken = [it for it in self._taken if it[0] >= now - _MEASURED_S]
        return (taken[-1][1] - taken[0][1]) / max(now - taken[0][0], 1.0) if taken else 0.0
