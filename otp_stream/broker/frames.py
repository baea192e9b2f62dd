"""AMQP 0-9-1 frames for the methods that each job needs, and batched acknowledgements for one channel.

aiormq encodes frames field by field, which took longer than everything else about a job.
"""

import asyncio
from functools import lru_cache
from struct import Struct
from typing import Any, cast

from aiormq import Channel
from aiormq.abc import ChannelFrame

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
HEAD = Struct(">BHI")
"""A frame begins with its kind, channel and size, and ends with `END`."""
END = 0xCE
_BASIC_ACK = Struct(">BHIHHQ?B")
_CONTENT = Struct(">HHQ")
_BASIC = 60
_JSON_PERSISTENT = b"\x90\x00\x10application/json\x02"
"""The flags of content type and delivery mode, and their values."""
_JSON_TRACED = b"\xb0\x00\x10application/json\x00\x00\x00\x48\x0btraceparentS\x00\x00\x00\x37%b\x02"
"""The same with a table of one header, whose value has 55 bytes."""
_TRY_AGAIN_S = 0.005


def ack(channel: int, tag: int, *, multiple: bool) -> bytes:
    """Return `basic.ack`."""
    return _BASIC_ACK.pack(METHOD, channel, 13, _BASIC, 80, tag, multiple, END)


def publish_json(channel: int, exchange: str, routing_key: str, body: bytes, traceparent: str | None = None) -> bytes:
    """Return `basic.publish` with a persistent JSON message. Names have at most 255 bytes."""
    properties = _JSON_TRACED % traceparent.encode() if traceparent else _JSON_PERSISTENT
    header = _CONTENT.pack(_BASIC, 0, len(body)) + properties
    return _publish(channel, exchange, routing_key) + _frame(HEADER, channel, header) + _frame(BODY, channel, body)


def publish(channel: int, queue: str, header: bytes, body: bytes, max_size: int) -> bytes:
    """Return a mandatory `basic.publish` to a queue, with the payload of a content header."""
    parts = [_publish_to_queue(channel, queue), _frame(HEADER, channel, header)]
    parts += [_frame(BODY, channel, body[at : at + max_size]) for at in range(0, len(body), max_size)]
    return b"".join(parts)


@lru_cache(4096)
def _publish_to_queue(channel: int, queue: str) -> bytes:
    key = queue.encode()
    return _frame(METHOD, channel, b"\x00\x3c\x00\x28\x00\x00\x00%c%b\x01" % (len(key), key))


@lru_cache(64)
def _publish(channel: int, exchange: str, routing_key: str) -> bytes:
    name, key = exchange.encode(), routing_key.encode()
    method = b"\x00\x3c\x00\x28\x00\x00%c%b%c%b\x00" % (len(name), name, len(key), key)
    return _frame(METHOD, channel, method)


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return HEAD.pack(kind, channel, len(payload)) + payload + bytes((END,))


def packet(payload: bytes) -> ChannelFrame:
    """Wrap frames for aiormq's writer."""
    return ChannelFrame(payload=payload, should_close=False)


class Acks:
    """Sends the acknowledgements of one iteration of the event loop in one packet.

    One frame with `multiple` acknowledges all deliveries up to the first gap.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._outgoing = cast("asyncio.Queue[ChannelFrame]", cast("Any", channel.connection).write_queue)
        self._loop = asyncio.get_running_loop()
        self._floor = 0
        """All deliveries up to this tag are settled."""
        self._above: set[int] = set()
        """Settled deliveries above the floor."""
        self._pending: list[int] = []
        self._scheduled = False

    @property
    def settled(self) -> int:
        """Settled deliveries, without those whose acknowledgement is not sent yet."""
        return self._floor + len(self._above)

    def ack(self, tag: int) -> None:
        """Acknowledge a delivery."""
        self._pending.append(tag)
        self._schedule()

    def settled_otherwise(self, tag: int) -> None:
        """Record a delivery that was rejected or requeued."""
        self._above.add(tag)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._scheduled = False
        if self.channel.is_closed:
            self._pending.clear()
            return
        if self._outgoing.full():
            self._scheduled = True
            self._loop.call_later(_TRY_AGAIN_S, self._send)
            return
        self._outgoing.put_nowait(packet(self._frames()))

    def _frames(self) -> bytes:
        tags, self._pending = self._pending, []
        above = self._above
        above.update(tags)
        floor = self._floor
        while floor + 1 in above:
            floor += 1
            above.discard(floor)
        self._floor = floor
        under = [tag for tag in tags if tag <= floor]
        number = self.channel.number
        parts = [ack(number, max(under), multiple=len(under) > 1)] if under else []
        parts += [ack(number, tag, multiple=False) for tag in tags if tag > floor]
        return b"".join(parts)
