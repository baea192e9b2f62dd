"""Exclusive access to the dead-letter queue: nothing is lost, and one user reads at a time."""

import asyncio
import contextlib

import pytest
from aio_pika import Message
from conftest import Stage
from dead_letters import Deployment
from ledger import Ledger
from rabbitmq import until
from visitor import TOKEN

from otp_stream.core.dead_letter import DeadLettersError
from otp_stream.core.dead_letter_filter import DeadLetterFilter
from otp_stream.dead_letters.exclusive_queue import exclusive_queue


@pytest.fixture
async def deployment(stage: Stage) -> Deployment:
    worker = await stage.run(SMTP_POOL_SIZE="5", HTTP_TOKEN=TOKEN)
    return Deployment(stage, worker, Ledger(stage))


async def test_reading_repeatedly_changes_neither_order_nor_number(deployment: Deployment) -> None:
    for number in range(30):
        await deployment.die(1, f"d{number}.example")
    queue = deployment.queue()
    first, _ = await queue.fetch()
    for _ in range(25):  # RabbitMQ 4 would have dropped them by now
        again, not_read = await queue.fetch()
        assert {it.job_id for it in again} == {it.job_id for it in first}
        assert not_read == 0
    assert [it.job_id for it in first] == [f"job{number}" for number in range(30)]

    counts: list[int] = []
    await queue.for_each(lambda it: counts.append(int(str((it.message.headers or {}).get("x-delivery-count", 0)))))
    assert max(counts) <= 12


async def test_concurrent_readers_all_see_every_dead_letter(deployment: Deployment) -> None:
    await deployment.die(20)
    fetched = await asyncio.gather(*(deployment.queue().fetch() for _ in range(4)))
    assert [len(dead_letters) for dead_letters, _ in fetched] == [20] * 4


async def test_a_full_retry_queue_loses_nothing(deployment: Deployment) -> None:
    rabbit = deployment.stage.rabbit
    dead, lane = f"{rabbit.prefix}.full-dead", f"{rabbit.prefix}.lane"
    full = {"x-queue-type": "quorum", "x-max-length": 2, "x-overflow": "reject-publish"}
    await rabbit.channel.declare_queue(dead, durable=True, arguments={"x-queue-type": "quorum"})
    await rabbit.channel.declare_queue(lane, durable=True, arguments=full)
    for number in range(8):
        await rabbit.channel.default_exchange.publish(Message(str(number).encode()), dead)

    async def moves_all() -> bool:
        with contextlib.suppress(DeadLettersError):
            async with exclusive_queue(dead, deployment.stage.url, "shown") as source:
                async for message in source.messages(100):
                    await source.replace(message, Message(message.body), lane)
                return True
        return False

    async def none_is_missing() -> bool:  # RabbitMQ returns unacked ones a moment after the end of their connection
        return sum([await rabbit.depth(it) or 0 for it in (dead, lane)]) == 8

    for _ in range(3):
        assert not await moves_all()
        await until(none_is_missing, "all messages, each in one of the queues")
    found: set[bytes] = set()
    for name in (dead, lane):
        queue = await rabbit.channel.get_queue(name)
        while (message := await queue.get(no_ack=True, fail=False)) is not None:
            assert message.body not in found
            found.add(message.body)
        await queue.delete(if_unused=False, if_empty=False)
    assert len(found) == 8


@pytest.mark.waits
async def test_a_queue_in_use_is_reported(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = deployment.queue()
    async with exclusive_queue(queue.topology.dead, deployment.stage.url, "shown"):
        # also the limit for the second connection
        monkeypatch.setattr("otp_stream.dead_letters.exclusive_queue._TIMEOUT_S", 3)
        with pytest.raises(DeadLettersError, match="another user or command is reading the dead-letter queue"):
            await queue.replay(DeadLetterFilter(), by="me")


@pytest.mark.waits
async def test_a_lock_that_someone_has_declared_as_an_ordinary_queue_is_named(deployment: Deployment) -> None:
    rabbit = deployment.stage.rabbit
    name = f"{rabbit.prefix}.dead"
    lock = await rabbit.channel.declare_queue(f"{name}.hands", durable=True)
    try:
        with pytest.raises(DeadLettersError, match=r"\.hands must be a lock, but .* an ordinary queue: delete it"):
            async with exclusive_queue(name, deployment.stage.url, "", timeout_s=3):
                pass
    finally:
        await lock.delete(if_unused=False, if_empty=False)
