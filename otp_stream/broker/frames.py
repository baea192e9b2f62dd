"""AMQP 0-9-1 frames by hand, for what each job needs: encoding them field by field took longer than the rest of it."""

from functools import lru_cache
from struct import Struct

from aiormq.abc import ChannelFrame

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
HEAD = Struct(">BHI")
"""Each frame begins with its kind, its channel and its size, and ends with `END`."""
END = 0xCE
_BASIC_ACK = Struct(">BHIHHQ?B")
_CONTENT = Struct(">HHQ")
_BASIC = 60
_JSON_PERSISTENT = b"\x90\x00\x10application/json\x02"
"""Flags for content type and delivery mode, and both."""


def ack(channel: int, tag: int, *, multiple: bool) -> bytes:
    """Return `basic.ack`."""
    return _BASIC_ACK.pack(METHOD, channel, 13, _BASIC, 80, tag, multiple, END)


def publish_json(channel: int, exchange: str, routing_key: str, body: bytes) -> bytes:
    """Return `basic.publish` of a persistent JSON message with its content; names have at most 255 bytes."""
    header = _CONTENT.pack(_BASIC, 0, len(body)) + _JSON_PERSISTENT
    return _publish(channel, exchange, routing_key) + _frame(HEADER, channel, header) + _frame(BODY, channel, body)


@lru_cache(64)
def _publish(channel: int, exchange: str, routing_key: str) -> bytes:
    place, key = exchange.encode(), routing_key.encode()
    method = b"\x00\x3c\x00\x28\x00\x00%c%b%c%b\x00" % (len(place), place, len(key), key)
    return _frame(METHOD, channel, method)


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return HEAD.pack(kind, channel, len(payload)) + payload + bytes((END,))


def packet(payload: bytes) -> ChannelFrame:
    """Return frames as aiormq's writer takes them."""
    return ChannelFrame(payload=payload, should_close=False)
