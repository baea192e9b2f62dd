"""How long messages wait in a queue."""

from collections import deque

from .topology import Depth

_MAX_READINGS = 200
"""Maximum number of readings kept. When it is reached, new ones are dropped."""


class QueueAge:
    """The age of the oldest message in a queue, estimated without consuming it. Times are milliseconds since 1970.

    AMQP reports how many messages are ready, but not their age. A queue delivers the oldest message first, so when a
    reading finds n messages, the last of them has left the queue after n deliveries. A single consumer counts all of
    them.
    """

    def __init__(self) -> None:
        self._readings: deque[tuple[int, int]] = deque()
        """The time of a reading, and how many messages have left the queue in total when all of that reading have."""
        self._end = 0
        """That number for the latest reading, kept or not."""
        self._left = 0
        self._taken = 0

    def record(self, depth: Depth, taken: int, at_ms: int) -> None:
        """Record a reading; `taken` is the total number of deliveries to us."""
        # if fewer are ready than before, the difference has left the queue, perhaps to other consumers
        self._left = max(self._gone(taken), self._end - depth.messages)
        self._taken = taken
        self._end = self._left + depth.messages
        if depth.consumers > 1:  # the number of deliveries to the others is unknown
            self._readings.clear()
            return
        while self._readings and self._readings[0][1] <= self._left:
            self._readings.popleft()
        if depth.messages and len(self._readings) < _MAX_READINGS:
            self._readings.append((at_ms, self._end))

    def since_ms(self, taken: int) -> int | None:
        """Return the time since which a message has waited at least, or `None` if none is known to wait."""
        gone = self._gone(taken)
        return next((at_ms for at_ms, end in self._readings if end > gone), None)

    def _gone(self, taken: int) -> int:
        return self._left + taken - self._taken
