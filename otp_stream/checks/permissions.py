"""Tests whether the user has the permissions that the worker needs, by requests that change nothing."""

from secrets import token_hex

import aio_pika
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelClosed, DeliveryError
from aiormq.exceptions import ChannelAccessRefused

from otp_stream.broker.locks import locks_of
from otp_stream.broker.queue_inspect import temporary_channel
from otp_stream.broker.topology import Topology

from .roles import DEFAULT_EXCHANGE, Action

Needed = tuple[Action, str]
"""A permission and the name of the queue or exchange."""


def for_jobs_exchange(topology: Topology) -> list[Needed]:
    """Return the permissions that the worker needs only for the exchange for jobs."""
    return [
        ("configure", topology.jobs_exchange.name),
        ("write", topology.jobs),
        ("write", topology.high),
        ("read", topology.jobs_exchange.name),
    ]


def needed_permissions(topology: Topology) -> list[Needed]:
    """Return the permissions that the worker needs."""
    wait_queues = [topology.wait_queue(ms) for ms in topology.backoff.waits_ms]
    exchanges = [topology.retry.name, topology.events.name]
    return [
        *(("configure", it) for it in (topology.jobs, topology.high, *topology.arguments, *exchanges)),
        *(("configure", it) for it in locks_of(topology.dead)),
        *(("write", it) for it in (*wait_queues, *exchanges, DEFAULT_EXCHANGE)),
        # declaring a queue with a dead-letter exchange requires permission to read it
        *(("read", it) for it in (*topology.lanes.values(), *wait_queues, topology.retry.name, topology.dead)),
        *for_jobs_exchange(topology),
    ]


async def missing_permissions(connection: AbstractConnection, topology: Topology) -> list[Needed]:
    """Return the permissions that the worker needs and the user lacks."""
    wait_queue = topology.wait_queue(topology.backoff.waits_ms[0])
    # an operator may not write to wait queues
    may_not = await _is_refused(connection, "write", wait_queue, wait_queue)
    writable = DEFAULT_EXCHANGE if may_not else wait_queue
    # one after another, because if many channels are refused at once, aiormq opens a channel number twice
    needed = needed_permissions(topology)
    return [(action, name) for action, name in needed if await _is_refused(connection, action, name, writable)]


def listed(permissions: list[Needed]) -> str:
    """Return permissions as a text, such as `configure a, b; read c`."""
    names: dict[Action, list[str]] = {}
    for action, name in permissions:
        names.setdefault(action, []).append(name)
    return "; ".join(f"{action} {', '.join(some)}" for action, some in names.items())


async def _is_refused(connection: AbstractConnection, action: Action, name: str, writable: str) -> bool:
    try:
        match action:
            case "configure":
                await _configure(connection, name)
            case "write" if name == DEFAULT_EXCHANGE:
                await _publish_unroutable(connection, f"{name}.{token_hex(8)}")
            case "write":
                await _unbind(connection, name, name)
            case "read":
                await _unbind(connection, writable, name)
    except ChannelAccessRefused as error:
        # an unbind requires write on the queue, then read on the exchange; the error names the refused one
        return action == "configure" or name == DEFAULT_EXCHANGE or ("to exchange" in str(error)) == (action == "read")
    except (ChannelClosed, DeliveryError):  # the permission was checked first, and granted
        return False
    return False


async def _configure(connection: AbstractConnection, name: str) -> None:
    # no queue can have a negative TTL, so this declare creates no queue and matches no existing one
    async with temporary_channel(connection) as channel:
        await channel.declare_queue(name, durable=True, arguments={"x-message-ttl": -1})


async def _unbind(connection: AbstractConnection, queue: str, exchange: str) -> None:
    async with temporary_channel(connection) as channel:
        underlay = await channel.get_underlay_channel()
        await underlay.queue_unbind(queue, exchange, token_hex(8))  # a binding that does not exist


async def _publish_unroutable(connection: AbstractConnection, name: str) -> None:
    async with connection.channel(on_return_raises=True) as channel:
        await channel.default_exchange.publish(aio_pika.Message(b""), name, mandatory=True)
