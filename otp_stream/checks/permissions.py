"""Tests whether the user has the permissions that the worker needs, by requests that change nothing."""

import re
import shlex
from secrets import token_hex
from typing import Literal

import aio_pika
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelClosed, DeliveryError
from aiormq.exceptions import ChannelAccessRefused

from otp_stream.broker.queue_inspect import temporary_channel
from otp_stream.broker.topology import Topology

Action = Literal["configure", "write", "read"]
DEFAULT_EXCHANGE = "amq.default"
"""The name of the default exchange in permissions."""


async def missing_permissions(connection: AbstractConnection, topology: Topology) -> dict[Action, list[str]]:
    """Return the queues and exchanges for which the user lacks a permission that the worker needs."""
    wait_queues = [topology.wait_queue(ms) for ms in topology.backoff.waits_ms]
    exchanges = [topology.retry.name, topology.events.name]
    needed: list[tuple[Action, str]] = [
        *(("configure", it) for it in (topology.jobs, topology.high, *topology.arguments, *exchanges)),
        *(("write", it) for it in (*wait_queues, *exchanges, DEFAULT_EXCHANGE)),
        # declaring a queue with a dead-letter exchange requires permission to read it
        *(("read", it) for it in (*topology.lanes.values(), *wait_queues, topology.retry.name)),
    ]
    missing: dict[Action, list[str]] = {}
    # one after another, because if many channels are refused at once, aiormq opens a channel number twice
    for action, name in needed:
        if await _is_refused(connection, action, name, wait_queues[0]):
            missing.setdefault(action, []).append(name)
    return missing


def grant_command(virtual_host: str, user: str, topology: Topology) -> str:
    """Return the command that grants the user every permission that the worker needs."""
    prefixed = f"{re.escape(topology.prefix)}\\..*"
    jobs = f"{re.escape(topology.jobs)}(\\.high)?"
    patterns = (f"^({jobs}|{prefixed})$", f"^(amq\\.default|{prefixed})$", f"^({jobs}|{prefixed})$")
    return shlex.join(["rabbitmqctl", "set_permissions", "-p", virtual_host, user, *patterns])


async def _is_refused(connection: AbstractConnection, action: Action, name: str, wait_queue: str) -> bool:
    try:
        match action:
            case "configure":
                await _configure(connection, name)
            case "write" if name == DEFAULT_EXCHANGE:
                await _publish_unroutable(connection, f"{wait_queue}.{token_hex(8)}")
            case "write":
                await _unbind(connection, name, name)
            case "read":
                await _unbind(connection, wait_queue, name)
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
