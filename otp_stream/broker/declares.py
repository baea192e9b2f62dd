"""Declares of single queues and exchanges, each on its own channel, and what RabbitMQ's refusals mean."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity, ChannelPreconditionFailed
from faststream.rabbit import RabbitExchange

from otp_stream.connection_errors import broker_text

ANSWER_S = 2.0
"""Time limit of a declare: RabbitMQ 4 takes 70 seconds to answer for a classic queue whose node is down (3.10 answers
at once), and `/readyz` waits for three seconds."""

PATIENT_S = 8.0
"""The same for a command: a slow broker must not be reported as a node that is down."""


class TopologyError(Exception):
    """The broker refuses a declare; the text names the queue and the fix."""


class QueueAwayError(TopologyError):
    """The queue exists, but its node is down."""


@asynccontextmanager
async def answer_about(queue: str, connection: AbstractConnection, timeout_s: float = ANSWER_S) -> AsyncGenerator[None]:
    """Limit the time for a declare. Raises `QueueAwayError` if RabbitMQ answers other requests, but not this one."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        # on a dead connection this hangs, for which the caller has a time limit
        await (await connection.channel(publisher_confirms=False)).close()
        raise QueueAwayError(f"{queue} is away: its node does not answer") from None


def is_missing(error: ChannelNotFoundEntity) -> bool:
    """Return whether the queue does not exist. If its node is down, the error has the same code and another text."""
    return "no queue" in str(error)


async def declare_exchange(channel: AbstractChannel, exchange: RabbitExchange) -> None:
    """Declare a durable exchange."""
    await channel.declare_exchange(exchange.name, exchange.type.value, durable=True)


async def declare_queue(connection: AbstractConnection, name: str, arguments: dict[str, Any]) -> None:
    """Declare a durable queue. Raises `TopologyError` if it has other properties."""
    await on_channel(
        connection,
        name,
        lambda channel: channel.declare_queue(name, durable=True, arguments=arguments or None),
    )


async def on_channel(
    connection: AbstractConnection, name: str, work: Callable[[AbstractChannel], Awaitable[object]]
) -> None:
    """Do `work` on its own channel, because a refusal closes it. Raises `TopologyError` with the name."""
    channel = await connection.channel(publisher_confirms=False)
    try:
        await work(channel)
    except ChannelPreconditionFailed as error:
        raise TopologyError(
            f"{name} exists with other properties: {broker_text(error)}; drain and delete it, or set another "
            "RABBITMQ_PREFIX"
        ) from error
    except ChannelNotFoundEntity as error:
        raise QueueAwayError(f"{name} is away: {broker_text(error)}") from error
    except AMQPError as error:
        raise TopologyError(f"{name} cannot be declared or bound: {broker_text(error)}") from error
    finally:
        await channel.close()
