"""Frames written directly, deliveries in pieces of any size, batched acknowledgements, and unreadable properties."""

import asyncio
import gc
import json
import struct
import tracemalloc
import warnings
from types import SimpleNamespace
from typing import Any, cast

import aio_pika
import deliveries
import pytest
from aiormq import Channel
from aiormq.exceptions import AMQPConnectionError
from hypothesis import given
from hypothesis import strategies as st
from pamqp import base, body, commands, frame, header
from pydantic_core import to_json
from yarl import URL

from otp_stream.broker import frames
from otp_stream.broker.amqp_stream import DeliveryAssembler, DeliveryReader
from otp_stream.broker.events import event
from otp_stream.broker.frames import Acks
from otp_stream.broker.job_message import Reader
from otp_stream.broker.memory_limit import LargeParts
from otp_stream.broker.message import LARGEST_HEADER, Delivered
from otp_stream.broker.transport import FrameReader, patch_pamqp
from otp_stream.core.decision import Ack, Dead, Final, Park, Retry
from otp_stream.core.job import Job
from otp_stream.core.job_event import JobEvent
from otp_stream.core.otp_job import MAX_BODY_BYTES, MalformedError, OtpJob
from otp_stream.core.outcome import Route
from otp_stream.core.sealed_body import Content, seal_body
from otp_stream.core.sealing_keys import keys_of, new_jwk

ASKED = Job.from_request(
    OtpJob(email="User@example.com", otp="123456"),
    job_id="j-1", lane="jobs", first_seen_ms=1, attempts_made=1, default_expiry_minutes=15,
)  # fmt: skip


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
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    properties.headers = {"traceparent": trace}
    assert frames.publish_json(7, "otp.events", "otp.sent", b"{}", trace) == b"".join(
        frame.marshal(it, 7) for it in parts
    )


@pytest.mark.parametrize("job", [None, ASKED])
@pytest.mark.parametrize(
    "settlement",
    [
        Ack("sent"),
        Ack("sent", Route("relay:25")),
        Ack("sent", Route("fallback:25", switched_from="relay:25")),
        Ack("duplicate"),
        Dead("rejected", "no", 1),
        Dead("rejected", "550 5.1.1 nobody (to RCPT)", 1, route=Route("relay:25")),
        Retry(900, 2, "later"),
        Retry(900, 2, "451 later (to DATA)", route=Route("fallback:25", switched_from="relay:25")),
        Park(5_000),
    ],
)
def test_an_event_matches_its_document(settlement: Final, job: Job | None) -> None:
    made = event(settlement, "j-1", job, at_ms=5, hash_key=b"k" * 32)
    read = JobEvent.model_validate_json(to_json(made.content))
    assert json.loads(read.model_dump_json(by_alias=True, exclude_none=True)) == made.content
    assert read.outcome == made.outcome
    assert read.retry_at == (None if read.delay_ms is None else 5 + read.delay_ms)


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


async def test_acknowledgements_wait_for_room_on_the_connection() -> None:
    outgoing: asyncio.Queue[Any] = asyncio.Queue(1)
    connection = SimpleNamespace(write_queue=outgoing)
    acks = Acks(cast("Channel", SimpleNamespace(is_closed=False, number=7, connection=connection)))
    outgoing.put_nowait(None)
    acks.ack(1)
    acks.ack(2)
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await outgoing.get() is None
        (ack,) = read((await outgoing.get()).payload)
    assert (ack.delivery_tag, ack.multiple) == (2, True)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        (1 << 6, struct.pack(">Q", 1_700_000_000_000_000)),
        (1 << 6, b"\xff" * 8),
        (1 << 7, b"\x02\xff\xfe"),
        (1 << 13, struct.pack(">I", 9) + b"\x01aS\x00\x00\x00\x01x\x00"),
        (1 << 13, struct.pack(">I", 9) + b"\x03a\xffbS\x00\x00\x00\x00"),
        (1 << 13, struct.pack(">I", 11) + b"\x01tT" + b"\xff" * 8),
        (1 << 13, struct.pack(">I", 16) + b"\x01tA" + struct.pack(">I", 9) + b"T" + b"\xff" * 8),
    ],
)
def test_unreadable_properties_cost_no_connection(flag: int, value: bytes) -> None:
    patch_pamqp()
    payload = struct.pack(">HHQH", 60, 0, 5, flag) + value
    _, _, it = frame.unmarshal(struct.pack(">BHI", 2, 7, len(payload)) + payload + b"\xce")
    assert isinstance(it, header.ContentHeader)
    assert it.body_size == 5


