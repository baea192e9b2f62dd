"""Connections to Redis, which redis-py opens and logs in, and the pipeline then reads and writes."""

import asyncio
import math
import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import structlog

from otp_stream.sockets import Addresses, certificate_name
from otp_stream.tls import OLDEST, TlsFailure, tls_failure, without_common_name
from otp_stream.urls import without_secrets

CONNECT_TIMEOUT_S = 3.0
_MAX_PREPARING = 64 << 10
"""Bytes of all replies until the pipeline reads them. Redis sends some 2 KiB; the parser would store any number."""
_APPENDED = re.compile(r"\s+script: |,? with args beginning with", re.IGNORECASE)
Argument = bytes | int | float | str


@dataclass(frozen=True, slots=True)
class RedisConfig:
    """The server and the prefixes of keys."""

    url: Callable[[], str]
    """Returns the URL for the next connection."""
    prefix: str
    """The prefix of all keys of this deployment."""
    names: str
    """The prefix of all deployments with this queue name and RABBITMQ_PREFIX.

    Earlier versions wrote their keys here, by the job's id alone. These are read, so that an upgrade sends nothing
    twice, and never written.
    """
    broker: str = ""
    """A description of our RabbitMQ for other deployments."""

    @property
    def shown_url(self) -> str:
        """For logs and pages."""
        return without_secrets(self.url())


if TYPE_CHECKING:
    from redis.asyncio import Connection


def new_connection(url: str) -> "Connection":
    """Return a connection that is not open yet. The text of its errors may contain the password."""
    # the import loads OpenTelemetry's SDK, which a worker without shared state does not need
    from redis.asyncio.connection import Connection, SSLConnection, parse_url  # noqa: PLC0415

    options: dict[str, Any] = {**parse_url(url)}
    kind: type[Connection] = options.pop("connection_class", Connection)
    # the pipeline has its own timeout for replies, and Redis 5 does not support protocol 3
    options |= {"protocol": 2, "driver_info": None, "socket_connect_timeout": CONNECT_TIMEOUT_S, "socket_timeout": None}
    options["redis_connect_func"] = _log_in
    return kind(**(secured(options) if issubclass(kind, SSLConnection) else options))


async def _log_in(connection: "Connection") -> None:
    """Log in, on a connection that reads no more than `_MAX_PREPARING` bytes."""
    from redis.exceptions import InvalidResponse  # noqa: PLC0415 - see below

    reader: asyncio.StreamReader = cast("Any", connection)._reader  # noqa: SLF001 - it offers no other way
    feed, left = reader.feed_data, _MAX_PREPARING

    def feed_data(data: bytes) -> None:
        nonlocal left
        left -= len(data)
        if left >= 0:
            feed(data)
        else:
            reader.set_exception(InvalidResponse("replies without end; is it Redis?"))

    vars(reader)["feed_data"] = feed_data
    await connection.on_connect()


def tls_context(url: str) -> ssl.SSLContext:
    """Return the context for a URL of `rediss://`. Raises `OSError`."""
    return without_common_name(cast("Any", new_connection(url)).ssl_context.get())


def secured(options: dict[str, Any]) -> dict[str, Any]:
    """Return options of a connection for TLS 1.2 and newer, with which OpenSSL never asks for a key's password."""
    options = options | {"ssl_min_version": max(options.get("ssl_min_version", OLDEST), OLDEST)}
    return options | ({"ssl_password": options.get("ssl_password", "")} if "ssl_certfile" in options else {})


async def use_first_reachable_address(connection: "Connection", addresses: Addresses) -> object:
    """Connect to the first address of the host that answers, for use by `connection`. Returns the address."""
    if not hasattr(connection, "host"):  # a unix socket
        return None
    arguments = {**cast("Any", connection)._connection_arguments()}  # noqa: SLF001 - it offers no other way
    host, port = arguments.pop("host"), arguments.pop("port")
    arguments["sock"] = await addresses.connect(host, port)
    if "ssl" in arguments:
        without_common_name(arguments["ssl"])
        arguments.setdefault("server_hostname", certificate_name(host))
    vars(connection)["_connection_arguments"] = lambda: arguments
    return arguments["sock"].getpeername()


def take_over(connection: "Connection", protocol: asyncio.Protocol) -> asyncio.Transport:
    """Pass the data of a connection to `protocol`. The connection must be logged in, with no reply outstanding."""
    writer: asyncio.StreamWriter = cast("Any", connection)._writer  # noqa: SLF001 - it offers no other way
    transport = cast("asyncio.Transport", writer.transport)
    transport.set_protocol(protocol)
    return transport


async def execute(connection: "Connection", *arguments: Argument) -> bytes:
    """Send one command and return its reply."""
    await connection.send_packed_command(b"*%d\r\n%b" % (len(arguments), encode(arguments)), check_health=False)
    return cast("bytes", await connection.read_response(timeout=math.inf, disable_decoding=True))


def encode(arguments: Sequence[Argument]) -> bytes:
    """Encode the arguments of a command in the Redis protocol, without their count."""
    encoded = [it if isinstance(it, bytes) else str(it).encode() for it in arguments]
    return b"".join([b"$%d\r\n%b\r\n" % (len(it), it) for it in encoded])


async def warn_of_eviction(connection: "Connection") -> None:
    """Log a warning if Redis may evict sent records before they expire."""
    from redis.exceptions import ResponseError  # noqa: PLC0415 - see above

    try:
        info = (await execute(connection, b"INFO", b"memory")).decode(errors="replace")
    except ResponseError:  # the user may lack the permission
        return
    facts = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and facts.get("maxmemory", "0") != "0":
        structlog.get_logger(__name__).warning(
            "Redis may evict sent records before they expire: set maxmemory-policy to noeviction", policy=policy
        )


def error_text(error: BaseException) -> str:
    """Return the class and the text of an error, with the fix if TLS failed. It may contain the password."""
    if found := refused_tls(str(error)):
        return f"Redis {found.why}; {found.fix}"
    if isinstance(error, ValueError | LookupError | TypeError):  # its text may quote a value of another program
        return f"{type(error).__name__}: a value that no worker has written; does another program write its keys?"
    return f"{type(error).__name__}: {reply_text(str(error))}"


def refused_tls(error: str) -> TlsFailure | None:
    """Return what an error means if it is about the TLS of Redis."""
    return tls_failure(error, authority="ssl_ca_certs=/path/ca.pem in REDIS_URL", host="the host in REDIS_URL")


def reply_text(text: str) -> str:
    """Return an error reply without what Redis appends: the script's name, or the arguments of an unknown command.

    Where AUTH is renamed, these are the user and the password, perhaps cut.
    """
    return _APPENDED.split(text, maxsplit=1)[0]
