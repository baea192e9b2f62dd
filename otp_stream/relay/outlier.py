"""Decides how many first tries a relay gets, from how many of its last sends were slow. Pure: `now` is in seconds."""

import math

_LESS, _MORE = 0.4, 1.15
"""Factors of the share after a slow send and after another one: it falls if more than one in eight is slow."""
_LEAST = 0.005
"""The share never falls below: one first try in two hundred shows whether the relay is fast again."""
FORGET_S = 600.0
"""After this time without a send, nothing is known."""


class OutlierDetector:
    """The share of first tries that a relay gets: all of them, unless it is an outlier.

    It is one if more than the `tolerated` share of its last `size` sends were slow; fewer than `least` sends count as
    `least`. From then on each slow send reduces the share to 40 %, and each other one raises it again by 15 %.
    """

    def __init__(self, size: int = 50, *, least: int = 20, tolerated: float = 0.1) -> None:
        self.share = 1.0
        """The share of first tries, in (0, 1]."""
        self.sends = 0
        """Recorded sends, at most `size`."""
        self._size, self._least, self._tolerated = size, least, tolerated
        self._slow = 0  # one bit for each send, the last one lowest
        self._credit = 0.0
        self._last_at = -math.inf

    @property
    def is_outlier(self) -> bool:
        """Whether the relay gets only a share of the first tries."""
        return self.share < 1

    @property
    def slow_sends(self) -> int:
        """How many of the recorded sends were slow."""
        return self._slow.bit_count()

    def record(self, now: float, *, slow: bool) -> None:
        """Record a send."""
        self._last_at = now
        self._slow = (self._slow << 1 | slow) & ((1 << self._size) - 1)
        self.sends = min(self.sends + 1, self._size)
        if not slow:
            self.share = min(self.share * _MORE, 1.0)
        elif self.slow_sends > self._tolerated * max(self.sends, self._least):
            self.share = max(self.share * _LESS, _LEAST)

    def expire(self, now: float) -> bool:
        """Forget everything if the last send is long ago. Returns whether nothing is known."""
        if now - self._last_at > FORGET_S:
            self._slow, self.sends, self.share, self._credit = 0, 0, 1.0, 0.0
        return not self.sends

    def may_try(self, now: float, every_s: float) -> bool:
        """Return whether an outlier gets the next first try: by its share, or `every_s` after a slow send.

        After another send, a tenth of that time is enough.
        """
        return self._credit >= 1 or now - self._last_at >= (every_s if self._slow & 1 else every_s / 10)

    def tried(self, now: float) -> None:
        """Record that it gets a first try."""
        self._credit = max(self._credit - 1, 0.0)
        self._last_at = now

    def passed_over(self) -> None:
        """Record that another relay gets a first try."""
        self._credit = min(self._credit + self.share, 1.0)
