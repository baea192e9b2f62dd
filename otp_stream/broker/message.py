"""A message that the broker has delivered."""

from contextlib import suppress
from struct import Struct
from typing import Any

from aio_pika import IncomingMessage
from aiormq import Channel
from aiormq.exceptions import ChannelInvalidStateError as ClosedError
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from otp_stream.core.jwe import JweError
from otp_stream.core.sealed_body import Content, is_sealed, open_body
from otp_stream.core.sealing_keys import NoKeyError, SealingKeys

from .frames import Acks

_TAG = Struct(">Q?")
_HAS_HEADERS = 0x20
"""The flag for a table of headers, in the first byte of a content header's flags."""
_BEFORE_HEADERS = (0x80, 0x40)
"""The flags of the two short strings before that table."""
LARGEST_HEADER = 16 * 1024
"""Bytes of the largest content header whose table is read: it has room for a full `baggage` (8 KiB), the broker's
headers and ours. pamqp's time grows with the square of the size: 10 ms for 16 KiB, hundreds for 120 KiB."""
_EMPTY = bytes(4)
_OURS = b"x-otp-"
_KEPT = {b"x-delivery-count", b"traceparent", b"tracestate"}
"""The headers that are read even from a larger table, with a worker's own: the broker's count and the trace."""
_MAX_KEPT = 4 * 1024
_MOST_KEPT = 40
_MAX_REDUCED = 8 * 1024
"""Bytes of a content header with a table of `_MAX_KEPT`: each of its other properties has 256 at most."""
_MAX_ENTRIES = 2_000
_SIZES = {b"V": 0, **dict.fromkeys((b"t", b"b", b"B"), 1), **dict.fromkeys((b"s", b"u", b"U"), 2),
          **dict.fromkeys((b"I", b"i", b"f"), 4), b"D": 5, **dict.fromkeys((b"l", b"L", b"d", b"T"), 8)}  # fmt: skip
"""Bytes of a value of each type in RabbitMQ's variant of AMQP 0-9-1 §4.2.1. Other types begin with their size."""


class Delivered:
    """A delivered message with the interface of aio-pika's `IncomingMessage`, which is slower than our whole dispatch.

    `method` is the payload of its `basic.deliver`, `header` that of its content header, which is decoded when one of
    its properties is read. `dropped` is the size of a body that was too large to keep (`body` is empty then), else 0.
    `reservation` is kept as long as the message exists. `opened`: whether the body was sealed. `unread`: whether its
    table of headers must not be read.
    """

    __slots__ = (
        "_acks", "_header", "_known", "_method", "_reservation", "_tag",
        "body", "channel", "dropped", "headers", "headers_unread", "opened", "redelivered",
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
        *,
        unread: bool = False,
    ) -> None:
        self._acks = acks
        self._method = method
        # after the consumer's tag, and before the exchange and the routing key
        self._tag, self.redelivered = _TAG.unpack_from(method, 5 + method[4])
        self._reservation = reservation
        self.dropped = dropped
        self.opened = False
        self.headers_unread = unread or len(header) > LARGEST_HEADER
        """Whether `header` and `headers` have only ours and those in `_KEPT`."""
        self._header = header = _reduced(header) if self.headers_unread else header
        self._known: Basic.Properties | None = None
        self.body = body
        self.channel = channel
        self.headers: dict[str, Any] = self._properties().headers or {} if _has_headers(header) else {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._properties(), "message_type" if name == "type" else name)

    def open(self, content: Content) -> None:
        """Replace a sealed body by its content. `header` stays as it was received."""
        properties = self._properties()
        self.body, properties.content_type, properties.content_encoding = content
        self.opened = True

    @property
    def exchange(self) -> str:
        """The exchange to which it was published."""
        return _short_string(self._method, _after_tag(self._method))

    @property
    def routing_key(self) -> str:
        """The routing key with which it was published."""
        at = _after_tag(self._method)
        return _short_string(self._method, at + 1 + self._method[at])

    @property
    def delivery_tag(self) -> int:
        """Its number in the channel."""
        return self._tag

    @property
    def header(self) -> bytes:
        """The payload of its content header."""
        return self._header

    def _properties(self) -> Basic.Properties:
        if self._known is None:
            header = ContentHeader()
            try:
                header.unmarshal(self._header)
            except Exception:  # noqa: BLE001 - after any error in the properties, the body is still read
                header = ContentHeader()
            self._known = header.properties
        return self._known

    async def ack(self) -> None:
        """Acknowledge. Raises if the channel is closed."""
        self.ack_now()

    def ack_now(self) -> None:
        """Acknowledge. Raises if the channel is closed."""
        if self.channel.is_closed:
            raise ClosedError("the channel is closed")
        self._acks.ack(self._tag)

    async def nack(self, *, requeue: bool = True) -> None:
        """Reject; the broker puts the message back into its queue if `requeue`."""
        await self.channel.basic_nack(self._tag, requeue=requeue)
        self._acks.settled_otherwise(self._tag)


def _after_tag(method: bytes) -> int:
    """Return where the exchange begins in a `basic.deliver`: after the consumer's tag, the delivery tag and a flag."""
    return 5 + method[4] + _TAG.size


def _short_string(payload: bytes, at: int) -> str:
    return payload[at + 1 : at + 1 + payload[at]].decode(errors="replace")


def _has_headers(header: bytes) -> bool:
    """Return whether a content header has a table that is not empty. Some clients publish an empty one."""
    if not header[12] & _HAS_HEADERS:
        return False
    at = _table_at(header)
    return header[at : at + 4] != _EMPTY


def _table_at(header: bytes) -> int:
    at = 14
    for flag in _BEFORE_HEADERS:
        at += header[at] + 1 if header[12] & flag else 0
    return at


def _reduced(header: bytes) -> bytes:
    """Return a content header whose table has only ours and those in `_KEPT`; an invalid one without properties."""
    try:
        return (_without_headers(header) if header[12] & _HAS_HEADERS else header)[:_MAX_REDUCED]
    except IndexError:
        return header[:12] + bytes(2)


def _without_headers(header: bytes) -> bytes:
    at = _table_at(header)
    end = at + 4 + int.from_bytes(header[at : at + 4], "big")
    table = b""
    kept = 0
    name = at + 4
    for _ in range(_MAX_ENTRIES):
        if name >= end or kept >= _MOST_KEPT:
            break
        kind = name + 1 + header[name]
        size = _SIZES.get(header[kind : kind + 1])
        after = kind + 1 + (4 + int.from_bytes(header[kind + 1 : kind + 5], "big") if size is None else size)
        is_kept = header.startswith(_OURS, name + 1, kind) or header[name + 1 : kind] in _KEPT
        if is_kept and after - name <= _MAX_KEPT - len(table):
            table += header[name:after]
            kept += 1
        name = after
    return header[:at] + len(table).to_bytes(4, "big") + table + header[end:]


RawMessage = IncomingMessage | Delivered
"""A message of the in-memory test broker, or of a real one."""


def open_message(raw: RawMessage, keys: SealingKeys) -> None:
    """Open a body that is sealed as a whole. One that cannot be opened stays sealed: to read it reports why."""
    if not is_sealed(raw.body):
        return
    with suppress(JweError, NoKeyError):
        content = open_body(keys, raw.body)
        if isinstance(raw, Delivered):
            raw.open(content)
        else:
            raw.body, raw.content_type, raw.content_encoding = content
