"""One consumed queue: its window, the jobs held in it, and what becomes of them when the worker stops."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any, Protocol
from uuid import uuid4

import structlog
from faststream.rabbit import RabbitMessage

from otp_stream.core.decision import Dead, Final, Retry
from otp_stream.core.job import Job, Lane, MalformedError, OtpJob, too_large
from otp_stream.core.masking import hidden
from otp_stream.core.possible_secrets import said_job_id
from otp_stream.core.state import LaneState
from otp_stream.tasks import cancelled
from otp_stream.telemetry_errors import observe

from .arrival import Arrival, Delivered, Message, Reader, now_ms
from .backlog import Backlog
from .events import Events, event
from .mac import verified
from .settle import Settler, acknowledge
from .topology import Depth

RENEW_AT = 3
"""Returns after which a message goes back as a new one. At its delivery limit a quorum queue drops what it holds, or
lays it aside without our word; since RabbitMQ 4.0 each has a limit, of 20 unless told otherwise, and every connection
that is lost counts."""

_NEWS_MS = 10_000
_WARN_EVERY_S = 60.0
_MOVED_S = 120.0
_MOVED_LIMIT = 10_000


class Settle(Protocol):
    """Carries a settlement of one job out."""

    def possible(self) -> bool:
        """Whether the message is still ours."""
        ...

    async def __call__(self, settlement: Final) -> bool:
        """Return whether it stands."""
        ...


class Deliver(Protocol):
    """The way of a job, from arrival to settlement."""

    async def __call__(self, job: Job, settle: Settle, carrier: Mapping[str, str]) -> None:
        """Bring one job to its end."""
        ...


class Refused(Protocol):
    """Whoever counts messages that were no jobs."""

    def __call__(self, lane: Lane, job_id: str, settlement: Dead) -> None:
        """Take note, once its dead letter stands."""
        ...


class Moved:
    """Attempts that ended in another queue, for as long as their acknowledgement may be lost with the connection.

    The copy that comes then has been dealt with: it must not be attempted once more.
    """

    def __init__(self) -> None:
        self._ended: OrderedDict[tuple[int, int], float] = OrderedDict()

    def add(self, job: Job) -> None:
        """Take note that this attempt's retry or dead letter stands."""
        self._ended[job.identity, job.attempts_made] = monotonic()
        while len(self._ended) > _MOVED_LIMIT:
            self._ended.popitem(last=False)

    def knows(self, job: Job) -> bool:
        """Whether a delivery is the copy of such an attempt. One that does not come again is a new job of that id."""
        at = self._ended.pop((job.identity, job.attempts_made), None)
        return at is not None and job.suspect and monotonic() - at < _MOVED_S


@dataclass(frozen=True, slots=True)
class Desk:
    """What all lanes share."""

    reader: Reader
    settler: Settler
    events: Events
    deliver: Deliver
    refused: Refused
    hash_key: bytes = field(repr=False)
    old_hash_keys: Sequence[bytes] = field(default=(), repr=False)
    moved: Moved = field(default_factory=Moved)


@dataclass(slots=True)
class _Settlement:
    """The one settlement of one arrival."""

    desk: Desk
    arrival: Arrival
    job_id: str
    job: Job | None
    stands: bool = False
    how: str | None = None

    def possible(self) -> bool:
        return self.arrival.alive

    async def __call__(self, settlement: Final) -> bool:
        desk = self.desk
        self.stands = await desk.settler.settle(self.arrival, settlement, job_id=self.job_id, job=self.job)
        if self.stands:
            self.how = type(settlement).__name__.lower()
            if self.job is not None and isinstance(settlement, Dead | Retry):
                desk.moved.add(self.job)
            if desk.events.enabled:
                observe(self._publish_event, settlement)
        return self.stands

    def _publish_event(self, settlement: Final) -> None:
        desk = self.desk
        desk.events.tell(event(settlement, self.job_id, self.job, at_ms=now_ms(), hash_key=desk.hash_key))


def read(body: bytes) -> OtpJob | MalformedError:
    """Read a job. What is none is handed on as its error: it ends as a dead letter by the way of every other end."""
    try:
        return OtpJob.from_bytes(body)
    except MalformedError as error:
        return error
    except Exception as error:  # noqa: BLE001 - whatever it is, the message must not stay unsettled and stop its lane
        return MalformedError(f"body: cannot be read ({type(error).__name__})")


