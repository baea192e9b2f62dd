"""Whether the user may do what the worker does, found out by acts that change nothing."""

import re
import shlex
from secrets import token_hex
from typing import Literal

import aio_pika
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelClosed, DeliveryError
from aiormq.exceptions import ChannelAccessRefused

from otp_stream.broker.queue_inspect import on_channel
from otp_stream.broker.topology import Topology

Act = Literal["configure", "write", "read"]
DEFAULT_EXCHANGE = "amq.default"
"""What permissions call the exchange without a name."""


async def lacking(connection: AbstractConnection, topology: Topology) -> dict[Act, list[str]]:
    """Return the names on which the user lacks a permission that the worker needs."""
    rungs = [topology.rung(ms) for ms in topology.backoff.waits_ms]
    exchanges = [topology.retry.name, topology.events.name]
    needed: list[tuple[Act, str]] = [
        *(("configure", it) for it in (topology.jobs, topology.high, *topology.arguments, *exchanges)),
        *(("write", it) for it in (*rungs, *exchanges, DEFAULT_EXCHANGE)),
        # a queue with a dead letter exchange is made only by who may read it
        *(("read", it) for it in (*topology.lanes.values(), *rungs, topology.retry.name)),
    ]
    found: dict[Act, list[str]] = {}
    # one after another: where many channels are refused at once, the client opens one number twice
    for act, name in needed:
        if await _is_refused(connection, act, name, rungs[0]):
            found.setdefault(act, []).append(name)
    return found


def command(vhost: str, user: str, topology: Topology) -> str:
    """Return the command that gives the user every permission that the worker needs."""
    ours = f"{re.escape(topology.prefix)}\\..*"
    jobs = f"{re.escape(topology.jobs)}(\\.high)?"
    patterns = (f"^({jobs}|{ours})$", f"^(amq\\.default|{ours})$", f"^({jobs}|{ours})$")
    return shlex.join(["rabbitmqctl", "set_permissions", "-p", vhost, user, *patterns])


async def _is_refused(connection: AbstractConnection, act: Act, name: str, own: str) -> bool:
    try:
        match act:
            case "configure":
                await _configure(connection, name)
            case "write" if name == DEFAULT_EXCHANGE:
                await _publish_to_nobody(connection, f"{own}.{token_hex(8)}")
            case "write":
                await _unbind(connection, name, name)
            case "read":
                await _unbind(connection, own, name)
    except ChannelAccessRefused as error:
        # an unbind asks for write on the queue, then for read on the exchange: the text says which was refused
        return act == "configure" or name == DEFAULT_EXCHANGE or ("to exchange" in str(error)) == (act == "read")
    except (ChannelClosed, DeliveryError):  # what comes after the permission
        return False
    return False


async def _configure(connection: AbstractConnection, name: str) -> None:
    # no queue can have a negative time to live: none is made, and none that stands is like it
    async with on_channel(connection) as channel:
        await channel.declare_queue(name, durable=True, arguments={"x-message-ttl": -1})


async def _unbind(connection: AbstractConnection, queue: str, exchange: str) -> None:
    async with on_channel(connection) as channel:
        underlay = await channel.get_underlay_channel()
        await underlay.queue_unbind(queue, exchange, token_hex(8))  # a binding that nobody has made


async def _publish_to_nobody(connection: AbstractConnection, name: str) -> None:
    async with connection.channel(on_return_raises=True) as channel:
        await channel.default_exchange.publish(aio_pika.Message(b""), name, mandatory=True)
