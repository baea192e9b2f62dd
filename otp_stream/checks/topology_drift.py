"""Compares the broker's queues, exchanges and bindings with the topology, and exports the topology as definitions."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aio_pika.abc import AbstractConnection
from faststream.rabbit import RabbitExchange

from otp_stream.broker.queue_inspect import inspect_exchange, inspect_queue
from otp_stream.broker.topology import Depth, QueueAwayError, Topology

State = Literal["exists", "missing", "differs", "unavailable", "unknown"]
"""`differs`: exists with other properties. `unavailable`: its node is down. `unknown`: could not be checked."""


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
    """A wait queue's binding. AMQP does not report whether it exists."""

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
    topology: Topology, connection: AbstractConnection, bound: Collection[tuple[str, str]] | None
) -> TopologyDrift:
    """Compare the broker with the topology without changes.

    `bound` are the retry exchange's bindings as (routing key, queue), or `None` if they are unknown.
    """
    drift = TopologyDrift()
    for exchange in (topology.retry, topology.events):
        drift.exchanges.append(await _exchange(connection, exchange))
    for name in (topology.high, topology.jobs):
        drift.queues.append(await _queue(connection, name, None))
    for name, arguments in (topology.arguments | topology.tenant_queues).items():
        drift.queues.append(await _queue(connection, name, arguments))
    for wait_ms in topology.backoff.waits_ms:
        key, queue = str(wait_ms), topology.wait_queue(wait_ms)
        state: State = "unknown" if bound is None else "exists" if (key, queue) in bound else "missing"
        drift.bindings.append(Binding(topology.retry.name, key, queue, state))
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
            for it in (topology.retry, topology.events)
        ],
        "queues": [{"name": name, **common, "arguments": arguments} for name, arguments in queues.items()],
        "bindings": [
            {
                "source": topology.retry.name,
                "vhost": virtual_host,
                "destination": topology.wait_queue(wait_ms),
                "destination_type": "queue",
                "routing_key": str(wait_ms),
                "arguments": {},
            }
            for wait_ms in topology.backoff.waits_ms
        ],
    }


async def _exchange(connection: AbstractConnection, exchange: RabbitExchange) -> Exchange:
    name, kind = exchange.name, exchange.type.value
    difference = await inspect_exchange(connection, name, kind)
    if difference is None:
        return Exchange(name, kind, "missing")
    if difference:
        return Exchange(name, kind, "differs", _differs(name, difference))
    return Exchange(name, kind, "exists")


async def _queue(connection: AbstractConnection, name: str, expected: Mapping[str, Any] | None) -> Queue:
    """Inspect a queue. `expected` are its arguments, or `None` for a producers' queue, which may have any."""
    usual = "classic" if expected is None else "quorum"
    try:
        found = await inspect_queue(connection, name, expected or {})
    except QueueAwayError as error:
        return Queue(name, usual, expected or {}, "unavailable", problem=f"{name} is unavailable: {error}")
    if found is None:
        return Queue(name, usual, expected or {}, "missing")
    depth = Depth(found.messages, found.consumers)
    differences = [] if expected is None else found.differences(expected)
    if differences:
        problem = _differs(name, "; ".join(differences))
        return Queue(name, found.kind, found.arguments, "differs", depth, problem)
    return Queue(name, found.kind, found.arguments, "exists", depth)


def _differs(name: str, how: str) -> str:
    return f"{name} exists with other properties: {how}; drain and delete it, or set another RABBITMQ_PREFIX"
