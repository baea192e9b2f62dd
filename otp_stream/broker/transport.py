"""Patches for aiormq, aio-pika and pamqp, which apply to FastStream's connections as well as ours.

aiormq waits two minutes for an address that does not respond, retries an address that accepts no login, hides the
broker's reply when it refuses a virtual host, and lets OpenSSL ask for the password of a key. aio-pika closes a
connection that was never open when it is deleted, and prints a warning if no event loop runs then.

pamqp raises an exception for a time outside the calendar, for text that is not UTF-8 and for a malformed table, and
aiormq then closes the connection. The broker redelivers the message, so a single one would stop the worker.
"""

import asyncio
import ssl
from contextvars import ContextVar
from typing import Any, NamedTuple, cast

import aio_pika
from aiormq import Connection, spec
from aiormq.abc import SSLCerts
from aiormq.connection import (
    FrameReceiver,
    SSLContextProvider,
    TCPTransportFactory,
    TLSTransportFactory,
    TransportFactory,
    exception_by_code,
)
from aiormq.exceptions import AMQPConnectionError, ProbableAuthenticationError
from pamqp import decode
from yarl import URL

from otp_stream.connection_errors import remember_secrets
from otp_stream.sockets import Addresses, certificate_name
from otp_stream.tls import client_context

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_ACCESS_REFUSED = 403
MAX_FRAME = 16 * 1024 * 1024
"""Bytes of a frame. RabbitMQ's default for `frame_max` is 128 KiB."""

_addresses = Addresses()
"""Shared by all connections, so that each of them avoids addresses that have failed."""
_reached: ContextVar[list[object]] = ContextVar("_reached")
"""The address of the current connection attempt, in a list because aiormq connects in another task."""
_connection: Any = Connection
_connect, _rpc = _connection.connect, _connection._rpc  # noqa: SLF001 - aiormq offers no other way

_SHORT = 255
"""Maximum length of a short string in bytes."""


class _Dialed(NamedTuple):
    """A TCP connection to the broker, as keyword arguments of `create_connection`."""

    sock: Any
    ssl: ssl.SSLContext | None
    server_hostname: str | None


class FrameReader(asyncio.StreamReader):
    """A stream of frames. aiormq would read a frame of 4 GiB into memory, if a server announced it."""

    def __init__(self) -> None:
        super().__init__(loop=asyncio.get_running_loop())

    async def readexactly(self, n: int) -> bytes:
        """Read the rest of a frame. Raises `AMQPConnectionError` if it is too large."""
        if n > MAX_FRAME + 1:
            raise AMQPConnectionError(f"a frame of {n - 1:,} bytes; is it RabbitMQ?")
        return await super().readexactly(n)


async def connect(reader: FrameReader, url: URL, *, ssl_context_provider: SSLContextProvider, **kwargs: Any) -> Streams:
    """Connect to the broker. Raises `AMQPConnectionError`."""
    loop = asyncio.get_running_loop()
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    try:
        dialed = await _dial(url, ssl_context_provider)
        transport, _ = await loop.create_connection(lambda: protocol, **dialed._asdict(), **kwargs)
    except OSError as error:
        raise AMQPConnectionError(*error.args) from error
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def _dial(url: URL, provider: SSLContextProvider) -> _Dialed:
    """Connect to one of the addresses of the broker's name. Raises `OSError`."""
    host = str(url.host)
    context = await provider.get_context() if url.scheme == "amqps" else None
    sock = await _addresses.connect(host, int(url.port or 0))
    _reached.get([]).append(sock.getpeername())
    return _Dialed(sock, context, certificate_name(host) if context else None)


def patch_aiormq() -> None:
    """Patch all connections of aiormq in this process."""
    for factory in (TCPTransportFactory, TLSTransportFactory):
        setattr(factory, "create", _create)  # noqa: B010 - pyright expects a method
    _connection.connect, _connection._rpc = _our_connect, staticmethod(_our_rpc)  # noqa: SLF001 - as above
    setattr(SSLContextProvider, "_create_context", _our_context)  # noqa: B010 - as above
    setattr(aio_pika.Connection, "__del__", _on_deletion)  # noqa: B010 - as above


def _on_deletion(_: aio_pika.Connection) -> None:
    """Do nothing: what opens a connection also closes it."""


async def _create(factory: TransportFactory, url: URL, **kwargs: Any) -> Streams:  # noqa: ARG001 - it is a method
    return await connect(FrameReader(), url, **kwargs)


def _our_context(provider: SSLContextProvider) -> ssl.SSLContext:
    """Do the same as aiormq, but accept no TLS before 1.2, and never let OpenSSL ask for a password at the terminal."""
    certs: SSLCerts = cast("Any", provider)._ssl_certs  # noqa: SLF001 - as above
    context = client_context(certs.cafile, certs.capath, certs.cadata)
    if certs.cert:
        context.load_cert_chain(certs.cert, certs.key, password="")
    if not certs.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def _our_connect(connection: Connection, *args: Any, **kwargs: Any) -> bool:
    reached: list[object] = []
    _reached.set(reached)
    remember_secrets(str(connection.url))
    try:
        done = await _connect(connection, *args, **kwargs)
    except BaseException:  # including the cancellation by the caller's timeout, if a server does not reply
        for address in reached:
            _addresses.failed(address)
        raise
    for address in reached:
        _addresses.succeeded(address)
    return cast("bool", done)


class _RaisingReceiver:
    """A receiver that raises the broker's refusal of a handshake; aiormq's error would show the frame as an object."""

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


async def _our_rpc(request: Any, writer: asyncio.StreamWriter, frame_receiver: FrameReceiver, **options: Any) -> Any:
    return await _rpc(request, writer, _RaisingReceiver(frame_receiver), **options)


def patch_pamqp() -> None:
    """Make pamqp skip values that it cannot decode, so that every message can be read, whatever its producer wrote."""
    decode.METHODS["timestamp"] = decode.TABLE_MAPPING[b"T"] = _timestamp
    decode.METHODS["shortstr"] = _short_text
    decode.METHODS["table"] = _headers
    decode.TABLE_MAPPING[b"F"] = _table


def _timestamp(value: bytes) -> tuple[int, Any]:
    try:
        return decode.timestamp(value)
    except (ValueError, OverflowError, OSError):
        return 8, None


def _short_text(value: bytes) -> tuple[int, Any]:
    end = value[0] + 1
    try:
        return end, value[1:end].decode()
    except ValueError:
        # the text is published again with a retry, so it must still fit into 255 bytes
        return end, value[1:end].decode(errors="replace").encode()[:_SHORT].decode(errors="ignore")


def _table(value: bytes) -> tuple[int, Any]:
    try:
        return decode.field_table(value)
    except (ValueError, OverflowError, OSError, IndexError):
        return _length(value), {}


def _headers(value: bytes) -> tuple[int, Any]:
    try:
        return _table(value)
    except RecursionError:  # a table that is nested so deep could not be published again
        return _length(value), {}


def _length(value: bytes) -> int:
    return int.from_bytes(value[:4], "big") + 4
