"""Reads the properties of existing queues and exchanges without creating any.

AMQP has no request for a queue's arguments, but RabbitMQ refuses a declare with other arguments, and the refusal quotes
one difference. Each declare here has an argument that the broker accepts for no new queue or exchange, and compares
last for an existing one. So it creates nothing, even if the queue was deleted a moment before.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from otp_stream.connection_errors import broker_text

from .declares import ANSWER_S, PATIENT_S, QueueAwayError, answer_about, is_missing
from .topology import Topology

_GUARD = "x-queue-leader-locator"
_NEVER_A_QUEUE = {_GUARD: "none-such"}
_EXCHANGE_GUARD = "alternate-exchange"
_NEVER_AN_EXCHANGE: dict[str, Any] = {_EXCHANGE_GUARD: 5}  # must be a name
_TYPE = "x-queue-type"
_API_S = 5.0
"""Time limit for the management API: a worker's start must not fail because its answer is late."""
_ROUNDS = 20
"""Maximum number of rounds. Each reveals one property, and no queue has as many."""
_DIFFERENCE = re.compile(
    r"inequivalent arg '(?P<key>[^']+)' for .* received .* but current is (?P<value>.*)", re.DOTALL
)
_VALUE = re.compile(r"(?:the value )?'(?P<value>.*?)'(?: of type '(?P<type>\w+)')?", re.DOTALL)
_TEXTS = ("longstr", "shortstr")


@dataclass(slots=True)
class InspectedQueue:
    """The properties of an existing queue."""

    messages: int
    consumers: int
    durable: bool = True
    auto_delete: bool = False
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def kind(self) -> str:
        """`classic`, `quorum` or `stream`."""
        return self.arguments.get(_TYPE, "classic")

    def differences(self, expected: Mapping[str, Any]) -> list[str]:
        """Return each difference from a durable queue with these arguments, as `KEY is X, must be Y`."""
        found = [] if self.durable else ["it is not durable, and must be"]
        found += ["it is auto-delete, and must not be"] if self.auto_delete else []
        known = {_TYPE: self.kind, **self.arguments}  # unlike RabbitMQ 4, 3 does not quote the type of a plain queue
        for key in sorted({*expected, *self.arguments}):
            now, must = known.get(key), expected.get(key)
            if now != must:
                found.append(f"{key} is {broker_text(_shown(now))}, must be {_shown(must)}")
        return found


@asynccontextmanager
async def temporary_channel(connection: AbstractConnection) -> AsyncGenerator[AbstractChannel]:
    """Open a channel for one request, because a refusal closes the channel."""
    channel = await connection.channel(publisher_confirms=False)
    try:
        yield channel
    finally:
        await channel.close()


async def inspect_queue(
    connection: AbstractConnection, name: str, expected: Mapping[str, Any], *, timeout_s: float = PATIENT_S
) -> InspectedQueue | None:
    """Return a queue's properties, or `None` if it does not exist. If it has the `expected` arguments, that is faster.

    Raises `QueueAwayError`, and AMQP errors such as a missing permission.
    """
    try:
        async with temporary_channel(connection) as channel, answer_about(name, connection, timeout_s):
            declared = (await channel.declare_queue(name, passive=True)).declaration_result
    except ChannelNotFoundEntity as error:
        if is_missing(error):
            return None
        raise QueueAwayError(broker_text(error)) from None
    # The declare always names the type: a virtual host with a `default_queue_type` would add it, and a queue of that
    # type would look like a classic one.
    arguments = {_TYPE: "classic", **expected}
    found = InspectedQueue(declared.message_count or 0, declared.consumer_count or 0, arguments=arguments)
    for _ in range(_ROUNDS):
        refusal = await _refusal(connection, name, found)
        if refusal is None or not _correct(found, refusal):
            break
    if found.kind == "classic" and _TYPE not in expected:
        found.arguments.pop(_TYPE, None)
    return found


