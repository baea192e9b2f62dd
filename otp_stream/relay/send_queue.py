"""The queue of jobs that wait for a connection, most urgent first. Synchronous, without I/O."""

import asyncio
import heapq
from collections.abc import Callable, Iterator
from itertools import chain

from otp_stream.core.mail import Mail
from otp_stream.core.outcome import Outcome, Reply, Route

RANKS = 4
URGENT = 2
"""Ranks below this one (the high lane and `high`) may use every connection."""


class PendingSend:
    """One call of `SmtpRelay.send`: first in the queue, then on a connection. Times as in `send`."""

    __slots__ = (
        "answered", "arrival", "chunk_refused", "chunked", "deadline_ms", "due", "envelope_s", "expires_ms", "losses",
        "mail", "may_send", "prefer", "probe", "queue", "rank", "refusal", "result", "route", "slow", "step_at",
        "switched_from", "switches", "uncertain", "waiting", "wanted", "withdrawn", "written",
    )  # fmt: skip

    def __init__(
        self,
        mail: Mail,
        rank: int,
        lane: str,
        expires_ms: int,
        deadline_ms: int,
        result: asyncio.Future[Outcome],
        wanted: Callable[[], bool] = lambda: True,
        may_send: Callable[[], bool] = lambda: True,
    ) -> None:
        self.mail = mail
        self.rank = rank
        self.due = lane == "due"
        self.expires_ms = expires_ms
        self.deadline_ms = deadline_ms
        self.result = result
        self.wanted = wanted
        """Returns whether the caller still wants the mail to be sent."""
        self.may_send = may_send
        """Returns whether the content may be sent now. Called right before that."""
        self.prefer: str | None = None
        """The relay that has to send the mail, while it takes mail."""
        self.uncertain = False
        """Whether that is because it may have the mail already."""
        self.route: Route | None = None
        """The relay that the outcome is from."""
        self.switched_from: str | None = None
        """The slow relay that it left."""
        self.switches = 0
        self.arrival = 0
        self.queue: SendQueue | None = None
        """The queue that it is in, or was in last."""
        self.waiting = False
        self.probe = False
        self.losses = 0
        """Connections that were lost with it."""
        self.chunk_refused = False
        """Whether the relay has replied 5xx to its content by BDAT."""
        self.chunked = False
        """Whether its content is sent by BDAT on the present connection."""
        self.begin()

    def begin(self) -> None:
        """Reset the state of an earlier connection."""
        self.answered = False
        self.refusal: Reply | None = None
        self.written = False
        """Whether its whole content was sent, so that the relay may have the mail."""
        self.withdrawn = False
        """Whether we have withheld the content."""
        self.step_at = self.envelope_s = 0.0
        """When the envelope was sent, or then the content, by the monotonic clock; the time between the two."""
        self.slow = False
        """Whether it was recorded as slow."""

    @property
    def domain(self) -> str:
        """The recipient's domain."""
        return self.mail.recipient.rpartition("@")[2].lower()

    def resolve(self, outcome: Outcome) -> None:
        """Return the outcome to the caller of `send`, unless it was cancelled."""
        if not self.result.done():
            self.result.set_result(outcome)


_Heap = list[tuple[int, int, PendingSend]]


class SendQueue:
    """Most urgent rank first; within a rank the lane `due` and the rest alternate; each by expiry, then arrival."""

    def __init__(self) -> None:
        self._heaps: list[tuple[_Heap, _Heap]] = [([], []) for _ in range(RANKS)]
        self._due_next = [False] * RANKS
        self._counts = [0] * RANKS
        self._waiting = 0
        self._removed = 0
        self._arrivals = 0
        self._earliest_ms: int | None = None

    def __len__(self) -> int:
        return self._waiting

    @property
    def urgent(self) -> int:
        """Jobs that may use every connection."""
        return self._counts[0] + self._counts[1]

    def push(self, pending: PendingSend) -> None:
        """Add a job. A job that is pushed again keeps its place."""
        if not pending.arrival:
            self._arrivals += 1
            pending.arrival = self._arrivals
        pending.waiting = True
        pending.queue = self
        self._counts[pending.rank] += 1
        self._waiting += 1
        if self._earliest_ms is None or pending.deadline_ms < self._earliest_ms:
            self._earliest_ms = pending.deadline_ms
        heapq.heappush(self._heaps[pending.rank][pending.due], (pending.expires_ms, pending.arrival, pending))

    def take(self, *, urgent_only: bool = False) -> PendingSend | None:
        """Take the next job, with `urgent_only` the next urgent one; `None` if there is none."""
        for rank in range(URGENT if urgent_only else RANKS):
            if self._counts[rank]:
                return self._take_from(rank)
        return None

    def remove(self, pending: PendingSend) -> None:
        """Remove a job, if it still waits."""
        if not pending.waiting:
            return
        pending.waiting = False
        self._counts[pending.rank] -= 1
        self._waiting -= 1
        self._removed += 1
        if self._removed > len(self) + 64:
            self._compact()

    def __iter__(self) -> Iterator[PendingSend]:
        return iter(self._all())

    def pop_timed_out(self, now_ms: int) -> list[PendingSend]:
        """Remove and return the jobs whose deadline has passed.

        Only the earliest deadline is stored, so a call usually costs one comparison. It may belong to a removed job:
        the call then finds none, and stores the earliest deadline of the waiting jobs.
        """
        if self._earliest_ms is None or now_ms < self._earliest_ms:
            return []
        found = [pending for pending in self._all() if pending.deadline_ms <= now_ms]
        for pending in found:
            self.remove(pending)
        self._earliest_ms = min((pending.deadline_ms for pending in self._all()), default=None)
        return found

    def pop_unwanted(self) -> list[PendingSend]:
        """Remove and return the jobs that are no longer wanted."""
        found = [pending for pending in self._all() if not pending.wanted()]
        for pending in found:
            self.remove(pending)
        return found

    def _take_from(self, rank: int) -> PendingSend:
        fresh, due = self._heaps[rank]
        for heap in (fresh, due):
            while heap and not heap[0][2].waiting:
                heapq.heappop(heap)
                self._removed -= 1
        from_due = bool(due) and (self._due_next[rank] or not fresh)
        self._due_next[rank] = not from_due
        pending = heapq.heappop(due if from_due else fresh)[2]
        pending.waiting = False
        self._counts[rank] -= 1
        self._waiting -= 1
        return pending

    def _all(self) -> list[PendingSend]:
        return [entry[2] for heap in chain.from_iterable(self._heaps) for entry in heap if entry[2].waiting]

    def _compact(self) -> None:
        for heap in chain.from_iterable(self._heaps):
            heap[:] = [entry for entry in heap if entry[2].waiting]
            heapq.heapify(heap)
        self._removed = 0
