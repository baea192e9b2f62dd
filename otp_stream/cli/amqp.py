"""The connection of a command to RabbitMQ."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import aio_pika
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelClosed

from otp_stream.broker.declares import TopologyError
from otp_stream.broker.topology import Topology
from otp_stream.client import CONNECTION_ERRORS
from otp_stream.configs import backoff
from otp_stream.connection_errors import broker_text, no_connection
from otp_stream.settings import Settings
from otp_stream.tasks import lost_connection_as_error

from . import interrupts, output

_CONNECT_S = 5
T = TypeVar("T")


def topology_of(settings: Settings) -> Topology:
    """Return the queues and exchanges that these settings require."""
    return Topology(settings.rabbitmq_queue_name, settings.rabbitmq_prefix, backoff(settings))


async def connected(settings: Settings, work: Callable[[AbstractConnection], Awaitable[T]]) -> T:
    """Await `work` with a connection. Raises one of `CONNECTION_ERRORS`, and what `work` raises."""
    with lost_connection_as_error():
        async with await aio_pika.connect(settings.amqp_url, timeout=_CONNECT_S) as connection:
            return await work(connection)


def talk(settings: Settings, work: Callable[[AbstractConnection], Awaitable[T]]) -> T:
    """Return the result of `work`; exit the command with 1 if RabbitMQ does not answer or refuses it.

    Raises `ManagementError` if `work` does.
    """
    try:
        return interrupts.run(connected(settings, work))
    except TopologyError as error:
        output.fail(str(error), 1)
    except ChannelClosed as error:
        output.fail(
            f"{settings.masked_rabbitmq_url} refuses: {broker_text(error)}; otp-stream check shows missing permissions",
            1,
        )
    except CONNECTION_ERRORS as error:
        output.fail(f"RABBITMQ_URL: {settings.masked_rabbitmq_url} {no_connection(error, settings.amqp_url)}", 1)
