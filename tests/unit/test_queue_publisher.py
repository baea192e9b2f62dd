"""Publishes to queues: many in one packet, each with its own confirm."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from aio_pika import Message
from deliveries import Publishing
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
        self.is_closed = False
        self.max_content_size = 100
        self.delivery_tag = 0
        self.confirmations: dict[int, asyncio.Future[object]] = {}
        self.message_id_delivery_tag: dict[str, int] = {}

    def create_future(self) -> asyncio.Future[object]:
        return asyncio.get_running_loop().create_future()

    def confirm(self, tag: int, error: Exception | None = None) -> None:
        found = self.confirmations.pop(tag)
        if error:
            found.set_exception(error)
        else:
            found.set_result("ack")

    async def close(self) -> None:
        self.is_closed = True


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

    async def is_blocked(self) -> bool:
        return self.blocked


@dataclass
class Scene:
    transport: Transport = field(default_factory=Transport)
    other: Other = field(default_factory=Other)
    uses_other: bool = False

    def __post_init__(self) -> None:
        self.other.transport = self.transport
        self.publisher = QueuePublisher(cast("Any", self.other), uses_other=lambda: self.uses_other)

    async def publish(self, body: bytes, queue: str = "q", **properties: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(
            self.publisher(Message(body, delivery_mode=2, **properties), exchange="", routing_key=queue)
        )
        for _ in range(5):
            await asyncio.sleep(0)
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
        "m-1", {"x-otp-lane": "high"}, 2, 3
    )  # fmt: skip
    assert isinstance(body, ContentBody)
    assert body.value == b"one"
    assert more[0].routing_key == "other"
    assert more[1].properties.message_id
    assert [len(it.value) for it in more[2:]] == [100, 100, 50]
    scene.channel.confirm(2)
    await tasks[1]
    assert not tasks[0].done()
    scene.channel.confirm(1)
    await tasks[0]
    assert scene.channel.message_id_delivery_tag == {}
    assert len(scene.transport.channels) == 1


async def test_after_an_error_another_channel_is_used_and_the_old_one_is_closed_once_it_is_idle() -> None:
    scene = Scene()
    one, two = await scene.publish(b"1"), await scene.publish(b"2")
    first = scene.channel
    first.confirm(1, ConnectionError("returned"))
    with pytest.raises(ConnectionError):
        await one
    three = await scene.publish(b"3")
    assert len(scene.transport.channels) == 2
    assert not first.is_closed
    first.confirm(2, ConnectionError("returned as well"))
    with pytest.raises(ConnectionError):
        await two
    assert first.is_closed
    scene.channel.confirm(1)
    await three


async def test_a_closed_channel_is_replaced() -> None:
    scene = Scene()
    one = await scene.publish(b"1")
    scene.channel.confirm(1)
    await one
    scene.channel.is_closed = True
    two = await scene.publish(b"2")
    assert len(scene.transport.channels) == 2
    scene.channel.confirm(1)
    await two
    scene.transport.is_closed = scene.channel.is_closed = True
    with pytest.raises(ConnectionError):
        await (await scene.publish(b"3"))


async def test_a_second_message_with_the_same_id_and_every_one_with_middlewares_goes_the_usual_way() -> None:
    scene = Scene()
    one = await scene.publish(b"1", message_id="m")
    await (await scene.publish(b"2", message_id="m"))
    assert [it.body for it in scene.other.tries] == [b"2"]
    scene.channel.confirm(1)
    await one
    scene.uses_other = True
    await (await scene.publish(b"3"))
    assert [it.body for it in scene.other.tries] == [b"2", b"3"]


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
    assert scene.channel.confirmations[1].cancelled()


async def test_messages_wait_while_the_outgoing_queue_is_full() -> None:
    scene = Scene()
    scene.transport.write_queue = asyncio.Queue(1)
    scene.transport.write_queue.put_nowait(None)
    one = await scene.publish(b"1")
    scene.transport.write_queue.get_nowait()
    await asyncio.sleep(0.02)
    assert len(scene.sent()) == 1
    scene.channel.confirm(1)
    await one
