"""The queue of jobs that wait for a connection, most urgent first. Synchronous, without I/O."""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from .pending_send import PendingSend

_MAX_REMOVED = 64
"""So many more entries of removed jobs than of others may stay before they are dropped."""
RANKS = 4
URGENT = 2
"""Ranks below this one (the high lane and `high`) may use every connection."""
_TURN = 4
"""One of so many jobs is of a tenant that has none of the most urgent rank, so that no tenant can keep all others
waiting by urgent jobs alone."""


_Heap = list[tuple[int, int, PendingSend]]


@dataclass(frozen=True, slots=True)
class Tenants:
    """These tenants, or all `others`."""

    names: frozenset[str]
    others: bool = False

    def __contains__(self, name: str) -> bool:
        return (name in self.names) != self.others


class _Share:
    """The jobs of one tenant and rank: `fresh` ones, and those of the lane `due`."""

    __slots__ = ("due", "due_next", "fresh", "removed", "tenant")

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.fresh: _Heap = []
        self.due: _Heap = []
        self.due_next = False
        self.removed = 0
        """Entries of removed jobs."""

    @property
    def count(self) -> int:
        """The number of jobs."""
        return len(self.fresh) + len(self.due) - self.removed

    def waiting(self) -> Iterator[PendingSend]:
        """Return the jobs, in no order."""
        return (entry[2] for heap in (self.fresh, self.due) for entry in heap if entry[2].waiting)

    def skip_removed(self) -> None:
        """Drop the entries of removed jobs until each lane begins with a job."""
        for heap in (self.fresh, self.due):
            while heap and not heap[0][2].waiting:
                heappop(heap)
                self.removed -= 1

    def compact(self) -> None:
        """Drop all entries of removed jobs."""
        for heap in (self.fresh, self.due):
            heap[:] = [entry for entry in heap if entry[2].waiting]
            heapify(heap)
        self.removed = 0


class _Rank:
    """The jobs of one rank."""

    __slots__ = ("count", "shares", "turns")

    def __init__(self) -> None:
        self.count = 0
        self.shares: dict[str, _Share] = {}
        """Of each tenant with jobs. One without any may stay if it is the only one."""
        self.turns: deque[_Share] = deque()
        """The same, the next one first."""

    def add(self, tenant: str) -> _Share:
        """Add a tenant."""
        if self.turns and not self.turns[0].count:
            self.drop(self.turns[0])
        share = self.shares[tenant] = _Share(tenant)
        self.turns.append(share)
        return share

    def drop(self, share: _Share) -> None:
        """Drop a tenant."""
        del self.shares[share.tenant]
        self.turns.remove(share)

    def first_of(self, tenants: Tenants) -> _Share | None:
        """Return the first of these tenants that has a job."""
        if not tenants.others and tenants.names.isdisjoint(self.shares):
            return None
        return next(self.of(tenants), None)

    def of(self, tenants: Tenants | None) -> Iterator[_Share]:
        """Return those of these tenants that have a job, the next one first."""
        return (it for it in self.turns if it.count and (tenants is None or it.tenant in tenants))

    def has(self, tenant: str) -> bool:
        """Return whether a tenant has a job."""
        share = self.shares.get(tenant)
        return share is not None and share.count > 0

    def next_turn(self, share: _Share) -> None:
        """Put a tenant behind all others, of which there are some, or drop it if it has no more jobs."""
        if not share.count:
            self.drop(share)
        elif self.turns[0] is share:
            self.turns.rotate(-1)
        else:
            self.turns.remove(share)
            self.turns.append(share)


