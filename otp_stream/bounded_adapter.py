"""An adapter for requests that limits the size and time of HTTP responses, from the first byte on.

http.client skips any number of `100 Continue`, reads headers of megabytes, and limits only the time between two bytes.
OpenSSL reads TLS records without data, such as session tickets, for as long as they come.
"""

import io
import socket
from contextlib import suppress
from functools import partial
from http.client import HTTPResponse
from threading import Timer
from time import monotonic
from typing import Any, cast

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

_HEADERS = 65_536
"""Bytes of a response that are not its body."""


class BoundedAdapter(HTTPAdapter):
    """Reads at most `limit` bytes of a response's body, and 64 KiB more for the rest of it, within `within_s` seconds.

    Its requests raise what requests raises for a timeout, and `ValueError` for a response that is too long.
    """

    def __init__(self, limit: int, within_s: float) -> None:
        self._pools = _pools(limit + _HEADERS, within_s)
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Create the pools of direct connections."""
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        """Return the pools of connections through a proxy."""
        manager: Any = super().proxy_manager_for(*args, **options)
        manager.pool_classes_by_scheme = self._pools
        return manager


def _pools(limit: int, within_s: float) -> dict[str, Any]:
    """Return the classes from which urllib3 creates pools, these their connections, and these their responses."""
    # from Python 3.14 on, a partial in a class is a method
    response = staticmethod(partial(_response, limit=limit, within_s=within_s))
    bases = {"http": (HTTPConnectionPool, HTTPConnection), "https": (HTTPSConnectionPool, HTTPSConnection)}
    return {
        scheme: type(
            "Pool", (pool,), {"ConnectionCls": type("Connection", (connection,), {"response_class": response})}
        )
        for scheme, (pool, connection) in bases.items()
    }


def _response(sock: socket.socket, *args: Any, limit: int, within_s: float, **options: Any) -> HTTPResponse:
    return HTTPResponse(cast("Any", _Socket(sock, limit, within_s)), *args, **options)


class _Socket:
    """The part of a socket that http.client uses to read a response."""

    def __init__(self, sock: socket.socket, limit: int, within_s: float) -> None:
        self._sock, self._limit, self._ends = sock, limit, monotonic() + within_s

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self._sock, self._limit, self._ends))


class _Incoming(io.RawIOBase):
    """Reads from a socket until a limit is reached."""

    def __init__(self, sock: socket.socket, limit: int, ends: float) -> None:
        self._sock, self._left, self._ends = sock, limit, ends
        self._source = cast("io.RawIOBase", sock.makefile("rb", buffering=0))
        self._wait_s = sock.gettimeout()
        self._timer = Timer(ends - monotonic(), _shut_down, (sock,))
        self._timer.daemon = True
        self._timer.start()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        left_s = self._ends - monotonic()
        if left_s <= 0:
            raise TimeoutError("it is slow")
        self._sock.settimeout(left_s if self._wait_s is None else min(left_s, self._wait_s))
        read = self._source.readinto(buffer)
        if not read and monotonic() >= self._ends:
            raise TimeoutError("it is slow")  # the timer has ended it, not the server
        self._left -= read or 0
        if self._left < 0:
            raise ValueError("it is too long")
        return read

    def close(self) -> None:
        if not self.closed:
            self._timer.cancel()
            self._source.close()
        super().close()


def _shut_down(sock: socket.socket) -> None:
    """End a read of OpenSSL in another thread."""
    with suppress(OSError):  # `SSLSocket.shutdown` would have that thread continue without TLS
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
