"""Exclusive access to the dead-letter queue, without losing a message.

AMQP cannot browse a queue: messages are delivered, stay unacked, and are requeued in their old places when the channel
closes. A message leaves the queue only after the broker has confirmed its copy elsewhere. A transaction over both would
be simpler, but RabbitMQ 3.10 answers `tx.commit-ok` when a full queue refuses the copy, and the message is lost.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aio_pika
from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity, DeliveryError, PublishError
from aiormq import Channel
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused, ChannelLockedResource

from otp_stream.broker.amqp_stream import PlainConsumingConnection
from otp_stream.broker.locks import locks_of
from otp_stream.broker.message import Delivered
from otp_stream.connection_errors import error_text, no_connection
from otp_stream.core.dead_letter import DeadLettersError, DeadLettersInUseError
from otp_stream.tasks import lost_connection_as_error

_TIMEOUT_S = 10.0
_QUIET_S = 2.0
"""If nothing arrives for this long, the queue is empty. A large message over a slow link takes longer."""
_BATCH = 12
"""Prefetch count. With at most 1 MiB for each body in memory, it limits the memory of all of them."""


@dataclass(frozen=True, slots=True)
class ExclusiveQueue:
    """A queue that no other user or command can read at the same time."""

    channel: Channel
    deliveries: asyncio.Queue[Delivered]
    """The deliveries of `channel`."""
    publishing: AbstractChannel
    name: str
    count: int
    """Messages in the queue at the start."""
    connection: PlainConsumingConnection

    async def is_wanted(self) -> bool:
        """Return whether another user or command waits for this queue."""
        channel = await self.connection.channel(publisher_confirms=False)
        try:
            await channel.declare_queue(locks_of(self.name).wait, passive=True)
        except ChannelLockedResource:
            return True
        except ChannelNotFoundEntity:
            return False
        return True

    async def messages(self, limit: int) -> AsyncGenerator[Delivered]:
        """Yield messages, the oldest first.

        Each batch has its own consumer, so that earlier messages stay unacked, but their bodies need no memory.
        """
        wanted = min(self.count, limit)
        while wanted > 0:
            size = min(_BATCH, wanted)
            batch = await self._batch(size)
            wanted = wanted - size if len(batch) == size else 0
            while batch:
                yield batch.popleft()
                await asyncio.sleep(0)  # to handle one can take milliseconds

    async def _batch(self, size: int) -> deque[Delivered]:
        """Return `size` messages, or fewer if there are no more.

        The consumer is cancelled before any ack, after which RabbitMQ would send another message.
        """
        await self.channel.basic_qos(prefetch_count=size)
        self.connection.expect(self.channel, size)
        consumer = await self.channel.basic_consume(self.name, _ignore)
        batch: deque[Delivered] = deque()
        received = -1
        while len(batch) < size:
            try:
                batch.append(await asyncio.wait_for(self.deliveries.get(), _QUIET_S))
            except TimeoutError:
                if received == self.connection.received:
                    break
                received = self.connection.received
        if self.channel.is_closed:
            raise ConnectionError("the connection was lost")
        await self.channel.basic_cancel(str(consumer.consumer_tag))
        return batch

    async def replace(self, message: Delivered, copy: Message | None, queue: str = "") -> None:
        """Publish a copy to another queue and wait for the confirm, then ack the message.

        A cancellation does not separate the two steps. If the process is killed between them, the message is in both
        queues, with the same job id, and is sent once.
        """
        await _complete(self._replace(message, copy, queue))

    async def _replace(self, message: Delivered, copy: Message | None, queue: str) -> None:
        try:
            if copy is not None:
                exchange = self.publishing.default_exchange
                await exchange.publish(copy, queue, mandatory=True, timeout=_TIMEOUT_S)
        except PublishError:
            raise DeadLettersError(
                f"{queue} is missing: nothing was lost. Start a worker, which creates the queue, and try again"
            ) from None
        except DeliveryError:
            raise DeadLettersError(
                f"{queue} is full and refuses messages: nothing was lost, try again when it is shorter"
            ) from None
        await message.ack()


async def _complete(work: Coroutine[Any, Any, None]) -> None:
    """Complete the work even if the caller is cancelled."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


