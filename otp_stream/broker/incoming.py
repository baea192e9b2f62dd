"""A message that is being processed: its job and its one settlement."""

from asyncio import Future
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import NamedTuple, Protocol
from uuid import uuid4

from aiormq import Channel

from otp_stream.clock import now_ms
from otp_stream.core.decision import Ack, Dead, Final, Retry, crashed, unreadable
from otp_stream.core.job import Job
from otp_stream.core.masking import keyed_hash
from otp_stream.core.otp_job import MalformedError, OtpJob
from otp_stream.core.possible_secrets import readable_job_id
from otp_stream.core.threshold import DynamicThreshold
from otp_stream.tasks import Turns
from otp_stream.telemetry_errors import SafeSpan, observe

from .events import Events, event
from .headers import JOB_ID
from .job_message import JobMessage, Reader
from .message import Delivered
from .settle import Settler, acknowledge
from .telemetry import BrokerTelemetry

_MOVED_S = 120.0
_MOVED_LIMIT = 10_000
_MAX_QUICK = 2 * 1024
"""Bytes of the largest message that is read, copied or erased in any turn of the event loop. A larger one can take
10 ms, and a whole prefetch window of them, one after another, so long that the broker closes the connection."""


class Mover(Protocol):
    """Moves jobs to the queues of their tenants."""

    @property
    def enabled(self) -> bool:
        """Whether there are tenants."""
        ...

    def can_move(self, tenant: str) -> bool:
        """Return whether the tenant has a queue that takes jobs."""
        ...

    def publish(self, tenant: str, header: bytes, body: bytes, mac: str) -> Future[None] | None:
        """Publish to a tenant's queue. Returns the confirm, or `None` if the publish is not possible at once."""
        ...

    async def move(self, message: JobMessage, job: Job) -> bool:
        """Publish a job to its tenant's queue, then acknowledge. Returns `False` if that failed."""
        ...


class Moved:
    """Attempts that ended in another queue, remembered while their acknowledgement may be lost with the connection.

    RabbitMQ then redelivers the message, and this copy must be acknowledged instead of attempted again. While the
    channel of the acknowledgement is open, the message cannot be redelivered: a copy is then another message, such as
    a dead letter that was replayed, or a job that was published again.
    """

    def __init__(self) -> None:
        self._ended: OrderedDict[Hashable, _Ended] = OrderedDict()
        self._unread: OrderedDict[Hashable, _Ended] = OrderedDict()

    def add(self, job: Job, message: JobMessage) -> None:
        """Record a job whose retry, dead letter or move is confirmed. A move counts no attempt, but itself."""
        _add(self._ended, _attempt(job), message)

    def knows(self, job: Job) -> bool:
        """Return whether a redelivered job is such a copy, and forget the attempt: it has one copy at most."""
        return _is_copy(self._ended, _attempt(job), suspect=job.suspect)

    def add_unread(self, message: JobMessage) -> None:
        """Record a message whose move is confirmed, and whose job was not read."""
        _add(self._unread, message.identity, message)

    def knows_unread(self, message: JobMessage) -> bool:
        """Return whether a redelivered message is such a copy, and forget it."""
        if not self._unread:
            return False
        return _is_copy(self._unread, message.identity, suspect=bool(message.raw.redelivered))


class _Ended(NamedTuple):
    at: float
    """By the monotonic clock, in seconds."""
    channel: Channel | None
    """The channel of its acknowledgement; `None` for the in-memory test broker."""


def _attempt(job: Job) -> Hashable:
    return job.identity, job.attempts_made, job.moves, job.replay and job.replay.at_ms


def _add(ended: OrderedDict[Hashable, _Ended], key: Hashable, message: JobMessage) -> None:
    ended[key] = _Ended(monotonic(), message.raw.channel if isinstance(message.raw, Delivered) else None)
    while len(ended) > _MOVED_LIMIT:
        ended.popitem(last=False)


def _is_copy(ended: OrderedDict[Hashable, _Ended], key: Hashable, *, suspect: bool) -> bool:
    found = ended.pop(key, None)
    if found is None or not suspect or (found.channel is not None and not found.channel.is_closed):
        return False
    return monotonic() - found.at < _MOVED_S


@dataclass(frozen=True, slots=True)
class Shared:
    """What all priority lanes share."""

    reader: Reader
    settler: Settler
    events: Events
    telemetry: BrokerTelemetry
    hash_key: bytes = field(repr=False)
    old_hash_keys: Sequence[bytes] = field(default=(), repr=False)
    moved: Moved = field(default_factory=Moved)
    mover: Mover | None = None
    """Moves the jobs of a tenant that has too many in this worker."""
    turns: Turns = field(default_factory=Turns)