class LaneConsumer:
    """Takes what a queue delivers. Each job runs in a task of its own: a lost connection cancels no send."""

    def __init__(self, lane: Lane, queue: str, window: int, desk: Desk) -> None:
        self.lane: Lane = lane
        self.queue = queue
        self.window = window
        self.counts_returns = lane == "due"
        """Whether it is a quorum queue: those count every return of a message."""
        self.depth: Depth | None = None
        self._desk = desk
        self._empty_ms: int | None = None
        self._backlog = Backlog()
        self._waited_ms: int | None = None
        self._made_ms = 0
        self._came_ms: int | None = None
        self._held: dict[asyncio.Task[str | None], Arrival] = {}
        self._received = 0
        self._unverified = 0
        self._warned_at = float("-inf")
        self._let_go: Counter[str] = Counter()
        self._stopping = False
        self._cut: list[Arrival] = []
        """What did not come to its end here, and is still to go back."""

    @property
    def state(self) -> LaneState:
        """The lane as seen from both sides."""
        depth = self.depth
        return LaneState(
            lane=self.lane,
            queue=self.queue,
            window=self.window,
            held=len(self._held),
            received=self._received,
            unverified=self._unverified,
            let_go=dict(self._let_go),
            depth=depth.messages if depth else None,
            consumers=depth.consumers if depth else None,
            empty_ms=self._empty_ms,
            waiting_ms=self._waiting_ms(),
            waited_ms=self._waited_ms,
            came_ms=self._came_ms,
            oldest_held_ms=next((it.seen_ms for it in self._held.values()), None),
        )

    def saw(self, depth: Depth | None) -> None:
        """Take note of what the broker says of the queue; `None` is one that is away."""
        self.depth = depth
        if depth is None:
            return
        self._backlog.saw(depth, self._received, now_ms())
        if not depth.messages:
            self._empty_ms = now_ms()

    def _waiting_ms(self) -> int | None:
        if self.depth is None or not self.depth.messages:
            return None
        if self.depth.consumers > 1:
            # what comes next was published soon after the last one that came; without one nothing is known
            known = now_ms() - (self._came_ms or 0) <= _NEWS_MS
            return max(self._made_ms, self._empty_ms or 0) if known else None
        since_ms = self._backlog.since_ms(self._received)
        return None if since_ms is None else max(since_ms, self._made_ms)

    async def take(self, ask: OtpJob | MalformedError, message: RabbitMessage) -> None:
        """Bring a message to its end, whatever it is."""
        await self._hold(ask, message.raw_message)

    def receive(self, message: Delivered) -> None:
        """The same, on the fast way past FastStream's dispatch."""
        self._hold(too_large(message.dropped) if message.dropped else read(message.body), message)

    def _hold(self, ask: OtpJob | MalformedError, message: Message) -> asyncio.Task[str | None]:
        # no header of ours is looked for on the producers' queues
        ours = self._verified(message) if self.lane == "due" else None
        arrival = Arrival(message, self.lane, now_ms(), ours)
        # A lost connection cancels no job: the send goes on to its end.
        task = asyncio.create_task(self._bring(arrival, ask))
        self._received += 1
        self._held[task] = arrival
        task.add_done_callback(self._ended)
        return task

    def _verified(self, message: Message) -> Mapping[str, Any] | None:
        ours = verified(message.headers, message.body, (self._desk.hash_key, *self._desk.old_hash_keys))
        self._unverified += ours is None
        return ours

    def _ended(self, task: asyncio.Task[str | None]) -> None:
        arrival = self._held.pop(task)
        how = None if task.cancelled() else task.result()
        if how is not None:
            self._let_go[how] += 1
        elif not arrival.alive:
            self._let_go["taken_back"] += 1
        elif task.cancelled() and self._stopping:
            self._let_go["returned"] += 1
            self._cut.append(arrival)
        # else it is stranded: unsettled at the broker, and nobody's here; the books show it

    async def _bring(self, arrival: Arrival, ask: OtpJob | MalformedError) -> str | None:
        """Return how it was settled; `None` when it was not."""
        if arrival.returns >= RENEW_AT and not arrival.dropped:
            return "renewed" if await self._desk.settler.renew(arrival, self.queue) else None
        if isinstance(ask, MalformedError):
            return await self._refuse(arrival, str(ask))
        arrival.hide_in_trace(ask)
        job = await self._desk.reader.job(arrival, ask)
        self._warn_if_unverified(arrival, job.id)
        if ask.timestamp is not None and self.lane != "due":
            self._waited_ms = max(arrival.seen_ms - job.made_ms, 0)
            if not arrival.message.redelivered:  # that one came before its turn
                self._made_ms, self._came_ms = job.made_ms, arrival.seen_ms
        if self._desk.moved.knows(job):
            await acknowledge(arrival)
            return "ack"
        settlement = _Settlement(self._desk, arrival, job.id, job)
        try:
            await self._desk.deliver(job, settlement, arrival.carrier())
        except Exception as error:  # noqa: BLE001 - a bug of ours must end this job visibly, not leave it stuck
            kind = type(error).__name__
            # no traceback: its texts may hold the code
            structlog.get_logger(__name__).error("job crashed", job_id=job.id, error=kind)
            if not settlement.stands:
                await settlement(Dead("crashed", f"internal error: {kind}", job.attempts_made))
        return settlement.how

    async def _refuse(self, arrival: Arrival, error: str) -> str | None:
        message = arrival.message
        arrival.hide_in_trace(None)
        # what a message is called may be an address or a code, and of one that is no job nothing tells which
        called = hidden(message.message_id or "", self._desk.hash_key)
        job_id = said_job_id(message.body) or called or uuid4().hex
        self._warn_if_unverified(arrival, job_id)
        dead = Dead("malformed", error, arrival.attempts_made(None))
        settlement = _Settlement(self._desk, arrival, job_id, None)
        if await settlement(dead):
            observe(self._desk.refused, self.lane, job_id, dead)
        return settlement.how

    def _warn_if_unverified(self, arrival: Arrival, job_id: str) -> None:
        if self.lane != "due" or arrival.ours is not None:
            return
        if monotonic() - self._warned_at > _WARN_EVERY_S:
            self._warned_at = monotonic()
            structlog.get_logger(__name__).warning(
                "retry is not signed with SECRET_KEY: its x-otp headers are ignored, and it is sent as a new job",
                job_id=job_id,
                queue=self.queue,
                so_far=self._unverified,
            )

    async def drain(self, give_up: Callable[[], bool]) -> int:
        """Let what is held come to its end until `give_up`; return the rest to the queue, and say how many."""
        while self._held and not give_up():
            await asyncio.wait(list(self._held), timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
            await self._give_back()
        await cancelled(*self._held)
        await self._give_back()
        return self._let_go["returned"]

    def stop(self) -> None:
        """Take note that jobs which are given up from now on go back."""
        self._stopping = True

    async def _give_back(self) -> None:
        cut, self._cut = self._cut, []
        give_back = partial(self._desk.settler.give_back, queue=self.queue, counts_returns=self.counts_returns)
        await asyncio.gather(*map(give_back, cut))
