"""Whose turn it is: the jobs that wait for a connection, most urgent first. Synchronous and without I/O."""

import asyncio
import heapq
from collections.abc import Callable
from itertools import chain

from otp_stream.core.mail import Mail
from otp_stream.core.outcome import Outcome, Reply

RANKS = 4
URGENT = 2
"""Ranks below this one (the high lane and `high`) may use every connection."""


class Turn:
    """One call of `send`: first a place among those who wait, then a mail on the wire. Times as in `send`."""

    __slots__ = (
        "answered", "arrival", "deadline_ms", "due", "expires_ms", "home", "losses", "mail", "prefer", "probe", "rank",
        "refusal", "result", "waiting", "wanted", "withdrawn", "written",
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
    ) -> None:
        self.mail = mail
        self.rank = rank
        self.due = lane == "due"
        self.expires_ms = expires_ms
        self.deadline_ms = deadline_ms
        self.result = result
        self.wanted = wanted
        self.prefer: str | None = None
        """The relay that may have the mail already."""
        self.arrival = 0
        self.home: Turns | None = None
        """Where it waits, or last waited."""
        self.waiting = False
        self.probe = False
        self.losses = 0
        """Connections that broke under it."""
        self.begin()

    def begin(self) -> None:
        """Forget what an earlier connection said."""
        self.answered = False
        self.refusal: Reply | None = None
        self.written = False
        """Whether the final dot is written: from then on the relay may have the mail."""
        self.withdrawn = False
        """Whether we kept the content back."""

    def end(self, outcome: Outcome) -> None:
        """Hand the outcome to whoever still waits for it."""
        if not self.result.done():
            self.result.set_result(outcome)


_Heap = list[tuple[int, int, Turn]]


class Turns:
    """Most urgent rank first; within a rank the lane `due` and the rest alternate; each by expiry, then arrival."""

    def __init__(self) -> None:
        self._heaps: list[tuple[_Heap, _Heap]] = [([], []) for _ in range(RANKS)]
        self._due_next = [False] * RANKS
        self._counts = [0] * RANKS
        self._waiting = 0
        self._gone = 0
        self._arrivals = 0
        self._earliest_ms: int | None = None

    def __len__(self) -> int:
        return self._waiting

    @property
    def urgent(self) -> int:
        """How many may use every connection."""
        return self._counts[0] + self._counts[1]

    def push(self, turn: Turn) -> None:
        """Let a job wait. One that comes back keeps its place."""
        if not turn.arrival:
            self._arrivals += 1
            turn.arrival = self._arrivals
        turn.waiting = True
        turn.home = self
        self._counts[turn.rank] += 1
        self._waiting += 1
        if self._earliest_ms is None or turn.deadline_ms < self._earliest_ms:
            self._earliest_ms = turn.deadline_ms
        heapq.heappush(self._heaps[turn.rank][turn.due], (turn.expires_ms, turn.arrival, turn))

    def take(self, *, urgent_only: bool = False) -> Turn | None:
        """Return the job whose turn it is; `None` when none waits (or none that is urgent, if only those are asked)."""
        for rank in range(URGENT if urgent_only else RANKS):
            if self._counts[rank]:
                return self._take_from(rank)
        return None

    def leave(self, turn: Turn) -> None:
        """Take a job out that waits no longer."""
        if not turn.waiting:
            return
        turn.waiting = False
        self._counts[turn.rank] -= 1
        self._waiting -= 1
        self._gone += 1
        if self._gone > len(self) + 64:
            self._tidy()

    def lapsed(self, now_ms: int) -> list[Turn]:
        """Take out all whose deadline has passed.

        Only the earliest deadline ever pushed is remembered, so a look usually costs one comparison. It may belong to
        a job that is long gone: then the look finds none and remembers the earliest of those who wait.
        """
        if self._earliest_ms is None or now_ms < self._earliest_ms:
            return []
        found = [turn for turn in self._all() if turn.deadline_ms <= now_ms]
        for turn in found:
            self.leave(turn)
        self._earliest_ms = min((turn.deadline_ms for turn in self._all()), default=None)
        return found

    def unwanted(self) -> list[Turn]:
        """Take out all that nobody wants to be sent any more."""
        found = [turn for turn in self._all() if not turn.wanted()]
        for turn in found:
            self.leave(turn)
        return found

    def _take_from(self, rank: int) -> Turn:
        fresh, due = self._heaps[rank]
        for heap in (fresh, due):
            while heap and not heap[0][2].waiting:
                heapq.heappop(heap)
                self._gone -= 1
        from_due = bool(due) and (self._due_next[rank] or not fresh)
        self._due_next[rank] = not from_due
        turn = heapq.heappop(due if from_due else fresh)[2]
        turn.waiting = False
        self._counts[rank] -= 1
        self._waiting -= 1
        return turn

    def _all(self) -> list[Turn]:
        return [entry[2] for heap in chain.from_iterable(self._heaps) for entry in heap if entry[2].waiting]

    def _tidy(self) -> None:
        for heap in chain.from_iterable(self._heaps):
            heap[:] = [entry for entry in heap if entry[2].waiting]
            heapq.heapify(heap)
        self._gone = 0
