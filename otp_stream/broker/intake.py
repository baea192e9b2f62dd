"""The consumers. Each lane's is watched by itself, so that a queue which is away stops no other lane."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from time import monotonic
from typing import cast

import structlog
from aiormq import Channel
from aiormq.abc import AbstractConnection as Transport
from aiormq.abc import DeliveredMessage

from otp_stream.tasks import lost_connection_as_error

from .acks import Acks
from .control import TROUBLES, leave
from .inlet import Deliveries, Inlet, Taker
from .lane import LaneConsumer
from .message import now_ms

_CANCEL_TIMEOUT_S = 3.0
_START_TIMEOUT_S = 10.0
_LOOK_S = 0.25
_TRY_AGAIN_S = 1.0
_UNSEEN_S = 5.0
_SHORTEST_TIMEOUT_MS = 2_000
"""RabbitMQ advises against a consumer timeout of less than a minute."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Consumer:
    channel: Channel
    acks: Acks
    tag: str | None = None

    @property
    def stands(self) -> bool:
        return self.tag in self.channel.consumers and not self.channel.is_closed


class Intake:
    """Consumes, straight from the wire, and starts each consumer again that is gone.

    FastStream's subscribers describe the lanes and take jobs on the in-memory broker; here, dispatch by dispatch, they
    would take most of a job's time. And aio-pika restores consumers as one: where one queue cannot be consumed (its
    node is down), it gives the whole connection up, and with it every other lane. `exists` asks the broker for a queue,
    because the attempt to consume one that is away costs the channel; `repair` is told of one. `connection` is the one
    that consumes.
    """

    def __init__(
        self,
        exists: Callable[[str], Awaitable[bool]],
        connection: Callable[[], Inlet | None],
        repair: Callable[[str], None],
    ) -> None:
        self._exists = exists
        self._connection = connection
        self._repair = repair
        self._away: set[str] = set()
        self._consumers: dict[str, _Consumer] = {}
        self._unseen: dict[str, tuple[float, int]] = {}
        """Since when a consumer seems lost, and the deliveries of its lane then."""
        self._restarted: dict[str, int] = {}
        """The deliveries of each lane when its consumer was last restarted."""

    async def start(self, lanes: Iterable[LaneConsumer]) -> None:
        """Consume from every queue that is there. Raises what the broker says of one that is there and refuses."""
        # together: about a queue whose node is down there is no answer for seconds, which the others do not wait for
        for came in await asyncio.gather(*map(self._consume, lanes), return_exceptions=True):
            if isinstance(came, BaseException):
                raise came

    async def keep(self, lanes: Iterable[LaneConsumer]) -> None:
        """Look after the consumers until cancelled."""
        await asyncio.gather(*map(self._keep, lanes))

    async def stop(self) -> None:
        """Cancel the consumers; what was delivered stays in hand."""
        for consumer in self._consumers.values():
            if consumer.stands:
                await leave(consumer.channel.basic_cancel(str(consumer.tag)), _CANCEL_TIMEOUT_S)

    async def flush(self) -> None:
        """Return once the broker has every acknowledgement."""
        channels = [consumer.channel for consumer in self._consumers.values() if not consumer.channel.is_closed]
        # any answer will do: the broker takes what comes over one channel in order
        await asyncio.gather(*(leave(channel.basic_qos(prefetch_count=1), _CANCEL_TIMEOUT_S) for channel in channels))

    async def compare(self, lanes: Iterable[LaneConsumer]) -> None:
        """Restart each consumer that RabbitMQ has forgotten, or for which it delivers nothing although jobs wait.

        RabbitMQ sends no cancel where a quorum queue's leader froze, and 3.10 none where a quorum queue was deleted and
        declared again at once.
        """
        for lane in lanes:
            consumer = self._consumers.get(lane.queue)
            lost = consumer is not None and consumer.stands and self._loss(lane)
            if consumer is None or not lost:
                self._unseen.pop(lane.queue, None)
                continue
            received = lane.state.received
            since, received_then = self._unseen.setdefault(lane.queue, (monotonic(), received))
            if received != received_then:
                self._unseen[lane.queue] = (monotonic(), received)
            elif monotonic() - since >= _UNSEEN_S:
                del self._unseen[lane.queue]
                self._restarted[lane.queue] = received
                _log.warning(lost, queue=lane.queue)
                await self._end(consumer, idle=not lane.state.held)

    def _loss(self, lane: LaneConsumer) -> str:
        """Return what the broker's figures say against the lane's consumer; empty if nothing."""
        if lane.depth is None:
            return ""
        if not lane.depth.consumers:
            return "the broker does not know our consumer, it is started again"
        # once for the same deliveries: with single active consumer, the one that waits gets nothing, either
        again = self._restarted.get(lane.queue) == lane.state.received
        if lane.depth.messages and not lane.state.held and not again:
            return "jobs wait and RabbitMQ delivers none, the consumer is started again"
        return ""

    async def _end(self, consumer: _Consumer, *, idle: bool) -> None:
        tag, consumer.tag = consumer.tag, None
        # what is held can be acknowledged over its own channel alone
        ending = consumer.channel.close() if idle else consumer.channel.basic_cancel(str(tag))
        await leave(ending, _CANCEL_TIMEOUT_S)

    async def _keep(self, lane: LaneConsumer) -> None:
        well = True
        while True:
            await asyncio.sleep(_LOOK_S if well else _TRY_AGAIN_S)
            well = self._stands(lane.queue) or await self._try_to_consume(lane)

    def _stands(self, queue: str) -> bool:
        consumer = self._consumers.get(queue)
        return consumer is not None and consumer.stands

    async def _try_to_consume(self, lane: LaneConsumer) -> bool:
        try:
            came = await self._consume(lane)
        except TROUBLES as error:
            _log.debug("consumer not started", queue=lane.queue, error=type(error).__name__)
            return False
        if came:
            _log.info("consuming again", queue=lane.queue)
        return came

    async def _consume(self, lane: LaneConsumer) -> bool:
        queue = lane.queue
        if not await self._exists(queue):
            if queue not in self._away:
                self._away.add(queue)
                _log.warning("queue is away, nothing is consumed from it", queue=queue)
                self._repair(f"{queue} is away")
            return False
        connection = self._connection()
        transport = connection.transport.connection if connection and connection.transport else None
        deliveries = connection.deliveries if connection else None
        if connection is None or transport is None or transport.is_closed or deliveries is None:
            raise ConnectionError("not connected")
        try:
            with lost_connection_as_error():
                await asyncio.wait_for(self._open(lane, connection, transport, deliveries), _START_TIMEOUT_S)
        except TimeoutError:
            if not any(map(self._stands, self._consumers)):
                # It lives and gives no answer: what hangs in it would hang for ever. Closed, it is opened again.
                told = ConnectionError(f"no answer to the request to consume from {queue}")
                await leave(transport.close(told), _CANCEL_TIMEOUT_S)
            raise
        self._away.discard(queue)
        return True

    async def _open(self, lane: LaneConsumer, connection: Inlet, transport: Transport, deliveries: Deliveries) -> None:
        consumer = self._consumers.get(lane.queue)
        cancelled = consumer is not None and consumer.tag is not None and not consumer.channel.is_closed
        away = lane.queue in self._away
        if consumer is not None and cancelled and not away and _requeues(transport) and _timed_out(lane):
            # RabbitMQ has cancelled it for its consumer timeout: what is in flight is back in its queue and comes
            # again, as often as that happens. Without the channel, the copies here are known to be settled.
            _log.warning("RabbitMQ has cancelled our consumer, its messages in flight are given back", queue=lane.queue)
            await leave(consumer.channel.close(), _CANCEL_TIMEOUT_S)
        if consumer is None or consumer.channel.is_closed:
            channel = cast("Channel", await transport.channel(publisher_confirms=False))
            acks = Acks(channel)
            consumer = self._consumers[lane.queue] = _Consumer(channel, acks)
            await channel.basic_qos(prefetch_count=lane.window)
            deliveries.deliver(channel, Taker(channel, acks, lane.dispatch, connection.large))
        # else only the consumer is gone: what came over the channel before can be acknowledged there alone
        answer = await consumer.channel.basic_consume(lane.queue, _nothing)
        consumer.tag = answer.consumer_tag


def _requeues(transport: Transport) -> bool:
    """Return whether a cancelled consumer's messages are back in their queue: from RabbitMQ 4.3, at its timeout.

    Earlier versions cancel a consumer only when its queue is deleted. Then no message comes again.
    """
    version = str(transport.server_properties.get("version", "")).split(".")
    return len(version) > 1 and all(it.isdecimal() for it in version[:2]) and tuple(map(int, version[:2])) >= (4, 3)


def _timed_out(lane: LaneConsumer) -> bool:
    """Return whether a consumer timeout is possible: something has been in flight for so long, in a quorum queue.

    If not, its queue was deleted and made again at once, and what was in flight comes from nowhere else. RabbitMQ 4.3
    has no consumer timeout for classic queues.
    """
    since_ms = lane.state.oldest_held_ms
    return lane.counts_returns and since_ms is not None and now_ms() - since_ms >= _SHORTEST_TIMEOUT_MS


async def _nothing(message: DeliveredMessage) -> None:
    """Stand for the consumer at aiormq, which sees no delivery."""