@asynccontextmanager
async def exclusive_queue(
    name: str, url: str, shown_url: str, *, timeout_s: float | None = None, insists: bool = True
) -> AsyncGenerator[ExclusiveQueue]:
    """Open a queue exclusively. Messages that are not replaced are requeued at the end.

    A user who `insists` ends a sweep that has the queue open.
    Raises `DeadLettersError`, and `DeadLettersInUseError` if another user has it open for longer than `timeout_s`.
    """
    timeout_s = _TIMEOUT_S if timeout_s is None else timeout_s
    connection = await _connect(url, shown_url, timeout_s)
    try:
        with lost_connection_as_error():
            await _lock(connection, name, timeout_s, insists=insists)
            deliveries: asyncio.Queue[Delivered] = asyncio.Queue()
            channel = await connection.take(deliveries.put_nowait)
            declared = await channel.queue_declare(name, passive=True)
            publishing = await connection.channel(on_return_raises=True)
            try:
                yield ExclusiveQueue(channel, deliveries, publishing, name, declared.message_count or 0, connection)
            finally:
                # any reply shows that the broker has processed every ack before it
                with contextlib.suppress(AMQPError, OSError, TimeoutError, RuntimeError):
                    await asyncio.sleep(0)
                    await asyncio.wait_for(channel.basic_qos(prefetch_count=1), _TIMEOUT_S)
    except ChannelNotFoundEntity:
        raise DeadLettersError(
            f"{name} does not exist at {shown_url}: no worker has run with this RABBITMQ_PREFIX there, "
            "or the virtual host is another"
        ) from None
    except (AMQPError, TimeoutError, OSError, RuntimeError) as error:
        raise DeadLettersError(
            f"{name}: {_text(error, url)}; unfinished dead letters are still in the queue, start again"
        ) from error
    finally:
        with contextlib.suppress(AMQPError, OSError, TimeoutError, RuntimeError):
            await asyncio.wait_for(connection.close(), _TIMEOUT_S)


async def _connect(url: str, shown_url: str, timeout_s: float) -> PlainConsumingConnection:
    try:
        connection = await aio_pika.connect(url, timeout=timeout_s, connection_class=PlainConsumingConnection)
    except (OSError, AMQPError, TimeoutError) as error:
        raise DeadLettersError(f"RABBITMQ_URL: {shown_url} {no_connection(error, url)}") from None
    return connection


async def _lock(connection: AbstractConnection, name: str, timeout_s: float, *, insists: bool) -> None:
    """Declare an exclusive queue as a lock: all messages are unacked by the first reader, so a second finds none."""
    deadline, announced = time.monotonic() + timeout_s, not insists
    while not await try_lock(connection, locks_of(name).read):
        if time.monotonic() > deadline:
            if await _is_ordinary_queue(connection, locks_of(name).read):
                raise DeadLettersInUseError(
                    f"{locks_of(name).read} must be a lock, but someone has declared it as an ordinary queue: delete it"
                )
            raise DeadLettersInUseError("another user or command is reading the dead-letter queue: try again later")
        announced = announced or await _announce(connection, locks_of(name).wait)
        await asyncio.sleep(0.1)


async def _announce(connection: AbstractConnection, name: str) -> bool:
    """Have a sweep end, which finds out that this queue exists. Returns whether there is nothing more to do."""
    with contextlib.suppress(ChannelAccessRefused):  # the user has the permissions of an earlier version
        return await try_lock(connection, name)
    return True


async def try_lock(connection: AbstractConnection, name: str) -> bool:
    """Declare an exclusive queue as a lock, until the connection ends. Returns whether no one else has it."""
    channel = await connection.channel(publisher_confirms=False)
    try:
        await channel.declare_queue(name, exclusive=True, auto_delete=True)
    except ChannelLockedResource:
        return False
    return True


async def _is_ordinary_queue(connection: AbstractConnection, name: str) -> bool:
    """Return whether a queue with the name of a lock is not exclusive, so that it exists until someone deletes it."""
    channel = await connection.channel(publisher_confirms=False)
    try:
        await channel.declare_queue(name, passive=True)
    except (ChannelLockedResource, ChannelNotFoundEntity):
        return False
    return True


async def _ignore(message: DeliveredMessage) -> None:
    """Callback that aiormq requires and never calls."""


def _text(error: BaseException, url: str) -> str:
    kind, text = type(error).__name__, error_text(error, url)
    return kind if text == kind else f"{kind}: {text}"
