"""What only the management plugin's HTTP API can tell of queues: their names, all that they hold, their bindings."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from aio_pika.abc import AbstractConnection

from .management_api import Management, ManagementError, nodes, queue_path

_Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Holding:
    """What one queue holds, by figures that may be some seconds old."""

    messages: int | None
    """All of them, those too that are being handed over; `None` until there are figures."""
    consumers: int
    mark: int | None
    """Another number in each new set of figures."""


@dataclass(frozen=True, slots=True)
class Census:
    """Asks for one virtual host. All its questions raise `ManagementError` where there is no answer."""

    api: Management

    async def verify(self, connection: AbstractConnection) -> None:
        """Raise `ManagementError` when this is the API of another broker than the one at the end of `connection`."""
        told: _Row = await self._get("overview", {"columns": "cluster_name"})
        name = _cluster_name(connection)
        other = told.get("cluster_name")
        if name is None or other != name:
            raise ManagementError(f"{self.api.url} speaks for {other}, not for {name or 'that broker'}")

    async def is_cluster(self, connection: AbstractConnection, queue: str) -> bool:
        """Whether the quorum queue `queue` has members on several nodes; `False` where there is no answer."""
        try:
            await self.verify(connection)
            return nodes(await self._get(queue_path(queue), absent=True)) > 1
        except ManagementError:
            return False

    async def queues(self) -> dict[str, Mapping[str, Any]]:
        """Return every queue's arguments."""
        rows: list[_Row] | None = await self._get("queues/{host}", {"columns": "name,arguments"})
        return {row["name"]: row["arguments"] for row in rows or ()}

    async def holding(self, queue: str) -> Holding | None:
        """Return what a queue holds; `None` when there is no such queue."""
        row: _Row | None = await self._get(queue_path(queue), absent=True)
        if row is None:
            return None
        return Holding(row.get("messages"), row.get("consumers") or 0, row.get("reductions"))

    async def bound(self, exchange: str) -> set[tuple[str, str]]:
        """Return an exchange's bindings to queues as (routing key, queue)."""
        path = f"exchanges/{{host}}/{quote(exchange, safe='')}/bindings/source"
        rows: list[_Row] | None = await self._get(path, absent=True)
        return {(row["routing_key"], row["destination"]) for row in rows or () if row["destination_type"] == "queue"}

    async def bindings(self, queue: str) -> set[tuple[str, str]]:
        """Return a queue's bindings as (exchange, routing key), without the default exchange's own.

        Unlike figures, they are those of this moment.
        """
        rows: list[_Row] | None = await self._get(f"{queue_path(queue)}/bindings", absent=True)
        return {(row["source"], row["routing_key"]) for row in rows or () if row["source"]}

    async def _get(self, path: str, query: Mapping[str, str] | None = None, *, absent: bool = False) -> Any:
        """Return the answer; `None` for what is not there, if it may be `absent`."""
        return (await asyncio.to_thread(self.api.get, path, query, absent=absent))[0]


def _cluster_name(connection: AbstractConnection) -> str | None:
    transport = connection.transport
    properties: _Row = getattr(transport.connection, "server_properties", {}) if transport else {}
    return properties.get("cluster_name")
