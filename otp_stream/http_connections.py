"""Limits HTTP connections, so that visitors cannot use up the descriptors that SMTP, AMQP and Redis need.

uvicorn limits neither the number of connections that send nothing nor the time for the headers of a request:
`limit_concurrency` counts requests, and `timeout_keep_alive` starts after a response. It also does not limit how long a
response waits for a client that does not read.
"""

import asyncio
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEADER_S = 10.0
"""A connection is closed if no request begins, or the client does not read a response, for this long (at most for twice
as long)."""
MOST = 256
_OTHERS = 64
"""Descriptors for RabbitMQ, Redis, the collector, log, event loop and temporarily open files."""
_FEWEST = 16
_IDLE, _UNREAD, _IN_USE = range(3)
"""No request in progress; a response that the client does not read; a request or response in progress."""


def connection_limit(smtp_connections: int) -> int:
    """Return the maximum number of HTTP connections that leaves enough descriptors for everything else."""
    with suppress(ImportError):
        import resource  # noqa: PLC0415 - not everywhere

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            return max(_FEWEST, min(MOST, soft - smtp_connections - _OTHERS))
    return MOST


class _Connections:
    def __init__(self, most: int) -> None:
        self.most = most
        self._open: dict[Any, asyncio.TimerHandle] = {}

    def add(self, protocol: Any) -> None:
        """Add a new connection. If there are too many, close an older one: idle, else unread, else in use."""
        self._check_later(protocol)
        if len(self._open) > self.most:
            # never the newest, so that probes are answered, whatever clients do on the other connections
            self._close(min((it for it in self._open if it is not protocol), key=_use, default=protocol))

    def discard(self, protocol: Any) -> None:
        """Remove a connection that has ended."""
        if timer := self._open.pop(protocol, None):
            timer.cancel()

    def _close(self, protocol: Any) -> None:
        self.discard(protocol)
        protocol.transport.abort()

    def _check_later(self, protocol: Any) -> None:
        timer = asyncio.get_running_loop().call_later(HEADER_S, self._check, protocol, protocol.cycle, _use(protocol))
        self._open[protocol] = timer  # a known connection keeps its position

    def _check(self, protocol: Any, cycle_before: object, use_before: int) -> None:
        use = _use(protocol)
        if protocol.cycle is cycle_before and (use == _IDLE or use == use_before == _UNREAD):
            self._close(protocol)
        else:
            self._check_later(protocol)


def _use(protocol: Any) -> int:
    if protocol.cycle is None or protocol.cycle.response_complete:
        return _IDLE
    return _UNREAD if protocol.flow.write_paused else _IN_USE


def limit_connections(most: int) -> None:
    """Limit the HTTP connections of this process. Must be called before it listens."""
    connections = _Connections(most)
    # patches the class in use, because with `--workers N` uvicorn chooses it before it loads this application
    protocol: Any = AutoHTTPProtocol
    made = getattr(protocol.connection_made, "unbounded", protocol.connection_made)
    lost = getattr(protocol.connection_lost, "unbounded", protocol.connection_lost)

    def connection_made(self: Any, transport: asyncio.Transport) -> None:
        made(self, transport)
        connections.add(self)

    def connection_lost(self: Any, exc: Exception | None) -> None:
        connections.discard(self)
        lost(self, exc)

    connection_made.unbounded = made  # type: ignore[attr-defined]
    connection_lost.unbounded = lost  # type: ignore[attr-defined]
    protocol.connection_made, protocol.connection_lost = connection_made, connection_lost
