"""What the worker and its producers need of a broker: RabbitMQ and the embedded one must behave alike."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import uuid4

import aio_pika
import pytest
from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed, DeliveryError
from aiormq.exceptions import ChannelLockedResource
from rabbitmq import until

from otp_stream.broker.queue_inspect import inspect_queue
from otp_stream.embedded import EmbeddedBroker


@pytest.fixture(params=["RabbitMQ", "embedded"])
async def connection(request: pytest.FixtureRequest, rabbitmq_url: str) -> AsyncIterator[AbstractConnection]:
    if request.param == "RabbitMQ":
        async with await aio_pika.connect(rabbitmq_url) as connection:
            yield connection
        return
    broker = EmbeddedBroker("127.0.0.1", 0)
    await broker.start()
    async with await aio_pika.connect(f"amqp://guest:guest@127.0.0.1:{broker.port}/") as connection:
        yield connection
    await broker.stop()


@pytest.fixture
async def channel(connection: AbstractConnection) -> AbstractChannel:
    return await connection.channel(on_return_raises=True)


@pytest.fixture
def name() -> str:
    return f"c{uuid4().hex[:10]}"


async def get(queue: AbstractQueue, *, no_ack: bool = True) -> AbstractIncomingMessage:
    async def one() -> AbstractIncomingMessage | None:
        return await queue.get(no_ack=no_ack, fail=False)

    message = await until(one, f"message in {queue.name}")
    assert message is not None
    return message


async def test_a_message_comes_out_as_it_went_in(channel: AbstractChannel, name: str) -> None:
    queue = await channel.declare_queue(name, exclusive=True)
    headers = {"text": "ü", "number": 7, "flag": True, "raw": bytearray(b"\x00"), "list": [1, "a"]}
    body = bytes(range(256)) * 2000  # several frames
    sent = Message(body, headers=headers, content_type="a/b", message_id="m", priority=3, delivery_mode=2, type="t")
    await channel.default_exchange.publish(sent, name)
    got = await get(queue)
    assert (got.body, got.content_type, got.message_id, got.priority, got.type) == (body, "a/b", "m", 3, "t")
    assert {key: got.headers[key] for key in headers} == headers
    assert (got.exchange, got.routing_key, got.redelivered) == ("", name, False)


async def test_what_a_queue_is_can_be_learnt(
    connection: AbstractConnection, channel: AbstractChannel, name: str
) -> None:
    arguments = {"x-queue-type": "quorum", "x-message-ttl": 5000}
    await channel.declare_queue(name, durable=True, arguments=arguments)
    try:
        for guess in (arguments, {"x-queue-type": "quorum", "x-delivery-limit": 3}):
            found = await inspect_queue(connection, name, guess)
            assert found is not None
            assert (found.kind, found.arguments) == ("quorum", arguments)
    finally:
        await channel.queue_delete(name)


async def test_an_empty_body_is_a_message(channel: AbstractChannel, name: str) -> None:
    queue = await channel.declare_queue(name, exclusive=True)
    await channel.default_exchange.publish(Message(b""), name)
    assert (await get(queue)).body == b""


async def test_a_passive_declare_returns_the_depth_and_refuses_a_missing_queue(
    connection: AbstractConnection, channel: AbstractChannel, name: str
) -> None:
    queue = await channel.declare_queue(name, exclusive=True)
    await channel.default_exchange.publish(Message(b"x"), name)
    asked = await channel.declare_queue(name, passive=True)
    assert asked.declaration_result.message_count == 1
    assert asked.declaration_result.consumer_count == 0

    async def take(message: AbstractIncomingMessage) -> None:
        await message.ack()

    await queue.consume(take)
    other = await connection.channel()
    with pytest.raises(ChannelNotFoundEntity):
        await other.declare_queue(f"{name}.missing", passive=True)
    assert (await channel.declare_queue(name, passive=True)).declaration_result.consumer_count == 1


async def test_a_declare_with_other_arguments_is_refused_by_name(
    connection: AbstractConnection, channel: AbstractChannel, name: str
) -> None:
    await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
    other = await connection.channel()
    with pytest.raises(ChannelPreconditionFailed, match=r"x-queue-type.*quorum"):
        await other.declare_queue(name, durable=True)
    await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
    await channel.queue_delete(name)


async def test_a_plain_queue_takes_a_plain_or_classic_declare_again(channel: AbstractChannel, name: str) -> None:
    await channel.declare_queue(name, durable=True)
    await channel.declare_queue(name, durable=True)
    await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "classic"})
    await channel.queue_delete(name)


async def test_a_mandatory_publish_that_reaches_no_queue_comes_back(channel: AbstractChannel, name: str) -> None:
    with pytest.raises(DeliveryError):
        await channel.default_exchange.publish(Message(b"x"), name, mandatory=True)


async def test_a_publish_to_a_missing_exchange_closes_the_channel(channel: AbstractChannel, name: str) -> None:
    exchange = await channel.get_exchange(name, ensure=False)
    with pytest.raises((ChannelNotFoundEntity, RuntimeError, asyncio.CancelledError)):
        await exchange.publish(Message(b"x"), "key", timeout=20)


async def test_a_wait_ends_in_the_dead_letter_target_in_time(channel: AbstractChannel, name: str) -> None:
    due = await channel.declare_queue(f"{name}.due", exclusive=True)
    await channel.declare_queue(
        name,
        exclusive=True,
        arguments={"x-message-ttl": 300, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": due.name},
    )
    began = time.monotonic()
    await channel.default_exchange.publish(Message(b"x", headers={"kept": "yes"}), name)
    got = await get(due)
    assert 0.29 <= time.monotonic() - began < 10  # RabbitMQ, or this process, may stop for seconds on a busy machine
    assert got.headers["kept"] == "yes"
    assert got.body == b"x"


async def test_a_window_holds_no_more_than_its_size(channel: AbstractChannel, name: str) -> None:
    queue = await channel.declare_queue(name, exclusive=True)
    await channel.set_qos(prefetch_count=2)
    held: list[AbstractIncomingMessage] = []

    async def hold(message: AbstractIncomingMessage) -> None:
        held.append(message)

    await queue.consume(hold)
    for number in range(5):
        await channel.default_exchange.publish(Message(str(number).encode()), name)

    async def has(count: int) -> bool:
        return len(held) == count

    await until(lambda: has(2), "two held")
    assert (await channel.declare_queue(name, passive=True)).declaration_result.message_count == 3
    await held[0].ack()
    await until(lambda: has(3), "a third")
    await held[2].ack(multiple=True)
    await until(lambda: has(5), "the rest")
    assert [message.body for message in held] == [b"0", b"1", b"2", b"3", b"4"]


async def test_what_is_given_back_comes_first_and_marked(channel: AbstractChannel, name: str) -> None:
    queue = await channel.declare_queue(name, exclusive=True)
    for body in (b"a", b"b"):
        await channel.default_exchange.publish(Message(body), name)
    first = await get(queue, no_ack=False)
    await first.nack(requeue=True)
    again = await get(queue)
    assert (again.body, again.redelivered) == (b"a", True)


async def test_a_closed_channel_gives_everything_back(
    connection: AbstractConnection, channel: AbstractChannel, name: str
) -> None:
    queue = await channel.declare_queue(name)
    other = await connection.channel()
    for body in (b"a", b"b", b"c"):
        await channel.default_exchange.publish(Message(body), name)
    held = await other.get_queue(name, ensure=False)
    await get(held, no_ack=False)
    await get(held, no_ack=False)
    await other.close()

    async def all_back() -> bool:
        # RabbitMQ returns them a moment after it has confirmed the close
        return (await channel.declare_queue(name, passive=True)).declaration_result.message_count == 3

    await until(all_back, "messages that are returned")
    assert [(await get(queue)).body for _ in range(3)] == [b"a", b"b", b"c"]
    await channel.queue_delete(name)


async def test_a_cancelled_consumer_gets_no_more_and_keeps_what_it_holds(channel: AbstractChannel, name: str) -> None:
    queue = await channel.declare_queue(name, exclusive=True)
    held: list[AbstractIncomingMessage] = []

    async def hold(message: AbstractIncomingMessage) -> None:
        held.append(message)

    tag = await queue.consume(hold)
    await channel.default_exchange.publish(Message(b"1"), name)

    async def has_one() -> bool:
        return len(held) == 1

    await until(has_one, "one held")
    await queue.cancel(tag)
    await channel.default_exchange.publish(Message(b"2"), name)
    assert (await get(queue)).body == b"2"
    await held[0].ack()


async def test_topic_and_direct_exchanges_route(channel: AbstractChannel, name: str) -> None:
    topic = await channel.declare_exchange(f"{name}.topic", "topic", auto_delete=True)
    direct = await channel.declare_exchange(f"{name}.direct", "direct", auto_delete=True)
    everything = await channel.declare_queue(f"{name}.all", exclusive=True)
    one = await channel.declare_queue(f"{name}.one", exclusive=True)
    await everything.bind(topic, "otp.#")
    await one.bind(topic, "otp.*")
    await one.bind(direct, "1000")
    for exchange, key in ((topic, "otp.sent"), (topic, "otp.a.b"), (topic, "other.sent"), (direct, "1000")):
        await exchange.publish(Message(f"{key}".encode()), key, mandatory=False)
    await direct.publish(Message(b"lost"), "2000", mandatory=False)
    assert {(await get(everything)).body for _ in range(2)} == {b"otp.sent", b"otp.a.b"}
    assert {(await get(one)).body for _ in range(2)} == {b"otp.sent", b"1000"}
    assert await one.get(fail=False) is None


async def test_rejected_messages_go_to_the_dead_letter_target(channel: AbstractChannel, name: str) -> None:
    dead = await channel.declare_queue(f"{name}.dead", exclusive=True)
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": dead.name}
    queue = await channel.declare_queue(name, exclusive=True, arguments=arguments)
    await channel.default_exchange.publish(Message(b"x"), name)
    await (await get(queue, no_ack=False)).reject(requeue=False)
    assert (await get(dead)).body == b"x"


async def test_a_purged_queue_is_empty(channel: AbstractChannel, name: str) -> None:
    queue = await channel.declare_queue(name, exclusive=True)
    await channel.default_exchange.publish(Message(b"x"), name)
    assert (await queue.purge()).message_count == 1
    assert await queue.get(fail=False) is None


async def test_fair_shares_between_consumers(channel: AbstractChannel, name: str) -> None:
    queue = await channel.declare_queue(name, exclusive=True)
    got: dict[str, list[bytes]] = {"a": [], "b": []}

    def taker(who: str) -> Callable[[AbstractIncomingMessage], Awaitable[None]]:
        async def take(message: AbstractIncomingMessage) -> None:
            got[who].append(message.body)
            await message.ack()

        return take

    for who in got:
        await queue.consume(taker(who))
    for number in range(20):
        await channel.default_exchange.publish(Message(str(number).encode()), name)

    async def all_taken() -> bool:
        return sum(map(len, got.values())) == 20

    await until(all_taken, "all taken")
    assert all(got.values())


async def test_an_exclusive_queue_is_locked_for_others(connection: AbstractConnection, name: str) -> None:
    assert isinstance(connection, aio_pika.Connection)
    await (await connection.channel()).declare_queue(name, exclusive=True)
    async with await aio_pika.connect(connection.url) as other:
        with pytest.raises(ChannelLockedResource):
            await (await other.channel()).declare_queue(name, exclusive=True)
