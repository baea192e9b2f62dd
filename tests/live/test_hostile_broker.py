"""Someone who reads and publishes every message of the broker, and a producer who sets every property."""

import time

import pytest
from aio_pika import Message
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from conftest import Stage
from rabbitmq import until
from worker import Worker, job


@pytest.fixture
async def worker(stage: Stage) -> Worker:
    return await stage.run(MAX_RETRIES="3")


@pytest.fixture
async def copies(stage: Stage, worker: Worker) -> AbstractQueue:
    """Return a queue that gets a copy of each retry."""
    queue = await stage.rabbit.channel.declare_queue(exclusive=True)
    for name in stage.rabbit.names():
        await queue.bind(f"{stage.rabbit.prefix}.retry", name.rpartition(".")[2])  # the wait in milliseconds
    return queue


async def a_copy(copies: AbstractQueue) -> AbstractIncomingMessage:
    async def first() -> AbstractIncomingMessage | None:
        return await copies.get(no_ack=True, fail=False)

    return await until(first, "a copy of a retry")


async def publish_again(stage: Stage, copy: AbstractIncomingMessage) -> None:
    """Publish a copy to the queue of retries that are due."""
    again = Message(copy.body, headers=copy.headers, message_id=copy.message_id, delivery_mode=2)
    await stage.rabbit.channel.default_exchange.publish(again, f"{stage.rabbit.prefix}.retry.due")


async def outcomes(worker: Worker, count: int) -> dict[str, int]:
    async def ended() -> dict[str, int] | None:
        found = (await worker.health())["outcomes"]
        return found if sum(found.values()) == count else None

    return await until(ended, f"{count} outcomes")


async def test_a_copied_retry_is_not_sent_a_second_time(stage: Stage, worker: Worker, copies: AbstractQueue) -> None:
    stage.relay.then("rcpt", "451 4.3.0 later")
    await stage.rabbit.publish(job(jobId="j-1"))
    copy = await a_copy(copies)
    await stage.relay.wait_accepted(1)
    await publish_again(stage, copy)
    assert await outcomes(worker, 2) == {"sent": 1, "duplicate": 1}
    assert len(stage.relay.accepted) == 1


@pytest.mark.waits
async def test_a_copied_retry_is_not_sent_once_its_code_has_expired(
    stage: Stage, worker: Worker, copies: AbstractQueue
) -> None:
    stage.relay.always("rcpt", "451 4.3.0 later")
    expires_ms = _now_ms() + 7_000  # long enough for the first attempt, also if the worker is slow
    await stage.rabbit.publish(job(jobId="j-1", timestamp=expires_ms - 60_000, metadata={"expiryMinutes": 1}))
    copy = await a_copy(copies)

    async def expired() -> bool:
        return _now_ms() > expires_ms

    await until(expired, "the end of the code")
    await outcomes(worker, 1)
    stage.relay.always("rcpt", None)
    await publish_again(stage, copy)
    assert "sent" not in await outcomes(worker, 2)
    assert stage.relay.accepted == []


async def test_a_job_with_a_reply_address_gets_no_reply(stage: Stage, worker: Worker) -> None:
    queue = await stage.rabbit.channel.declare_queue(exclusive=True)
    await stage.rabbit.publish(job(), reply_to=queue.name, correlation_id="c", expiration=60)
    await stage.rabbit.publish(b"no job", reply_to=queue.name, correlation_id="c")
    await outcomes(worker, 2)
    assert await queue.get(no_ack=True, fail=False) is None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