def test_a_text_that_is_not_utf_8_can_be_published_again() -> None:
    patch_pamqp()
    payload = struct.pack(">HHQH", 60, 0, 0, 1 << 7) + b"\xff" * 256
    _, _, it = frame.unmarshal(struct.pack(">BHI", 2, 7, len(payload)) + payload + b"\xce")
    assert isinstance(it, header.ContentHeader)
    copied = header.ContentHeader(properties=commands.Basic.Properties(message_id=it.properties.message_id))
    assert frame.marshal(copied, 7)


def delivery(channel: int, tag: int, content: bytes, headers: dict[str, Any] | None, frame_size: int) -> bytes:
    properties = commands.Basic.Properties(message_id=f"id-{tag}", headers=headers)
    parts = [content[at : at + frame_size] for at in range(0, len(content), frame_size)]
    frames_: list[base.Frame | header.ContentHeader | body.ContentBody] = [
        commands.Basic.Deliver("tag-of-the-consumer", tag, tag % 2 == 0, "", "jobs"),
        header.ContentHeader(body_size=len(content), properties=properties),
        *map(body.ContentBody, parts),
    ]
    return b"".join(frame.marshal(it, channel) for it in frames_)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces: list[bytes] = []
    while data:
        size = sizes[len(pieces) % len(sizes)]
        pieces, data = [*pieces, data[:size]], data[size:]
    return pieces


async def through(pieces: list[bytes]) -> tuple[list[Delivered], bytes]:
    """Feed a stream of which channel 7 is ours; return what was delivered there, and what went to aiormq."""
    came: list[Delivered] = []
    channel = cast("Channel", SimpleNamespace(number=7, is_closed=False))
    deliveries = DeliveryReader()
    deliveries.deliver(channel, DeliveryAssembler(channel, cast("Acks", None), came.append))
    for piece in pieces:
        deliveries.feed_data(piece)
    deliveries.feed_eof()
    return came, await deliveries.read()


HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"


@given(
    st.lists(st.tuples(st.binary(max_size=40), st.sampled_from([None, {"a": 1}])), min_size=1, max_size=8),
    st.lists(st.integers(1, 90), min_size=1, max_size=5),
    st.integers(1, 50),
)
def test_deliveries_arrive_whole_in_whatever_pieces_they_come(
    messages: list[tuple[bytes, dict[str, Any] | None]], sizes: list[int], frame_size: int
) -> None:
    stream, others = b"", b""
    for tag, (content, headers) in enumerate(messages, 1):
        # another channel's frames, and what is no delivery on ours
        foreign = delivery(9, tag, content, headers, frame_size)
        answer = frame.marshal(commands.Basic.QosOk(), 7)
        stream += foreign + delivery(7, tag, content, headers, frame_size) + answer
        others += foreign + answer
    came, passed = asyncio.run(through(cut(stream, sizes)))
    assert [(it.body, it.headers, it.redelivered, it.message_id) for it in came] == [
        (content, headers or {}, tag % 2 == 0, f"id-{tag}") for tag, (content, headers) in enumerate(messages, 1)
    ]
    assert passed.replace(HEARTBEAT, b"") == others


def test_of_a_body_too_large_to_keep_only_the_size_is_kept_and_the_next_message_arrives() -> None:
    sizes = (MAX_BODY_BYTES + 1, 1024 * 1024, 1024 * 1024 + 1, 40)
    stream = b"".join(delivery(7, tag, b"x" * size, {"a": 1}, 100_000) for tag, size in enumerate(sizes, 1))
    came, _ = asyncio.run(through(cut(stream, [250_000])))
    assert [(len(it.body), it.dropped) for it in came] == [(sizes[0], 0), (sizes[1], 0), (0, sizes[2]), (40, 0)]
    assert [(it.headers, it.message_id) for it in came] == [({"a": 1}, f"id-{tag}") for tag in (1, 2, 3, 4)]


