"""Tables in this process's memory: right for one worker, forgotten at its end."""

from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Generic, TypeVar

from otp_stream.core.admission import Limit, SentBefore, Superseded, Throttled

from .ask import SLICES, Ask, slice_ms

V = TypeVar("V")

_OTHERS_LIMIT = 100_000
"""Entries of each table but that of sent marks: keys of recipients, domains and tenants, as long as their windows."""

_MADE_LIMIT = 10_000


class Marks:
    """Jobs that were sent, for as long as they may not be sent again; the oldest give way beyond `limit`.

    It is a log, too: each mark has a number, and what came after a number can be read again.
    """

    def __init__(self, ttl_ms: int, limit: int) -> None:
        self.ttl_ms = ttl_ms
        self.evicted = 0
        """Marks forgotten before their time."""
        self.written = 0
        """The number of the last mark."""
        self._limit = limit
        self._until: dict[str, int] = {}
        # in the order of marking; asking a dict for its oldest key costs as much as was deleted before it
        self._order: deque[str] = deque()

    def __len__(self) -> int:
        return len(self._until)

    @property
    def gone(self) -> int:
        """The number of the last mark that is forgotten."""
        return self.written - len(self._order)

    def add(self, key: str, now_ms: int) -> None:
        """Remember that a job was sent."""
        self._forget(now_ms)
        if key in self._until:
            return
        self._order.append(key)
        self._until[key] = now_ms + self.ttl_ms
        self.written += 1
        if len(self._order) > self._limit:
            self._forget(now_ms)

    def knows(self, key: str, now_ms: int) -> bool:
        """Whether a job was sent."""
        return self._until.get(key, 0) > now_ms

    def since(self, number: int) -> list[tuple[str, int]]:
        """Return the marks after the one with this number, and until when each holds (milliseconds since 1970)."""
        start = number - self.gone
        return [(key, self._until[key]) for key in islice(self._order, max(start, 0), None)]

    def _forget(self, now_ms: int) -> None:
        order, until = self._order, self._until
        while order and (until[order[0]] <= now_ms or len(order) > self._limit):
            self.evicted += until[order[0]] > now_ms
            del until[order.popleft()]


class Table(Generic[V]):
    """Key to value with a time to live; bounded, the one that was put first gives way."""

    def __init__(self, limit: int = _OTHERS_LIMIT) -> None:
        self.evicted = 0
        """Values forgotten before their time."""
        self._limit = limit
        self._values: OrderedDict[str, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str, now_ms: int) -> V | None:
        """Return the value, unless its time is over."""
        value, until_ms = self._values.get(key, (None, 0))
        return value if until_ms > now_ms else None

    def put(self, key: str, value: V, until_ms: int, now_ms: int) -> None:
        """Keep a value up to then (milliseconds since 1970)."""
        values = self._values
        values[key] = value, until_ms
        values.move_to_end(key)
        while values:
            first = next(iter(values))
            alive = values[first][1] > now_ms
            if alive and len(values) <= self._limit:
                break
            self.evicted += alive
            del values[first]

    def drop(self, key: str) -> None:
        """Forget a value."""
        self._values.pop(key, None)


@dataclass(slots=True)
class Window:
    """How many jobs of one key came in which slice."""

    total: int = 0
    slices: dict[int, int] = field(default_factory=dict[int, int])
    """In the order of time."""

    def slide(self, slice_: int) -> None:
        """Forget what has left the window when this slice is the last."""
        while self.slices and (first := next(iter(self.slices))) < slice_ - SLICES:
            self.total -= self.slices.pop(first)

    def add(self, slice_: int) -> None:
        """Count one job."""
        self.slices[slice_] = self.slices.get(slice_, 0) + 1
        self.total += 1

    def room_from(self, most: int) -> int:
        """Return the slice from which on one more has room, in a window that is full."""
        over = self.total - most + 1
        for slice_, jobs in self.slices.items():
            over -= jobs
            if over <= 0:
                return slice_ + SLICES + 1
        raise AssertionError("a window that is not full has room at once")


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest code of one recipient and purpose."""

    made_ms: int
    arrival: int
    code: str


Answer = int | SentBefore | Superseded | Throttled
"""The job's number in the order of arrival, where it may be sent; or why it may not."""


