"""The connection to RabbitMQ over which a command asks."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import aio_pika
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelClosed

from otp_stream.broker.management_api import vhost
from otp_stream.broker.refusal import no_connection
from otp_stream.broker.topology import Topology, TopologyError
from otp_stream.core.backoff import Backoff
from otp_stream.settings import Settings
from otp_stream.tasks import lost_connection_as_error

from . import say
from .line import LOST, find_broker

_CONNECT_S = 5
T = TypeVar("T")


def topology_of(settings: Settings) -> Topology:
    """Return what must stand at the broker with these settings."""
    backoff = Backoff(settings.base_delay_ms, settings.max_delay_ms, settings.max_retries, settings.retry_greylisted)
    return Topology(settings.rabbitmq_queue_name, settings.rabbitmq_prefix, backoff)


async def connected(settings: Settings, work: Callable[[AbstractConnection], Awaitable[T]]) -> T:
    """Do some work over a connection. Raises one of `LOST`, and what the work does."""
    url, _ = await find_broker(settings)
    with lost_connection_as_error():
        async with await aio_pika.connect(url, timeout=_CONNECT_S) as connection:
            return await work(connection)


def talk(settings: Settings, work: Callable[[AbstractConnection], Awaitable[T]]) -> T:
    """Return what is found out over a connection; ends the command with 1 where the broker does not play along.

    Raises `ManagementError` if the work does.
    """
    try:
        return asyncio.run(connected(settings, work))
    except TopologyError as error:
        say.fail(str(error), 1)
    except ChannelClosed as error:
        say.fail(f"{settings.masked_rabbitmq_url} refuses: {error}; otp-stream check tells what is lacking", 1)
    except LOST as error:
        say.fail(f"RABBITMQ_URL: {settings.masked_rabbitmq_url} {no_connection(error, settings.amqp_url)}", 1)
