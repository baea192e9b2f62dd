"""How long each step of a send usually takes at one relay, and how long to wait for it. Pure: `now` is in seconds."""

from bisect import bisect_left
from typing import Literal

Step = Literal["connect", "envelope", "content"]
"""A connection with TLS and login; MAIL to the reply to DATA; the final dot to its reply."""

SHORTEST_S = 2.0
"""A person waits: a faster step is never slow."""
LONGEST_S = 10.0
"""A longer step is always slow, whatever the relay usually takes."""
_TIMES = 4
"""A step is slow if it takes this many times the usual 95th percentile."""
_BOUNDS_S = (SHORTEST_S / _TIMES, 0.7, 1.0, 1.4, 2.0)
"""Upper bounds of the buckets. Below and above them, the wait does not depend on the time."""
_LEARN_FROM = 50
_LEARN_EVERY_S = 3_600.0


class StepTime:
    """The times of one step, in buckets. Older ones count half with each hour, so a fault does not become usual."""

    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s
        """How long to wait for this step before it counts as slow."""
        self.usual_s = patience_s / _TIMES
        """The 95th percentile, or a little more."""
        self._counts = [0] * (len(_BOUNDS_S) + 1)
        self._total = 0
        self._learn_at = 0.0

    def add(self, took_s: float, now: float) -> None:
        """Add the time of a step that is complete."""
        self._counts[bisect_left(_BOUNDS_S, took_s)] += 1
        self._total += 1
        if self._total >= _LEARN_FROM and now >= self._learn_at:
            self._learn(now)

    def _learn(self, now: float) -> None:
        left = self._total * 0.95
        usual_s = LONGEST_S / _TIMES
        for bound, count in zip(_BOUNDS_S, self._counts, strict=False):
            left -= count
            if left <= 0:
                usual_s = bound
                break
        self.usual_s, self.patience_s = usual_s, _TIMES * usual_s
        self._counts = [count // 2 for count in self._counts]
        self._total = sum(self._counts)
        self._learn_at = now + _LEARN_EVERY_S


class StepTimes:
    """The times of the steps at one relay.

    A step before the content may be ended at any time, so it is waited for briefly from the start. The reply to the
    content has to be awaited, and some relays check each mail for seconds: what is slow there is learned first.
    """

    def __init__(self) -> None:
        self.connect = StepTime(SHORTEST_S)
        self.envelope = StepTime(SHORTEST_S)
        self.content = StepTime(LONGEST_S)
