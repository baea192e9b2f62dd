"""A blocking connection to Redis, for the command line."""

import ssl
from collections.abc import Generator
from contextlib import closing, contextmanager
from time import monotonic
from typing import Any

from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.connection import parse_url as _read_url  # pyright: ignore[reportUnknownVariableType]
from redis.exceptions import InvalidResponse, RedisError, ResponseError

from otp_stream.core.masking import scrub
from otp_stream.sockets import certificate_name
from otp_stream.urls import secrets_of

from .redis_connection import reply_text, tls_context
from .redis_pipeline import RedisUnavailableError

_TIMEOUT_S = 5.0
_MAX_REPLY, _REPLY_S = 64 << 20, 30.0
"""Bytes and seconds. All throttled keys of a day are the longest reply: some 60 bytes each."""


class _BoundedSocket:
    """A socket that reads a limited number of bytes, in a limited time, until `renew` is called."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.renew()

    def renew(self) -> None:
        self._left, self._ends = _MAX_REPLY, monotonic() + _REPLY_S

    def recv(self, *arguments: Any) -> bytes:
        data: bytes = self.sock.recv(*arguments)
        self._count(len(data))
        return data

    def recv_into(self, *arguments: Any) -> int:
        size: int = self.sock.recv_into(*arguments)
        self._count(size)
        return size

    def _count(self, size: int) -> None:
        self._left -= size
        if self._left < 0 or monotonic() > self._ends:
            raise InvalidResponse("a reply without end; is it Redis?")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


class _Bounded:
    """A mixin for connections of redis-py."""

    def _connect(self) -> Any:
        connect: Any = super()
        return _BoundedSocket(connect._connect())  # noqa: SLF001 - it offers no other way


class _TcpConnection(_Bounded, Connection):
    pass


class _UnixConnection(_Bounded, UnixDomainSocketConnection):
    pass


class _TlsConnection(_Bounded, SSLConnection):
    """A connection with the TLS of the workers' one."""

    context: ssl.SSLContext

    def _wrap_socket_with_ssl(self, sock: Any) -> ssl.SSLSocket:
        return self.context.wrap_socket(sock, server_hostname=certificate_name(self.host))


class RedisClient:
    """A blocking connection to Redis. Replies are not decoded: bytes and lists."""

    def __init__(self, url: str) -> None:
        options: dict[str, Any] = {**_read_url(url)}
        given: type[Connection] = options.pop("connection_class", Connection)
        kind: Any = _TcpConnection
        if issubclass(given, SSLConnection):
            kind = _TlsConnection
        elif issubclass(given, UnixDomainSocketConnection):
            kind = _UnixConnection
        # Redis 5 does not support protocol 3
        options |= {"protocol": 2, "driver_info": None, "decode_responses": False}
        options |= {"socket_connect_timeout": _TIMEOUT_S, "socket_timeout": _TIMEOUT_S}
        self._connection: Any = kind(**options)
        if kind is _TlsConnection:
            self._connection.context = tls_context(url)

    def execute(self, *arguments: str | bytes | int) -> Any:
        """Execute a command and return its reply."""
        self._connection.send_command(*arguments)
        self._connection._sock.renew()  # noqa: SLF001 - it offers no other way
        return self._connection.read_response()

    def read(self, *arguments: str | int) -> Any:
        """Execute a command that reads. Returns `None` if its key holds a value of another type."""
        try:
            return self.execute(*arguments)
        except ResponseError as error:
            if str(error).startswith("WRONGTYPE"):
                return None
            raise

    @property
    def tls(self) -> ssl.SSLSocket | None:
        """The TLS of the connection, once it is open; `None` without TLS."""
        sock = getattr(self._connection._sock, "sock", None)  # noqa: SLF001 - it offers no other way
        return sock if isinstance(sock, ssl.SSLSocket) else None

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()


@contextmanager
def connected(url: str) -> Generator[RedisClient]:
    """Connect to Redis. Every failure is raised as `RedisUnavailableError`, without the password in its text."""
    try:
        with closing(RedisClient(url)) as client:
            yield client
    except (RedisError, OSError, ValueError) as error:
        text = scrub(reply_text(str(error)), *secrets_of(url))
        raise RedisUnavailableError(
            text if isinstance(error, ResponseError) else f"{type(error).__name__}: {text}"
        ) from None
    except (LookupError, TypeError, AttributeError, MemoryError) as error:
        raise RedisUnavailableError(f"{type(error).__name__}: a reply that Redis does not send; is it Redis?") from None
