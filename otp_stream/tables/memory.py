"""Tables in this process's memory: correct for a single worker, and lost when it exits."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Generic, NamedTuple, TypeVar

import structlog

from otp_stream.core.admission import Limit, SentBefore, Superseded, Throttled, span
from otp_stream.core.job import CLOCK_TOLERANCE_MS

from .keys import JobKeys
from .sent_records import SentRecords
from .sliding_window import EMPTY, SLICES, Window, add_job, advance, free_from, jobs_in, last_slice, slice_ms

V = TypeVar("V")

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_MAX_SKIPPED = 64
"""How many entries that should be kept are skipped in the search for an entry to evict."""
_GENERATED_IDS_LIMIT = 10_000
_IDS_LIMIT = 20_000
"""Job ids that are stored to detect the reuse of an id for another job. Only a warning depends on it."""


class Capacity:
    """The maximum number of entries in several tables together. Beyond it, the largest table evicts entries."""

    def __init__(self, limit: int, setting: str = "") -> None:
        self._limit, self._setting = limit, setting
        """`setting` is named in the log message of the first eviction. If it is empty, nothing is logged."""
        self._tables: list[BoundedTable[Any]] = []

    @property
    def evicted(self) -> int:
        """Entries evicted before they expired."""
        return sum(table.evicted for table in self._tables)

    def add(self, table: "BoundedTable[Any]") -> None:
        """Include the entries of a table."""
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
    """Values by key until they expire. The oldest are evicted first, except those for which `keep` returns true.

    If there are too many of these, one of them is evicted nevertheless, unless `always` is set.
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
        """Store a value, remove expired values, and evict values beyond the capacity."""
        values = self._values
        known = key in values
        values[key] = value
        values.move_to_end(key)
        while values and self._ends_ms(values[first := next(iter(values))]) <= now_ms:
            del values[first]
        if not known:
            self._capacity.enforce(now_ms)

    def evict(self, now_ms: int) -> bool:
        """Evict a value. Returns `False` if none may be evicted."""
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


class Newest(NamedTuple):
    """The newest code of one recipient and purpose."""

    made_ms: int
    arrival: int
    code: str
    until_ms: int


class SeenJob(NamedTuple):
    """A job that was admitted or superseded before."""

    arrival: int
    """Its number in the order of arrival."""
    made_ms: int
    """The earliest `timestamp` of its copies."""
    until_ms: int


class ExpiringText(NamedTuple):
    """A text that is valid until `until_ms`."""

    text: str
    until_ms: int


Answer = int | SentBefore | Superseded | Throttled
"""The job's number in the order of arrival if it may be sent, otherwise the reason why not."""


