"""A message that the broker has delivered."""

import time
from struct import Struct
from typing import Any

from aio_pika import IncomingMessage
from aiormq import Channel
from aiormq.exceptions import ChannelInvalidStateError as ClosedError
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from .frames import Acks

_TAG = Struct(">Q?")
_HAS_HEADERS = 0x20
"""In the first byte of a content header's flags, after the flags of two short strings."""
_BEFORE_HEADERS = (0x80, 0x40)
LARGEST_HEADER = 16 * 1024
"""Bytes of a content header whose table of headers is read. A full `baggage` (8 KiB), the broker's headers and ours fit
in. pamqp's time grows with the square of the size: it takes 10 ms for 16 KiB and hundreds for 120 KiB."""
_KEPT = (b"x-otp-", b"x-delivery-count")
"""How the names of headers begin that are read in any case: a worker's own, and the broker's count."""
_MOST_KEPT = 4 * 1024
_MOST_ENTRIES = 2_000
_SIZES = {b"V": 0, **dict.fromkeys((b"t", b"b", b"B"), 1), **dict.fromkeys((b"s", b"u", b"U"), 2),
          **dict.fromkeys((b"I", b"i", b"f"), 4), b"D": 5, **dict.fromkeys((b"l", b"L", b"d", b"T"), 8)}  # fmt: skip
"""Bytes of a value of each type (AMQP 0-9-1 §4.2.1, as RabbitMQ has it); the others begin with their size."""


class Delivered:
    """What a broker delivered, with the face of aio-pika's `IncomingMessage`: that one costs more than all we do here.

    `method` is the payload of its `basic.deliver`, `header` that of its content header, which is decoded when something
    asks for what is in it.
    `dropped` is the size of a body that was too large to keep, 0 for all others; `body` is empty then.
    `reservation` is kept as long as the message exists.
    """

    __slots__ = (
        "_acks", "_header", "_known", "_method", "_reservation", "_tag",
        "body", "channel", "dropped", "headers", "redelivered",
    )  # fmt: skip

    def __init__(
        self,
        channel: Channel,
        acks: Acks,
        method: bytes,
        header: bytes,
        body: bytes,
        dropped: int = 0,
        reservation: object = None,
    ) -> None:
        self._acks = acks
        self._method = method
        # behind the consumer's tag; the exchange and the routing key follow
        self._tag, self.redelivered = _TAG.unpack_from(method, 5 + method[4])
        self._reservation = reservation
        self.dropped = dropped
        self._header = header
        self._known: Basic.Properties | None = None
        self.body = body
        self.channel = channel
        self.headers: dict[str, Any] = self._properties().headers or {} if header[12] & _HAS_HEADERS else {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._properties(), "message_type" if name == "type" else name)

    @property
    def exchange(self) -> str:
        """Return the exchange to which it was published."""
        return self._deliver().exchange or ""

    @property
    def routing_key(self) -> str:
        """Return the routing key with which it was published."""
        return self._deliver().routing_key or ""

    def _deliver(self) -> Basic.Deliver:
        method = Basic.Deliver()
        method.unmarshal(self._method[4:])
        return method

    @property
    def headers_unread(self) -> bool:
        """Whether its headers are too large to be read; only a worker's and the broker's count are among `headers`."""
        return len(self._header) > LARGEST_HEADER

    def _properties(self) -> Basic.Properties:
        if self._known is None:
            header = ContentHeader()
            try:
                header.unmarshal(_without_headers(self._header) if self.headers_unread else self._header)
            except Exception:  # noqa: BLE001 - after any error in the properties, the body is still read
                header = ContentHeader()
            self._known = header.properties
        return self._known

    async def ack(self) -> None:
        """Acknowledge; raises where the channel is gone."""
        if self.channel.is_closed:
            raise ClosedError("the channel is closed")
        self._acks.ack(self._tag)

    async def nack(self, *, requeue: bool = True) -> None:
        """Give it back."""
        await self.channel.basic_nack(self._tag, requeue=requeue)
        self._acks.settled_otherwise(self._tag)


def _without_headers(header: bytes) -> bytes:
    """Return a content header without the headers in it, but for a worker's own and the broker's count."""
    at = 14
    for flag in _BEFORE_HEADERS:
        at += header[at] + 1 if header[12] & flag else 0
    end = at + 4 + int.from_bytes(header[at : at + 4], "big")
    table = b""
    name = at + 4
    for _ in range(_MOST_ENTRIES):
        if name >= end:
            break
        kind = name + 1 + header[name]
        size = _SIZES.get(header[kind : kind + 1])
        behind = kind + 1 + (4 + int.from_bytes(header[kind + 1 : kind + 5], "big") if size is None else size)
        if header.startswith(_KEPT, name + 1, kind) and behind - name <= _MOST_KEPT - len(table):
            table += header[name:behind]
        name = behind
    return header[:at] + len(table).to_bytes(4, "big") + table + header[end:]


RawMessage = IncomingMessage | Delivered
"""A message of the in-memory broker or of a real one."""


def now_ms() -> int:
    """Return the wall clock, milliseconds since 1970."""
    return time.time_ns() // 1_000_000
