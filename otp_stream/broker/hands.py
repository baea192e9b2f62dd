"""The dead-letter queue taken in hand: by one at a time, and so that nothing can fall.

AMQP has no way to look at a queue: letters are taken, unsettled, and go back when the channel closes, to where they
were. What leaves the queue does so after its copy was confirmed elsewhere. A transaction would do both at once, but
RabbitMQ 3.10 commits it without a word where a full queue refuses the copy, and the letter is gone.
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
from aiormq.exceptions import ChannelLockedResource

from otp_stream.core.dead_letter import InHandError, LettersError
from otp_stream.tasks import losing_it_is_an_error

from .inlet import OneTimeInlet
from .message import Delivered
from .refusal import no_connection
from .tolerance import tolerate

_TIMEOUT_S = 10.0
_QUIET_S = 2.0
"""After so long without a letter there is none."""
_BATCH = 12
"""Dead letters that RabbitMQ sends ahead: AMQP limits their number, and a body in memory has at most 1 MiB."""


@dataclass(frozen=True, slots=True)
class Hands:
    """Letters that nobody else has in hand meanwhile."""

    channel: Channel
    heard: asyncio.Queue[Delivered]
    """What comes over the channel."""
    publishing: AbstractChannel
    name: str
    count: int
    """How many there were when they were taken in hand."""

    async def letters(self, most: int) -> AsyncGenerator[Delivered]:
        """Take letters one after another, the oldest first.

        Each batch has a consumer of its own: what came before stays unacked, and its body need not stay in memory.
        """
        wanted = min(self.count, most)
        while wanted > 0:
            size = min(_BATCH, wanted)
            batch = await self._batch(size)
            wanted = wanted - size if len(batch) == size else 0
            while batch:
                yield batch.popleft()

    async def _batch(self, size: int) -> deque[Delivered]:
        """Take so many; fewer if there are no more. The consumer ends before one of them can make room for another."""
        await self.channel.basic_qos(prefetch_count=size)
        consumer = await self.channel.basic_consume(self.name, _nothing)
        batch: deque[Delivered] = deque()
        with contextlib.suppress(TimeoutError):
            while len(batch) < size:
                batch.append(await asyncio.wait_for(self.heard.get(), _QUIET_S))
        if self.channel.is_closed:
            raise ConnectionError("the connection was lost")
        await self.channel.basic_cancel(str(consumer.consumer_tag))
        return batch

    async def replace(self, message: Delivered, copy: Message | None, queue: str = "") -> None:
        """Publish a letter's copy to another queue, confirmed, then take the letter off its own.

        Whoever is cancelled meanwhile has done both or neither. What is killed in between leaves both: by the job's id
        they are known as copies, of which one is sent.
        """
        await _whole(self._replace(message, copy, queue))

    async def _replace(self, message: Delivered, copy: Message | None, queue: str) -> None:
        try:
            if copy is not None:
                exchange = self.publishing.default_exchange
                await exchange.publish(copy, queue, mandatory=True, timeout=_TIMEOUT_S)
        except PublishError:
            raise LettersError(f"{queue} is missing: nothing was lost, a worker's start makes the queue") from None
        except DeliveryError:
            raise LettersError(f"{queue} takes no more: nothing was lost, try again when it is shorter") from None
        await message.ack()


async def _whole(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


@asynccontextmanager
async def hands_on(name: str, url: str, shown_url: str, *, patience_s: float | None = None) -> AsyncGenerator[Hands]:
    """Take the letters of this queue in hand; what is not replaced goes back at the end.

    Raises `LettersError`, and `InHandError` where somebody else has them for longer than `patience_s`.
    """
    tolerate()
    patience_s = _TIMEOUT_S if patience_s is None else patience_s
    try:
        connection = await aio_pika.connect(url, timeout=patience_s, connection_class=OneTimeInlet)
    except (OSError, AMQPError, TimeoutError) as error:
        raise LettersError(f"RABBITMQ_URL: {shown_url} {no_connection(error, url)}") from None
    try:
        with losing_it_is_an_error():
            await _be_the_only_one(connection, f"{name}.hands", patience_s)
            heard: asyncio.Queue[Delivered] = asyncio.Queue()
            channel = await connection.take(heard.put_nowait)
            found = await channel.queue_declare(name, passive=True)
            publishing = await connection.channel(on_return_raises=True)
            try:
                yield Hands(channel, heard, publishing, name, found.message_count or 0)
            finally:
                # any answer will do: the broker has taken every acknowledgement before it
                with contextlib.suppress(AMQPError, OSError, TimeoutError, RuntimeError):
                    await asyncio.sleep(0)
                    await asyncio.wait_for(channel.basic_qos(prefetch_count=1), _TIMEOUT_S)
    except ChannelNotFoundEntity:
        raise LettersError(
            f"{name} does not exist at {shown_url}: no worker has run with this RABBITMQ_PREFIX there, "
            "or the virtual host is another"
        ) from None
    except (AMQPError, TimeoutError, OSError, RuntimeError) as error:
        raise LettersError(f"{name}: {_told(error)}; what was not finished lies where it was, begin again") from error
    finally:
        with contextlib.suppress(AMQPError, OSError, TimeoutError, RuntimeError):
            await asyncio.wait_for(connection.close(), _TIMEOUT_S)


async def _be_the_only_one(connection: AbstractConnection, name: str, patience_s: float) -> None:
    """Whoever looks takes all the letters, and another would find none: an exclusive queue is the lock."""
    ends = time.monotonic() + patience_s
    while True:
        channel = await connection.channel(publisher_confirms=False)
        try:
            await channel.declare_queue(name, exclusive=True, auto_delete=True)
        except ChannelLockedResource:
            if time.monotonic() > ends:
                raise InHandError("somebody else has the dead letters in hand: try again later") from None
            await asyncio.sleep(0.1)
        else:
            return


async def _nothing(message: DeliveredMessage) -> None:
    """Stand for the consumer at aiormq, which sees no delivery."""


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")[:200]
