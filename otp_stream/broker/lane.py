"""One priority lane: its queue, its jobs in flight, and their return to the queue when the worker stops."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from time import monotonic
from typing import Any

import structlog

from otp_stream.clock import now_ms
from otp_stream.core.job import Job, Lane
from otp_stream.core.messaging import Destination
from otp_stream.core.otp_job import MalformedError, too_large
from otp_stream.core.state import LaneState
from otp_stream.core.threshold import DynamicThreshold
from otp_stream.tasks import cancel_and_wait

from . import unread_moves
from .headers import verified
from .incoming import IncomingJob, Shared
from .job_message import SIGNED, JobMessage
from .message import RawMessage, open_message
from .queue_age import QueueAge
from .settle import GIVE_BACK_S, acknowledge_now, requeue
from .topology import Depth

RENEW_AT = 3
"""Number of requeues after which a message is published to its queue as a new one. At its delivery limit, a quorum
queue drops a message or dead-letters it without our headers. RabbitMQ 4 has a limit of 20 by default, and counts every
lost connection."""
_REQUEUE_AFTER_S = 5.0
"""Pause before a message is requeued after a failed settlement, so that it is not redelivered in a fast loop."""
_RECENT_MS = 10_000
_WARN_EVERY_S = 60.0

Handle = Callable[[IncomingJob], Awaitable[object]]
"""Reads a message and passes it to the handler. Raises `MalformedError` for a message that is not a valid job."""


class LaneConsumer:
    """Processes the messages of a queue, each in its own task, so that a lost connection cancels no send."""

    def __init__(
        self,
        lane: Lane,
        queue: str,
        prefetch: int,
        shared: Shared,
        handle: Handle,
        moves_unread: Callable[[], bool] = lambda: False,
        template: str | None = None,
    ) -> None:
        self.lane: Lane = lane
        self.queue = queue
        self._source = Destination(queue, template)
        self.prefetch = prefetch
        self.counts_returns = lane in SIGNED
        """Whether it is a quorum queue, which counts every requeue of a message."""
        self.depth: Depth | None = None
        self._shared = shared
        self._handle = handle
        self._moves_unread = moves_unread
        """Returns whether jobs may be moved before they are read, because no extension has to see them first."""
        self._threshold = None if lane == "tenant" else DynamicThreshold(prefetch)
        self._empty_ms: int | None = None
        self._queue_age = QueueAge()
        self._waited_ms: int | None = None
        self._made_ms = 0
        self._received_ms: int | None = None
        self._unacked: dict[asyncio.Future[Any], JobMessage] = {}
        """Each message with its task, or with the confirm of its move."""
        self._received = 0
        self._unverified = 0
        self._warned_at = float("-inf")
        self._ended: Counter[str] = Counter()
        self._stopping = False
        self._cancelled: list[JobMessage] = []
        """Messages to requeue, because their jobs were cancelled at the stop."""

    @property
    def unacked(self) -> int:
        """Unacked jobs now."""
        return len(self._unacked)

    @property
    def kept(self) -> Mapping[str, int]:
        """Unacked jobs of each tenant, if there are tenants. Jobs that are being moved do not count."""
        return self._threshold.kept if self._threshold is not None else {}

    @property
    def state(self) -> LaneState:
        """The lane as this worker and RabbitMQ report it."""
        depth = self.depth
        return LaneState(
            lane=self.lane,
            queue=self.queue,
            template=self._source.template,
            prefetch=self.prefetch,
            unacked=len(self._unacked),
            received=self._received,
            unverified=self._unverified,
            ended=dict(self._ended),
            depth=depth.messages if depth else None,
            consumers=depth.consumers if depth else None,
            empty_ms=self._empty_ms,
            waiting_ms=self._waiting_ms(),
            waited_ms=self._waited_ms,
            received_ms=self._received_ms,
            oldest_unacked_ms=next((it.seen_ms for it in self._unacked.values()), None),
        )

    def record_depth(self, depth: Depth | None) -> None:
        """Record the depth that the broker reports, or `None` if the queue is unavailable."""
        self.depth = depth
        if depth is None:
            return
        self._queue_age.record(depth, self._received, now_ms())
        if not depth.messages:
            self._empty_ms = now_ms()

    def _waiting_ms(self) -> int | None:
        if self.depth is None or not self.depth.messages:
            return None
        if self.depth.consumers > 1:
            # the next message was published soon after the last received one; without a recent one, nothing is known
            known = now_ms() - (self._received_ms or 0) <= _RECENT_MS
            return max(self._made_ms, self._empty_ms or 0) if known else None
        since_ms = self._queue_age.since_ms(self._received)
        return None if since_ms is None else max(since_ms, self._made_ms)

    def dispatch(self, raw: RawMessage) -> asyncio.Future[Any]:
        """Start processing a message, from RabbitMQ or from the in-memory test broker."""
        ours = self._verified(raw) if self.lane in SIGNED else None
        open_message(raw, self._shared.reader.keys())
        message = JobMessage(raw, self.lane, self._source, now_ms(), ours)
        self._received += 1
        threshold = self._threshold
        if threshold is not None and threshold.is_crowded and self._moves_unread():
            move = unread_moves.start(message, threshold, self._shared, self._record_wait)
            if move is not None:
                self._unacked[move] = message
                move.add_done_callback(self._move_done)
                return move
        return self._start(self._process(message), message)

    def _move_done(self, move: asyncio.Future[None]) -> None:
        if move.cancelled():
            self._task_done(move)
            return
        message = self._unacked.pop(move)
        if move.exception() is None:
            self._shared.moved.add_unread(message)
            acknowledge_now(message)
            self._ended["moved"] += 1
        elif message.alive:
            self._start(self._process(message), message)
        else:
            self._ended["taken_back"] += 1

    def _start(self, work: Coroutine[Any, Any, str | None], message: JobMessage) -> asyncio.Task[str | None]:
        task = asyncio.create_task(work)
        self._unacked[task] = message
        task.add_done_callback(self._task_done)
        return task

    def _verified(self, raw: RawMessage) -> Mapping[str, Any] | None:
        ours = verified(raw.headers, raw.body, (self._shared.hash_key, *self._shared.old_hash_keys))
        self._unverified += ours is None
        return ours

    def _task_done(self, task: asyncio.Future[Any]) -> None:
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
            self._ended[how] += 1
        elif not message.alive:
            self._ended["taken_back"] += 1
        elif task.cancelled() and self._stopping:
            self._ended["returned"] += 1
            self._cancelled.append(message)
        # else it is leaked: unacked at the broker but owned by no task; visible in `otp_ledger_*`

    async def _requeue(self, message: JobMessage) -> str | None:
        """Requeue a message after a failed settlement."""
        if self._returned_often(message):
            return None  # more requeues could reach the delivery limit; the end of the connection requeues it
        await asyncio.sleep(_REQUEUE_AFTER_S)
        return "requeued" if await requeue(message) else None

    def _returned_often(self, message: JobMessage) -> bool:
        """Whether the broker has counted many returns. On a classic queue, the count is a header of a producer."""
        return self.counts_returns and message.returns >= RENEW_AT

    async def _process(self, message: JobMessage) -> str | None:
        """Return how the message was settled; `None` if it was not."""
        if self._shared.moved.knows_unread(message):
            acknowledge_now(message)
            return "ack"
        if self._returned_often(message) and not message.dropped:
            renewal = await self._shared.settler.renew(message, self.queue)
            if renewal != "refused":
                return "renewed" if renewal == "renewed" else None
        mover = self._shared.mover
        threshold = self._threshold if mover is not None and mover.enabled else None
        incoming = IncomingJob(message, self._shared, self._on_job, threshold)
        try:
            if message.dropped:
                await incoming.refuse(too_large(message.dropped))
            else:
                await incoming.wait_turn()
                await self._handle(incoming)
            if not incoming.settling:
                # otherwise the message would stay unacked
                await incoming.crash("no settlement: a middleware or dependency did not call the handler")
        except MalformedError as error:
            await incoming.refuse(error)
        except Exception as error:  # noqa: BLE001 - a bug must end this job visibly, not leave it unacked
            kind = type(error).__name__
            # no traceback: its texts may contain the code
            job_id = incoming.job.id if incoming.job else None
            structlog.get_logger(__name__).error("job crashed", job_id=job_id, error=kind)
            await incoming.crash(f"internal error: {kind}")
        finally:
            incoming.end()
        return incoming.settled

    def _on_job(self, message: JobMessage, job_id: str, job: Job | None) -> None:
        self._warn_if_unverified(message, job_id)
        if job is not None and job.request.timestamp is not None:
            self._record_wait(message, job.made_ms)

    def _record_wait(self, message: JobMessage, made_ms: int) -> None:
        if self.lane in SIGNED:
            return
        self._waited_ms = max(message.seen_ms - made_ms, 0)
        if not message.raw.redelivered:  # a redelivered message does not show how old its neighbours in the queue are
            self._made_ms, self._received_ms = made_ms, message.seen_ms

    def _warn_if_unverified(self, message: JobMessage, job_id: str) -> None:
        if self.lane not in SIGNED or message.ours is not None:
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
        """Wait until the jobs in flight end or `give_up` returns true, then requeue the rest. Returns their number."""
        while self._unacked and not give_up():
            await asyncio.wait(list(self._unacked), timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
            await self._give_back()
        ends = monotonic() + GIVE_BACK_S
        # cancelled before its confirm, a retry, dead letter or move would be in a queue as well as its job
        while (copying := self._copying()) and monotonic() < ends:
            await asyncio.wait(copying, timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
        await cancel_and_wait(*self._unacked)
        await self._give_back()
        return self._ended["returned"]

    def _copying(self) -> list[asyncio.Future[Any]]:
        """Return the jobs of which a copy is on its way to the broker."""
        is_copying = self._shared.settler.is_copying
        return [it for it, message in self._unacked.items() if not isinstance(it, asyncio.Task) or is_copying(message)]

    def stop(self) -> None:
        """From now on, requeue the messages of jobs that are cancelled."""
        self._stopping = True

    async def _give_back(self) -> None:
        cancelled, self._cancelled = self._cancelled, []
        give_back = partial(self._shared.settler.give_back, queue=self.queue, counts_returns=self.counts_returns)
        await asyncio.gather(*map(give_back, cancelled))
