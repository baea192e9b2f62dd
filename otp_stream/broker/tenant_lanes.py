"""The queues of the tenants: when a tenant has too many jobs in a worker, the others are moved to its queue."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic

import structlog

from otp_stream.connection_errors import broker_text
from otp_stream.core.job import Job
from otp_stream.core.state import TenantLaneState

from .consumers import Consumers
from .job_message import JobMessage
from .lane import LaneConsumer
from .queue_publisher import Confirm, QueuePublisher
from .settle import Settler, error_text
from .tenant_prefetch import TenantPrefetch
from .topology import DEFAULT_TENANT, Depth, Topology
from .topology_admin import BROKER_ERRORS, TopologyAdmin

_CONCURRENT = 8
"""Requests to the broker at the same time. It takes 20 to 60 ms to declare a quorum queue."""
_CHECK_S = 1.0
"""Interval in which lost consumers are noticed: one task looks at all of them."""
_DEPTHS_S = 30.0
"""Interval in which depths are read. No one waits for them: readiness depends on the other lanes only, and 200 passive
declares for each probe would take more of the broker's time than the jobs of most tenants."""
_DEPTHS_SOON_S = 6.0
"""The same if a consumer seems lost, and for the first time."""
_READY_S = 5.0
"""How long a job waits for the declaration of its tenant's queue, before it is processed in its lane."""
_AGAIN_S = 5.0
"""Pause after a queue could not be declared or consumed."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
"""Pause after a job could not be moved; it doubles each time."""
_LOG_EVERY_S = 60.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Create = Callable[[str, int], LaneConsumer]
"""Creates the consumer of a queue with a prefetch count."""


@dataclass(slots=True)
class _TenantLane:
    tenant: str
    consumer: LaneConsumer
    declared: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while the queue is known to exist."""
    removed: bool = False
    finished: bool = False
    """Whether the tenant is removed and its queue was empty, so that it is no longer consumed."""
    was_empty: bool = False
    moved: int = 0
    start_at: float = 0.0
    """When it may be declared and consumed again."""
    move_at: float = 0.0
    """When jobs may be moved to it again."""
    pause_s: float = _FIRST_PAUSE_S
    logged_at: float = float("-inf")

    @property
    def shown(self) -> str:
        return self.tenant or DEFAULT_TENANT