class MemoryTables:
    """All tables of one worker, for use without Redis and while Redis does not answer."""

    def __init__(
        self, limits: Sequence[Limit], *, sent_ttl_ms: int, sent_limit: int, entries_limit: int = 150_000
    ) -> None:
        self.sent = SentRecords(sent_ttl_ms, sent_limit)
        self.throttled: Counter[tuple[str, str]] = Counter()
        """How often jobs were throttled, by limit and key."""
        self._generated_ids = text_table(_GENERATED_IDS_LIMIT)
        """Generated ids of jobs without one, by the hash of their content."""
        self._ids = text_table(_IDS_LIMIT)
        """The latest job for each id that a producer set."""
        self._limits = limits
        self._claimed: set[str] = set()
        """Keys of the jobs in flight."""
        self._capacity = capacity = Capacity(entries_limit, "TABLES_MEMORY_LIMIT")
        self._seen: BoundedTable[SeenJob] = BoundedTable(
            capacity,
            ends_ms=lambda it: it.until_ms,
            keep=lambda key, _: key in self._claimed,
            always=True,
            name="seen",
        )
        self._newest: BoundedTable[Newest] = BoundedTable(capacity, ends_ms=lambda it: it.until_ms, name="newest")
        tables = {(limit.name, limit.period_ms): self._window_table(capacity, limit) for limit in limits}
        # several limits for one period share a window
        self._windows = {limit: tables[limit.name, limit.period_ms] for limit in limits}
        self._arrivals = count(1)

    def _window_table(self, capacity: Capacity, limit: Limit) -> BoundedTable[Window]:
        same = (it for it in self._limits if (it.name, it.period_ms) == (limit.name, limit.period_ms))
        lowest, ms = min(it.count for it in same), slice_ms(limit)
        return BoundedTable(
            capacity,
            ends_ms=lambda window: (last_slice(window) + SLICES + 1) * ms,
            # if a full window were evicted, a throttled recipient would be admitted again
            keep=lambda _, window: jobs_in(window) >= lowest,
            name=f"{limit.name} {span(limit.period_ms)}",
        )

    @property
    def evicted(self) -> int:
        """Entries evicted before they expired."""
        return self.sent.evicted + self._capacity.evicted

    @property
    def sizes(self) -> dict[str, int]:
        """Number of entries by table."""
        windows = {f"{limit.name} {limit}": len(table) for limit, table in self._windows.items()}
        return {"sent": len(self.sent), "seen": len(self._seen), "newest": len(self._newest), **windows}

    def admit(self, keys: JobKeys, now_ms: int, *, counted: bool = False) -> Answer:
        """Return whether a job may be sent. Counts it towards its limits, unless it was `counted` before."""
        if self.sent.contains(keys.key, now_ms):
            return SentBefore()
        if not keys.recipient and not keys.limits:
            return 0
        seen = self._seen.get(keys.key, now_ms)
        arrival = seen.arrival if seen else next(self._arrivals)
        made_ms = min(seen.made_ms, keys.made_ms) if seen else keys.made_ms
        until_ms = now_ms + keys.ttl_ms(now_ms)
        place = f"{keys.recipient}:{keys.purpose}"
        newest = self._newest.get(place, now_ms) if keys.recipient else None
        # a newer code may never be sent, so it supersedes only codes that expire before it
        newer = newest is None or not _is_before(made_ms, arrival, newest, now_ms) or newest.until_ms < keys.expires_ms
        if newest is not None and not newer and newest.code != keys.code:
            self._seen.put(keys.key, SeenJob(arrival, made_ms, until_ms), now_ms)
            return Superseded()
        if seen is None and not counted and (over := self._over_limit(keys, now_ms)):
            return over
        if keys.recipient and newer:
            self._newest.put(place, Newest(made_ms, arrival, keys.code, until_ms), now_ms)
        self._claimed.add(keys.key)
        self._seen.put(keys.key, SeenJob(arrival, made_ms, until_ms), now_ms)
        return arrival

    def recall(self, content: str, now_ms: int) -> str | None:
        """Return the id generated for a job with this content."""
        found = self._generated_ids.get(content, now_ms)
        return found and found.text

    def keep(self, content: str, job_id: str, now_ms: int) -> None:
        """Store the id generated for a job with this content."""
        self._generated_ids.put(content, ExpiringText(job_id, now_ms + self.sent.ttl_ms), now_ms)

    def reuses_id(self, keys: JobKeys, now_ms: int) -> bool:
        """Return whether the latest job with this id had another recipient or code, and store this job instead."""
        before = self._ids.get(keys.id_key, now_ms)
        self._ids.put(keys.id_key, ExpiringText(keys.key, now_ms + self.sent.ttl_ms), now_ms)
        return before is not None and before.text != keys.key

    def mark_sent(self, keys: JobKeys, now_ms: int) -> None:
        """Record that a job was sent, and end its claim."""
        self.sent.add(keys, now_ms)
        self._claimed.discard(keys.key)
        self._seen.drop(keys.key)

    def release(self, key: str) -> None:
        """End a claim, so that the entries of the job can be evicted."""
        self._claimed.discard(key)

    def _over_limit(self, keys: JobKeys, now_ms: int) -> Throttled | None:
        found: dict[tuple[str, int], tuple[Limit, str, Window]] = {}
        full: tuple[Limit, str] | None = None
        allowed_ms = 0
        for limit, key in zip(self._limits, keys.limits, strict=True):
            if not key:
                continue
            window = advance(self._windows[limit].get(key, now_ms) or EMPTY, now_ms // slice_ms(limit))
            if jobs_in(window) >= limit.count:
                free_ms = free_from(window, limit.count) * slice_ms(limit)
                if free_ms > allowed_ms:  # the job is allowed when all its limits have room
                    full, allowed_ms = (limit, key), free_ms
            found[limit.name, limit.period_ms] = limit, key, window
        if full is not None:
            self._count_throttled(*full)
            return Throttled(full[0], allowed_ms)
        for limit, key, window in found.values():
            self._windows[limit].put(key, add_job(window, now_ms // slice_ms(limit)), now_ms)
        return None

    def _count_throttled(self, limit: Limit, key: str) -> None:
        self.throttled[limit.name, key] += 1
        if len(self.throttled) > 1000:
            self.throttled = Counter(dict(self.throttled.most_common(500)))


def _is_before(made_ms: int, arrival: int, newest: Newest, now_ms: int) -> bool:
    """Return whether a code is older than the newest one.

    A code that was made later than now shows that the clock was set back: the order of arrival counts then, so that
    codes made since are not taken for older ones.
    """
    if made_ms != newest.made_ms and max(made_ms, newest.made_ms) <= now_ms + CLOCK_TOLERANCE_MS:
        return made_ms < newest.made_ms
    return arrival < newest.arrival


def text_table(limit: int) -> BoundedTable[ExpiringText]:
    """Return a table of texts."""
    return BoundedTable(Capacity(limit), ends_ms=lambda it: it.until_ms)
