"""Publishes one-time-code jobs to RabbitMQ, and follows them to their final outcome.

async with OtpClient("amqp://guest:guest@localhost/") as client:
    job = OtpJob(email="user@example.com", otp="123456", job_id="login-42")
    async with client.follow(job.job_id) as events:  # before the publish, so that no event is missed
        await client.publish(job)
        async for event in events:
            print(event.outcome)
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self, cast

import aio_pika
from aio_pika.abc import AbstractConnection, AbstractQueue
from aio_pika.exceptions import ChannelClosed
from aiormq import Channel, spec
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import AMQPError, DeliveryError, PublishError
from pydantic_core import from_json

from .connection_errors import no_connection
from .core.decision import ENDINGS
from .core.job_event import JobEvent
from .core.metadata import Metadata
from .core.otp_job import OtpJob
from .tasks import lost_connection_as_error
from .urls import read_url, without_secrets

__all__ = ["ClientError", "JobEvent", "Metadata", "NoWorkerError", "OtpClient", "OtpJob"]

CONNECTION_ERRORS = (AMQPError, OSError, TimeoutError, RuntimeError)
"""Errors that aio-pika raises if RabbitMQ does not answer or the connection is lost."""
_URL_EXAMPLE = "amqp://user:password@rabbitmq.example.com:5672/vhost"
_CONNECT_S = 5
_CLOSE_S = 2


class ClientError(Exception):
    """A job could not be published or followed; the text contains the reason and the fix."""


class NoWorkerError(ClientError):
    """No worker has declared the events exchange."""


class OtpClient:
    """A connection to RabbitMQ that is opened at the first use, and again after a loss.

    `queue` and `prefix` are the workers' `RABBITMQ_QUEUE_NAME` and `RABBITMQ_PREFIX`. `timeout_s` limits the time until
    RabbitMQ confirms a publish or a subscription. Raises `ValueError` for an invalid URL.
    """

    def __init__(
        self,
        url: str = "amqp://guest:guest@localhost:5672/",
        *,
        queue: str = "service_send_otp",
        prefix: str = "otp",
        timeout_s: float = 10.0,
    ) -> None:
        try:
            read_url(url, {"amqp", "amqps"}, _URL_EXAMPLE)
        except ValueError as error:
            raise ValueError(f"url {error}") from None
        self._url, self._queue, self._events = url, queue, f"{prefix}.events"
        self._timeout_s = timeout_s
        self._link: _Link | None = None
        self._connecting = asyncio.Lock()
        for name in ("aiormq.channel", "aiormq.connection"):
            logging.getLogger(name).addFilter(_hides_messages)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close(self._link)

    async def connect(self) -> None:
        """Connect now instead of at the first use. Raises `ClientError` if RabbitMQ does not answer or refuses it."""
        await self._connected()

    async def publish(self, job: OtpJob | bytes, *, high_lane: bool = False) -> None:
        """Publish a job, or a message body, and wait until RabbitMQ has confirmed it.

        Declares the queue if it is missing. Raises `ClientError`. If the connection was lost or RabbitMQ did not
        confirm, the job may have been published: publish it again with the same `job_id`, and it is sent once.
        """
        body = job if isinstance(job, bytes) else job.model_dump_json(by_alias=True, exclude_none=True).encode()
        queue = f"{self._queue}.high" if high_lane else self._queue
        link = await self._connected()
        try:
            with lost_connection_as_error():
                try:
                    await link.publish(body, queue, self._timeout_s)
                except PublishError:  # the queue does not exist: no worker has been started yet
                    await link.declare(queue)
                    await link.publish(body, queue, self._timeout_s)
        # from None: the errors contain the message
        except PublishError:
            raise ClientError(f"RabbitMQ returned the job: it cannot be routed to the queue {queue}") from None
        except ChannelClosed as error:  # no permission, or a queue of another kind
            raise ClientError(f"RabbitMQ refused to publish to the queue {queue}: {error}") from None
        except DeliveryError:
            raise ClientError(f"RabbitMQ refused the job: the queue {queue} may have reached its limit") from None
        except CONNECTION_ERRORS as error:
            await self._close(link)
            raise self._lost(error) from None

    @asynccontextmanager
    async def follow(self, job_id: str | None = None) -> AsyncGenerator[AsyncIterator[JobEvent]]:
        """Yield an iterator over the events of a job until its final outcome. Without `job_id`, over all events.

        Call it before you publish the job, and limit the time with `asyncio.timeout`. Raises `ClientError` if there is
        no exchange for events. The iterator raises it if the connection is lost, so that the outcome is unknown.
        """
        link = await self._connected()
        try:
            with lost_connection_as_error():
                async with asyncio.timeout(self._timeout_s):
                    await link.subscribe(self._events)
        except ChannelClosed:
            raise NoWorkerError(
                f"no worker has declared the exchange {self._events}, so there are no events; start a worker, or "
                "compare RABBITMQ_PREFIX"
            ) from None
        except CONNECTION_ERRORS as error:
            await self._close(link)
            raise self._lost(error) from None
        received: asyncio.Queue[JobEvent | None] = asyncio.Queue()
        link.followers[job_id].add(received)
        try:
            yield _until_final(received, endless=job_id is None)
        finally:
            link.followers[job_id].discard(received)
            if not link.followers[job_id]:
                del link.followers[job_id]

    def _lost(self, error: BaseException) -> ClientError:
        if isinstance(error, TimeoutError):
            return ClientError(
                f"RabbitMQ has not replied within {self._timeout_s:g} s; is it short of memory or disk space?"
            )
        return ClientError(f"the connection to RabbitMQ was lost ({type(error).__name__})")

    async def _connected(self) -> "_Link":
        async with self._connecting:
            # the channel's state, because aio-pika considers a connection open that the other end has closed
            if self._link is None or self._link.publishing.is_closed:
                self._link = await _Link.open(self._url)
            return self._link

    async def _close(self, link: "_Link | None") -> None:
        """Close a connection, but not another one that has replaced it."""
        if link is None:
            return
        if self._link is link:
            self._link = None
        with contextlib.suppress(*CONNECTION_ERRORS):
            async with asyncio.timeout(_CLOSE_S):
                await link.connection.close()


@dataclass(eq=False, slots=True)
class _Link:
    """One connection, with a channel that publishes, and a channel that consumes events once a job is followed."""

    connection: AbstractConnection
    publishing: Channel
    followers: defaultdict[str | None, set[asyncio.Queue[JobEvent | None]]] = field(
        default_factory=lambda: defaultdict(set)
    )
    """Queues by job id; `None` receives every event. `None` in a queue means that the connection was lost."""
    _subscribing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _events: AbstractQueue | None = None

    @classmethod
    async def open(cls, url: str) -> "_Link":
        """Connect. Raises `ClientError`."""
        try:
            with lost_connection_as_error():
                connection = await aio_pika.connect(url, timeout=_CONNECT_S)
                channel = await connection.channel(on_return_raises=True)
                return cls(connection, cast("Channel", await channel.get_underlay_channel()))
        except (*CONNECTION_ERRORS, StopAsyncIteration) as error:  # aiormq: it ended in the handshake
            raise ClientError(f"{without_secrets(url)} {no_connection(error, url)}") from None

    async def publish(self, body: bytes, queue: str, timeout_s: float) -> None:
        properties = spec.Basic.Properties(delivery_mode=2, content_type="application/json")
        # `wait=False` lets many small publishes share a packet
        await self.publishing.basic_publish(
            body, routing_key=queue, mandatory=True, properties=properties, timeout=timeout_s, wait=False
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


async def _until_final(received: asyncio.Queue[JobEvent | None], *, endless: bool) -> AsyncGenerator[JobEvent]:
    while True:
        event = await received.get()
        if event is None:
            raise ClientError("the connection to RabbitMQ was lost, and with it the events: the outcome is unknown")
        yield event
        if not endless and event.outcome in ENDINGS:
            return


def _hides_messages(record: logging.LogRecord) -> bool:
    # aiormq logs a late return with the whole message, and at DEBUG every frame, and both contain codes
    args = record.args if isinstance(record.args, tuple) else ()
    return record.levelno > logging.DEBUG and not any(isinstance(it, DeliveredMessage) for it in args)