async def apply_topology(
    topology: Topology, connection: AbstractConnection, url: str, api_url: str | None = None
) -> set[str]:
    """Declare everything that is missing at `url`. Returns and raises what `Topology.apply` does.

    The high lane is declared as a quorum queue if the jobs queue is one, or if RabbitMQ is a cluster, where a classic
    queue is unavailable while its node is down. Only the management API reports whether it is a cluster. If that does
    not answer, a single node is assumed, on which producers may declare a plain queue.
    """

    async def high_is_quorum() -> bool:
        return await is_quorum(connection, topology.jobs) or await _is_cluster(topology, connection, url, api_url)

    return await topology.apply(connection, high_is_quorum)


async def _is_cluster(topology: Topology, connection: AbstractConnection, url: str, api_url: str | None) -> bool:
    # imported here, because its HTTP client takes 6 MB and 70 ms, and is used once in the life of a queue
    from .management_api import ManagementApi  # noqa: PLC0415

    with suppress(TimeoutError):
        async with asyncio.timeout(_API_S):
            return await ManagementApi.of_broker(url, api_url).is_cluster(connection, topology.dead)
    return False


async def is_quorum(connection: AbstractConnection, name: str) -> bool:
    """Return whether a producers' queue is a quorum queue, which counts every requeue of a message."""
    try:
        found = await inspect_queue(connection, name, {}, timeout_s=ANSWER_S)
    except (QueueAwayError, ChannelNotFoundEntity):  # only a classic queue is unavailable with its node
        return False
    return found is not None and found.kind == "quorum"


async def inspect_exchange(connection: AbstractConnection, name: str, kind: str) -> str | None:
    """Return how an exchange differs from a durable one of this type (`""`: not at all), or `None` if it is missing."""
    try:
        async with temporary_channel(connection) as channel:
            await channel.get_exchange(name, ensure=True)
    except ChannelNotFoundEntity:
        return None
    try:
        async with temporary_channel(connection) as channel:
            await channel.declare_exchange(name, kind, durable=True, arguments=_NEVER_AN_EXCHANGE)
    except ChannelPreconditionFailed as error:
        difference = _DIFFERENCE.search(str(error))
        if difference is None:  # it was deleted a moment ago
            return None
        key, value = difference["key"], _parse(difference["value"])
        if key == _EXCHANGE_GUARD and value is None:
            return ""
        return f"{key} is {broker_text(_shown(value))}, must be {_shown({'type': kind, 'durable': True}.get(key))}"
    return ""


async def _refusal(connection: AbstractConnection, name: str, found: InspectedQueue) -> str | None:
    try:
        async with temporary_channel(connection) as channel:
            await channel.declare_queue(
                name,
                durable=found.durable,
                auto_delete=found.auto_delete,
                arguments={**found.arguments, **_NEVER_A_QUEUE},
            )
    except ChannelPreconditionFailed as error:
        return str(error)
    return None  # RabbitMQ 3.10 does not compare our argument for classic queues


def _correct(found: InspectedQueue, refusal: str) -> bool:
    """Correct `found` by the difference that a refusal quotes. Returns whether there may be another difference."""
    difference = _DIFFERENCE.search(refusal)
    if difference is None:
        return False
    key, value = difference["key"], _parse(difference["value"])
    match key:
        case "durable" | "auto_delete":
            setattr(found, key, value == "true")
        case _ if value is None:
            found.arguments.pop(key, None)
        case _:
            known = found.arguments.get(key)
            found.arguments[key] = int(value) if isinstance(known, int) and value.lstrip("-").isdigit() else value
    return key != _GUARD


def _parse(current: str) -> Any:
    """Parse the value that a refusal quotes; `None` if the argument is not set."""
    quoted = _VALUE.fullmatch(current.strip())
    if quoted is None:
        return None
    value: str = quoted["value"]
    if quoted["type"] in {None, *_TEXTS}:
        return value
    return int(value) if value.lstrip("-").isdigit() else value == "true" if value in {"true", "false"} else value


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
