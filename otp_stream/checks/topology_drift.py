"""Compares the broker's queues, exchanges and bindings with the topology, and exports the topology as definitions."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from aio_pika.abc import AbstractConnection
from aiormq.exceptions import ChannelAccessRefused
from faststream.rabbit import RabbitExchange

from otp_stream.broker.declares import QueueAwayError
from otp_stream.broker.queue_inspect import inspect_exchange, inspect_queue
from otp_stream.broker.topology import Bound, Depth, Topology

from .depth_reader import DepthReader
from .management import ManagementQueries

State = Literal["exists", "missing", "differs", "unavailable", "unknown"]
"""`differs`: exists with other properties. `unavailable`: its node is down. `unknown`: could not be checked, such as a
queue that the user may not declare."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A required exchange and its state at the broker."""

    name: str
    type: str
    state: State
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Queue:
    """A required queue: its actual properties if it exists, otherwise the required ones."""

    name: str
    type: str
    arguments: Mapping[str, Any]
    state: State
    depth: Depth | None = None
    """Ready messages. AMQP does not count messages in transfer to another queue."""
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Binding:
    """A required binding. AMQP does not report whether it exists."""

    source: str
    routing_key: str
    destination: str
    state: State


@dataclass(frozen=True, slots=True)
class TopologyDrift:
    """The whole topology and its state at the broker."""

    exchanges: list[Exchange] = field(default_factory=list[Exchange])
    queues: list[Queue] = field(default_factory=list[Queue])
    bindings: list[Binding] = field(default_factory=list[Binding])

    @property
    def all(self) -> list[tuple[str, State, str | None]]:
        """All exchanges, queues and bindings as (kind and name, state, problem)."""
        return [
            *((f"exchange {it.name}", it.state, it.problem) for it in self.exchanges),
            *((f"queue {it.name}", it.state, it.problem) for it in self.queues),
            *((f"binding {it.source} -{it.routing_key}-> {it.destination}", it.state, None) for it in self.bindings),
        ]


async def inspect_topology(
    topology: Topology,
    connection: AbstractConnection,
    bound: Collection[Bound] | None,
    management: ManagementQueries | None = None,
) -> TopologyDrift:
    """Compare the broker with the topology without changes.

    `bound` are the existing bindings of our exchanges, or `None` if they are unknown. `management` reports the depths
    of queues for which the user has no permission.
    """
    drift = TopologyDrift()
    depths = DepthReader(topology, connection, management)
    for exchange in topology.exchanges:
        drift.exchanges.append(await _exchange(connection, exchange))
    for name in (topology.high, topology.jobs):
        drift.queues.append(await _queue(depths, name, None))
    for name, arguments in (topology.arguments | topology.tenant_queues).items():
        drift.queues.append(await _queue(depths, name, arguments))
    for it in (*topology.retry_bindings, *topology.job_bindings):
        state: State = "unknown" if bound is None else "exists" if it in bound else "missing"
        drift.bindings.append(Binding(*it, state))
    return drift


def definitions(
    topology: Topology, virtual_host: str, existing: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Return the topology in the format of `rabbitmqctl import_definitions`.

    `existing` are the arguments of the existing producers' queues, including the type, because a virtual host with a
    `default_queue_type` would set another one. The virtual host must exist before the import; importing it would reset
    its properties.
    """
    queues = {topology.jobs: {}, topology.high: {}, **(existing or {}), **topology.arguments, **topology.tenant_queues}
    common = {"vhost": virtual_host, "durable": True, "auto_delete": False}
    return {
        "exchanges": [
            {"name": it.name, **common, "type": it.type.value, "internal": False, "arguments": {}}
            for it in topology.exchanges
        ],
        "queues": [{"name": name, **common, "arguments": arguments} for name, arguments in queues.items()],
        "bindings": [
            {
                "source": it.exchange,
                "vhost": virtual_host,
                "destination": it.queue,
                "destination_type": "queue",
                "routing_key": it.routing_key,
                "arguments": {},
            }
            for it in (*topology.retry_bindings, *topology.job_bindings)
        ],
    }


async def _exchange(connection: AbstractConnection, exchange: RabbitExchange) -> Exchange:
    name, kind = exchange.name, exchange.type.value
    try:
        difference = await inspect_exchange(connection, name, kind)
    except ChannelAccessRefused:  # an operator may not declare it
        return Exchange(name, kind, "unknown")
    if difference is None:
        return Exchange(name, kind, "missing")
    if difference:
        return Exchange(name, kind, "differs", _differs(name, difference))
    return Exchange(name, kind, "exists")


async def _queue(depths: DepthReader, name: str, expected: Mapping[str, Any] | None) -> Queue:
    """Inspect a queue. `expected` are its arguments, or `None` for a producers' queue, which may have any."""
    usual = "classic" if expected is None else "quorum"
    try:
        found = await inspect_queue(depths.connection, name, expected or {})
    except QueueAwayError as error:
        return Queue(name, usual, expected or {}, "unavailable", problem=f"{name} is unavailable: {error}")
    except ChannelAccessRefused:
        return await _undeclarable(depths, Queue(name, usual, expected or {}, "unknown"))
    if found is None:
        return Queue(name, usual, expected or {}, "missing")
    depth = Depth(found.messages, found.consumers)
    differences = [] if expected is None else found.differences(expected)
    if differences:
        problem = _differs(name, "; ".join(differences))
        return Queue(name, found.kind, found.arguments, "differs", depth, problem)
    return Queue(name, found.kind, found.arguments, "exists", depth)


async def _undeclarable(depths: DepthReader, queue: Queue) -> Queue:
    """Return a queue that the user may not declare with its depth, if RabbitMQ reports that."""
    try:
        depth = await depths.read(queue.name)
    except ChannelAccessRefused:
        return queue
    return replace(queue, state="missing") if depth is None else replace(queue, depth=depth)


def _differs(name: str, how: str) -> str:
    return f"{name} exists with other properties: {how}; drain and delete it, or set another RABBITMQ_PREFIX"
