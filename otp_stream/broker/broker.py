"""The connections to RabbitMQ: waited for, repaired, watched, and left in good order."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import aiormq
import structlog
from aio_pika import Message, RobustConnection, connect_robust
from aio_pika.abc import AbstractConnection
from faststream._internal.broker.registrator import Registrator
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from faststream.rabbit.configs import RabbitBrokerConfig
from faststream.rabbit.subscriber import RabbitSubscriber
from yarl import URL

from otp_stream.core.job import Lane
from otp_stream.core.otp_job import OtpJob
from otp_stream.core.state import BrokerState, WaitState
from otp_stream.tasks import cancel_and_wait, forever, lost_connection_as_error

from .amqp_stream import ConsumingConnection
from .config import RabbitConfig
from .consumers import Consumers
from .events import Events, JobEvent
from .incoming import Refused, Shared
from .job_message import MadeIds, Reader
from .lane import LaneConsumer
from .message import now_ms
from .outgoing import Inject
from .pamqp_patch import patch_pamqp
from .refusal import refusal
from .settle import Settler
from .subscriber import OtpSubscriber, decode
from .topology import Topology
from .topology_admin import TROUBLES, TopologyAdmin, leave

HEARTBEAT_S = 10
"""A half-open connection is noticed after three heartbeats."""
_PAUSES_S = (0.5, 1.0, 2.0, 5.0)
_CANCEL_TIMEOUT_S = 3.0
_READY_S = 0.05
_CONFIRM_TIMEOUT_S = 10.0
_EVENTS = Channel(publisher_confirms=False)

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class OtpBroker(RabbitBroker):
    """FastStream's broker, which waits for RabbitMQ at start, and stops intake before it drains at the end.

    It has two connections: a RabbitMQ that is short of memory or disk reads nothing more from one that publishes, and
    acknowledgements would be stuck behind.
    """

    def __init__(self, config: RabbitConfig, *, made: MadeIds, refused: Refused, inject: Inject) -> None:
        patch_pamqp()
        url = _with_heartbeat(config.url)
        super().__init__(
            url,
            default_channel=Channel(on_return_raises=True),
            graceful_timeout=_CANCEL_TIMEOUT_S,
            reconnect_interval=1.0,
            timeout=10.0,
            on_close=[self._lost],
            on_reconnected=[self._back],
            logger=None,  # FastStream logs the text of exceptions, which may quote a code
            specification_url=config.shown_url,
            description="The producers' RabbitMQ.",
        )
        self.topology = topology = Topology(config.queue, config.prefix, config.backoff)
        self._retries = self.publisher(
            exchange=topology.retry,
            routing_key="{delay_ms}",
            title="retry",
            schema=OtpJob,
            description="A failed job on its way to a wait queue. The routing key is the wait in milliseconds.",
        )
        self._dead_letters = self.publisher(
            topology.dead,
            title="dead",
            schema=OtpJob,
            description="Dead letters: the body as it came, with why and when it died in the headers.",
        )
        self.events = Events(
            self.publisher(
                exchange=topology.events,
                routing_key="otp.{outcome}",
                title="events",
                schema=JobEvent,
                description="One event for each job outcome; bind a queue of your own with `otp.#` or one outcome.",
            ),
            enabled=config.events,
        )
        settler = Settler(
            topology,
            config.backoff,
            publish=self.confirmed,
            inject=inject,
            repair=self.repair,
            key=config.hash_key,
        )
        reader = Reader(config.default_expiry_minutes, config.hash_key, made, config.old_hash_keys)
        self._shared = Shared(reader, settler, self.events, refused, config.hash_key, config.old_hash_keys)
        self._prefetch = config.prefetch
        self._lanes: dict[Lane, LaneConsumer] = {}
        self._enabled = config.enabled
        self._admin = TopologyAdmin(url, topology)
        self._state = BrokerState(url=config.shown_url, since_ms=now_ms(), error=None)
        self._consumers = Consumers(self._admin.exists, lambda: self._consuming, self.repair)
        self._consuming: ConsumingConnection | None = None
        self._away: set[AbstractConnection | None] = set()
        self._repair = asyncio.Event()
        self._why: str | None = None
        self._under_way: Counter[str] = Counter()
        """Ids of the messages that are being published."""
        self._tasks: list[asyncio.Task[None]] = []
        self._keeping: list[asyncio.Task[None]] = []
        self._stopping = False

    @property
    def lanes(self) -> list[LaneConsumer]:
        """The lanes that have a handler, the most urgent first."""
        return [self._lanes[lane] for lane in self.topology.lanes if lane in self._lanes]

    def subscriber(self, queue: RabbitQueue | str, *args: Any, **options: Any) -> RabbitSubscriber:
        """Subscribe a handler to a queue: to a lane by `OtpSubscriber`, to any other queue as FastStream does.

        A lane's handler settles its messages itself. `ack_policy`, `no_reply` and `channel` are fixed for lanes.
        """
        name = RabbitQueue.validate(queue).name
        lanes: dict[str, Lane] = {it: lane for lane, it in self.topology.lanes.items()}
        lane = lanes.get(name)
        if lane is None or args:
            return super().subscriber(queue, *args, **options)
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
        cast("Any", Registrator).subscriber(self, subscriber)
        return subscriber.add_call(
            parser_=options.get("parser"),
            decoder_=options.get("decoder", decode),
            codec_=options.get("codec"),
            dependencies_=options.get("dependencies", ()),
        )

    def state(self) -> BrokerState:
        """Return the broker as this worker sees it."""
        lanes = tuple(lane.state for lane in self.lanes)
        return replace(self._state, lanes=lanes, events_dropped=self.events.dropped)

    async def start(self) -> None:
        """Wait until RabbitMQ answers and all queues stand, then consume. With `WORKER=false`, do nothing."""
        if not self._enabled:
            return
        tries = 0
        while not await self._try_to_start():
            await asyncio.sleep(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)])
            tries += 1
        self._note(connected=True)
        _log.info("consuming", broker=self._state.url, queues=[lane.queue for lane in self.lanes])
        self._tasks = [
            asyncio.create_task(forever(self._keep_topology, "topology")),
            asyncio.create_task(forever(self._publish_events, "events")),
        ]
        self._keeping = [asyncio.create_task(forever(partial(self._consumers.keep, self.lanes), "consumers"))]

    async def _connect(self) -> RobustConnection:
        self._consuming = await connect_robust(**self._connection_kwargs, connection_class=ConsumingConnection)
        self._consuming.close_callbacks.add(self._lost)
        self._consuming.reconnect_callbacks.add(self._back)
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
        except TROUBLES as error:
            self._note(connected=False, **self._failure(error))
            _log.warning("waiting for RabbitMQ", broker=self._state.url, error=self._state.error)
            await self._hang_up()
            return False
        return True

    async def refresh(self) -> None:
        """Ask the broker for depths and consumers; what is missing is mended."""
        if not self._enabled:
            return
        try:
            found = await self._admin.ask(self.lanes)
        except TROUBLES as error:
            self._note(**self._failure(error))
            return
        looked_ms = now_ms()
        waits = self._waits(found.waiting, looked_ms)
        self._note(dead=found.dead, waits=waits, looked_ms=looked_ms, blocked=await self._is_blocked())
        await self._consumers.compare(self.lanes)
        self._why = self._why if found.missing else None
        if found.missing:
            self.repair(f"missing at the broker: {', '.join(found.missing)}")

    def _waits(self, depths: Mapping[int, int | None], looked_ms: int) -> tuple[WaitState, ...]:
        before = {it.delay_ms: it.empty_ms for it in self._state.waits}
        return tuple(
            WaitState(
                self.topology.wait_queue(wait_ms), wait_ms, depth, looked_ms if depth == 0 else before.get(wait_ms)
            )
            for wait_ms, depth in sorted(depths.items())
        )

    async def _is_blocked(self) -> bool:
        # the broker said `connection.blocked`: it reads nothing more from the connection that publishes
        transport = self._connection.transport if self._connection else None
        if transport is None:
            return False
        try:
            async with asyncio.timeout(_READY_S):
                await transport.connection.ready()
        except TimeoutError:
            return True
        return False

    def repair(self, why: str) -> None:
        """Have the topology applied again soon."""
        if why != self._why:  # a queue that stays away is news once
            _log.warning("topology is checked again", reason=why)
        self._why = why
        self._repair.set()

    async def confirmed(self, message: Message, *, exchange: str, routing_key: str, afresh: bool = False) -> None:
        """Publish, mandatory and confirmed; raises when the broker returns it, refuses it or is away.

        `afresh` goes over a channel of its own, which is what another try needs: a quorum queue goes on refusing a
        channel that it has refused, even when its limit is lifted, and after a message that was lost to a change of
        leader it takes no later one from the same channel.

        Raises `TimeoutError` when it gives no word, unless it said that it takes no publishes at present: what waits in
        the connection would go out as well as what is published again.
        """
        # aiormq knows a returned message by its id alone: of two with one id it would take the other for lost. One
        # without an id gets one of its own there.
        known = [message.message_id] if message.message_id else []
        publish = self._publish_afresh if afresh or any(it in self._under_way for it in known) else self._publish
        publishing = asyncio.create_task(publish(message, exchange, routing_key))
        self._under_way.update(known)
        try:
            with lost_connection_as_error():
                while not (await asyncio.wait({publishing}, timeout=_CONFIRM_TIMEOUT_S))[0]:
                    if not await self._is_blocked():
                        raise TimeoutError
                await publishing
        finally:
            publishing.cancel()
            self._under_way -= Counter(known)

    async def _publish(self, message: Message, exchange: str, routing_key: str) -> None:
        if exchange == self.topology.retry.name:
            await self._retries.publish(message, routing_key=routing_key)
        elif routing_key == self.topology.dead:
            await self._dead_letters.publish(message)
        else:
            await self.publish(message, routing_key=routing_key)

    async def _publish_afresh(self, message: Message, exchange: str, routing_key: str) -> None:
        async with (await self.connect()).channel(on_return_raises=True) as channel:
            where = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
            await where.publish(message, routing_key, mandatory=True)

    async def stop_intake(self) -> None:
        """Cancel the consumers; what was delivered stays in hand."""
        self._stopping = True
        for lane in self.lanes:
            lane.stop()
        await cancel_and_wait(*self._keeping)
        await self._consumers.stop()

    async def drain(self, give_up: Callable[[], bool]) -> int:
        """Let the jobs in hand come to their end until `give_up`; return the rest, and say how many."""
        returned = sum(await asyncio.gather(*(lane.drain(give_up) for lane in self.lanes)))
        await self._consumers.flush()
        await self.events.flush(1.0)
        return returned

    async def stop(self, *args: Any, **kwargs: Any) -> None:
        """Close everything."""
        await cancel_and_wait(*self._tasks)
        self._tasks = []
        await self._admin.close()
        await self._hang_up(*args, **kwargs)

    async def _hang_up(self, *args: Any, **kwargs: Any) -> None:
        # a connection from which the broker reads nothing cannot be closed in good order
        await leave(super().stop(*args, **kwargs), _CANCEL_TIMEOUT_S)
        consuming, self._consuming = self._consuming, None
        if consuming is not None:
            await leave(consuming.close(), _CANCEL_TIMEOUT_S)
        self._away.clear()

    async def _keep_topology(self) -> None:
        while True:
            await self._repair.wait()
            self._repair.clear()
            try:
                await self._admin.apply(self.lanes)
            except TROUBLES as error:
                self._note(**self._failure(error))
                self._repair.set()
            await asyncio.sleep(1.0)  # however often it is asked for, once a second is enough

    async def _publish_events(self) -> None:
        channel = await self.config.channel_manager.get_channel(_EVENTS)

        async def underlay() -> aiormq.Channel:
            return cast("aiormq.Channel", await channel.get_underlay_channel())

        await self.events.publish(underlay, by_publisher=bool(self.config.broker_middlewares))

    def _lost(self, connection: AbstractConnection | None, error: BaseException | None) -> None:
        if self._stopping:
            return
        self._away.add(connection)
        failure = self._failure(error) if error else {"error": "connection closed"}
        told = failure["error"]
        if self._state.connected or told != self._state.error:  # it is tried every second, and told when it is news
            _log.warning("RabbitMQ is away, connecting again", broker=self._state.url, error=told)
        # what was seen before is no news once it is back: its queues may be gone
        self._note(connected=False, looked_ms=None, **failure)
        self._repair.set()

    def _back(self, connection: AbstractConnection | None) -> None:
        self._away.discard(connection)
        if self._away:
            return
        self._note(connected=True, error=None)
        _log.info("RabbitMQ is back", broker=self._state.url)

    def _failure(self, error: BaseException) -> dict[str, Any]:
        found = refusal(error, self._admin.url)
        return {"error": "; ".join(found), "refused": True} if found else {"error": _told(error)}

    def _note(self, **changes: Any) -> None:
        if changes.get("connected", self._state.connected) != self._state.connected:
            changes["since_ms"] = now_ms()
        if changes.get("connected") or "looked_ms" in changes:
            changes.setdefault("error", None)
        if "error" in changes:
            changes.setdefault("refused", False)
        self._state = replace(self._state, **changes)


def _with_heartbeat(url: str) -> str:
    parsed = URL(url)
    return url if "heartbeat" in parsed.query else str(parsed.update_query(heartbeat=HEARTBEAT_S))


def _told(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")[:300]
