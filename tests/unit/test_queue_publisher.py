"""Publishes to queues: many in one packet, each with its own confirm."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from aio_pika import Message
from aio_pika.exceptions import DeliveryError
from aiormq.abc import DeliveredMessage
from deliveries import NoTelemetry, Publishing
from pamqp import commands, frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from otp_stream.broker import queue_publisher
from otp_stream.broker.queue_publisher import QueuePublisher


class Channel:
    """A channel of aiormq, as far as the publisher uses it."""

    def __init__(self, transport: "Transport") -> None:
        self.number = 7
        self.connection = transport
        self.max_content_size = 100
        self.closing: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._frames: deque[ContentHeader] = deque()

    @property
    def is_closed(self) -> bool:
        return self.closing.done()

    async def confirm(self, tag: int, *, multiple: bool = False) -> None:
        await cast("Any", self)._on_confirm_frame(commands.Basic.Ack(tag, multiple=multiple))

    async def refuse(self, tag: int, *, multiple: bool = False) -> None:
        await cast("Any", self)._on_confirm_frame(commands.Basic.Nack(tag, multiple=multiple))

    async def give_back(self, headers: dict[str, Any] | None) -> None:
        self._frames.append(ContentHeader(properties=commands.Basic.Properties(headers=headers)))
        await cast("Any", self)._on_return_frame(commands.Basic.Return(312, "NO_ROUTE", "", "q"))

    async def _get_frame(self) -> ContentHeader:
        return self._frames.popleft()

    async def _read_content(self, frame: commands.Basic.Return, header: ContentHeader) -> DeliveredMessage:
        return DeliveredMessage(frame, header, b"", cast("Any", self))

    async def close(self) -> None:
        self.closing.set_result(None)


class Transport:
    def __init__(self) -> None:
        self.is_closed = False
        self.write_queue: asyncio.Queue[Any] = asyncio.Queue(10)
        self.channels: list[Channel] = []

    async def channel(self, **_: Any) -> Channel:
        await asyncio.sleep(0)
        self.channels.append(Channel(self))
        return self.channels[-1]


@dataclass
class Other(Publishing):
    """The usual publisher."""

    transport: Transport | None = None
    blocked: bool = False
    to_tenant: str = "a tenant"

    async def is_blocked(self) -> bool:
        return self.blocked


@dataclass
class Scene:
    transport: Transport = field(default_factory=Transport)
    other: Other = field(default_factory=Other)
    uses_other: bool = False
    telemetry: NoTelemetry = field(default_factory=NoTelemetry)

    def __post_init__(self) -> None:
        self.other.transport = self.transport
        self.publisher = QueuePublisher(cast("Any", self.other), self.telemetry, uses_other=lambda: self.uses_other)

    async def publish(self, body: bytes, queue: str = "q", **properties: Any) -> asyncio.Task[None]:
        headers = {"x-otp-mac": body.decode(), **properties.pop("headers", {})}
        message = Message(body, delivery_mode=2, headers=headers, **properties)
        task = asyncio.create_task(self.publisher(message, exchange="", routing_key=queue))
        for _ in range(5):
            await asyncio.sleep(0)
        return task

    async def publish_and_confirm(self) -> asyncio.Task[None]:
        task = await self.publish(b"1")
        await self.channel.confirm(1)
        return task

    @property
    def channel(self) -> Channel:
        return self.transport.channels[-1]

    def sent(self) -> list[list[Any]]:
        """Return the frames of each packet."""
        packets: list[list[Any]] = []
        while not self.transport.write_queue.empty():
            payload, frames = self.transport.write_queue.get_nowait().payload, []
            while payload:
                size, number, found = frame.unmarshal(payload)
                assert number == 7
                frames.append(found)
                payload = payload[size:]
            packets.append(frames)
        return packets


async def test_messages_of_one_moment_go_in_one_packet_and_each_waits_for_its_confirm() -> None:
    scene = Scene()
    tasks = await asyncio.gather(
        scene.publish(b"one", message_id="m-1", headers={"x-otp-lane": "high"}), scene.publish(b"x" * 250, "other")
    )
    ((publish, header, body, *more),) = scene.sent()
    assert isinstance(publish, commands.Basic.Publish)
    assert (publish.exchange, publish.routing_key, publish.mandatory, publish.immediate) == ("", "q", True, False)
    assert isinstance(header, ContentHeader)
    properties = header.properties
    assert (properties.message_id, properties.headers, properties.delivery_mode, header.body_size) == (
        "m-1", {"x-otp-lane": "high", "x-otp-mac": "one"}, 2, 3
    )  # fmt: skip
    assert isinstance(body, ContentBody)
    assert body.value == b"one"
    assert more[0].routing_key == "other"
    assert more[1].properties.message_id is None
    assert [len(it.value) for it in more[2:]] == [100, 100, 50]
    await scene.channel.confirm(2)
    await tasks[1]
    assert not tasks[0].done()
    await scene.channel.confirm(1)
    await tasks[0]
    assert len(scene.transport.channels) == 1


async def test_after_an_error_another_channel_is_used_and_the_old_one_is_closed_once_it_is_idle() -> None:
    scene = Scene()
    one, two = await scene.publish(b"1"), await scene.publish(b"2")
    first = scene.channel
    await first.refuse(1)
    with pytest.raises(DeliveryError):
        await one
    three = await scene.publish(b"3")
    assert len(scene.transport.channels) == 2
    assert not first.is_closed
    await first.give_back({"x-otp-mac": "2"})
    with pytest.raises(DeliveryError):
        await two
    await asyncio.sleep(0)
    assert first.is_closed
    await scene.channel.confirm(1)
    await three


async def test_one_confirm_may_be_for_several_messages() -> None:
    scene = Scene()
    tasks = [await scene.publish(b"%d" % number) for number in range(4)]
    await scene.channel.confirm(2, multiple=True)
    await asyncio.gather(*tasks[:2])
    assert not tasks[2].done()
    await scene.channel.refuse(4, multiple=True)
    for task in tasks[2:]:
        with pytest.raises(DeliveryError):
            await task
    assert scene.telemetry.publishes == [None, None, DeliveryError, DeliveryError]


async def test_a_returned_message_is_found_by_its_mac_and_its_confirm_changes_nothing() -> None:
    scene = Scene()
    one, two = await scene.publish(b"1", message_id="same"), await scene.publish(b"2", message_id="same")
    await scene.channel.give_back({"x-otp-mac": "2"})
    with pytest.raises(DeliveryError):
        await two
    await scene.channel.confirm(2, multiple=True)
    await one


async def test_a_returned_message_that_is_unknown_may_be_any_of_those_in_flight() -> None:
    scene = Scene()
    one, two = await scene.publish(b"1"), await scene.publish(b"2")
    await scene.channel.give_back(None)
    for task in (one, two):
        with pytest.raises(DeliveryError):
            await task


async def test_messages_in_flight_fail_with_their_channel() -> None:
    scene = Scene()
    one = await scene.publish(b"1")
    await scene.channel.close()
    with pytest.raises(ConnectionError):
        await one


async def test_a_message_is_published_at_once_if_a_channel_is_open() -> None:
    scene = Scene()
    header = ContentHeader(properties=commands.Basic.Properties(message_id="m"), body_size=1).marshal()
    assert scene.publisher.start("q", header, b"1", "mac") is None
    await (await scene.publish_and_confirm())
    confirm = scene.publisher.start("q", header, b"1", "mac")
    assert confirm is not None
    await asyncio.sleep(0)
    _, (_, sent, content) = scene.sent()
    assert (sent.properties.message_id, content.value) == ("m", b"1")
    scene.uses_other = True
    assert scene.publisher.start("q", header, b"1", "mac") is None
    scene.uses_other = False
    await scene.channel.refuse(2)
    with pytest.raises(DeliveryError):
        await confirm
    assert scene.publisher.start("q", header, b"1", "mac") is None


async def test_a_closed_channel_is_replaced() -> None:
    scene = Scene()
    await (await scene.publish_and_confirm())
    await scene.channel.close()
    two = await scene.publish(b"2")
    assert len(scene.transport.channels) == 2
    await scene.channel.confirm(1)
    await two
    await scene.channel.close()
    scene.transport.is_closed = True
    with pytest.raises(ConnectionError):
        await (await scene.publish(b"3"))


async def test_with_middlewares_every_message_goes_the_usual_way() -> None:
    scene = Scene(uses_other=True)
    await (await scene.publish(b"3"))
    assert [it.body for it in scene.other.tries] == [b"3"]
    assert scene.transport.channels == []


async def test_a_confirm_that_does_not_come_is_an_error_unless_the_broker_is_blocked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_publisher, "_CONFIRM_TIMEOUT_S", 0.02)
    scene = Scene()
    scene.other.blocked = True
    one = await scene.publish(b"1")
    await asyncio.sleep(0.1)
    assert not one.done()
    scene.other.blocked = False
    with pytest.raises(TimeoutError):
        await one
    await asyncio.sleep(0)
    assert scene.channel.is_closed


async def test_a_confirm_after_the_end_of_its_wait_is_ignored() -> None:
    scene = Scene()
    one = await scene.publish(b"1")
    one.cancel()
    await asyncio.sleep(0)
    await scene.channel.confirm(1)
    two = await scene.publish(b"2")
    await scene.channel.confirm(2)
    await two


async def test_messages_wait_while_the_outgoing_queue_is_full() -> None:
    scene = Scene()
    scene.transport.write_queue = asyncio.Queue(1)
    scene.transport.write_queue.put_nowait(None)
    one = await scene.publish(b"1")
    scene.transport.write_queue.get_nowait()
    await asyncio.sleep(0.02)
    assert len(scene.sent()) == 1
    await scene.channel.confirm(1)
    await one
