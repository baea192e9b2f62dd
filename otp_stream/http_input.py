"""Limits how long the event loop parses what HTTP clients send, because it also sends the codes.

uvicorn parses all that it has received at once, also the rest of a request that is already answered. h11 takes a second
for a megabyte of chunks of one byte, so one connection could stop everything else.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

import h11
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.http.flow_control import FlowControl

from .asgi import MAX_HEADERS, TOO_MANY_HEADERS

PARSE_S = 0.002
"""How long one iteration of the event loop parses, in seconds. What arrives after that waits for the next one."""
_PART = 1024
"""Bytes of one connection that are parsed before the others get their turn: a millisecond at most, unless they end a
long header. Most requests are shorter."""
_MOST_WAITING = 131_072
"""A connection that sends more while more bytes of it wait is closed: no client needs to before it has a response."""

_REFUSAL = (
    "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain\r\n"
    f"content-length: {len(TOO_MANY_HEADERS)}\r\nconnection: close\r\n\r\n{TOO_MANY_HEADERS}"
).encode()
"""As from `asgi`, for a head that is not complete."""

_Receive = Callable[[Any, bytes], None]


@dataclass(slots=True)
class _InputQueue:
    receive: _Receive
    """Makes a protocol parse bytes."""
    _waiting: OrderedDict[Any, bytearray] = field(default_factory=OrderedDict[Any, bytearray])
    """What each protocol has not parsed; the next one to parse is first. Their transports are paused."""
    _held: WeakKeyDictionary[Any, bytearray] = field(default_factory=WeakKeyDictionary[Any, bytearray])
    """The same for protocols that accept no more until a response, or the reader of a body, has got further.

    They would store it, and then parse all of it at once.
    """
    _spent_s: float = 0.0
    """How long this iteration of the event loop has parsed."""
    _is_scheduled: bool = False

    def add(self, protocol: Any, data: bytes) -> None:
        """Have the protocol parse the data, at once if there is time."""
        self._schedule()
        is_first = not self._waiting and protocol not in self._held
        if is_first and len(data) <= _PART and self._spent_s < PARSE_S:
            self._parse(protocol, data)
            return
        waiting = self._held.get(protocol)
        if waiting is None:
            waiting = self._waiting.setdefault(protocol, bytearray())
        if len(waiting) > _MOST_WAITING:
            protocol.transport.abort()
            return
        waiting += data
        protocol.transport.pause_reading()

    def accept(self, protocol: Any) -> bool:
        """Continue with a protocol that accepts more again. Returns whether it must parse waiting bytes first."""
        if (waiting := self._held.pop(protocol, None)) is not None:
            self._waiting[protocol] = waiting
            self._schedule()
        return protocol in self._waiting

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._is_scheduled, self._spent_s = False, 0.0
        try:
            while self._waiting and self._spent_s < PARSE_S:
                protocol, waiting = self._waiting.popitem(last=False)
                if protocol.transport.is_closing():
                    continue
                if protocol.flow.read_paused:
                    self._held[protocol] = waiting
                else:
                    self._parse_part(protocol, waiting)
        finally:
            if self._waiting:
                self._schedule()

    def _parse_part(self, protocol: Any, waiting: bytearray) -> None:
        transport = protocol.transport
        try:
            self._parse(protocol, bytes(waiting[:_PART]))
        except BaseException:
            transport.abort()
            raise
        if transport.is_closing() or transport.get_protocol() is not protocol:  # it was refused, or is a WebSocket now
            waiting.clear()
        del waiting[:_PART]
        if waiting:
            self._waiting[protocol] = waiting
        elif not transport.is_closing() and not protocol.flow.read_paused:
            transport.resume_reading()

    def _parse(self, protocol: Any, data: bytes) -> None:
        since = perf_counter()
        try:
            self.receive(protocol, data)
            _refuse_many_headers(protocol)
        finally:
            self._spent_s += perf_counter() - since


def _refuse_many_headers(protocol: Any) -> None:
    """Close a connection if h11 waits for the rest of a head, or of a trailer, that has too many lines already.

    It would parse them all at once when the last one has arrived, for 7 ms if 16 KiB have 4,000 lines.
    """
    connection = getattr(protocol, "conn", None)
    if connection is None or connection.their_state not in {h11.IDLE, h11.SEND_BODY}:
        return
    begun, _ = connection.trailing_data
    if begun.count(b"\n") <= MAX_HEADERS + 1:
        return
    if connection.our_state is h11.IDLE:
        protocol.transport.write(_REFUSAL)
    protocol.transport.close()


def limit_input() -> None:
    """Limit the time of all HTTP connections of this process. Must be called before it listens."""
    # patches the class in use, because with `--workers N` uvicorn chooses it before it loads this application
    protocol: Any = AutoHTTPProtocol
    received = getattr(protocol.data_received, "unlimited", protocol.data_received)
    queue = _InputQueue(received)

    def data_received(self: Any, data: bytes) -> None:
        queue.add(self, data)

    data_received.unlimited = received  # type: ignore[attr-defined]
    protocol.data_received = data_received
    _resume_in_turns(queue)


def _resume_in_turns(queue: _InputQueue) -> None:
    flow_class: Any = FlowControl
    resume = getattr(flow_class.resume_reading, "unlimited", flow_class.resume_reading)

    def resume_reading(flow: Any) -> None:
        if flow.read_paused and queue.accept(flow._transport.get_protocol()):  # noqa: SLF001
            flow.read_paused = False  # the transport is resumed when all that waits has been parsed
        else:
            resume(flow)

    resume_reading.unlimited = resume  # type: ignore[attr-defined]
    flow_class.resume_reading = resume_reading
