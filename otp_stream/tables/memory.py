"""Tables in this process's memory: right for one worker, forgotten at its end."""

from collections import Counter, deque
from collections.abc import Sequence
from itertools import count, islice
from typing import NamedTuple

from otp_stream.core.admission import Limit, SentBefore, Superseded, Throttled, span

from .ask import SLICES, Ask, slice_ms
from .bounded import EMPTY, Room, Table, Window, jobs_in, last_slice, room_from, slid, with_one_more

_MADE_LIMIT = 10_000
_IDS_LIMIT = 20_000
"""Ids whose use for another job is noticed: only a warning depends on it."""


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


class Newest(NamedTuple):
    """The newest code of one recipient and purpose."""

    made_ms: int
    arrival: int
    code: str
    until_ms: int


class Arrived(NamedTuple):
    """A job's number in the order of arrival, and when it was made as it was first told."""

    arrival: int
    made_ms: int
    until_ms: int


class Text(NamedTuple):
    """A text with its end."""

    text: str
    until_ms: int


Answer = int | SentBefore | Superseded | Throttled
"""The job's number in the order of arrival, where it may be sent; or why it may not."""


class MemoryTables:
    """All tables of one worker, or of one that cannot reach the shared ones."""

    def __init__(
        self, limits: Sequence[Limit], *, sent_ttl_ms: int, sent_limit: int, entries_limit: int = 150_000
    ) -> None:
        self.marks = Marks(sent_ttl_ms, sent_limit)
        self.throttled: Counter[tuple[str, str]] = Counter()
        """What was over a limit, by limit and key."""
        self._made = _texts(_MADE_LIMIT)
        """Ids made for jobs that have nothing but their content, by its hash."""
        self._ids = _texts(_IDS_LIMIT)
        """The last job with each id that a producer gave."""
        self._limits = limits
        self._claimed: set[str] = set()
        """Jobs in hand."""
        self._room = room = Room(entries_limit, "TABLES_MEMORY_LIMIT")
        self._seen: Table[Arrived] = Table(
            room, ends_ms=lambda it: it.until_ms, keep=lambda key, _: key in self._claimed, always=True, name="seen"
        )
        self._newest: Table[Newest] = Table(room, ends_ms=lambda it: it.until_ms, name="newest")
        tables = {(limit.name, limit.period_ms): self._window_table(room, limit) for limit in limits}
        # several limits for one period look at the same window
        self._windows = {limit: tables[limit.name, limit.period_ms] for limit in limits}
        self._arrivals = count(1)

    def _window_table(self, room: Room, limit: Limit) -> Table[Window]:
        same = (it for it in self._limits if (it.name, it.period_ms) == (limit.name, limit.period_ms))
        least, ms = min(it.count for it in same), slice_ms(limit)
        return Table(
            room,
            ends_ms=lambda window: (last_slice(window) + SLICES + 1) * ms,
            # who is throttled would be admitted again without the window that is full
            keep=lambda _, window: jobs_in(window) >= least,
            name=f"{limit.name} {span(limit.period_ms)}",
        )

    @property
    def evicted(self) -> int:
        """How many entries were forgotten before their time."""
        return self.marks.evicted + self._room.evicted

    @property
    def sizes(self) -> dict[str, int]:
        """How many entries each table has."""
        windows = {f"{limit.name} {limit}": len(table) for limit, table in self._windows.items()}
        return {"sent": len(self.marks), "seen": len(self._seen), "newest": len(self._newest), **windows}

    def admit(self, ask: Ask, now_ms: int, *, counted: bool = False) -> Answer:
        """Say whether a job may be sent, and count it; a job that was `counted`, here or before, is not again."""
        if self.marks.knows(ask.key, now_ms):
            return SentBefore()
        if not ask.recipient and not ask.limits:
            return 0
        seen = self._seen.get(ask.key, now_ms)
        arrival = seen.arrival if seen else next(self._arrivals)
        made_ms = min(seen.made_ms, ask.made_ms) if seen else ask.made_ms
        until_ms = now_ms + ask.ttl_ms(now_ms)
        place = f"{ask.recipient}:{ask.purpose}"
        newest = self._newest.get(place, now_ms) if ask.recipient else None
        # a newer code that is gone long before this one may never be sent: it supersedes only what it outlives
        newer = (
            newest is None or (made_ms, arrival) >= (newest.made_ms, newest.arrival) or newest.until_ms < ask.expires_ms
        )
        if newest is not None and not newer and newest.code != ask.code:
            self._seen.put(ask.key, Arrived(arrival, made_ms, until_ms), now_ms)
            return Superseded()
        if seen is None and not counted and (over := self._over(ask, now_ms)):
            return over
        if ask.recipient and newer:
            self._newest.put(place, Newest(made_ms, arrival, ask.code, until_ms), now_ms)
        self._claimed.add(ask.key)
        self._seen.put(ask.key, Arrived(arrival, made_ms, until_ms), now_ms)
        return arrival

    def recall(self, content: str, now_ms: int) -> str | None:
        """Return the id made for a job with this content."""
        found = self._made.get(content, now_ms)
        return found and found.text

    def keep(self, content: str, job_id: str, now_ms: int) -> None:
        """Remember the id made for a job."""
        self._made.put(content, Text(job_id, now_ms + self.marks.ttl_ms), now_ms)

    def reuses_id(self, ask: Ask, now_ms: int) -> bool:
        """Whether the last job with this id had another recipient or code."""
        before = self._ids.get(ask.id_key, now_ms)
        self._ids.put(ask.id_key, Text(ask.key, now_ms + self.marks.ttl_ms), now_ms)
        return before is not None and before.text != ask.key

    def mark(self, key: str, now_ms: int) -> None:
        """Remember that a job was sent."""
        self.marks.add(key, now_ms)
        self._claimed.discard(key)
        self._seen.drop(key)

    def release(self, key: str) -> None:
        """Take note that a job is no longer in hand."""
        self._claimed.discard(key)

    def _over(self, ask: Ask, now_ms: int) -> Throttled | None:
        found: dict[tuple[str, int], tuple[Limit, str, Window]] = {}
        full: tuple[Limit, str] | None = None
        allowed_ms = 0
        for limit, key in zip(self._limits, ask.limits, strict=True):
            if not key:
                continue
            window = slid(self._windows[limit].get(key, now_ms) or EMPTY, now_ms // slice_ms(limit))
            if jobs_in(window) >= limit.count:
                room_ms = room_from(window, limit.count) * slice_ms(limit)
                if room_ms > allowed_ms:  # it is allowed when the last of them has room
                    full, allowed_ms = (limit, key), room_ms
            found[limit.name, limit.period_ms] = limit, key, window
        if full is not None:
            self._blame(*full)
            return Throttled(full[0], allowed_ms)
        for limit, key, window in found.values():
            self._windows[limit].put(key, with_one_more(window, now_ms // slice_ms(limit)), now_ms)
        return None

    def _blame(self, limit: Limit, key: str) -> None:
        self.throttled[limit.name, key] += 1
        if len(self.throttled) > 1000:
            self.throttled = Counter(dict(self.throttled.most_common(500)))


def _texts(limit: int) -> Table[Text]:
    return Table(Room(limit), ends_ms=lambda it: it.until_ms)