def test_a_body_that_sealing_made_larger_is_kept() -> None:
    content = Content(b"x" * 1024 * 1024)
    sealed = seal_body(keys_of(new_jwk("p256")), content).body
    too_large = b"eyJ" + b"x" * 1_500_000
    stream = delivery(7, 1, sealed, None, 100_000) + delivery(7, 2, too_large, None, 100_000)
    came, _ = asyncio.run(through(cut(stream, [250_000])))
    assert [(it.body, it.dropped) for it in came] == [(sealed, 0), (b"", len(too_large))]


def test_large_bodies_are_limited_together_and_make_room_when_they_are_gone() -> None:
    large = LargeParts()
    came: list[Delivered] = []
    channel = cast("Channel", SimpleNamespace(number=7, is_closed=False))

    async def feed() -> None:
        deliveries = DeliveryReader()
        deliveries.deliver(channel, DeliveryAssembler(channel, cast("Acks", None), came.append, large))
        for tag in range(1, 21):
            deliveries.feed_data(delivery(7, tag, b"x" * 1024 * 1024, None, 100_000))
        # a connection that is lost in the middle of a body
        half = delivery(7, 21, b"x" * 1024 * 1024, None, 100_000)
        came.pop(0)
        deliveries.feed_data(half[:500_000])

    asyncio.run(feed())
    assert [it.dropped > 0 for it in came] == [False] * 15 + [True] * 4
    assert large.bodies.bytes == 15 * 1024 * 1024
    came.clear()
    assert large.bodies.bytes == 0


TINY = {f"{it:x}": True for it in range(1_400)}
"""Headers that take the most memory for their size."""


def test_headers_are_limited_together_and_those_for_which_there_is_no_room_are_reduced_to_the_needed_ones() -> None:
    large = LargeParts()
    needed = {"x-otp-attempt": 2, "x-delivery-count": 1, "traceparent": "00-1", "tracestate": "a=1"}
    came: list[Delivered] = []
    channel = cast("Channel", SimpleNamespace(number=7, is_closed=False))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]

    async def feed() -> None:
        deliveries = DeliveryReader()
        deliveries.deliver(channel, DeliveryAssembler(channel, cast("Acks", None), came.append, large))
        for tag in range(1, 301):
            deliveries.feed_data(delivery(7, tag, b"{}", TINY | needed, 100_000))
        deliveries.feed_data(delivery(7, 301, b"{}", {"n": 1}, 100_000))

    try:
        asyncio.run(feed())
        assert tracemalloc.get_traced_memory()[0] - before < 10 * 1024 * 1024
    finally:
        tracemalloc.stop()
    read_all = [not it.headers_unread for it in came]
    assert read_all == [*sorted(read_all[:-1], reverse=True), True]
    assert 20 < read_all.count(True) < 100
    assert (came[0].headers, came[-2].headers) == (TINY | needed, needed)
    assert len(came[-2].header) < 200
    assert came[-2].message_id == "id-300"
    came.clear()
    assert large.headers.bytes == 0


@pytest.mark.parametrize("flags", [0x20, 0xE0, 0x00])
def test_of_a_content_header_that_is_too_large_little_is_kept_whatever_is_in_it(flags: int) -> None:
    payload = struct.pack(">HHQBB", 60, 0, 2, flags, 0) + bytes(4) + b"x" * 100_000
    channel = cast("Channel", SimpleNamespace(number=7, is_closed=False))
    for it in (payload, payload[:14] + b"\xff" * 17_000):
        came = Delivered(channel, cast("Acks", None), deliveries.deliver(1), it, b"{}")
        assert (came.body, came.headers) == (b"{}", {})
        assert len(came.header) <= 8 * 1024


