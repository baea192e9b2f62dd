"""Sent records: which jobs were sent and must not be sent again."""

import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile
from operator import itemgetter
from typing import NamedTuple

from .keys import JobKeys


class SentRecord(NamedTuple):
    """A job that was sent."""

    number: int
    """Its place in the order in which jobs were sent; the first is 1."""
    key: str
    expires_ms: int
    """Milliseconds since 1970."""


_NUMBER_BITS = 48
_NUMBER = (1 << _NUMBER_BITS) - 1


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
        self._records: dict[str, int] = {}
        """Expiry and number of each record, in one integer: a tuple would take half as much memory again."""
        # in order of insertion; finding the oldest key of a dict takes time for every key that was deleted before it
        self._order: deque[str] = deque()
        """Empty in place of a record that lives longer than `ttl_ms`."""
        self._longer: deque[tuple[int, str]] = deque()
        """Number and key of records that live longer. One that has expired stays until those before it have, too.

        A job that is sent again then, or after the clock was set back, has an outdated place here or in `_order`.
        """

    def __len__(self) -> int:
        return len(self._records)

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
        self.last_number += 1
        self._records[key] = (now_ms + lifetime_ms) << _NUMBER_BITS | self.last_number
        if lifetime_ms > self.ttl_ms:
            self._order.append("")
            self._longer.append((self.last_number, key))
            if len(self._longer) > 2 * self._limit:  # many are outdated
                self._longer = deque(it for it in self._longer if self._expiry_ms(*it))
        else:
            self._order.append(key)
        if len(self) > self._limit:
            self._drop(now_ms)

    def contains(self, key: str, now_ms: int) -> bool:
        """Return whether a job has a record that has not expired."""
        return self._records.get(key, 0) >> _NUMBER_BITS > now_ms

    def after(self, number: int, most: int = sys.maxsize) -> list[SentRecord]:
        """Return `most` records after the one with this number, the oldest first."""
        longer = self._longer
        first = bisect_right(longer, number, key=itemgetter(0))
        found = list(islice(self._current(islice(longer, first, None)), most))
        start = max(number, self._last_dropped)
        usual = enumerate(islice(self._order, start - self._last_dropped, None), start + 1)
        if len(found) == most:
            last = found[-1].number  # no later one is returned
            usual = takewhile(lambda it: it[0] < last, usual)
        found += islice(self._current(usual), most)
        return sorted(found)[:most]

    def _current(self, places: Iterable[tuple[int, str]]) -> Iterator[SentRecord]:
        for place in places:
            if expires_ms := self._expiry_ms(*place):
                yield SentRecord(*place, expires_ms)

    def _expiry_ms(self, number: int, key: str) -> int:
        """Return when the record expires that has this place, or 0 if the place is outdated."""
        record = self._records.get(key, 0)
        return record >> _NUMBER_BITS if record & _NUMBER == number else 0

    def _drop(self, now_ms: int) -> None:
        order, longer, records = self._order, self._longer, self._records
        while longer and (expires_ms := self._expiry_ms(*longer[0])) <= now_ms:
            _, key = longer.popleft()
            if expires_ms:
                del records[key]
        while order and (expires_ms := self._expiry_ms(self._last_dropped + 1, order[0])) <= now_ms:
            key = order.popleft()
            if expires_ms:
                del records[key]
        while len(records) > self._limit:
            expires_ms, key = self._pop_oldest()
            if expires_ms:
                del records[key]
                self.evicted += expires_ms > now_ms

    def _pop_oldest(self) -> tuple[int, str]:
        """Remove the oldest place, and return its expiry, 0 if it is outdated, and its key."""
        order, longer = self._order, self._longer
        while order and not order[0]:
            order.popleft()
        if longer and longer[0][0] <= self._last_dropped:
            place = longer.popleft()
        else:
            place = self._last_dropped + 1, order.popleft()
        return self._expiry_ms(*place), place[1]
