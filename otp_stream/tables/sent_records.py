"""Sent records: which jobs were sent and must not be sent again."""

from collections import deque
from itertools import islice


class SentRecords:
    """Jobs that were sent, until their records expire. Beyond `limit`, the oldest records are evicted.

    It is also a log: records are numbered, and those after a number can be read to restore Redis.
    """

    def __init__(self, ttl_ms: int, limit: int) -> None:
        self.ttl_ms = ttl_ms
        self.evicted = 0
        """Records evicted before they expired."""
        self.last_number = 0
        """The number of the latest record."""
        self._limit = limit
        self._expires_ms: dict[str, int] = {}
        # in order of insertion; finding the oldest key of a dict takes time for every key that was deleted before it
        self._order: deque[str] = deque()

    def __len__(self) -> int:
        return len(self._expires_ms)

    @property
    def last_dropped(self) -> int:
        """The number of the latest record that was dropped, because it expired or was evicted."""
        return self.last_number - len(self._order)

    def add(self, key: str, now_ms: int) -> None:
        """Record that a job was sent. A known job keeps its record and expiry."""
        self._drop(now_ms)
        if key in self._expires_ms:
            return
        self._order.append(key)
        self._expires_ms[key] = now_ms + self.ttl_ms
        self.last_number += 1
        if len(self._order) > self._limit:
            self._drop(now_ms)

    def contains(self, key: str, now_ms: int) -> bool:
        """Return whether a job has a record that has not expired."""
        return self._expires_ms.get(key, 0) > now_ms

    def after(self, number: int) -> list[tuple[str, int]]:
        """Return the records after the one with this number: key, and when it expires (milliseconds since 1970)."""
        start = number - self.last_dropped
        return [(key, self._expires_ms[key]) for key in islice(self._order, max(start, 0), None)]

    def _drop(self, now_ms: int) -> None:
        order, expires_ms = self._order, self._expires_ms
        while order and (expires_ms[order[0]] <= now_ms or len(order) > self._limit):
            self.evicted += expires_ms[order[0]] > now_ms
            del expires_ms[order.popleft()]