def test_a_connection_that_only_delivers_is_known_to_be_alive() -> None:
    _, passed = asyncio.run(through([delivery(7, 1, b"{}", None, 10)]))
    assert passed == HEARTBEAT


async def test_a_frame_that_is_too_large_is_not_read() -> None:
    for reader in (DeliveryReader(), FrameReader()):
        reader.feed_data(HEARTBEAT + b"\x03\x00\x07\xff\xff\xff\xff" + b"x" * 1_000_000)
        assert await reader.readexactly(8) == HEARTBEAT
        _, _, size = frames.HEAD.unpack(await reader.readexactly(7))
        async with asyncio.timeout(5):
            with pytest.raises(AMQPConnectionError, match=r"a frame of 4,294,967,295 bytes; is it RabbitMQ\?"):
                await reader.readexactly(size + 1)


@pytest.mark.parametrize("garbage", [b"AMQP\x00\x00\x09\x01", b"\x01\x00\x07\x00\x00\x00\x01X!" + b"\x00" * 20])
def test_what_is_no_amqp_is_left_to_the_library(garbage: bytes) -> None:
    ours = delivery(7, 1, b"{}", None, 10)
    came, passed = asyncio.run(through([ours, garbage, ours]))
    assert len(came) == 1
    assert passed.replace(HEARTBEAT, b"") == garbage + ours


def test_half_a_frame_at_the_end_is_handed_on() -> None:
    ours = delivery(7, 1, b"{}", None, 10)
    assert asyncio.run(through([ours[:9]])) == ([], ours[:9])


def test_tables_nested_without_end_leave_the_body() -> None:
    patch_pamqp()
    table = b""
    for _ in range(3_000):
        table = b"\x01aF" + struct.pack(">I", len(table)) + table
    payload = struct.pack(">HHQH", 60, 0, 2, 1 << 13) + struct.pack(">I", len(table)) + table
    channel = cast("Channel", SimpleNamespace(number=7, is_closed=False))
    came = Delivered(channel, cast("Acks", None), deliveries.deliver(1), payload, b"{}")
    assert (came.body, came.headers, came.message_id) == (b"{}", {}, None)


@pytest.mark.parametrize("count", [b"", b"\x10x-delivery-countl" + struct.pack(">q", 3)])
def test_headers_that_are_too_large_are_left_unread_but_for_the_count_of_the_broker(count: bytes) -> None:
    array = b"t\x01" * (LARGEST_HEADER // 2)
    table = b"\x01aA" + struct.pack(">I", len(array)) + array + count
    properties = commands.Basic.Properties(content_type="text/plain", content_encoding="x", message_id="m")
    payload = header.ContentHeader(body_size=2, properties=properties).marshal()
    at = 14 + len(b"\x0atext/plain\x01x")
    payload = (
        payload[:12]
        + bytes((payload[12] | 0x20,))
        + payload[13:at]
        + struct.pack(">I", len(table))
        + table
        + payload[at:]
    )
    channel = cast("Channel", SimpleNamespace(number=7, is_closed=False))
    came = Delivered(channel, cast("Acks", None), deliveries.deliver(1), payload, b"{}")
    assert came.headers_unread
    assert came.headers == ({"x-delivery-count": 3} if count else {})
    assert (came.content_type, came.content_encoding, came.message_id) == ("text/plain", "x", "m")


def test_headers_as_large_as_tracers_and_brokers_make_them_are_read() -> None:
    headers = {
        "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        "tracestate": "a=" + "b" * 510,
        "baggage": "k=" + "v" * 8190,
        "x-death": [{"queue": "q" * 100, "reason": "expired", "count": it, "exchange": "e" * 100} for it in range(20)],
    }
    came = deliveries.Deliveries().delivered(headers=headers)
    assert not came.headers_unread
    assert came.headers == headers


def test_what_cannot_be_read_for_any_reason_is_malformed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: bytes, **__: object) -> None:
        raise RecursionError

    monkeypatch.setattr(OtpJob, "from_bytes", fail)
    with pytest.raises(MalformedError, match=r"^body: cannot be read \(RecursionError\)$"):
        Reader(15, b"k" * 32, deliveries.MadeIds()).read(b"{}")


