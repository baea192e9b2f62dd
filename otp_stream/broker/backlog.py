"""Since when something waits in a queue, as far as that can be known without taking it out.

AMQP tells how many messages are ready, and not how old they are. But a queue hands out first what came first: what
stood at its end at one look is gone once as many have left it. Who consumes alone knows how many those were.
"""

from collections import deque

from .topology import Depth

_LOOKS = 200
"""Looks that are remembered; while they are too many, the newest is not."""


class Backlog:
    """Looks at one queue, and what has left it since; times are milliseconds since 1970."""

    def __init__(self) -> None:
        self._looks: deque[tuple[int, int]] = deque()
        """When, and how many must have left until what was last then is gone."""
        self._end = 0
        """The same of the last look, remembered or not."""
        self._left = 0
        self._taken = 0

    def saw(self, depth: Depth, taken: int, at_ms: int) -> None:
        """Take note of a look; `taken` are the deliveries to us since the beginning."""
        # what is ready now can only be less than it was because it has left, whoever took it
        self._left = max(self._gone(taken), self._end - depth.messages)
        self._taken = taken
        self._end = self._left + depth.messages
        if depth.consumers > 1:  # how much the others take nobody tells
            self._looks.clear()
            return
        while self._looks and self._looks[0][1] <= self._left:
            self._looks.popleft()
        if depth.messages and len(self._looks) < _LOOKS:
            self._looks.append((at_ms, self._end))

    def since_ms(self, taken: int) -> int | None:
        """Return since when at least something waits; `None` where nothing is known to."""
        gone = self._gone(taken)
        return next((at_ms for at_ms, end in self._looks if end > gone), None)

    def _gone(self, taken: int) -> int:
        return self._left + taken - self._taken
