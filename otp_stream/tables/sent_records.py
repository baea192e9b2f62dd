"""Sent records: which jobs were sent and must not be sent again."""

from collections import deque
from itertools import islice
from typing import NamedTuple

from .keys import JobKeys


class SentRecord(NamedTuple):
    """A job that was sent."""

    number: int
    """Its place in the order in which jobs were sent; the first is 1."""
    key: str
    expires_ms: int
    """Milliseconds since 1970."""


class SentRecords:
    """Jobs that were sent, until their records expire. Beyond `limit`, the oldest records are evicted.

    A record lives for `ttl_ms`, or as long as the code of its job, if that is longer. It is also a log: records are
    numbered, and those after a number can be read to restore Redis.
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
        """Empty in place of a record that lives longer than `ttl_ms`, or that was added again."""
        self._longer: deque[tuple[int, str]] = deque()
        """Number and key of records that live longer. One that has expired stays until those before it have, too."""

    def __len__(self) -> int:
        return len(self._expires_ms)

    @property
    def _last_dropped(self) -> int:
        """The number of the latest record that is no longer in `_order`."""
        return self.last_number - len(self._order)

    def lifetime_ms(self, keys: JobKeys, now_ms: int) -> int:
        """Return how long the record of a job lives that is sent now."""
        return max(self.ttl_ms, keys.ttl_ms(now_ms))

    def add(self, keys: JobKeys, now_ms: int) -> None:
        """Record that a job was sent. A known job keeps its record and expiry."""
        self._drop(now_ms)
        key, lifetime_ms = keys.key, self.lifetime_ms(keys, now_ms)
        if self.contains(key, now_ms):
            return
        if key in self._expires_ms:  # it has expired, but one before it has not
            self._remove_place(key)
        self._expires_ms[key] = now_ms + lifetime_ms
        self.last_number += 1
        if lifetime_ms > self.ttl_ms:
            self._order.append("")
            self._longer.append((self.last_number, key))
        else:
            self._order.append(key)
        if len(self) > self._limit:
            self._drop(now_ms)

    def contains(self, key: str, now_ms: int) -> bool:
        """Return whether a job has a record that has not expired."""
        return self._expires_ms.get(key, 0) > now_ms

    def after(self, number: int) -> list[SentRecord]:
        """Return the records after the one with this number, the oldest first."""
        start = max(number, self._last_dropped)
        usual = enumerate(islice(self._order, start - self._last_dropped, None), start + 1)
        numbered = sorted([*(it for it in self._longer if it[0] > number), *usual])
        return [SentRecord(*it, self._expires_ms[it[1]]) for it in numbered if it[1] in self._expires_ms]

    def _remove_place(self, key: str) -> None:
        longer = deque(it for it in self._longer if it[1] != key)
        if len(longer) == len(self._longer):  # the clock was set back, and the one before it was added earlier
            self._order = deque("" if it == key else it for it in self._order)
        self._longer = longer

    def _drop(self, now_ms: int) -> None:
        order, longer, expires_ms = self._order, self._longer, self._expires_ms
        while longer and expires_ms[longer[0][1]] <= now_ms:
            del expires_ms[longer.popleft()[1]]
        while order and expires_ms.get(order[0], 0) <= now_ms:
            expires_ms.pop(order.popleft(), None)
        while len(expires_ms) > self._limit:
            self.evicted += expires_ms.pop(self._pop_oldest(), 0) > now_ms

    def _pop_oldest(self) -> str:
        order, longer = self._order, self._longer
        while order and not order[0]:
            order.popleft()
        if longer and longer[0][0] <= self._last_dropped:
            return longer.popleft()[1]
        return order.popleft()
