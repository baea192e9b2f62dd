"""Client of the management plugin's HTTP API, which reports more than AMQP. No worker depends on its answers."""

import asyncio
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, cast
from urllib.parse import quote, unquote, urlsplit

import requests
from aio_pika.abc import AbstractConnection

from otp_stream.bounded_http import bound
from otp_stream.connection_errors import options, virtual_host
from otp_stream.core.masking import scrub
from otp_stream.tls import tls_failure
from otp_stream.urls import is_loopback

_TIMEOUT_S = 5.0
_MAX_RESPONSE, _RESPONSE_S = 64 << 20, 30.0
"""Bytes and seconds. The arguments of a queue take some 200 bytes."""


class ManagementError(Exception):
    """The API cannot be used; the text contains the reason."""


@dataclass(frozen=True, slots=True)
class ManagementApi:
    """The API of a broker. `url` contains neither user nor password."""

    url: str
    virtual_host: str
    _auth: tuple[str, str] = field(repr=False)
    _ca_file: str | None = None
    _certificate: tuple[str, str] | None = None
    """Our certificate and its key."""
    _needs_tls: bool = False

    @classmethod
    def of_broker(cls, amqp_url: str, url: str | None = None) -> "ManagementApi":
        """Return the API of the broker at an AMQP URL: at `url`, or at the default port of the broker's host.

        The password is sent over TLS if the connection to the broker uses TLS.
        """
        parts = urlsplit(amqp_url)
        scheme, port = ("https", 15671) if parts.scheme == "amqps" else ("http", 15672)
        name = parts.hostname or "localhost"
        host = f"[{name}]" if ":" in name else name
        auth = (unquote(parts.username or "guest"), unquote(parts.password or "guest"))
        given = options(amqp_url)
        certificate = (given["certfile"], given.get("keyfile", given["certfile"])) if "certfile" in given else None
        base = (url or f"{scheme}://{host}:{port}").rstrip("/")
        return cls(base, virtual_host(amqp_url), auth, given.get("cafile"), certificate, scheme == "https")

    def get(
        self, path: str, query: Mapping[str, str] | None = None, *, missing_ok: bool = False
    ) -> tuple[Any, float | None]:
        """Return the JSON at a path, in which `{virtual_host}` is replaced, and by how many seconds its clock is ahead.

        Returns `None` for HTTP status 404 if `missing_ok`. Raises `ManagementError`.
        """
        began = time.time()
        answer = self._request("GET", path, {200, 404 if missing_ok else 200}, params=query)
        try:
            content: Any = answer.json() if answer.status_code == 200 else None
        except (ValueError, RecursionError) as error:
            raise self._no_answer(error) from None
        if answer.status_code == 200 and not _is_of_rabbitmq(content):
            raise ManagementError(f"{self.url} {_explain(404)}")
        return content, _ahead_s(answer.headers.get("Date"), (began + time.time()) / 2)

    def put(self, path: str, content: Mapping[str, Any]) -> None:
        """Create or replace what is at a path. Raises `ManagementError`."""
        self._request("PUT", path, {201, 204}, json=content)

    def delete(self, path: str) -> None:
        """Delete what is at a path, if there is anything. Raises `ManagementError`."""
        self._request("DELETE", path, {204, 404})

    def _request(self, method: str, path: str, expected: set[int], **options: Any) -> requests.Response:
        parts = urlsplit(self.url)
        if self._needs_tls and parts.scheme != "https" and not is_loopback(parts.hostname or ""):
            raise ManagementError(f"{self.url} was not asked: it has no TLS, and RABBITMQ_URL has; write https://")
        try:
            with bound(requests.Session(), _MAX_RESPONSE, _RESPONSE_S) as session:
                session.trust_env = False  # use neither a proxy nor the passwords in .netrc
                answer = session.request(
                    method, f"{self.url}/api/{path.format(virtual_host=quote(self.virtual_host, safe=''))}",
                    auth=self._auth, timeout=_TIMEOUT_S, verify=self._ca_file or True, cert=self._certificate,
                    allow_redirects=False, **options,
                )  # fmt: skip
        except (requests.RequestException, OSError, ValueError) as error:
            raise self._no_answer(error) from None
        if answer.status_code not in expected:
            raise ManagementError(f"{self.url} {_explain(answer.status_code)}")
        return answer

    def _no_answer(self, error: Exception) -> ManagementError:
        where = {"authority": "cafile=/path/ca.pem in RABBITMQ_URL", "host": "the host in RABBITMQ_URL"}
        if found := tls_failure(str(error), **where):
            return ManagementError(f"{self.url} {found.why}; {found.fix}")
        return ManagementError(f"{self.url} does not answer ({type(error).__name__})")

    async def fetch(self, path: str, query: Mapping[str, str] | None = None, *, missing_ok: bool = False) -> Any:
        """Run `get` in a thread and return the JSON."""
        return (await asyncio.to_thread(self.get, path, query, missing_ok=missing_ok))[0]

    async def verify(self, connection: AbstractConnection) -> None:
        """Raise `ManagementError` if the API belongs to another broker than `connection`."""
        overview: Mapping[str, Any] = await self.fetch("overview", {"columns": "cluster_name"})
        with readable(self):
            name, other = _cluster_name(connection), overview.get("cluster_name")
        if name is None or other != name:
            ours = "the broker in RABBITMQ_URL" if name is None else scrub(str(name))
            raise ManagementError(f"{self.url} belongs to {scrub(str(other))}, not to {ours}")

    async def is_cluster(self, connection: AbstractConnection, queue: str) -> bool:
        """Return whether a quorum queue has members on several nodes; `False` if the API does not answer."""
        try:
            await self.verify(connection)
            found = await self.fetch(queue_path(queue), missing_ok=True)
            with readable(self):
                return member_count(found) > 1
        except ManagementError:
            return False


@contextmanager
def readable(api: ManagementApi) -> Generator[None]:
    """Raise `ManagementError` if what an answer contains is not what RabbitMQ sends."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ManagementError(f"{api.url} sends fields that RabbitMQ does not ({type(error).__name__})") from None


def queue_path(name: str) -> str:
    """Return the path of a queue for `ManagementApi.get`."""
    return f"queues/{{virtual_host}}/{quote(name, safe='')}"


def member_count(quorum_queue: Mapping[str, Any] | None) -> int:
    """Return the number of nodes of a quorum queue by the API's answer about it; 1 if there is no such queue."""
    return len((quorum_queue or {}).get("members", ())) or 1


def _is_of_rabbitmq(content: Any) -> bool:
    rows = cast("list[Any]", content) if isinstance(content, list) else [content]
    return all(isinstance(it, dict) for it in rows)


def _cluster_name(connection: AbstractConnection) -> str | None:
    transport = connection.transport
    properties: Mapping[str, Any] = getattr(transport.connection, "server_properties", {}) if transport else {}
    return properties.get("cluster_name")


def _explain(status: int) -> str:
    if status in {401, 403}:
        tags = "`management`, for policies `policymaker`, for users `administrator`"
        return f"refuses this user (HTTP {status}): it needs the tag {tags}"
    if status == 400:
        return "refuses the values (HTTP 400): it may require longer passwords, see its credential validator"
    if status == 404:
        return "has no such virtual host, or is not RabbitMQ's management API"
    return f"returns HTTP {status}"


def _ahead_s(date: str | None, at: float) -> float | None:
    if date is None:
        return None
    try:
        # the header has whole seconds, so half a second more is the best estimate
        return parsedate_to_datetime(date).timestamp() + 0.5 - at
    except (ValueError, OverflowError):
        return None
