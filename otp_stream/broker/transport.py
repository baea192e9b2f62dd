"""How aiormq's connections, also FastStream's, reach the broker and learn what it refuses.

aiormq waits two minutes for a first address that does not respond, tries an address again that accepts no login, and
hides the broker's reply when it refuses a virtual host.
"""

import asyncio
import ssl
from contextvars import ContextVar
from typing import Any, NamedTuple, cast

from aiormq import Connection, spec
from aiormq.connection import (
    FrameReceiver,
    SSLContextProvider,
    TCPTransportFactory,
    TLSTransportFactory,
    TransportFactory,
    exception_by_code,
)
from aiormq.exceptions import AMQPConnectionError, ProbableAuthenticationError
from yarl import URL

from otp_stream.sockets import Addresses, certificate_name

_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_ACCESS_REFUSED = 403

_addresses = Addresses()
"""Shared by all connections, so that each knows which addresses have failed."""
_reached: ContextVar[list[object]] = ContextVar("_reached")
"""The address of the connection attempt under way; a list, because aiormq connects in another task."""
_connection: Any = Connection
_connect, _rpc = _connection.connect, _connection._rpc  # noqa: SLF001 - aiormq offers no other way


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
    _connection.connect, _connection._rpc = _connect_and_note, staticmethod(_ask)  # noqa: SLF001 - as above


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


class _Replies:
    """A receiver that raises the broker's reply to the handshake, where aiormq shows the frame as an object."""

    def __init__(self, receiver: FrameReceiver) -> None:
        self._receiver = receiver

    async def get_frame(self) -> Any:
        received = await self._receiver.get_frame()
        frame = received[2]
        if isinstance(frame, spec.Connection.Close):
            if frame.reply_code == _ACCESS_REFUSED:
                raise ProbableAuthenticationError(frame.reply_text)
            raise exception_by_code(frame)
        return received


async def _ask(request: Any, writer: asyncio.StreamWriter, frame_receiver: FrameReceiver, **options: Any) -> Any:
    return await _rpc(request, writer, _Replies(frame_receiver), **options)
