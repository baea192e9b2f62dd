"""The connections to RabbitMQ: opened at start, restored when they are lost, closed at the end."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import aiormq
import structlog
from aio_pika import RobustConnection, connect_robust
from faststream._internal.broker.registrator import Registrator
from faststream.exceptions import SetupError
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from faststream.rabbit.configs import RabbitBrokerConfig
from faststream.rabbit.subscriber import RabbitSubscriber
from yarl import URL

from otp_stream.clock import now_ms
from otp_stream.core.job import Lane
from otp_stream.core.job_event import JobEvent
from otp_stream.core.state import BrokerState, WaitState
from otp_stream.tasks import cancel_and_wait, forever, lost_connection_as_error

from .amqp_stream import ConsumingConnection
from .audit_queue import AuditCollector
from .config import RabbitConfig, with_heartbeat
from .confirmed_publish import ConfirmedPublisher
from .consumers import Consumers
from .events import Events
from .incoming import Shared
from .job_message import MadeIds, Reader
from .job_publisher import JobPublisher
from .lane import LaneConsumer
from .queue_publisher import QueuePublisher
from .settle import Settler
from .state_tracker import StateTracker
from .subscriber import OtpSubscriber
from .telemetry import BrokerTelemetry
from .tenant_lanes import TenantLanes
from .topology import Topology
from .topology_admin import BROKER_ERRORS, TopologyAdmin, TopologyRepair, quietly

_PAUSES_S = (0.5, 1.0, 2.0, 5.0)
_CANCEL_TIMEOUT_S = 3.0
_LANE_OPTIONS = {"title", "description", "parser", "decoder", "codec", "dependencies"}
_EVENTS = Channel(publisher_confirms=False)
_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class OtpBroker(RabbitBroker):
    """FastStream's broker, which waits for RabbitMQ at start, and drains its jobs at the end.

    It has two connections, because a RabbitMQ that is low on memory or disk space stops reading from a connection that
    publishes, including acknowledgements.
    """

    def __init__(self, config: RabbitConfig, *, made: MadeIds, telemetry: BrokerTelemetry) -> None:
        self._url = with_heartbeat(config.url)
        self.topology = topology = Topology(config.queue, config.prefix, config.backoff)
        self._admin, self._tenant_admin = (TopologyAdmin(lambda: self._url, topology) for _ in range(2))
        self._topology_repair = TopologyRepair()
        self._tracker = StateTracker(lambda: self._url, config.shown_url, self._topology_repair.again)
        super().__init__(
            self._url,
            default_channel=Channel(on_return_raises=True),
            graceful_timeout=_CANCEL_TIMEOUT_S,
            reconnect_interval=1.0,
            timeout=10.0,
            on_close=[self._tracker.connection_lost],
            on_reconnected=[self._tracker.reconnected],
            logger=None,  # FastStream logs the text of exceptions, which may quote a code
            specification_url=config.shown_url,
            description="The producers' RabbitMQ.",
        )
        self.confirmed = ConfirmedPublisher(self, topology, telemetry)
        self.events = self._events(telemetry, enabled=config.events)
        repair, hash_key, keys = self._topology_repair.request, config.hash_key, config.sealing_keys
        self.publish_job = JobPublisher(
            self.confirmed, topology, self._tracker, lambda: self.running, repair, keys
        )  # fmt: skip
        settler = Settler(topology, config.backoff, self.confirmed, repair, hash_key, keys, config.retention)
        reader = Reader(
            config.default_expiry_minutes, hash_key, made, config.old_hash_keys, config.tenant_of, keys
        )  # fmt: skip
        self._audit = AuditCollector(topology.audit, (hash_key, *config.old_hash_keys))
        self._prefetch = config.prefetch
        self._lanes: dict[Lane, LaneConsumer] = {}
        self._enabled = config.enabled
        self._consumers = Consumers(self._admin.exists, lambda: self._consuming, self._topology_repair.request)
        self._tenants = TenantLanes(
            topology,
            self._tenant_admin,
            self._consumers,
            settler,
            QueuePublisher(self.confirmed, telemetry, uses_other=lambda: bool(self.config.broker_middlewares)),
            prefetch=config.prefetch,
            blocked=lambda: self._tracker.state.blocked,
        )
        self._tenants.use(config.tenants)
        self._shared = Shared(
            reader, settler, self.events, telemetry, config.hash_key, config.old_hash_keys, mover=self._tenants
        )
        self._consuming: ConsumingConnection | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._restarts: list[asyncio.Task[None]] = []

    def _events(self, telemetry: BrokerTelemetry, *, enabled: bool) -> Events:
        return Events(
            self.publisher(
                exchange=self.topology.events,
                routing_key="otp.{outcome}",
                title="events",
                schema=JobEvent,
                description="One event for each job outcome; bind a queue of your own with `otp.#` or one outcome.",
            ),
            telemetry,
            enabled=enabled,
        )

    @property
    def lanes(self) -> list[LaneConsumer]:
        """The lanes that have a handler, the most urgent first."""
        return [self._lanes[lane] for lane in self.topology.lanes if lane in self._lanes]

    @property
    def unacked(self) -> int:
        """Unacked jobs at this worker."""
        return sum(lane.unacked for lane in (*self.lanes, *self._tenants))

    def use_tenants(self, names: Iterable[str]) -> None:
        """Use these tenants from now on. The queues of others are consumed until they are empty."""
        self._tenants.use(names)

    def subscriber(self, queue: RabbitQueue | str, *args: Any, **options: Any) -> RabbitSubscriber:
        """Subscribe a handler to a queue: to a lane with `OtpSubscriber`, to any other queue as FastStream does.

        The queues of all tenants have one handler, which subscribes to their pattern, `Topology.any_tenant`.
        A lane has one handler, which settles its messages itself. Raises `SetupError` for a second one, and for options
        that a lane does not have, such as `ack_policy`, `no_reply` and `channel`.
        """
        name = RabbitQueue.validate(queue).name
        lanes: dict[str, Lane] = {it: lane for lane, it in self.topology.lanes.items()}
        lane = lanes.get(name) if name != self.topology.any_tenant else "tenant"
        if lane is None:
            return super().subscriber(queue, *args, **options)
        if lane in self._lanes:
            raise SetupError(f"{name} has a handler already; to run code for each job, add a middleware")
        if unknown := [*(["exchange"] if args else ()), *sorted(options.keys() - _LANE_OPTIONS)]:
            raise SetupError(f"{name} is a lane, whose handler settles its messages; remove {', '.join(unknown)}")
        subscriber = OtpSubscriber(
            queue=self.topology.consumed(lane),
            lane=lane,
            prefetch=self._prefetch,
            shared=self._shared,
            config=cast("RabbitBrokerConfig", self.config),
            title=options.get("title"),
            description=options.get("description"),
        )
        self._lanes[lane] = subscriber.lane
        if lane == "tenant":
            self._tenants.handle(subscriber.another)
        cast("Any", Registrator).subscriber(self, subscriber)
        return subscriber.add_call(
            parser_=options.get("parser"),
            decoder_=options.get("decoder", subscriber.decode),
            codec_=options.get("codec"),
            dependencies_=options.get("dependencies", ()),
        )

    def state(self) -> BrokerState:
        """Return the state of the broker as seen by this worker."""
        lanes = tuple(lane.state for lane in self.lanes)
        kept = sum((Counter(lane.kept) for lane in self.lanes), Counter[str]())
        state, tenants = self._tracker.state, self._tenants.states
        return replace(state, lanes=lanes, tenants=tenants, kept=kept, events_dropped=self.events.dropped)

    def use_url(self, url: str, shown_url: str) -> None:
        """Open new connections with this URL, whose user or password is another one. Open connections stay open."""
        self._url = self._connection_kwargs["url"] = with_heartbeat(url)
        self._tracker.update(url=shown_url)
        for connection in (self._consuming, self._connection):
            if connection is not None:
                connection.url = URL(self._url)

    async def start(self) -> None:
        """Wait until RabbitMQ responds and all queues exist, then consume. With `WORKER=false`, do nothing."""
        if not self._enabled:
            return
        tries = 0
        while not await self._try_to_start():
            await asyncio.sleep(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)])
            tries += 1
        self._tracker.update(connected=True)
        _log.info("consuming", broker=self._tracker.state.url, queues=[lane.queue for lane in self.lanes])
        self._tasks = [
            asyncio.create_task(
                forever(partial(self._topology_repair.run, self._apply_topology, self._tracker.failed), "topology")
            ),
            asyncio.create_task(forever(self._publish_events, "events")),
            asyncio.create_task(forever(partial(self._audit.run, lambda: self._consuming), "audit")),
        ]
        self._restarts = [
            asyncio.create_task(forever(partial(self._consumers.keep, self.lanes), "consumers")),
            asyncio.create_task(forever(self._tenants.run, "tenants")),
        ]

    async def _connect(self) -> RobustConnection:
        self._consuming = await connect_robust(**self._connection_kwargs, connection_class=ConsumingConnection)
        self._consuming.close_callbacks.add(self._tracker.connection_lost)
        self._consuming.reconnect_callbacks.add(self._tracker.reconnected)
        return await super()._connect()  # FastStream's own connection publishes

    async def _try_to_start(self) -> bool:
        try:
            with lost_connection_as_error():
                await self._admin.apply(self.lanes)
                await self.connect()
                for subscriber in self.subscribers:
                    await subscriber.start()
                await self._consumers.start(self.lanes)
            self.running = True
        except BROKER_ERRORS as error:
            self._tracker.failed(error, connected=False)
            state = self._tracker.state
            _log.warning("waiting for RabbitMQ", broker=state.url, error=state.error)
            await self._close()
            return False
        return True

    async def refresh(self) -> None:
        """Read depths and consumers from the broker, and request the declaration of missing queues."""
        if not self._enabled:
            return
        try:
            found = await self._admin.read_depths(self.lanes)
        except BROKER_ERRORS as error:
            self._tracker.failed(error)
            return
        reported_ms = now_ms()
        waits = self._wait_states(found.waiting, reported_ms)
        blocked = await self.confirmed.is_blocked()
        self._tracker.update(dead=found.dead, waits=waits, reported_ms=reported_ms, blocked=blocked)
        await self._consumers.compare(self.lanes)
        if found.missing:
            self._topology_repair.request(f"missing at the broker: {', '.join(found.missing)}")
        else:
            self._topology_repair.complete()

    def _wait_states(self, depths: Mapping[int, int | None], reported_ms: int) -> tuple[WaitState, ...]:
        before = {it.delay_ms: it.empty_ms for it in self._tracker.state.waits}
        return tuple(
            WaitState(
                self.topology.wait_queue(wait_ms), wait_ms, depth, reported_ms if depth == 0 else before.get(wait_ms)
            )
            for wait_ms, depth in sorted(depths.items())
        )

    async def stop_consumers(self) -> None:
        """Cancel the consumers; delivered jobs stay in flight."""
        self._tracker.stop()
        for lane in (*self.lanes, *self._tenants):
            lane.stop()
        await cancel_and_wait(*self._restarts)
        await self._consumers.stop()

    async def drain(self, give_up: Callable[[], bool]) -> int:
        """Wait until the jobs in flight end or `give_up` returns true, then requeue the rest. Returns their number."""
        returned = sum(await asyncio.gather(*(lane.drain(give_up) for lane in (*self.lanes, *self._tenants))))
        await self._consumers.flush()
        await self.events.flush(1.0)
        return returned

    async def stop(self, *args: Any, **kwargs: Any) -> None:
        """Close all connections."""
        await cancel_and_wait(*self._tasks)
        self._tasks = []
        await asyncio.gather(self._admin.close(), self._tenant_admin.close())
        await self._close(*args, **kwargs)

    async def _close(self, *args: Any, **kwargs: Any) -> None:
        # with a time limit: a broker that reads nothing from a connection does not answer its close
        await quietly(super().stop(*args, **kwargs), _CANCEL_TIMEOUT_S)
        consuming, self._consuming = self._consuming, None
        if consuming is not None:
            await quietly(consuming.close(), _CANCEL_TIMEOUT_S)
        self._tracker.closed()

    async def _apply_topology(self) -> None:
        await self._admin.apply(self.lanes)
        self._consumers.doubt(self.lanes)

    async def _publish_events(self) -> None:
        channel = await self.config.channel_manager.get_channel(_EVENTS)

        async def underlay() -> aiormq.Channel:
            return cast("aiormq.Channel", await channel.get_underlay_channel())

        await self.events.publish(underlay, by_publisher=bool(self.config.broker_middlewares))
