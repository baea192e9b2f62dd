"""Frames by hand, acknowledgements gathered, and properties that nobody can read."""

import asyncio
import struct
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiormq import Channel
from hypothesis import given
from hypothesis import strategies as st
from pamqp import base, body, commands, frame, header

from otp_stream.broker import frames
from otp_stream.broker.acks import Acks
from otp_stream.broker.tolerance import tolerate


def read(data: bytes) -> list[Any]:
    found: list[Any] = []
    while data:
        length, channel, it = frame.unmarshal(data)
        assert channel == 7
        found.append(it)
        data = data[length:]
    return found


def test_an_event_is_published_as_pamqp_would_write_it() -> None:
    properties = commands.Basic.Properties(content_type="application/json", delivery_mode=2)
    parts: list[base.Frame | header.ContentHeader | body.ContentBody] = [
        commands.Basic.Publish(exchange="otp.events", routing_key="otp.sent"),
        header.ContentHeader(body_size=2, properties=properties),
        body.ContentBody(b"{}"),
    ]
    assert frames.publish_json(7, "otp.events", "otp.sent", b"{}") == b"".join(frame.marshal(it, 7) for it in parts)


@given(st.permutations(range(1, 30)), st.lists(st.integers(1, 10), min_size=30, max_size=30))
def test_each_delivery_is_acknowledged_once_whatever_the_order(order: list[int], sizes: list[int]) -> None:
    outgoing: asyncio.Queue[Any] = asyncio.Queue()
    connection = SimpleNamespace(write_queue=outgoing)
    channel = cast("Channel", SimpleNamespace(is_closed=False, number=7, connection=connection))

    async def settle() -> None:
        acks = Acks(channel)
        rest = list(order)
        while rest:
            now, rest = rest[: sizes[len(rest)]], rest[sizes[len(rest)] :]
            for tag in now:
                acks.ack(tag)
            await asyncio.sleep(0)

    asyncio.run(settle())
    unsettled = set(order)
    while not outgoing.empty():
        for it in read(outgoing.get_nowait().payload):
            settled = {tag for tag in unsettled if tag <= it.delivery_tag} if it.multiple else {it.delivery_tag}
            assert it.delivery_tag in unsettled  # a broker closes the channel over one that it does not know
            unsettled -= settled
    assert not unsettled


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        (1 << 6, struct.pack(">Q", 1_700_000_000_000_000)),
        (1 << 6, b"\xff" * 8),
        (1 << 7, b"\x02\xff\xfe"),
        (1 << 13, struct.pack(">I", 9) + b"\x01aS\x00\x00\x00\x01x\x00"),
        (1 << 13, struct.pack(">I", 9) + b"\x03a\xffbS\x00\x00\x00\x00"),
        (1 << 13, struct.pack(">I", 11) + b"\x01tT" + b"\xff" * 8),
    ],
)
def test_properties_that_nobody_can_read_cost_no_connection(flag: int, value: bytes) -> None:
    tolerate()
    payload = struct.pack(">HHQH", 60, 0, 5, flag) + value
    _, _, it = frame.unmarshal(struct.pack(">BHI", 2, 7, len(payload)) + payload + b"\xce")
    assert isinstance(it, header.ContentHeader)
    assert it.body_size == 5
