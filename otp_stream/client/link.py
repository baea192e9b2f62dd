"""One connection to RabbitMQ that publishes jobs and receives events."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, cast

import aio_pika
from aio_pika.abc import AbstractConnection, AbstractQueue
from aio_pika.exceptions import ChannelClosed
from aiormq import Channel, spec
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import AMQPError
from pydantic_core import from_json

from otp_stream.connection_errors import no_connection, remember_secrets, tls_context
from otp_stream.core.decision import ENDINGS
from otp_stream.core.job_event import JobEvent
from otp_stream.core.sealed_body import Content
from otp_stream.tasks import lost_connection_as_error
from otp_stream.urls import amqp_server, without_secrets

from .errors import ClientError, OutcomeUnknownError
from .publish_span import publish_span

CONNECTION_ERRORS = (AMQPError, OSError, TimeoutError, RuntimeError)
"""Errors that aio-pika raises if RabbitMQ does not answer or the connection is lost."""
_CONNECT_S = 5


@dataclass(eq=False, slots=True)
class Link:
    """One connection, with a channel that publishes, and a channel that consumes events once a job is followed."""

    connection: AbstractConnection
    publishing: Channel
    server: tuple[str, int] = ("", 0)
    """Host and port of RabbitMQ."""
    followers: defaultdict[str | None, set[asyncio.Queue[JobEvent | None]]] = field(
        default_factory=lambda: defaultdict(set)
    )
    """Queues by job id; `None` receives every event. `None` in a queue means that the connection was lost."""
    _subscribing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _events: AbstractQueue | None = None

    @classmethod
    async def open(cls, url: str) -> "Link":
        """Connect. Raises `ClientError`."""
        remember_secrets(url)
        try:
            with lost_connection_as_error():
                context = await asyncio.to_thread(tls_context, url)
                connection = await aio_pika.connect(url, timeout=_CONNECT_S, ssl_context=context)
                async with asyncio.timeout(_CONNECT_S):
                    channel = await connection.channel(on_return_raises=True)
                    return cls(connection, cast("Channel", await channel.get_underlay_channel()), amqp_server(url))
        except (*CONNECTION_ERRORS, StopAsyncIteration) as error:  # aiormq: it ended in the handshake
            raise ClientError(f"{without_secrets(url)} {no_connection(error, url)}") from None

    async def publish(self, content: Content, exchange: str, queue: str, timeout_s: float) -> None:
        """Publish, and wait for the confirm. Raises `PublishError` if the message is returned."""
        with publish_span(exchange, queue, len(content.body), self.server) as headers:
            properties = spec.Basic.Properties(delivery_mode=2, content_type=content.content_type, headers=headers)
            # `wait=False` lets many small publishes share a packet
            await self.publishing.basic_publish(
                content.body,
                exchange=exchange,
                routing_key=queue,
                mandatory=True,
                properties=properties,
                timeout=timeout_s,
                wait=False,
            )

    async def declare(self, queue: str) -> None:
        """Declare the queue as producers and workers do."""
        async with self.connection.channel() as channel:
            await channel.declare_queue(queue, durable=True)

    async def subscribe(self, exchange: str) -> None:
        """Receive events. Raises `ChannelClosed` if the exchange does not exist.

        Each call binds the queue again, because it may have been deleted together with the exchange or on its own.
        """
        async with self._subscribing:
            if self._events is not None:
                with contextlib.suppress(ChannelClosed):
                    await self._events.bind(exchange, "otp.#")
                    return
            self._events = None
            channel = await self.connection.channel(publisher_confirms=False)
            queue = await channel.declare_queue(exclusive=True, auto_delete=True)
            await queue.bind(exchange, "otp.#")
            channel.close_callbacks.add(self._end)
            # not with aio-pika, which creates an object for every message
            underlay = cast("Channel", await channel.get_underlay_channel())
            await underlay.basic_consume(queue.name, self._receive, no_ack=True)
            self._events = queue

    async def _receive(self, message: DeliveredMessage) -> None:
        try:
            fields: dict[str, Any] = from_json(message.body)
            followers = self.followers.get(fields["jobId"], set()) | self.followers.get(None, set())
            event = JobEvent.model_validate(fields) if followers else None
        except (ValueError, LookupError, TypeError):  # anyone may publish to the exchange
            return
        for follower in followers:
            follower.put_nowait(event)

    def _end(self, *_: object) -> None:
        for followers in self.followers.values():
            for follower in followers:
                follower.put_nowait(None)


async def until_final(received: asyncio.Queue[JobEvent | None], *, endless: bool) -> AsyncGenerator[JobEvent]:
    """Yield events until the final one. Raises `OutcomeUnknownError` if the connection is lost."""
    while True:
        event = await received.get()
        if event is None:
            raise OutcomeUnknownError(
                "the connection to RabbitMQ was lost, and with it the events: the outcome is unknown"
            )
        yield event
        if not endless and event.outcome in ENDINGS:
            return
