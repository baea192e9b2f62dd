"""Mandatory, confirmed publishes, which are repeated over another channel."""

import asyncio
from collections import Counter
from typing import Any, cast

from aio_pika import Message
from aio_pika.abc import AbstractChannel
from aiormq.abc import AbstractConnection
from faststream.rabbit import RabbitBroker, RabbitExchange
from faststream.rabbit.helpers import RabbitDeclarer
from faststream.rabbit.publisher.producer import AioPikaFastProducerImpl
from faststream.rabbit.response import RabbitPublishCommand
from faststream.response.publish_type import PublishType

from otp_stream.core.messaging import Destination, Publication, published_to
from otp_stream.core.otp_job import OtpJob
from otp_stream.tasks import lost_connection_as_error

from .telemetry import BrokerTelemetry, Publishing
from .topology import Topology

_CONFIRM_TIMEOUT_S = 10.0
_READY_S = 0.05


class ConfirmedPublisher:
    """Publishes retries, dead letters and unchanged copies for `broker`, through its middlewares."""

    def __init__(self, broker: RabbitBroker, topology: Topology, telemetry: BrokerTelemetry) -> None:
        self._broker = broker
        self._topology = topology
        self._telemetry = telemetry
        self.to_tenant = Publication(Destination(topology.any_tenant, topology.any_tenant))
        """A publish to the queue of any tenant, for metrics."""
        self._retries = broker.publisher(
            exchange=topology.retry,
            routing_key="{delay_ms}",
            title="retry",
            schema=OtpJob,
            description="A failed job on its way to a wait queue. The routing key is the wait in milliseconds.",
        )
        self._dead_letters = broker.publisher(
            topology.dead,
            title="dead",
            schema=OtpJob,
            description="Dead letters: the unchanged body, with why and when the job died in the headers.",
        )
        self._in_flight: Counter[str] = Counter()
        """Ids of the messages in flight."""

    async def __call__(self, message: Message, *, exchange: str, routing_key: str, new_channel: bool = False) -> None:
        """Publish and wait for the confirm. Raises if the broker returns the message, refuses it or is unreachable.

        If a job is being processed, the trace context in the headers becomes that of this publish.

        Repeats need a `new_channel`: a quorum queue that has refused a channel once continues to refuse it, even when
        its limit is raised; and after the loss of a message in a change of leader, it accepts nothing more from that
        channel.

        Raises `TimeoutError` if the broker does not answer. It waits while the broker blocks publishes: the message is
        still in the connection then, so a repeat would be a second copy.
        """
        with Publishing(self._telemetry, self._publication(message, exchange, routing_key)):
            await self._publish_once(message, exchange, routing_key, new_channel=new_channel)

    def _publication(self, message: Message, exchange: str, routing_key: str) -> Publication:
        to = published_to(exchange, routing_key)
        if routing_key.startswith(self._topology.tenant_prefix):
            to = Destination(to.name, self._topology.any_tenant)
        return Publication(to, routing_key, len(message.body), message.headers)

    async def _publish_once(self, message: Message, exchange: str, routing_key: str, *, new_channel: bool) -> None:
        # aiormq matches a returned message by its id alone, and would confuse two with the same id. A message without
        # an id gets one from aiormq.
        ids = [message.message_id] if message.message_id else []
        new_channel = new_channel or any(it in self._in_flight for it in ids)
        publish = self._publish_on_new_channel if new_channel else self._publish
        publishing = asyncio.create_task(publish(message, exchange, routing_key))
        self._in_flight.update(ids)
        try:
            with lost_connection_as_error():
                while not (await asyncio.wait({publishing}, timeout=_CONFIRM_TIMEOUT_S))[0]:
                    if not await self.is_blocked():
                        raise TimeoutError
                await publishing
        finally:
            publishing.cancel()
            self._in_flight -= Counter(ids)

    @property
    def transport(self) -> AbstractConnection | None:
        """The connection that publishes."""
        connection = self._broker._connection  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - FastStream offers no other way
        return connection.transport.connection if connection and connection.transport else None

    async def is_blocked(self) -> bool:
        """Return whether the broker has blocked the connection that publishes."""
        transport = self.transport
        if transport is None:
            return False
        try:
            async with asyncio.timeout(_READY_S):
                await transport.ready()
        except TimeoutError:
            return True
        return False

    async def _publish(self, message: Message, exchange: str, routing_key: str) -> None:
        if exchange == self._topology.retry.name:
            await self._retries.publish(message, routing_key=routing_key)
        elif routing_key == self._topology.dead:
            await self._dead_letters.publish(message)
        else:
            await self._broker.publish(message, routing_key=routing_key)

    async def _publish_on_new_channel(self, message: Message, exchange: str, routing_key: str) -> None:
        command = RabbitPublishCommand(
            message,
            routing_key=routing_key,
            exchange=RabbitExchange.validate(exchange or None),
            correlation_id=message.correlation_id,
            _publish_type=PublishType.PUBLISH,
        )
        async with (await self._broker.connect()).channel(on_return_raises=True) as channel:
            producer = AioPikaFastProducerImpl(
                declarer=cast("RabbitDeclarer", _OneChannel(channel)), parser=None, decoder=None
            )
            # with the broker's middlewares, as for the first try
            await cast("Any", self._broker)._basic_publish(command, producer=producer)  # noqa: SLF001 - as above


class _OneChannel:
    """Provides the exchanges of one channel to FastStream's producer, without declaring them."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._channel = channel

    async def declare_exchange(self, exchange: RabbitExchange, *_: Any, **__: Any) -> Any:
        if not exchange.name:
            return self._channel.default_exchange
        return await self._channel.get_exchange(exchange.name, ensure=False)
