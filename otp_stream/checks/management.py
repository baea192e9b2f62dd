"""Reads queues, bindings, policies, nodes and the clock from the management API."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from aio_pika.abc import AbstractConnection

from otp_stream.broker.management_api import ManagementApi, ManagementError, member_count, queue_path, readable
from otp_stream.broker.topology import Bound, Depth

from .policy_patterns import matched_names

_Row = Mapping[str, Any]

_QUEUES = {"all", "queues", "classic_queues", "quorum_queues"}
"""Values of a policy's `apply-to` that include queues."""


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """Statistics of one queue, which may be some seconds old."""

    messages: int | None
    """All messages, including those in transfer to another queue; `None` until there are statistics."""
    consumers: int
    revision: int | None
    """Changes with each new set of statistics."""


@dataclass(frozen=True, slots=True)
class ManagementQueries:
    """Queries for one virtual host. All raise `ManagementError` if the API cannot be used."""

    api: ManagementApi

    async def verify(self, connection: AbstractConnection) -> None:
        """Raise `ManagementError` if the API belongs to another broker than `connection`."""
        await self.api.verify(connection)

    async def queue_arguments(self) -> dict[str, Mapping[str, Any]]:
        """Return the arguments of every queue, by its name."""
        rows: list[_Row] | None = await self.api.fetch("queues/{virtual_host}", {"columns": "name,arguments"})
        with readable(self.api):
            return {row["name"]: {**row["arguments"]} for row in rows or ()}

    async def statistics(self, queue: str) -> QueueStatistics | None:
        """Return the statistics of a queue, or `None` if it does not exist."""
        row: _Row | None = await self.api.fetch(queue_path(queue), missing_ok=True)
        if row is None:
            return None
        # statistics have no date, but the count of the queue process's reductions differs in each set
        with readable(self.api):
            return QueueStatistics(row.get("messages"), row.get("consumers") or 0, row.get("reductions"))

    async def depth(self, queue: str) -> Depth | None:
        """Return the ready messages and consumers of a queue, or `None` if it does not exist.

        Raises `ManagementError` also while there are no statistics, as in the first seconds of a queue.
        """
        row: _Row | None = await self.api.fetch(queue_path(queue), missing_ok=True)
        if row is None:
            return None
        with readable(self.api):
            return Depth(messages=int(row["messages_ready"]), consumers=int(row["consumers"]))

    async def exchange_bindings(self, *exchanges: str) -> set[Bound]:
        """Return the bindings of queues to these exchanges."""
        found: set[Bound] = set()
        for exchange in exchanges:
            path = f"exchanges/{{virtual_host}}/{quote(exchange, safe='')}/bindings/source"
            rows: list[_Row] | None = await self.api.fetch(path, missing_ok=True)
            with readable(self.api):
                queues = (row for row in rows or () if row["destination_type"] == "queue")
                found.update(Bound(exchange, row["routing_key"], row["destination"]) for row in queues)
        return found

    async def queue_bindings(self, queue: str) -> set[tuple[str, str]]:
        """Return a queue's bindings as (exchange, routing key), except the one to the default exchange.

        Unlike statistics, they are always up to date.
        """
        rows: list[_Row] | None = await self.api.fetch(f"{queue_path(queue)}/bindings", missing_ok=True)
        with readable(self.api):
            return {(row["source"], row["routing_key"]) for row in rows or () if row["source"]}


@dataclass(frozen=True, slots=True)
class Policy:
    """The effective policy of one queue."""

    name: str
    """Its kind and name, for messages."""
    clear: tuple[str, ...]
    """Arguments of `rabbitmqctl` that remove it, without the virtual host."""
    definition: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Descriptors:
    """File descriptors of the node with the fewest free ones."""

    node: str
    used: int
    total: int

    @property
    def free(self) -> int:
        """The number of free file descriptors."""
        return self.total - self.used


@dataclass(slots=True)
class ManagementStatus:
    """The reports of the API that the checks need."""

    policies: dict[str, Policy] = field(default_factory=dict[str, Policy])
    """By name of the queue, whether or not it exists."""
    error: str = ""
    """Why the policies are unknown; empty if they are known."""
    nodes: int = 1
    """Number of nodes on which RabbitMQ keeps our quorum queues."""
    descriptors: Descriptors | None = None
    """`None` if unknown: the API reports them only to a user with the tag `monitoring`."""
    ahead_s: float | None = None
    """Seconds by which the API's clock is ahead of ours, accurate to a second; `None` if unknown."""


def read_status(url: str, queues: Iterable[str], quorum_queue: str) -> ManagementStatus:
    """Read the policies of these queues and the number of nodes of `quorum_queue`. The queues need not exist."""
    api = ManagementApi.of_broker(url)
    status = ManagementStatus()
    listed: dict[str, list[dict[str, Any]]] = {}
    try:
        for kind, path in (("policy", "policies"), ("operator policy", "operator-policies")):
            listed[kind], status.ahead_s = api.get(f"{path}/{{virtual_host}}")
        queue = api.get(queue_path(quorum_queue), missing_ok=True)[0]
        with readable(api):
            status.policies, status.nodes = _effective_policies(list(queues), listed), member_count(queue)
    except ManagementError as error:
        status.error = str(error)
    else:
        status.descriptors = read_descriptors(api)
    return status


def read_descriptors(api: ManagementApi) -> Descriptors | None:
    """Read the file descriptors of the node with the fewest free ones; `None` if the API does not report them."""
    try:
        listed: list[dict[str, Any]]
        listed, _ = api.get("nodes", {"columns": "name,fd_used,fd_total"})
        with readable(api):
            # 0 means that the node does not count them
            found = [Descriptors(it["name"], it["fd_used"], it["fd_total"]) for it in listed if it.get("fd_used")]
            return min(found, key=lambda it: it.free, default=None)
    except ManagementError:
        return None


def _effective_policies(queues: list[str], kinds: dict[str, list[dict[str, Any]]]) -> dict[str, Policy]:
    matched = matched_names({it["pattern"] for listed in kinds.values() for it in listed}, queues)
    return {name: found for name in queues if (found := _effective_policy(name, kinds, matched))}


def _effective_policy(
    name: str, kinds: dict[str, list[dict[str, Any]]], matched: Mapping[str, list[str]]
) -> Policy | None:
    """Merge the matching policy and operator policy of highest priority. Of two numbers, the lower one applies."""
    names: dict[str, str] = {}
    definition: dict[str, Any] = {}
    for kind, listed in kinds.items():
        matching = [it for it in listed if it["apply-to"] in _QUEUES and name in matched[it["pattern"]]]
        if matching:
            best = max(matching, key=lambda it: it.get("priority", 0))
            names[kind] = best["name"]
            for key, value in best["definition"].items():
                both = isinstance(value, int) and isinstance(definition.get(key), int)
                definition[key] = min(value, definition[key]) if both else value
    if not names:
        return None
    kind, first = next(iter(names.items()))
    return Policy(
        " with ".join(f"{kind} {it}" for kind, it in names.items()),
        (f"clear_{kind.replace(' ', '_')}", first),
        definition,
    )
