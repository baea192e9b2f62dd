"""Someone who reads and publishes every message of the broker, and a producer who sets every property."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

import pytest
from aio_pika import Message
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from amqp_proxy import AmqpProxy, Way
from conftest import Stage
from rabbitmq import until
from smtp_relay import Act
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


class _Flood(AmqpProxy):
    """Continues the next delivery without end, once it is `armed`."""

    armed: Literal["empty parts", "deliveries"] | None = None
    left: asyncio.Event
    """Set when the worker has closed the connection."""
    _frames: tuple[bytes, ...] = ()

    async def _write(self, way: Way, writer: asyncio.StreamWriter, frame: bytes) -> None:
        await super()._write(way, writer, frame)
        if self.armed is None or way == "to broker":
            return
        is_method, is_delivery = frame[0] == 1, int.from_bytes(frame[7:11], "big") == 0x3C003C
        if is_method:
            self._frames = (frame,) if is_delivery else ()
        elif self._frames:
            self._frames += (frame,)
        if len(self._frames) == (2 if self.armed == "empty parts" else 3):
            more = self._empty_parts() if self.armed == "empty parts" else self._deliveries()
            self.armed = None
            with contextlib.suppress(OSError):
                while not writer.transport.is_closing():
                    writer.write(next(more))
                    await writer.drain()
                    await asyncio.sleep(0)
            self.left.set()

    def _empty_parts(self) -> Iterator[bytes]:
        return itertools.repeat((b"\x03" + self._frames[0][1:3] + b"\0\0\0\0\xce") * 1_000)

    def _deliveries(self) -> Iterator[bytes]:
        method, header, body = self._frames
        at = 12 + method[11]  # the tag, behind that of the consumer
        first = int.from_bytes(method[at : at + 8], "big")
        for tag in itertools.count(first + 1):
            numbered = body.replace(b"00000000", b"%08d" % tag)
            yield method[:at] + tag.to_bytes(8, "big") + method[at + 8 :] + header + numbered


@pytest.mark.parametrize("armed", ["empty parts", "deliveries"])
async def test_a_server_that_sends_without_end_is_left_and_memory_stays(
    stage: Stage, armed: Literal["empty parts", "deliveries"]
) -> None:
    parts = urlsplit(stage.url)
    proxy = _Flood(str(parts.hostname), parts.port or 5672)
    proxy.left = asyncio.Event()
    await proxy.start()
    try:
        url = f"amqp://{parts.username}:{parts.password}@127.0.0.1:{proxy.port}{parts.path}"
        worker = await stage.run(url=url, PREFETCH_COUNT="20")
        stage.relay.always("mail", Act("", then="hang"))  # no job ends, so none makes room
        proxy.armed = armed
        await stage.rabbit.publish(job(jobId="00000000"))
        await asyncio.wait_for(proxy.left.wait(), 30)
        await until(lambda: _logged(worker, "is it RabbitMQ?"), "a reason in the log")
        assert await worker.metric('otp_ledger_unacked{lane="jobs"}') <= 3 * 20
    finally:
        await proxy.stop()


async def _logged(worker: Worker, text: str) -> bool:
    return text in worker.log
