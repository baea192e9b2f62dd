"""Tables with a common limit of entries, and windows that take little memory."""

from collections import OrderedDict
from collections.abc import Callable
from struct import Struct
from typing import Any, Generic, TypeVar

import structlog

from .ask import SLICES

V = TypeVar("V")

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_PASSED_OVER = 64
"""Entries to keep that are passed over at most, to find one that may be evicted."""


class Room:
    """How many entries several tables may have together; beyond it, the largest of them evicts one."""

    def __init__(self, limit: int, setting: str = "") -> None:
        self._limit, self._setting = limit, setting
        """The setting that limits it, where the first eviction is logged."""
        self._tables: list[Table[Any]] = []

    @property
    def evicted(self) -> int:
        """How many entries were forgotten before their time."""
        return sum(table.evicted for table in self._tables)

    def add(self, table: "Table[Any]") -> None:
        """Count the entries of this table, too."""
        self._tables.append(table)

    def make(self, now_ms: int) -> None:
        """Evict what is too much."""
        while sum(map(len, self._tables)) > self._limit:
            before, largest = self.evicted, max(self._tables, key=len)
            if not largest.evict(now_ms):
                return
            if self._setting and before == 0 < self.evicted:
                _log.warning(
                    f"The tables in memory are full: entries are evicted before their time. Raise {self._setting}, or "
                    "set REDIS_URL: Redis keeps them all",
                    table=largest.name,
                    limit=self._limit,
                )


class Table(Generic[V]):
    """Key to value, for as long as it lives; the one that was put first is evicted first, but for those to `keep`.

    Where many are to be kept, one of them is evicted in the end, unless it is to be kept `always`.
    """

    def __init__(
        self,
        room: Room,
        *,
        ends_ms: Callable[[V], int],
        keep: Callable[[str, V], bool] = lambda _, __: False,
        always: bool = False,
        name: str = "",
    ) -> None:
        self.name = name
        self.evicted = 0
        """Values forgotten before their time."""
        self._ends_ms, self._keep, self._always, self._room = ends_ms, keep, always, room
        self._values: OrderedDict[str, V] = OrderedDict()
        room.add(self)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str, now_ms: int) -> V | None:
        """Return the value, unless its time is over."""
        value = self._values.get(key)
        return value if value is not None and self._ends_ms(value) > now_ms else None

    def put(self, key: str, value: V, now_ms: int) -> None:
        """Keep a value until it ends."""
        values = self._values
        known = key in values
        values[key] = value
        values.move_to_end(key)
        while values and self._ends_ms(values[first := next(iter(values))]) <= now_ms:
            del values[first]
        if not known:
            self._room.make(now_ms)

    def evict(self, now_ms: int) -> bool:
        """Forget one value; returns whether there was one to forget."""
        values = self._values
        for _ in range(len(values) if self._always else min(_PASSED_OVER, len(values) - 1)):
            first = next(iter(values))
            if self._ends_ms(values[first]) <= now_ms or not self._keep(first, values[first]):
                break
            values.move_to_end(first)
        else:
            if self._always:
                return False
        _, value = values.popitem(last=False)
        self.evicted += self._ends_ms(value) > now_ms
        return True

    def drop(self, key: str) -> None:
        """Forget a value."""
        self._values.pop(key, None)


Window = bytes
"""How many jobs of one key came in which slice: their sum, then slices with their counts in the order of time.

There is a window for each recipient, and most hold one job: as bytes that takes 64, as objects it would take 400.
"""

EMPTY: Window = bytes(4)
_SUM, _SLICE = Struct("<I"), Struct("<QI")


def jobs_in(window: Window) -> int:
    """Return how many jobs a window holds."""
    return _SUM.unpack_from(window)[0]


def slid(window: Window, slice_: int) -> Window:
    """Return the window whose last slice is this one: without what has left it."""
    start, total = _SUM.size, jobs_in(window)
    while start < len(window):
        at, jobs = _SLICE.unpack_from(window, start)
        if at >= slice_ - SLICES:
            break
        start, total = start + _SLICE.size, total - jobs
    return window if start == _SUM.size else _SUM.pack(total) + window[start:]


def with_one_more(window: Window, slice_: int) -> Window:
    """Return the window with one job more in its last slice."""
    total, before, jobs = jobs_in(window), window[_SUM.size :], 0
    if before:
        last, in_last = _SLICE.unpack_from(before, len(before) - _SLICE.size)
        # a clock that was set back counts in the slice that it has reached before
        if last >= slice_:
            before, slice_, jobs = before[: -_SLICE.size], last, in_last
    return _SUM.pack(total + 1) + before + _SLICE.pack(slice_, jobs + 1)


def last_slice(window: Window) -> int:
    """Return the last slice that has jobs; there must be one."""
    return _SLICE.unpack_from(window, len(window) - _SLICE.size)[0]


def room_from(window: Window, most: int) -> int:
    """Return the slice from which on one more has room, in a window that is full."""
    over = jobs_in(window) - most + 1
    for slice_, jobs in _SLICE.iter_unpack(window[_SUM.size :]):
        over -= jobs
        if over <= 0:
            return slice_ + SLICES + 1
    raise AssertionError("a window that is not full has room at once")
