"""How aiormq's connections, also FastStream's, reach the broker.

aiormq waits for a dead first address of the broker's name for the kernel's two minutes, and connects again to one that
gives no session.
"""

import asyncio
import ssl
from contextvars import ContextVar
from typing import Any, NamedTuple, cast

from aiormq import Connection
from aiormq.connection import (
    SSLContextProvider,
    TCPTransportFactory,
    TLSTransportFactory,
    TransportFactory,
)
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from otp_stream.sockets import Addresses, certificate_name

_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_addresses = Addresses()
"""Of all brokers: connections come and go, and each must know what became of the others."""
_reached: ContextVar[list[object]] = ContextVar("_reached")
"""The address of the connection attempt under way; a list, because aiormq connects in a task of its own."""
_connection: Any = Connection
_connect = _connection.connect


class Dialed(NamedTuple):
    """A TCP connection to the broker, as keyword arguments of `create_connection`."""

    sock: Any
    ssl: ssl.SSLContext | None
    server_hostname: str | None


async def dial(url: URL, provider: SSLContextProvider) -> Dialed:
    """Connect to one of the addresses of the broker's name. Raises `OSError`."""
    host = str(url.host)
    context = await provider.get_context() if url.scheme == "amqps" else None
    sock = await _addresses.connect(host, int(url.port or 0))
    _reached.get([]).append(sock.getpeername())
    return Dialed(sock, context, certificate_name(host) if context else None)


def patch_aiormq() -> None:
    """Have every connection of aiormq in this process use this module."""
    for factory in (TCPTransportFactory, TLSTransportFactory):
        setattr(factory, "create", _create)  # noqa: B010 - its own type is that of a method
    _connection.connect = _connect_and_note


async def _create(factory: TransportFactory, url: URL, **kwargs: Any) -> _Streams:  # noqa: ARG001 - it is a method
    provider: SSLContextProvider = kwargs.pop("ssl_context_provider")
    try:
        return await asyncio.open_connection(**(await dial(url, provider))._asdict(), **kwargs)
    except OSError as error:
        raise AMQPConnectionError(*error.args) from error


async def _connect_and_note(connection: Connection, *args: Any, **kwargs: Any) -> bool:
    reached: list[object] = []
    _reached.set(reached)
    try:
        done = await _connect(connection, *args, **kwargs)
    except BaseException:  # a server that does not reply ends in the caller's timeout, and so in a cancellation
        for address in reached:
            _addresses.failed(address)
        raise
    for address in reached:
        _addresses.succeeded(address)
    return cast("bool", done)
