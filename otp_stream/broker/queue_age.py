"""The age of the oldest message in a queue, estimated without consuming it.

AMQP reports how many messages are ready, but not their age. A queue delivers the oldest message first: the message that
was last in it at one reading has left it once that many have been delivered. A single consumer knows how many.
"""

from collections import deque

from .topology import Depth

_LOOKS = 200
"""Maximum number of readings kept; beyond it, the newest is dropped."""


class QueueAge:
    """Readings of one queue's depth, and how many messages have left it since. Times are milliseconds since 1970."""

    def __init__(self) -> None:
        self._looks: deque[tuple[int, int]] = deque()
        """When, and how many messages must have left the queue until the one that was last then has left it."""
        self._end = 0
        """The second number of the latest reading, kept or not."""
        self._left = 0
        self._taken = 0

    def saw(self, depth: Depth, taken: int, at_ms: int) -> None:
        """Record a reading; `taken` is the total number of deliveries to us."""
        # if fewer are ready than before, the difference has left the queue, also to other consumers
        self._left = max(self._gone(taken), self._end - depth.messages)
        self._taken = taken
        self._end = self._left + depth.messages
        if depth.consumers > 1:  # the number of deliveries to the others is unknown
            self._looks.clear()
            return
        while self._looks and self._looks[0][1] <= self._left:
            self._looks.popleft()
        if depth.messages and len(self._looks) < _LOOKS:
            self._looks.append((at_ms, self._end))

    def since_ms(self, taken: int) -> int | None:
        """Return since when a message has waited at least; `None` if none is known to wait."""
        gone = self._gone(taken)
        return next((at_ms for at_ms, end in self._looks if end > gone), None)

    def _gone(self, taken: int) -> int:
        return self._left + taken - self._taken