class SendQueue:
    """Most urgent rank first; within a rank the tenants take turns, each with one job.

    Every fourth job is one of the tenants without a job of that rank, if there are any. Of one tenant, the lane `due`
    and the rest alternate; each by expiry, then arrival.
    """

    def __init__(self) -> None:
        self._ranks = [_Rank() for _ in range(RANKS)]
        self._urgent_ranks = self._ranks[:URGENT]
        self._arrivals = 0
        self._taken = 0
        self._earliest_ms = math.inf

    def __len__(self) -> int:
        first, second, third, fourth = self._ranks
        return first.count + second.count + third.count + fourth.count

    @property
    def urgent(self) -> int:
        """Jobs that may use every connection."""
        return self._ranks[0].count + self._ranks[1].count

    @property
    def others(self) -> int:
        """All other jobs."""
        return self._ranks[2].count + self._ranks[3].count

    def count(self, tenants: Tenants | None = None) -> tuple[int, int]:
        """Return how many jobs there are, or how many these tenants have: urgent ones, and others."""
        if tenants is None:
            return self.urgent, self.others
        counts = [sum(it.shares[name].count for name in tenants.names if name in it.shares) for it in self._ranks]
        urgent, others = sum(counts[:URGENT]), sum(counts[URGENT:])
        return (self.urgent - urgent, self.others - others) if tenants.others else (urgent, others)

    def push(self, pending: PendingSend) -> None:
        """Add a job. A job that is pushed again keeps its place among those of its tenant."""
        if not pending.arrival:
            self._arrivals += 1
            pending.arrival = self._arrivals
        pending.waiting = True
        pending.queue = self
        self._earliest_ms = min(self._earliest_ms, pending.deadline_ms)
        rank, tenant = self._ranks[pending.rank], pending.mail.tenant
        rank.count += 1
        share = rank.shares.get(tenant) or rank.add(tenant)
        heappush(share.due if pending.due else share.fresh, (pending.expires_ms, pending.arrival, pending))

    def take(self, *, urgent_only: bool = False, tenants: Tenants | None = None) -> PendingSend | None:
        """Take the next job, with `urgent_only` the next urgent one, with `tenants` that of one of them.

        Returns `None` if there is none.
        """
        firsts = self._firsts(self._urgent_ranks if urgent_only else self._ranks, tenants)
        found = next(firsts, None)
        if found is None:
            return None
        self._taken = turn = self._taken + 1
        while turn % _TURN == 0 and (other := next(firsts, None)) is not None:
            found, turn = other, turn // _TURN
        return self._take_from(*found)

    def remove(self, pending: PendingSend) -> None:
        """Remove a job, if it still waits."""
        if not pending.waiting:
            return
        pending.waiting = False
        rank = self._ranks[pending.rank]
        rank.count -= 1
        share = rank.shares[pending.mail.tenant]
        share.removed += 1
        if not share.count and len(rank.turns) > 1:
            rank.drop(share)
        elif share.removed > share.count + _MAX_REMOVED:
            share.compact()

    def __iter__(self) -> Iterator[PendingSend]:
        return iter(self._all())

    def pop_timed_out(self, now_ms: int) -> list[PendingSend]:
        """Remove and return the jobs whose deadline has passed.

        Only the earliest deadline is stored, so a call usually costs one comparison. It may belong to a removed job:
        the call then finds none, and stores the earliest deadline of the waiting jobs.
        """
        if now_ms < self._earliest_ms:
            return []
        found = [pending for pending in self._all() if pending.deadline_ms <= now_ms]
        for pending in found:
            self.remove(pending)
        self._earliest_ms = min((pending.deadline_ms for pending in self._all()), default=math.inf)
        return found

    def pop_unwanted(self) -> list[PendingSend]:
        """Remove and return the jobs that are no longer wanted."""
        found = [pending for pending in self._all() if not pending.wanted()]
        for pending in found:
            self.remove(pending)
        return found

    def _firsts(self, ranks: list[_Rank], tenants: Tenants | None) -> Iterator[tuple[_Rank, _Share]]:
        """Yield the first tenant of each rank, most urgent first, of the tenants without a more urgent job."""
        above: list[_Rank] = []
        for rank in ranks:
            if not rank.count:
                continue
            if above:
                share = next((it for it in rank.of(tenants) if not any(up.has(it.tenant) for up in above)), None)
            else:
                share = rank.turns[0] if tenants is None else rank.first_of(tenants)
            if share is not None:
                yield rank, share
            above.append(rank)

    def _take_from(self, rank: _Rank, share: _Share) -> PendingSend:
        if share.removed:
            share.skip_removed()
        if share.due and (share.due_next or not share.fresh):
            share.due_next = False
            pending = heappop(share.due)[2]
        else:
            share.due_next = True
            pending = heappop(share.fresh)[2]
        pending.waiting = False
        rank.count -= 1
        if len(rank.turns) > 1:
            rank.next_turn(share)
        return pending

    def _all(self) -> list[PendingSend]:
        return [pending for rank in self._ranks for share in rank.turns for pending in share.waiting()]
