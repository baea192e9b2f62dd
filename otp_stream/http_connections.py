"""Limits HTTP connections, so that visitors cannot use up the descriptors that SMTP, AMQP and Redis need.

uvicorn limits neither the number of connections that send nothing nor the time for the headers of a request:
`limit_concurrency` counts requests, and `timeout_keep_alive` starts after a response. It also does not limit how long a
response waits for a client that does not read.
"""

import asyncio
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from h11 import LocalProtocolError
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from .core.client_network import network_of

HEADER_S = 10.0
"""A connection is closed if no request begins, or the client does not read a response, for this long (at most for twice
as long)."""
MOST = 256
_NEW_S = 1.0
"""A new connection that is idle counts as in use for this long: its request arrives one round trip later."""
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


@dataclass(slots=True)
class _Open:
    timer: asyncio.TimerHandle
    since: float
    network: str


class _Connections:
    def __init__(self, most: int) -> None:
        self.most = most
        self._open: dict[Any, _Open] = {}
        self._by_network = Counter[str]()

    def add(self, protocol: Any) -> None:
        """Add a new connection. If there are too many, close one of the client network that has most.

        Of these, it is the oldest that is idle, else unread, else in use. A new one counts as in use, so that probes
        are answered, whatever clients do on the other connections.
        """
        network = network_of(protocol.client[0]) if protocol.client else ""
        self._open[protocol] = _Open(self._check_later(protocol), time.monotonic(), network)
        self._by_network[network] += 1
        if len(self._open) > self.most:
            most = max(self._by_network.values())
            candidates = [it for it, about in self._open.items() if self._by_network[about.network] == most]
            self._close(min(candidates, key=self._rank))

    def _rank(self, protocol: Any) -> int:
        use = _use(protocol)
        return _IN_USE if use == _IDLE and time.monotonic() - self._open[protocol].since < _NEW_S else use

    def discard(self, protocol: Any) -> None:
        """Remove a connection that has ended."""
        if about := self._open.pop(protocol, None):
            about.timer.cancel()
            self._by_network[about.network] -= 1
            if not self._by_network[about.network]:
                del self._by_network[about.network]

    def _close(self, protocol: Any) -> None:
        self.discard(protocol)
        protocol.transport.abort()

    def _check_later(self, protocol: Any) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        return loop.call_later(HEADER_S, self._check, protocol, protocol.cycle, _use(protocol))

    def _check(self, protocol: Any, cycle_before: object, use_before: int) -> None:
        use = _use(protocol)
        if protocol.cycle is cycle_before and (use == _IDLE or use == use_before == _UNREAD):
            self._close(protocol)
        else:
            self._open[protocol].timer = self._check_later(protocol)


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
    _close_on_late_errors(protocol)


def _close_on_late_errors(protocol: Any) -> None:
    """Close a connection whose request becomes invalid during the response, for which uvicorn would log an error."""
    refuse = getattr(protocol.send_400_response, "unbounded", protocol.send_400_response)

    def send_400_response(self: Any, msg: str) -> None:
        try:
            refuse(self, msg)
        except LocalProtocolError:
            self.transport.close()

    send_400_response.unbounded = refuse  # type: ignore[attr-defined]
    protocol.send_400_response = send_400_response
