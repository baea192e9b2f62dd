"""What of the topology stands at the broker, and the same as RabbitMQ's definitions."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aio_pika.abc import AbstractConnection
from faststream.rabbit import RabbitExchange

from otp_stream.broker import queue_inspect as standing
from otp_stream.broker.topology import Depth, QueueAwayError, Topology

State = Literal["stands", "missing", "differs", "away", "unknown"]
"""`differs`: it stands with other properties; `away`: its node is down; `unknown`: nobody can be asked."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange as it should be, and what was found."""

    name: str
    type: str
    state: State
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue as it stands, or as it should where it does not; what the producers own is as they chose."""

    name: str
    type: str
    arguments: Mapping[str, Any]
    state: State
    depth: Depth | None = None
    """Messages that are ready. RabbitMQ does not tell over AMQP what is being handed over."""
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Binding:
    """A wait queue's binding, and whether it stands; AMQP has no question for that."""

    source: str
    routing_key: str
    destination: str
    state: State


@dataclass(frozen=True, slots=True)
class Survey:
    """Everything that must stand at the broker, and what was found there."""

    exchanges: list[Exchange] = field(default_factory=list[Exchange])
    queues: list[Queue] = field(default_factory=list[Queue])
    bindings: list[Binding] = field(default_factory=list[Binding])

    @property
    def all(self) -> list[tuple[str, State, str | None]]:
        """Everything as (what it is, state, what is wrong with it)."""
        return [
            *((f"exchange {it.name}", it.state, it.problem) for it in self.exchanges),
            *((f"queue {it.name}", it.state, it.problem) for it in self.queues),
            *((f"binding {it.source} -{it.routing_key}-> {it.destination}", it.state, None) for it in self.bindings),
        ]


async def look(topology: Topology, connection: AbstractConnection, bound: Collection[tuple[str, str]] | None) -> Survey:
    """Ask the broker for everything, and change nothing.

    `bound` are the retry exchange's bindings as (routing key, queue), where they are known.
    """
    found = Survey()
    for exchange in (topology.retry, topology.events):
        found.exchanges.append(await _exchange(connection, exchange))
    for name in (topology.high, topology.jobs):
        found.queues.append(await _queue(connection, name, None))
    for name, arguments in topology.arguments.items():
        found.queues.append(await _queue(connection, name, arguments))
    for rung_ms in topology.backoff.waits_ms:
        key, queue = str(rung_ms), topology.rung(rung_ms)
        state: State = "unknown" if bound is None else "stands" if (key, queue) in bound else "missing"
        found.bindings.append(Binding(topology.retry.name, key, queue, state))
    return found


def definitions(
    topology: Topology, virtual_host: str, standing: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Return the topology as `rabbitmqctl import_definitions` takes it.

    `standing` are the arguments of the producers' queues that exist, the type among them: without it, the one of a
    virtual host with a `default_queue_type` would be another one.

    The virtual host must exist where it is imported: to name it among the definitions would reset its properties.
    """
    queues = {topology.jobs: {}, topology.high: {}, **(standing or {}), **topology.arguments}
    own = {"vhost": virtual_host, "durable": True, "auto_delete": False}
    return {
        "exchanges": [
            {"name": it.name, **own, "type": it.type.value, "internal": False, "arguments": {}}
            for it in (topology.retry, topology.events)
        ],
        "queues": [{"name": name, **own, "arguments": arguments} for name, arguments in queues.items()],
        "bindings": [
            {
                "source": topology.retry.name,
                "vhost": virtual_host,
                "destination": topology.rung(rung_ms),
                "destination_type": "queue",
                "routing_key": str(rung_ms),
                "arguments": {},
            }
            for rung_ms in topology.backoff.waits_ms
        ],
    }


async def _exchange(connection: AbstractConnection, exchange: RabbitExchange) -> Exchange:
    name, kind = exchange.name, exchange.type.value
    difference = await standing.exchange(connection, name, kind)
    if difference is None:
        return Exchange(name, kind, "missing")
    if difference:
        return Exchange(name, kind, "differs", _differs(name, difference))
    return Exchange(name, kind, "stands")


async def _queue(connection: AbstractConnection, name: str, wished: Mapping[str, Any] | None) -> Queue:
    """Look at a queue; `wished` are its arguments where it is ours."""
    usual = "classic" if wished is None else "quorum"
    try:
        found = await standing.queue(connection, name, wished or {})
    except QueueAwayError as error:
        return Queue(name, usual, wished or {}, "away", problem=f"{name} is away: {error}")
    if found is None:
        return Queue(name, usual, wished or {}, "missing")
    depth = Depth(found.messages, found.consumers)
    differences = [] if wished is None else found.differences(wished)
    if differences:
        problem = _differs(name, "; ".join(differences))
        return Queue(name, found.kind, found.arguments, "differs", depth, problem)
    return Queue(name, found.kind, found.arguments, "stands", depth)


def _differs(name: str, how: str) -> str:
    return f"{name} exists with other properties: {how}; drain and delete it, or set another RABBITMQ_PREFIX"
