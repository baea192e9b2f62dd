"""One priority lane: its queue, its jobs in flight, and how they are returned when the worker stops."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from time import monotonic
from typing import Any

import structlog

from otp_stream.core.job import Job, Lane
from otp_stream.core.otp_job import MalformedError, too_large
from otp_stream.core.state import LaneState
from otp_stream.tasks import cancel_and_wait

from .headers import verified
from .incoming import IncomingJob, Shared
from .job_message import JobMessage
from .message import RawMessage, now_ms
from .settle import requeue
from .topology import Depth

_LOOKS = 200
"""Maximum number of readings kept; beyond it, the newest is dropped."""


RENEW_AT = 3
"""Returns after which a message is published to its queue as a new one. At its delivery limit a quorum queue drops a
message, or dead-letters it without our headers; since RabbitMQ 4.0 each has a limit, of 20 by default, and every lost
connection counts."""
_REQUEUE_AFTER_S = 5.0
"""Pause before a message whose settlement raised is requeued, so that it is not redelivered in a fast loop."""
_NEWS_MS = 10_000
_WARN_EVERY_S = 60.0


class QueueAge:
    """The age of the oldest message in a queue, estimated without consuming it. Times are milliseconds since 1970.

    AMQP reports how many messages are ready, but not their age. A queue delivers the oldest message first: the message
    that was last in it at one reading has left it once that many have been delivered. A single consumer knows how many.
    """

    def __init__(self) -> None:
        self._looks: deque[tuple[int, int]] = deque()
        """When, and how many messages must have left the queue until the one that was last then has left it."""
        self._end = 0
        """The second number of the latest reading, kept or not."""
        self._left = 0
        self._taken = 0

    def saw(self, depth: Depth, taken: int, at_ms: int) -> None:
        """Record a reading; `taken` is the total number of deliveries to us."""
        # if fewer are ready than before, the difference has left the queue, also to other consumers
        self._left = max(self._gone(taken), self._end - depth.messages)
        self._taken = taken
        self._end = self._left + depth.messages
        if depth.consumers > 1:  # the number of deliveries to the others is unknown
            self._looks.clear()
            return
        while self._looks and self._looks[0][1] <= self._left:
            self._looks.popleft()
        if depth.messages and len(self._looks) < _LOOKS:
            self._looks.append((at_ms, self._end))

    def since_ms(self, taken: int) -> int | None:
        """Return since when a message has waited at least; `None` if none is known to wait."""
        gone = self._gone(taken)
        return next((at_ms for at_ms, end in self._looks if end > gone), None)

    def _gone(self, taken: int) -> int:
        return self._left + taken - self._taken


Handle = Callable[[IncomingJob], Awaitable[object]]
"""Read a message and pass it to the handler. Raises `MalformedError` for what is no job."""


class LaneConsumer:
    """Processes what a queue delivers. Each job runs in its own task, so that a lost connection cancels no send."""

    def __init__(self, lane: Lane, queue: str, prefetch: int, shared: Shared, handle: Handle) -> None:
        self.lane: Lane = lane
        self.queue = queue
        self.prefetch = prefetch
        self.counts_returns = lane == "due"
        """Whether it is a quorum queue: those count every return of a message."""
        self.depth: Depth | None = None
        self._shared = shared
        self._handle = handle
        self._empty_ms: int | None = None
        self._queue_age = QueueAge()
        self._waited_ms: int | None = None
        self._made_ms = 0
        self._came_ms: int | None = None
        self._unacked: dict[asyncio.Task[str | None], JobMessage] = {}
        self._received = 0
        self._unverified = 0
        self._warned_at = float("-inf")
        self._let_go: Counter[str] = Counter()
        self._stopping = False
        self._cancelled: list[JobMessage] = []
        """Messages whose jobs were cancelled at the stop, and which are still to be returned."""

    @property
    def state(self) -> LaneState:
        """The lane as seen from both sides."""
        depth = self.depth
        return LaneState(
            lane=self.lane,
            queue=self.queue,
            prefetch=self.prefetch,
            unacked=len(self._unacked),
            received=self._received,
            unverified=self._unverified,
            let_go=dict(self._let_go),
            depth=depth.messages if depth else None,
            consumers=depth.consumers if depth else None,
            empty_ms=self._empty_ms,
            waiting_ms=self._waiting_ms(),
            waited_ms=self._waited_ms,
            came_ms=self._came_ms,
            oldest_unacked_ms=next((it.seen_ms for it in self._unacked.values()), None),
        )

    def saw(self, depth: Depth | None) -> None:
        """Record the depth that the broker reports; `None` for a queue that is unavailable."""
        self.depth = depth
        if depth is None:
            return
        self._queue_age.saw(depth, self._received, now_ms())
        if not depth.messages:
            self._empty_ms = now_ms()

    def _waiting_ms(self) -> int | None:
        if self.depth is None or not self.depth.messages:
            return None
        if self.depth.consumers > 1:
            # the next message was published soon after the last one received; without a recent one nothing is known
            known = now_ms() - (self._came_ms or 0) <= _NEWS_MS
            return max(self._made_ms, self._empty_ms or 0) if known else None
        since_ms = self._queue_age.since_ms(self._received)
        return None if since_ms is None else max(since_ms, self._made_ms)

    def dispatch(self, raw: RawMessage) -> asyncio.Task[str | None]:
        """Start processing a message. Every message comes here, from RabbitMQ and from the in-memory test broker."""
        # on the producers' queues our headers have no effect
        ours = self._verified(raw) if self.lane == "due" else None
        message = JobMessage(raw, self.lane, now_ms(), ours)
        self._received += 1
        return self._start(self._process(message), message)

    def _start(self, work: Coroutine[Any, Any, str | None], message: JobMessage) -> asyncio.Task[str | None]:
        task = asyncio.create_task(work)
        self._unacked[task] = message
        task.add_done_callback(self._ended)
        return task

    def _verified(self, raw: RawMessage) -> Mapping[str, Any] | None:
        ours = verified(raw.headers, raw.body, (self._shared.hash_key, *self._shared.old_hash_keys))
        self._unverified += ours is None
        return ours

    def _ended(self, task: asyncio.Task[str | None]) -> None:
        message = self._unacked.pop(task)
        if task.cancelled():
            how = None
        elif error := task.exception():
            # asyncio would log the text of the error, which may quote the job
            structlog.get_logger(__name__).error("job could not be settled", error=type(error).__name__)
            self._start(self._requeue(message), message)
            return
        else:
            how = task.result()
        if how is not None:
            self._let_go[how] += 1
        elif not message.alive:
            self._let_go["taken_back"] += 1
        elif task.cancelled() and self._stopping:
            self._let_go["returned"] += 1
            self._cancelled.append(message)
        # else it is leaked: unacked at the broker but owned by no task; visible in `otp_ledger_*`

    async def _requeue(self, message: JobMessage) -> str | None:
        """Return a message whose settlement raised to its queue."""
        if message.returns >= RENEW_AT:
            return None  # more returns could reach the delivery limit: the broker returns it with the connection
        await asyncio.sleep(_REQUEUE_AFTER_S)
        return "requeued" if await requeue(message) else None

    async def _process(self, message: JobMessage) -> str | None:
        """Return how the message was settled; `None` if it was not."""
        if message.returns >= RENEW_AT and not message.dropped:
            return "renewed" if await self._shared.settler.renew(message, self.queue) else None
        incoming = IncomingJob(message, self._shared, self._on_job)
        try:
            if message.dropped:
                await incoming.refuse(str(too_large(message.dropped)))
            else:
                await self._handle(incoming)
            if not incoming.settling:
                # otherwise the message would stay unacked
                await incoming.crash("no settlement: a middleware or dependency did not call the handler")
        except MalformedError as error:
            await incoming.refuse(str(error))
        except Exception as error:  # noqa: BLE001 - a bug must end this job visibly, not leave it unacked
            kind = type(error).__name__
            # no traceback: its texts may contain the code
            job_id = incoming.job.id if incoming.job else None
            structlog.get_logger(__name__).error("job crashed", job_id=job_id, error=kind)
            await incoming.crash(f"internal error: {kind}")
        return incoming.settled

    def _on_job(self, message: JobMessage, job_id: str, job: Job | None) -> None:
        self._warn_if_unverified(message, job_id)
        if job is None or job.request.timestamp is None or self.lane == "due":
            return
        self._waited_ms = max(message.seen_ms - job.made_ms, 0)
        if not message.raw.redelivered:  # a redelivered message is older than its place in the queue
            self._made_ms, self._came_ms = job.made_ms, message.seen_ms

    def _warn_if_unverified(self, message: JobMessage, job_id: str) -> None:
        if self.lane != "due" or message.ours is not None:
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
        """Wait until the jobs in flight have ended, or until `give_up`; requeue the others and return their number."""
        while self._unacked and not give_up():
            await asyncio.wait(list(self._unacked), timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
            await self._give_back()
        await cancel_and_wait(*self._unacked)
        await self._give_back()
        return self._let_go["returned"]

    def stop(self) -> None:
        """Have the messages of jobs that are cancelled from now on returned to the queue."""
        self._stopping = True

    async def _give_back(self) -> None:
        cut, self._cancelled = self._cancelled, []
        give_back = partial(self._shared.settler.give_back, queue=self.queue, counts_returns=self.counts_returns)
        await asyncio.gather(*map(give_back, cut))
