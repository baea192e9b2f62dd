"""What only the management plugin's HTTP API can tell of queues: their names, all that they hold, their bindings."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import requests
from aio_pika.abc import AbstractConnection

from .management import vhost

_TIMEOUT_S = 5.0
_REFUSED = {
    401: "refuses the user of RABBITMQ_URL; it needs the tag `management` or `monitoring`",
    403: "refuses the user of RABBITMQ_URL; it needs the tag `management` or `monitoring`",
    404: "knows no such virtual host, or is not RabbitMQ's",
}

_Row = Mapping[str, Any]


class CensusError(Exception):
    """The management API does not tell; the text says why."""


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
    """Asks for one virtual host; `url` has neither user nor password in it."""

    url: str
    host: str
    _auth: tuple[str, str]
    _ca_file: str | None = None

    @classmethod
    def beside(cls, amqp_url: str, url: str | None = None) -> "Census":
        """Return the API of the broker at `amqp_url`: at its usual port, or at `url`."""
        parts = urlsplit(amqp_url)
        scheme, port = ("https", 15671) if parts.scheme == "amqps" else ("http", 15672)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        auth = (unquote(parts.username or "guest"), unquote(parts.password or "guest"))
        ca_file = parse_qs(parts.query).get("cafile", [None])[0]
        return cls((url or f"{scheme}://{host}:{port}").rstrip("/"), vhost(amqp_url), auth, ca_file)

    async def verify(self, connection: AbstractConnection) -> None:
        """Raise `CensusError` when this is the API of another broker than the one at the end of `connection`."""
        told: _Row = await self._get("overview", {"columns": "cluster_name"})
        name = _cluster_name(connection)
        if name is None or told.get("cluster_name") != name:
            raise CensusError(f"{self.url} speaks for {told.get('cluster_name')}, not for {name or 'that broker'}")

    async def queues(self) -> dict[str, Mapping[str, Any]]:
        """Return every queue's arguments. Raises `CensusError`."""
        rows: list[_Row] | None = await self._get("queues/{host}", {"columns": "name,arguments"})
        return {row["name"]: row["arguments"] for row in rows or ()}

    async def holding(self, queue: str) -> Holding | None:
        """Return what a queue holds; `None` when there is no such queue. Raises `CensusError`."""
        row: _Row | None = await self._get(f"queues/{{host}}/{quote(queue, safe='')}", absent=True)
        if row is None:
            return None
        return Holding(row.get("messages"), row.get("consumers") or 0, row.get("reductions"))

    async def bound(self, exchange: str) -> set[tuple[str, str]]:
        """Return an exchange's bindings to queues as (routing key, queue). Raises `CensusError`."""
        path = f"exchanges/{{host}}/{quote(exchange, safe='')}/bindings/source"
        rows: list[_Row] | None = await self._get(path, absent=True)
        return {(row["routing_key"], row["destination"]) for row in rows or () if row["destination_type"] == "queue"}

    async def bindings(self, queue: str) -> set[tuple[str, str]]:
        """Return a queue's bindings as (exchange, routing key), without the default exchange's own.

        Unlike figures, they are those of this moment. Raises `CensusError`.
        """
        rows: list[_Row] | None = await self._get(f"queues/{{host}}/{quote(queue, safe='')}/bindings", absent=True)
        return {(row["source"], row["routing_key"]) for row in rows or () if row["source"]}

    async def _get(self, path: str, query: Mapping[str, str] | None = None, *, absent: bool = False) -> Any:
        """Return the answer; `None` for what is not there, if it may be `absent`."""
        return await asyncio.to_thread(self._ask, path.format(host=quote(self.host, safe="")), query, absent=absent)

    def _ask(self, path: str, query: Mapping[str, str] | None, *, absent: bool) -> Any:
        try:
            with requests.Session() as session:
                session.trust_env = False  # a broker stands behind no proxy, and .netrc knows no user of it
                answer = session.get(
                    f"{self.url}/api/{path}", params=query, auth=self._auth, timeout=_TIMEOUT_S,
                    verify=self._ca_file or True, allow_redirects=False,
                )  # fmt: skip
            if answer.status_code == 404 and absent:
                return None
            if answer.status_code != 200:
                raise CensusError(f"{self.url} {_REFUSED.get(answer.status_code, f'says {answer.status_code}')}")
            return answer.json()
        except requests.RequestException as error:
            raise CensusError(f"{self.url} does not answer ({type(error).__name__})") from None


def _cluster_name(connection: AbstractConnection) -> str | None:
    transport = connection.transport
    properties: _Row = getattr(transport.connection, "server_properties", {}) if transport else {}
    return properties.get("cluster_name")