class MemoryTables:
    """All tables of one worker, or of one that cannot reach the shared ones."""

    def __init__(self, limits: Sequence[Limit], *, sent_ttl_ms: int, sent_limit: int) -> None:
        self.marks = Marks(sent_ttl_ms, sent_limit)
        self.throttled: Counter[tuple[str, str]] = Counter()
        """What was over a limit, by limit and key."""
        self.made: Table[str] = Table(_MADE_LIMIT)
        """Ids made for jobs that have nothing but their content, by its hash."""
        self._limits = limits
        self._seen: Table[tuple[int, int]] = Table()
        """Numbers in the order of arrival, and when the jobs were made as it was first told."""
        self._newest: Table[Newest] = Table()
        tables: dict[tuple[str, int], Table[Window]] = {(limit.name, limit.period_ms): Table() for limit in limits}
        # several limits for one period look at the same window
        self._windows = {limit: tables[limit.name, limit.period_ms] for limit in limits}
        self._arrivals = count(1)

    @property
    def evicted(self) -> int:
        """How many entries were forgotten before their time."""
        others = (self._seen, self._newest, *{id(table): table for table in self._windows.values()}.values())
        return self.marks.evicted + sum(table.evicted for table in others)

    @property
    def sizes(self) -> dict[str, int]:
        """How many entries each table has."""
        windows = {f"{limit.name} {limit}": len(table) for limit, table in self._windows.items()}
        return {"sent": len(self.marks), "newest": len(self._newest), **windows}

    def admit(self, ask: Ask, now_ms: int, *, counted: bool = False) -> Answer:
        """Say whether a job may be sent, and count it; a job that was `counted`, here or before, is not again."""
        if self.marks.knows(ask.key, now_ms):
            return SentBefore()
        if not ask.recipient and not ask.limits:
            return 0
        seen = self._seen.get(ask.key, now_ms)
        arrival, made_ms = seen or (next(self._arrivals), ask.made_ms)
        made_ms = min(made_ms, ask.made_ms)
        until_ms = now_ms + ask.ttl_ms
        place = f"{ask.recipient}:{ask.purpose}"
        newest = self._newest.get(place, now_ms) if ask.recipient else None
        newer = newest is None or (made_ms, arrival) >= (newest.made_ms, newest.arrival)
        if newest is not None and not newer and newest.code != ask.code:
            self._seen.put(ask.key, (arrival, made_ms), until_ms, now_ms)
            return Superseded()
        if seen is None and not counted and (over := self._over(ask, now_ms)):
            return over
        if ask.recipient and newer:
            self._newest.put(place, Newest(made_ms, arrival, ask.code), until_ms, now_ms)
        self._seen.put(ask.key, (arrival, made_ms), until_ms, now_ms)
        return arrival

    def mark(self, key: str, now_ms: int) -> None:
        """Remember that a job was sent."""
        self.marks.add(key, now_ms)
        self._seen.drop(key)

    def _over(self, ask: Ask, now_ms: int) -> Throttled | None:
        found: dict[tuple[str, int], tuple[Limit, str, Window]] = {}
        full: tuple[Limit, str] | None = None
        allowed_ms = 0
        for limit, key in zip(self._limits, ask.limits, strict=True):
            if not key:
                continue
            window = self._windows[limit].get(key, now_ms) or Window()
            window.slide(now_ms // slice_ms(limit))
            if window.total >= limit.count:
                room_ms = window.room_from(limit.count) * slice_ms(limit)
                if room_ms > allowed_ms:  # it is allowed when the last of them has room
                    full, allowed_ms = (limit, key), room_ms
            found[limit.name, limit.period_ms] = limit, key, window
        if full is not None:
            self._blame(*full)
            return Throttled(full[0], allowed_ms)
        for limit, key, window in found.values():
            window.add(now_ms // slice_ms(limit))
            self._windows[limit].put(key, window, now_ms + (SLICES + 1) * slice_ms(limit), now_ms)
        return None

    def _blame(self, limit: Limit, key: str) -> None:
        self.throttled[limit.name, key] += 1
        if len(self.throttled) > 1000:
            self.throttled = Counter(dict(self.throttled.most_common(500)))
