"""The confirmed publish, its first try and its repeats, against the embedded broker."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aio_pika import DeliveryMode, Message
from aio_pika.exceptions import DeliveryError
from amqp_proxy import ACK, PUBLISH, AmqpProxy, amqp_proxy
from deliveries import MadeIds, NoTelemetry
from faststream import BaseMiddleware

from otp_stream.broker import confirmed_publish
from otp_stream.broker.broker import OtpBroker, RabbitConfig
from otp_stream.broker.settle import REFUSALS
from otp_stream.core.backoff import Backoff
from otp_stream.embedded import EmbeddedBroker
from otp_stream.embedded.store import Message as Stored

BACKOFF = Backoff(1000, 30000, 3)
WAIT = str(BACKOFF.retry_delays_ms[0])


@dataclass
class Scene:
    embedded: EmbeddedBroker
    proxy: AmqpProxy
    broker: OtpBroker
    repeat: bool
    tasks: list[asyncio.Task[None]] = field(default_factory=list[asyncio.Task[None]])

    def stored(self, queue: str) -> list[Stored]:
        return list(self.embedded.store.queues[queue].ready)

    async def publish(self, exchange: str = "", routing_key: str = "there", message_id: str | None = "m") -> None:
        async with asyncio.timeout(5):
            await self.broker.confirmed(
                message(message_id), exchange=exchange, routing_key=routing_key, new_channel=self.repeat
            )

    def start(self, exchange: str = "", routing_key: str = "there", message_id: str | None = "m") -> asyncio.Task[None]:
        return asyncio.create_task(self.publish(exchange, routing_key, message_id))


def message(message_id: str | None = "m") -> Message:
    return Message(b"body", headers={"x-otp-attempt": 2}, message_id=message_id, delivery_mode=DeliveryMode.PERSISTENT)


@pytest.fixture(params=[False, True], ids=["first try", "repeat"])
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    embedded = EmbeddedBroker("127.0.0.1", 0)
    await embedded.start()
    embedded.store.declare_exchange("otp.retry", "direct")
    for name in ("there", "wait"):
        embedded.store.declare_queue(name, {}, None)
    embedded.store.exchange("otp.retry").bindings.append((WAIT, "wait"))
    async with amqp_proxy(f"amqp://guest:guest@127.0.0.1:{embedded.port}/") as (proxy, url):
        config = RabbitConfig(url, "", "jobs", "otp", 10, BACKOFF, 15, b"k" * 32)
        broker = OtpBroker(config, made=MadeIds(), telemetry=NoTelemetry())
        await broker.connect()
        yield Scene(embedded, proxy, broker, request.param)
        proxy.release()
        await broker.stop()
    await embedded.stop()


@pytest.mark.parametrize(("exchange", "routing_key", "queue"), [("", "there", "there"), ("otp.retry", WAIT, "wait")])
async def test_a_message_arrives_persistent_and_with_its_headers(
    scene: Scene, exchange: str, routing_key: str, queue: str
) -> None:
    await scene.publish(exchange, routing_key)
    (stored,) = scene.stored(queue)
    assert (stored.body, stored.properties.message_id, stored.properties.delivery_mode) == (b"body", "m", 2)
    assert stored.properties.headers == {"x-otp-attempt": 2}


@pytest.mark.parametrize(("exchange", "routing_key"), [("", "missing"), ("otp.retry", "77")])
async def test_a_message_that_reaches_no_queue_is_an_error(scene: Scene, exchange: str, routing_key: str) -> None:
    with pytest.raises(DeliveryError):
        await scene.publish(exchange, routing_key)
    assert not scene.broker.confirmed._in_flight
    # and the next one is published all the same
    await scene.publish()
    assert len(scene.stored("there")) == 1


async def test_a_message_to_an_exchange_that_is_missing_is_an_error(scene: Scene) -> None:
    del scene.embedded.store.exchanges["otp.retry"]
    with pytest.raises(REFUSALS):
        await scene.publish("otp.retry", WAIT)


async def test_a_publish_passes_the_middlewares_of_an_operator(scene: Scene) -> None:
    seen: list[tuple[str, str]] = []

    class Recorder(BaseMiddleware):
        async def publish_scope(self, call_next: Any, cmd: Any) -> Any:
            seen.append((cmd.exchange.name, cmd.destination))
            cmd.body.headers["added"] = "by a middleware"
            return await call_next(cmd)

    scene.broker.add_middleware(Recorder)
    await scene.publish()
    await scene.publish("otp.retry", WAIT)
    assert seen == [("", "there"), ("otp.retry", WAIT)]
    stored = [*scene.stored("there"), *scene.stored("wait")]
    assert [it.properties.headers for it in stored] == [{"x-otp-attempt": 2, "added": "by a middleware"}] * 2


async def test_a_publish_is_not_over_before_the_broker_confirms(scene: Scene) -> None:
    hold = scene.proxy.hold("to worker", ACK)
    publishing = scene.start()
    async with asyncio.timeout(5):
        await hold.reached.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not publishing.done()
    scene.proxy.release()
    await publishing
    assert len(scene.stored("there")) == 1
    assert not scene.broker.confirmed._in_flight


async def test_a_publish_that_is_not_confirmed_in_time_is_an_error(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confirmed_publish, "_CONFIRM_TIMEOUT_S", 0.2)
    scene.proxy.hold("to worker", ACK)
    with pytest.raises(TimeoutError):
        await scene.publish()
    assert not scene.broker.confirmed._in_flight


async def test_a_broker_that_reports_that_it_is_blocked_is_waited_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    async def is_blocked() -> bool:
        nonlocal asked
        asked += 1
        if asked == 3:
            scene.proxy.release()
        return True

    monkeypatch.setattr(confirmed_publish, "_CONFIRM_TIMEOUT_S", 0.1)
    monkeypatch.setattr(scene.broker.confirmed, "is_blocked", is_blocked)
    scene.proxy.hold("to worker", ACK)
    await scene.publish()
    assert asked >= 3
    assert len(scene.stored("there")) == 1


async def test_a_connection_that_is_lost_before_the_confirm_is_an_error_and_no_cancellation(scene: Scene) -> None:
    hold = scene.proxy.hold("to worker", ACK)
    publishing = scene.start()
    async with asyncio.timeout(5):
        await hold.reached.wait()
    scene.proxy.release()
    scene.proxy.cut()
    with pytest.raises(REFUSALS):
        await publishing
    assert not publishing.cancelled()
    assert not scene.broker.confirmed._in_flight


async def test_a_publish_that_is_cancelled_with_its_connection_is_an_error_and_no_cancellation(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose(*_: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(scene.broker.confirmed, "_publish_on_new_channel" if scene.repeat else "_publish", lose)
    with pytest.raises(ConnectionError):
        await scene.publish()
    assert not scene.broker.confirmed._in_flight


async def test_of_two_messages_with_one_id_only_the_one_that_reached_no_queue_is_an_error(scene: Scene) -> None:
    for _ in range(10):
        hold = scene.proxy.hold("to broker", PUBLISH)
        lost, arrives = scene.start(routing_key="missing"), scene.start()
        async with asyncio.timeout(5):
            await hold.reached.wait()
        scene.proxy.release()
        outcomes = await asyncio.gather(lost, arrives, return_exceptions=True)
        assert isinstance(outcomes[0], DeliveryError)
        assert outcomes[1] is None
    assert len(scene.stored("there")) == 10


async def test_a_cancelled_publish_leaves_no_trace(scene: Scene) -> None:
    hold = scene.proxy.hold("to worker", ACK)
    publishing = scene.start()
    async with asyncio.timeout(5):
        await hold.reached.wait()
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    scene.proxy.release()
    assert not scene.broker.confirmed._in_flight