def test_a_delivery_that_fails_costs_no_other() -> None:
    came: list[bytes] = []

    def receive(it: Delivered) -> None:
        if it.body == b"bad":
            raise RecursionError
        came.append(it.body)

    async def feed() -> None:
        channel = cast("Channel", SimpleNamespace(number=7, is_closed=False))
        deliveries = DeliveryReader()
        deliveries.deliver(channel, DeliveryAssembler(channel, cast("Acks", None), receive))
        for tag, content in enumerate((b"bad", b"good"), 1):
            deliveries.feed_data(delivery(7, tag, content, None, 10))

    asyncio.run(feed())
    assert came == [b"good"]


def test_a_connection_that_was_never_open_leaves_no_warning_after_its_event_loop_has_stopped() -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    connection = aio_pika.Connection(URL("amqp://127.0.0.1:1/"), loop=loop)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        del connection
        gc.collect()
        loop.close()
        asyncio.set_event_loop(None)
        gc.collect()
    assert [str(it.message) for it in found if "never awaited" in str(it.message)] == []


def taken(prefetch: int) -> tuple[DeliveryReader, DeliveryAssembler, Acks, list[Delivered]]:
    """Return the reader of a connection whose channel 7 is about to consume, and what is delivered there."""
    outgoing: asyncio.Queue[Any] = asyncio.Queue()
    connection = SimpleNamespace(write_queue=outgoing)
    channel = cast("Channel", SimpleNamespace(number=7, is_closed=False, connection=connection))
    came: list[Delivered] = []
    acks = Acks(channel)
    assembler = DeliveryAssembler(channel, acks, came.append)
    reader = DeliveryReader()
    reader.deliver(channel, assembler)
    assembler.limit.expect(prefetch)
    return reader, assembler, acks, came


@pytest.mark.parametrize(
    "bodies",
    [[b""] * 3, [b"12", b""], [b"123456"], [b"1234", b"56"], [b"12345678" * 20]],
    ids=["empty", "an empty part", "too long", "too long in parts", "far too long"],
)
async def test_a_body_that_is_not_as_long_as_its_header_says_ends_the_connection(bodies: list[bytes]) -> None:
    reader, _, _, came = taken(5)
    stream = delivery(7, 1, b"12345", None, 2).partition(frame.marshal(body.ContentBody(b"12"), 7))[0]
    reader.feed_data(stream)
    for it in bodies:
        reader.feed_data(frame.marshal(body.ContentBody(it), 7))
    assert not came
    with pytest.raises(AMQPConnectionError, match="a body that is not as long as its header says"):
        await reader.readexactly(1)
    reader.feed_data(delivery(7, 2, b"12345", None, 2))
    assert not came


async def test_a_body_in_short_parts_takes_no_memory_for_each_of_them() -> None:
    reader, _, _, came = taken(5)
    content = b"ab" * 50_000
    stream = delivery(7, 1, content, None, 2)
    gc.collect()
    tracemalloc.start()
    try:
        for piece in cut(stream[:-100], [10_000]):
            reader.feed_data(piece)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    reader.feed_data(stream[-100:])
    assert [it.body for it in came] == [content]
    assert held < 3 * len(content)


async def test_more_unacked_messages_than_were_asked_for_end_the_connection() -> None:
    reader, assembler, acks, came = taken(5)
    tags = iter(range(1, 1_000))

    def feed(count: int) -> None:
        for _ in range(count):
            reader.feed_data(delivery(7, next(tags), b"{}", None, 100))

    for _ in range(10):  # what is acknowledged makes room
        feed(5)
        for it in came[-5:]:
            it.ack_now()
        await asyncio.sleep(0)
    feed(5)
    assembler.limit.expect(20)  # a resize, after which those in flight do not count
    feed(20)
    assert reader.exception() is None
    assert len(came) == 75
    acks.settled_otherwise(came[-1].delivery_tag)
    feed(200)
    assert len(came) < 75 + 20 + 10
    with pytest.raises(AMQPConnectionError, match="more unacked messages than the prefetch count allows"):
        await reader.readexactly(1)