class TenantLanes:
    """Declares and consumes a queue for each tenant, in the background, and moves jobs to it.

    Without tenants, it does nothing. An unavailable queue affects its tenant only, whose jobs then stay in the lane in
    which they arrived. `admin` has a separate connection, because a request that fails closes it.
    """

    def __init__(
        self,
        topology: Topology,
        admin: TopologyAdmin,
        consumers: Consumers,
        settler: Settler,
        publish: QueuePublisher,
        *,
        prefetch: int,
        blocked: Callable[[], bool],
    ) -> None:
        self._topology = topology
        self._admin = admin
        self._consumers = consumers
        self._settler = settler
        self._publish = publish
        self._prefetch = TenantPrefetch(prefetch)
        self._blocked = blocked
        """Returns whether the broker accepts no publish."""
        self._names: tuple[str, ...] = ()
        self._create: Create | None = None
        self._lanes: dict[str, _TenantLane] = {}
        self._wake = asyncio.Event()
        self._waiting: deque[_TenantLane] = deque()
        """Lanes to declare and consume."""
        self._read_at = 0.0

    @property
    def enabled(self) -> bool:
        """Whether there are tenants, and a handler for their jobs."""
        return bool(self._names) and self._create is not None

    def __iter__(self) -> Iterator[LaneConsumer]:
        """Iterate over the consumers, including those of removed tenants."""
        return iter([it.consumer for it in self._lanes.values()])

    @property
    def states(self) -> Mapping[str, TenantLaneState]:
        """The state of each tenant's queue."""
        return {
            it.tenant: TenantLaneState(
                it.consumer.state, it.moved, self._consumers.is_active(it.consumer.queue), it.removed
            )
            for it in self._lanes.values()
        }

    def handle(self, create: Create) -> None:
        """Consume with these consumers from now on."""
        self._create = create
        self.use(self._names)

    def use(self, names: Iterable[str]) -> None:
        """Use these tenants, and the default one if there are any.

        Queues of new ones are declared at once. The queue of a removed one is consumed until it is empty, and is never
        deleted.
        """
        self._names = tuple(dict.fromkeys(names))
        if self._create is None:
            return
        wanted = dict.fromkeys(("", *self._names)) if self._names else {}
        for lane in self._lanes.values():
            lane.removed = lane.tenant not in wanted
            lane.finished = lane.finished and lane.removed
            lane.was_empty = False
        prefetch = self._prefetch.equal(len(wanted))
        for tenant in wanted:
            if tenant not in self._lanes:
                consumer = self._create(self._topology.tenant_queue(tenant), prefetch)
                self._lanes[tenant] = _TenantLane(tenant, consumer)
        self._wake.set()

    # moving

    def can_move(self, tenant: str) -> bool:
        """Return whether the tenant has a queue that takes jobs."""
        lane = self._lanes.get(tenant)
        return lane is not None and not lane.removed and monotonic() >= lane.move_at and not self._blocked()

    async def move(self, message: JobMessage, job: Job) -> bool:
        """Publish a job to its tenant's queue, then acknowledge. Returns `False` if that failed."""
        lane = self._lanes[job.tenant]
        if not await self._is_declared(lane):
            return self._not_moved(lane, "it is not declared")
        if error := await self._settler.move(message, job, lane.consumer.queue, self._publish):
            return self._refused(lane, error)
        self._has_moved(lane)
        return True

    def publish(self, tenant: str, header: bytes, body: bytes, mac: str) -> Confirm | None:
        """Publish a message to its tenant's queue. Returns `None` if that is not possible at once."""
        lane = self._lanes[tenant]
        if not lane.declared.is_set():
            return None
        confirm = self._publish.start(lane.consumer.queue, header, body, mac)
        if confirm is not None:
            confirm.add_done_callback(lambda it: self._confirmed(lane, it))
        return confirm

    def _confirmed(self, lane: _TenantLane, confirm: Confirm) -> None:
        if confirm.cancelled():
            return
        if error := confirm.exception():
            self._refused(lane, error_text(error))
        else:
            self._has_moved(lane)

    def _refused(self, lane: _TenantLane, error: str) -> bool:
        lane.declared.clear()
        lane.start_at = 0.0
        self._wake.set()
        return self._not_moved(lane, error)

    def _has_moved(self, lane: _TenantLane) -> None:
        lane.moved += 1
        lane.pause_s = _FIRST_PAUSE_S
        now = monotonic()
        if now - lane.logged_at >= _LOG_EVERY_S:
            lane.logged_at = now
            _log.info(
                "jobs are moved to the tenant's own queue: it has too many in this worker",
                tenant=lane.shown,
                queue=lane.consumer.queue,
                so_far=lane.moved,
            )

    async def _is_declared(self, lane: _TenantLane) -> bool:
        if lane.declared.is_set():
            return True
        with suppress(ValueError):  # it is being declared, or waits for the next round
            self._waiting.remove(lane)
            self._waiting.appendleft(lane)
        with suppress(TimeoutError):
            await asyncio.wait_for(lane.declared.wait(), _READY_S)
        return lane.declared.is_set()

    def _not_moved(self, lane: _TenantLane, error: str) -> bool:
        now = monotonic()
        if now >= lane.move_at:  # else another job has found it a moment ago
            _log.warning(
                "jobs cannot be moved to the tenant's own queue, and stay in their lane",
                tenant=lane.shown,
                queue=lane.consumer.queue,
                error=error,
                again_in_s=lane.pause_s,
            )
            lane.move_at = now + lane.pause_s
            lane.pause_s = min(lane.pause_s * 2, _LONGEST_PAUSE_S)
        return False

    # consuming

    async def run(self) -> None:
        """Declare and consume the queues, restart lost consumers and read depths, until cancelled."""
        self._read_at = monotonic() + _DEPTHS_SOON_S
        while True:
            self._wake.clear()
            await self._start_missing()
            await self._consumers.resize(self._prefetch.changes([it.consumer for it in self._lanes.values()]))
            if self._lanes and monotonic() >= self._read_at:
                await self._read_depths()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _CHECK_S if self._lanes else None)

    async def _start_missing(self) -> None:
        now = monotonic()
        missing = (it for it in self._lanes.values() if now >= it.start_at and not it.finished)
        self._waiting = deque(it for it in missing if not self._is_started(it))
        await asyncio.gather(*(self._start_waiting() for _ in range(min(_CONCURRENT, len(self._waiting)))))

    async def _start_waiting(self) -> None:
        while self._waiting:
            await self._start(self._waiting.popleft())

    def _is_started(self, lane: _TenantLane) -> bool:
        return lane.declared.is_set() and self._consumers.is_active(lane.consumer.queue)

    async def _start(self, lane: _TenantLane) -> None:
        queue = lane.consumer.queue
        try:
            # also if it was declared before, because consuming from a missing queue would close the channel
            if lane.removed and not await self._admin.exists(queue):
                lane.finished = True
                return
            await self._admin.declare_tenant(queue)
            lane.declared.set()
            if not self._consumers.is_active(queue):
                await self._consumers.consume(lane.consumer)
        except BROKER_ERRORS as error:
            if lane.start_at == 0.0:  # else it is logged already
                _log.warning(
                    "tenant's queue is away, nothing is consumed from it", queue=queue, error=broker_text(error)
                )
            lane.start_at = monotonic() + _AGAIN_S
        else:
            lane.start_at = 0.0

    async def _read_depths(self) -> None:
        lanes = list(self._lanes.values())
        try:
            depths = await self._admin.depths(it.consumer.queue for it in lanes)
        except BROKER_ERRORS:
            depths = {}
        for lane in lanes:
            await self._record_depth(lane, depths.get(lane.consumer.queue))
        active = [it.consumer for it in self._lanes.values() if not it.finished]
        suspicious = await self._consumers.compare(active)
        self._read_at = monotonic() + (_DEPTHS_SOON_S if suspicious else _DEPTHS_S)

    async def _record_depth(self, lane: _TenantLane, depth: Depth | None) -> None:
        lane.consumer.record_depth(depth)
        if depth is None:
            return
        is_empty = not depth.messages and not lane.consumer.unacked
        # twice, because another worker may still move jobs to it
        finished = lane.removed and is_empty and (lane.finished or lane.was_empty)
        lane.was_empty = is_empty
        if finished and not lane.finished:
            _log.info("removed tenant's queue is empty, it is no longer consumed", queue=lane.consumer.queue)
            await self._consumers.cancel(lane.consumer)
        lane.finished = finished
