"""What the management API reports about queues: their arguments, all their messages, their bindings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from aio_pika.abc import AbstractConnection

from otp_stream.broker.management_api import ManagementApi, queue_path

_Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """Statistics of one queue, which may be some seconds old."""

    messages: int | None
    """All messages, also those that are being handed over; `None` until there are statistics."""
    consumers: int
    revision: int | None
    """Changes with each new set of statistics."""


@dataclass(frozen=True, slots=True)
class ManagementQueries:
    """Queries about one virtual host. All raise `ManagementError` if the API cannot be used."""

    api: ManagementApi

    async def verify(self, connection: AbstractConnection) -> None:
        """Raise `ManagementError` if this is the API of another broker than the one that `connection` leads to."""
        await self.api.verify(connection)

    async def queue_arguments(self) -> dict[str, Mapping[str, Any]]:
        """Return the arguments of every queue, by its name."""
        rows: list[_Row] | None = await self.api.fetch("queues/{virtual_host}", {"columns": "name,arguments"})
        return {row["name"]: row["arguments"] for row in rows or ()}

    async def statistics(self, queue: str) -> QueueStatistics | None:
        """Return the statistics of a queue; `None` if it does not exist."""
        row: _Row | None = await self.api.fetch(queue_path(queue), missing_ok=True)
        if row is None:
            return None
        # RabbitMQ does not date its statistics; the queue process's count of reductions differs in each set
        return QueueStatistics(row.get("messages"), row.get("consumers") or 0, row.get("reductions"))

    async def exchange_bindings(self, exchange: str) -> set[tuple[str, str]]:
        """Return an exchange's bindings to queues as (routing key, queue)."""
        path = f"exchanges/{{virtual_host}}/{quote(exchange, safe='')}/bindings/source"
        rows: list[_Row] | None = await self.api.fetch(path, missing_ok=True)
        return {(row["routing_key"], row["destination"]) for row in rows or () if row["destination_type"] == "queue"}

    async def queue_bindings(self, queue: str) -> set[tuple[str, str]]:
        """Return a queue's bindings as (exchange, routing key), except the one to the default exchange.

        Unlike statistics, they are always up to date.
        """
        rows: list[_Row] | None = await self.api.fetch(f"{queue_path(queue)}/bindings", missing_ok=True)
        return {(row["source"], row["routing_key"]) for row in rows or () if row["source"]}