@dataclass(slots=True)
class IncomingJob:
    """One message from its delivery to its acknowledgement. Calling it settles the message."""

    message: JobMessage
    shared: Shared = field(repr=False)
    on_job: Callable[[JobMessage, str, Job | None], None]
    """Called with the job's id once it is known; the job is `None` for a malformed message."""
    threshold: DynamicThreshold | None = None
    """Limits the jobs of each tenant in a lane; `None` without tenants, and in a lane of one tenant."""
    job: Job | None = None
    settling: bool = False
    """Whether a settlement was attempted."""
    settled: str | None = None
    """How the message was settled, once the broker has it: `ack`, `retry`, `park`, `dead` or `moved`."""
    _job_id: str = ""
    _counted: str | None = None
    """The tenant for which the threshold has counted the job."""

    async def accept(self, request: OtpJob) -> Job | None:
        """Return the job to process, or `None` if the message is settled.

        It is settled if it is a copy of an attempt that has ended, a job of a tenant that is refused, or a job that has
        been moved to its tenant's queue.
        """
        if self.settled is not None:
            return None  # a middleware called the handler again: a second acknowledgement would close the channel
        message = self.message
        message.hide_in_trace(request)
        try:
            job = self.job = await self.shared.reader.job(message, request)
        except MalformedError as error:
            await self.refuse(error)
            return None
        self._job_id = job.id
        self.on_job(message, job.id, job)
        if not self.shared.moved.knows(job):
            return job if self.threshold is None else await self._keep_or_move(job, self.threshold)
        self.settling = True
        await acknowledge(message)
        self.settled = "ack"
        return None

    async def _keep_or_move(self, job: Job, threshold: DynamicThreshold) -> Job | None:
        """Return the job if it stays in this worker, and count it."""
        shared = self.shared
        if (
            self._counted is None
            and shared.mover is not None
            and not threshold.permits(job.tenant)
            and shared.mover.can_move(job.tenant)
        ):
            self.settling = True
            if await shared.mover.move(self.message, job):
                self.settled = "moved"
                shared.moved.add(job, self.message)
                return None
            if not self.message.alive:
                return None
            self.settling = False
        if self._counted is None:
            threshold.add(job.tenant)
            self._counted = job.tenant
        return job

    def end(self) -> None:
        """Count the job no longer, however it ended."""
        if self.threshold is not None and self._counted is not None:
            self.threshold.remove(self._counted)
            self._counted = None

    def possible(self) -> bool:
        """Return whether the message can still be settled. A closed channel has returned it to its queue."""
        return self.message.alive

    async def __call__(self, settlement: Final) -> bool:
        """Publish with a confirm if the settlement requires it, then acknowledge.

        Returns `False` if that failed: the broker redelivers the message.
        """
        self.settling = True
        shared = self.shared
        if not isinstance(settlement, Ack):
            await self.wait_turn()
        settled = await shared.settler.settle(self.message, settlement, job_id=self._job_id, job=self.job)
        if settled:
            self.settled = type(settlement).__name__.lower()
            if self.job is not None and isinstance(settlement, Dead | Retry):
                shared.moved.add(self.job, self.message)
            if shared.events.enabled:
                observe(self._publish_event, settlement)
        return settled

    async def wait_turn(self) -> None:
        """Wait before a step that takes long with a large message."""
        raw = self.message.raw
        if len(raw.body) + (len(raw.header) if isinstance(raw, Delivered) else 0) > _MAX_QUICK:
            await self.shared.turns.next()

    async def refuse(self, error: MalformedError) -> None:
        """Dead-letter a message that is not a valid job, or whose key is missing."""
        await self._end_unread(unreadable(error, self.message.attempts_made(None)))

    async def crash(self, error: str) -> None:
        """Dead-letter a message that failed because of a bug, unless it is settled. `error` contains no secret."""
        if self.settled is not None:
            return
        if self.job is not None:
            dead = crashed(error, self.job.attempts_made)
            if await self(dead):
                observe(self.shared.telemetry.job_settled, self.job, dead)
        else:
            await self._end_unread(crashed(error, self.message.attempts_made(None)))

    async def _end_unread(self, dead: Dead) -> None:
        message, shared = self.message, self.shared
        message.hide_in_trace(None)
        # any word of an unread body may be a secret, so its id is shown only if it looks harmless
        shown_id = keyed_hash(message.raw.message_id or "", shared.hash_key)
        known: str | None = message.header(JOB_ID, str)
        self._job_id = known or readable_job_id(message.raw.body) or shown_id or uuid4().hex
        self.on_job(message, self._job_id, None)
        with SafeSpan(lambda: shared.telemetry.unread_span(message)):
            if await self(dead):
                observe(shared.telemetry.message_refused, message.lane, self._job_id, dead)

    def _publish_event(self, settlement: Final) -> None:
        shared = self.shared
        made = event(settlement, self._job_id, self.job, at_ms=now_ms(), hash_key=shared.hash_key)
        shared.events.enqueue(made, shared.telemetry.traceparent())
