"""One consumer for each queue. An unavailable queue does not stop the other lanes."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import cast

import structlog
from aiormq import Channel
from aiormq.abc import AbstractConnection as Transport
from aiormq.abc import DeliveredMessage

from otp_stream.clock import now_ms
from otp_stream.tasks import lost_connection_as_error

from .amqp_stream import ConsumingConnection, DeliveryAssembler, DeliveryReader
from .frames import Acks
from .lane import LaneConsumer
from .topology_admin import BROKER_ERRORS, quietly
from .unacked_limit import UnackedLimit

_CANCEL_TIMEOUT_S = 3.0
_UNANSWERED_S = 60.0
"""Time limit for the answer to a request that nothing waits for any longer."""
_START_TIMEOUT_S = 10.0
_CHECK_S = 0.25
_TRY_AGAIN_S = 1.0
_UNSEEN_S = 5.0
_DOUBT_S = 3.0
_SHORTEST_TIMEOUT_MS = 2_000
"""RabbitMQ advises against a consumer timeout of less than a minute."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Consumer:
    channel: Channel
    limit: UnackedLimit
    tag: str | None = None

    @property
    def is_active(self) -> bool:
        return self.tag in self.channel.consumers and not self.channel.is_closed


class Consumers:
    """Starts a consumer for each lane, and restarts each one that is lost.

    FastStream's subscribers describe the lanes, and receive jobs on the in-memory broker; here their dispatch would
    take most of a job's time. aio-pika restores all consumers or none: if the node of one queue is down, it closes the
    connection, and with it every other lane. `exists` returns whether a queue is available, because consuming from an
    unavailable one closes the channel; `repair` is called with a text about such a queue. `connection` returns the
    connection that consumes.
    """

    def __init__(
        self,
        exists: Callable[[str], Awaitable[bool]],
        connection: Callable[[], ConsumingConnection | None],
        repair: Callable[[str], None],
    ) -> None:
        self._exists = exists
        self._connection = connection
        self._repair = repair
        self._away: set[str] = set()
        self._consumers: dict[str, _Consumer] = {}
        self._unseen: dict[str, tuple[float, int]] = {}
        """Since when a consumer seems lost, and its lane's number of deliveries at that time."""
        self._restarted: dict[str, int] = {}
        """Each lane's number of deliveries when its consumer was last restarted."""
        self._doubted: dict[str, float] = {}
        """When to start the consumers again that may be lost."""
        self._cancels: set[asyncio.Task[None]] = set()
        """Requests to cancel a consumer that RabbitMQ has not answered."""

    async def start(self, lanes: Iterable[LaneConsumer]) -> None:
        """Consume from every available queue. Raises the broker's error if it refuses a consumer."""
        # concurrently, because for a queue whose node is down there is no answer for seconds
        for started in await asyncio.gather(*map(self._consume, lanes), return_exceptions=True):
            if isinstance(started, BaseException):
                raise started

    async def keep(self, lanes: Iterable[LaneConsumer]) -> None:
        """Restart lost consumers, until cancelled."""
        await asyncio.gather(*map(self._keep, lanes))

    async def stop(self) -> None:
        """Cancel the consumers; delivered jobs stay in flight."""
        active = [it for it in self._consumers.values() if it.is_active]
        await asyncio.gather(*(self._cancel(it.channel, it.tag) for it in active))

    async def cancel(self, lane: LaneConsumer) -> None:
        """Cancel the consumer of one lane."""
        consumer = self._consumers.get(lane.queue)
        if consumer is not None and consumer.is_active:
            await self._end(consumer, idle=not lane.unacked)

    async def resize(self, prefetches: Iterable[tuple[LaneConsumer, int]]) -> None:
        """Consume with other prefetch counts. Jobs in flight stay, and do not count towards the new ones."""
        for lane, prefetch in prefetches:
            lane.prefetch = prefetch
            consumer = self._consumers.get(lane.queue)
            if consumer is not None and consumer.is_active:
                await self._end(consumer, idle=False)
                with suppress(*BROKER_ERRORS):  # a lost consumer is restarted
                    await self.consume(lane)

    def doubt(self, lanes: Iterable[LaneConsumer]) -> None:
        """Start the consumers of quorum queues again soon, after the topology was applied.

        If that declared a queue that was deleted a moment before, RabbitMQ 3.10 sends no cancel: it still counts the
        consumer, and keeps messages for it that it never delivers.
        """
        at = monotonic() + _DOUBT_S  # another worker may still declare queues
        self._doubted |= {lane.queue: at for lane in lanes if lane.counts_returns}

    async def flush(self) -> None:
        """Return once the broker has received every acknowledgement."""
        channels = [consumer.channel for consumer in self._consumers.values() if not consumer.channel.is_closed]
        # by any request, because the broker handles the requests of one channel in order
        await asyncio.gather(*(quietly(channel.basic_qos(prefetch_count=1), _CANCEL_TIMEOUT_S) for channel in channels))

    async def compare(self, lanes: Iterable[LaneConsumer]) -> bool:
        """Restart each consumer that RabbitMQ no longer knows, or to which it delivers nothing although jobs wait.

        RabbitMQ sends no cancel if the leader of a quorum queue froze, and 3.10 sends none if a quorum queue was
        deleted and immediately declared again. Returns whether a consumer seems lost, but not for long enough.
        """
        suspicious = False
        for lane in lanes:
            consumer = self._consumers.get(lane.queue)
            lost = consumer is not None and consumer.is_active and self._loss(lane)
            if consumer is None or not lost:
                self._unseen.pop(lane.queue, None)
                continue
            received = lane.state.received
            suspicious = True
            since, received_then = self._unseen.setdefault(lane.queue, (monotonic(), received))
            if received != received_then:
                self._unseen[lane.queue] = (monotonic(), received)
            elif monotonic() - since >= _UNSEEN_S:
                del self._unseen[lane.queue]
                self._restarted[lane.queue] = received
                _log.warning(lost, queue=lane.queue)
                await self._end(consumer, idle=not lane.state.unacked)
        return suspicious

    def _loss(self, lane: LaneConsumer) -> str:
        """Return why the lane's consumer seems lost, by the figures of the broker, or an empty text."""
        if lane.depth is None:
            return ""
        if not lane.depth.consumers:
            return "the broker does not know our consumer, it is started again"
        # once for the same number of deliveries: a consumer that waits behind a single active one gets nothing either
        again = self._restarted.get(lane.queue) == lane.state.received
        if lane.depth.messages and not lane.state.unacked and not again:
            return "jobs wait and RabbitMQ delivers none, the consumer is started again"
        return ""

    async def _end(self, consumer: _Consumer, *, idle: bool) -> None:
        tag, consumer.tag = consumer.tag, None
        # jobs in flight can be acknowledged only over their own channel
        await (quietly(consumer.channel.close(), _CANCEL_TIMEOUT_S) if idle else self._cancel(consumer.channel, tag))

    async def _cancel(self, channel: Channel, tag: str | None) -> None:
        """Cancel a consumer. If RabbitMQ takes too long, do not wait for it, but leave the request as it is.

        aiormq closes the channel of a request that is given up, and the jobs in flight could not be acknowledged.
        """
        cancel = asyncio.create_task(quietly(channel.basic_cancel(str(tag)), _UNANSWERED_S))
        self._cancels.add(cancel)
        cancel.add_done_callback(self._cancels.discard)
        await asyncio.wait({cancel}, timeout=_CANCEL_TIMEOUT_S)

    async def _keep(self, lane: LaneConsumer) -> None:
        active = True
        while True:
            await asyncio.sleep(_CHECK_S if active else _TRY_AGAIN_S)
            if self._doubted.get(lane.queue, inf) <= monotonic() and not lane.unacked:
                await self._start_again(lane)
            active = self.is_active(lane.queue) or await self._try_to_consume(lane)

    async def _start_again(self, lane: LaneConsumer) -> None:
        """Start the consumer of an idle lane again over a new channel: over the same one it gets nothing."""
        del self._doubted[lane.queue]
        consumer = self._consumers.get(lane.queue)
        if consumer is None or not consumer.is_active:
            return
        await self._end(consumer, idle=False)
        if not lane.unacked:  # else a job has arrived meanwhile, so the consumer was not lost
            await quietly(consumer.channel.close(), _CANCEL_TIMEOUT_S)
        with suppress(*BROKER_ERRORS):  # it is tried again
            await self._consume(lane)
            _log.debug("idle consumer started again", queue=lane.queue)

    def is_active(self, queue: str) -> bool:
        """Return whether there is a consumer on a queue."""
        consumer = self._consumers.get(queue)
        return consumer is not None and consumer.is_active

    async def _try_to_consume(self, lane: LaneConsumer) -> bool:
        try:
            started = await self._consume(lane)
        except BROKER_ERRORS as error:
            _log.debug("consumer not started", queue=lane.queue, error=type(error).__name__)
            return False
        if started:
            _log.info("consuming again", queue=lane.queue)
            self._repair(f"{lane.queue} may have been declared again, without its bindings")
        return started

    async def _consume(self, lane: LaneConsumer) -> bool:
        queue = lane.queue
        if not await self._exists(queue):
            if queue not in self._away:
                self._away.add(queue)
                _log.warning("queue is away, nothing is consumed from it", queue=queue)
                self._repair(f"{queue} is away")
            return False
        await self.consume(lane)
        self._away.discard(queue)
        return True

    async def consume(self, lane: LaneConsumer) -> None:
        """Consume from a queue that exists. Raises the broker's error if it refuses."""
        queue = lane.queue
        connection = self._connection()
        transport = connection.transport.connection if connection and connection.transport else None
        deliveries = connection.deliveries if connection else None
        if connection is None or transport is None or transport.is_closed or deliveries is None:
            raise ConnectionError("not connected")
        try:
            with lost_connection_as_error():
                await asyncio.wait_for(self._open(lane, connection, transport, deliveries), _START_TIMEOUT_S)
        except TimeoutError:
            if not any(map(self.is_active, self._consumers)):
                # the connection is open but does not answer, and would block every request; a closed one is restored
                reason = ConnectionError(f"no answer to the request to consume from {queue}")
                await quietly(transport.close(reason), _CANCEL_TIMEOUT_S)
            raise

    async def _open(
        self, lane: LaneConsumer, connection: ConsumingConnection, transport: Transport, deliveries: DeliveryReader
    ) -> None:
        consumer = self._consumers.get(lane.queue)
        cancelled = consumer is not None and consumer.tag is not None and not consumer.channel.is_closed
        away = lane.queue in self._away
        if consumer is not None and cancelled and not away and _requeues(transport) and _timed_out(lane):
            # RabbitMQ has cancelled it after the consumer timeout and redelivers the messages in flight, after each
            # timeout again. When the channel is closed, these messages are no longer this worker's to settle.
            _log.warning("RabbitMQ has cancelled our consumer, its messages in flight are given back", queue=lane.queue)
            await quietly(consumer.channel.close(), _CANCEL_TIMEOUT_S)
        if consumer is None or consumer.channel.is_closed:
            channel = cast("Channel", await transport.channel(publisher_confirms=False))
            assembler = DeliveryAssembler(channel, Acks(channel), lane.dispatch, connection.large)
            consumer = self._consumers[lane.queue] = _Consumer(channel, assembler.limit)
            deliveries.deliver(channel, assembler)
        # else only the consumer is lost, and the channel is kept: earlier deliveries can be acknowledged only over it
        await consumer.channel.basic_qos(prefetch_count=lane.prefetch)  # applies to the next consumer
        consumer.limit.expect(lane.prefetch)
        answer = await consumer.channel.basic_consume(lane.queue, _ignore)
        consumer.tag = answer.consumer_tag


def _requeues(transport: Transport) -> bool:
    """Return whether RabbitMQ requeues the messages of a cancelled consumer: from 4.3 on, at the consumer timeout.

    Earlier versions cancel a consumer only when its queue is deleted, and redeliver no message then.
    """
    version = str(transport.server_properties.get("version", "")).split(".")
    return len(version) > 1 and all(it.isdecimal() for it in version[:2]) and tuple(map(int, version[:2])) >= (4, 3)


def _timed_out(lane: LaneConsumer) -> bool:
    """Return whether a consumer timeout is possible: a job of a quorum queue has been in flight long enough.

    If not, the queue was deleted and declared again, and the jobs in flight exist only here. RabbitMQ 4.3 has
    no consumer timeout for classic queues.
    """
    since_ms = lane.state.oldest_unacked_ms
    return lane.counts_returns and since_ms is not None and now_ms() - since_ms >= _SHORTEST_TIMEOUT_MS


async def _ignore(message: DeliveredMessage) -> None:
    """Callback that aiormq requires and never calls, because `DeliveryReader` takes all deliveries."""
