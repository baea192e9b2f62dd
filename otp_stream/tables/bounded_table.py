"""Tables in memory that share a maximum number of entries."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import structlog

V = TypeVar("V")

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_MAX_SKIPPED = 64
"""Maximum number of entries to skip, because they should be kept, when looking for one to evict."""


class Capacity:
    """The number of entries that several tables may hold together; beyond it, the largest table evicts."""

    def __init__(self, limit: int, setting: str = "") -> None:
        self._limit, self._setting = limit, setting
        """`setting` names the limit in the log message of the first eviction; empty logs nothing."""
        self._tables: list[BoundedTable[Any]] = []

    @property
    def evicted(self) -> int:
        """Entries evicted before they expired."""
        return sum(table.evicted for table in self._tables)

    def add(self, table: "BoundedTable[Any]") -> None:
        """Count the entries of this table, too."""
        self._tables.append(table)

    def enforce(self, now_ms: int) -> None:
        """Evict entries until the tables are within the limit."""
        while sum(map(len, self._tables)) > self._limit:
            before, largest = self.evicted, max(self._tables, key=len)
            if not largest.evict(now_ms):
                return
            if self._setting and before == 0 < self.evicted:
                _log.warning(
                    f"The tables in memory are full: entries are evicted before they expire. Raise {self._setting}, or "
                    "set REDIS_URL: Redis keeps all entries",
                    table=largest.name,
                    limit=self._limit,
                )


class BoundedTable(Generic[V]):
    """Values by key until they expire. The oldest are evicted first, except those to `keep`.

    If many are to be kept, one of them is evicted in the end, unless they must `always` be kept.
    """

    def __init__(
        self,
        capacity: Capacity,
        *,
        ends_ms: Callable[[V], int],
        keep: Callable[[str, V], bool] = lambda _, __: False,
        always: bool = False,
        name: str = "",
    ) -> None:
        self.name = name
        self.evicted = 0
        """Values evicted before they expired."""
        self._ends_ms, self._keep, self._always, self._capacity = ends_ms, keep, always, capacity
        self._values: OrderedDict[str, V] = OrderedDict()
        capacity.add(self)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str, now_ms: int) -> V | None:
        """Return the value, unless it has expired."""
        value = self._values.get(key)
        return value if value is not None and self._ends_ms(value) > now_ms else None

    def put(self, key: str, value: V, now_ms: int) -> None:
        """Store a value, drop what has expired, and evict what exceeds the capacity."""
        values = self._values
        known = key in values
        values[key] = value
        values.move_to_end(key)
        while values and self._ends_ms(values[first := next(iter(values))]) <= now_ms:
            del values[first]
        if not known:
            self._capacity.enforce(now_ms)

    def evict(self, now_ms: int) -> bool:
        """Evict one value; returns whether there was one that could be evicted."""
        values = self._values
        for _ in range(len(values) if self._always else min(_MAX_SKIPPED, len(values) - 1)):
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
        """Remove a value without counting it as evicted."""
        self._values.pop(key, None)
