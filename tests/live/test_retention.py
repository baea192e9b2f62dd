"""Dead letters at a real RabbitMQ: they expire, lose their expired codes, and none is lost or doubled meanwhile."""

import asyncio
import json
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aio_pika import DeliveryMode, Message
from conftest import Stage
from dead_letters import Deployment
from ledger import Ledger
from rabbitmq import until
from visitor import TOKEN
from worker import CODE, Worker

from otp_stream.broker.headers import sign
from otp_stream.broker.topology import Topology
from otp_stream.clock import now_ms
from otp_stream.core.backoff import Backoff
from otp_stream.core.dead_letter import DeadLettersInUseError
from otp_stream.core.retention import Retention
from otp_stream.dead_letters import DeadLetterQueue, StoredDeadLetter, Sweeper
from otp_stream.dead_letters.sweep import Sweep, Swept

KEY = b"k" * 32
MINUTE, DAY = 60_000, 86_400_000


@dataclass
class DeadLetters:
    """A dead-letter queue without a worker."""

    stage: Stage
    retention: Retention = field(default_factory=Retention)

    @property
    def queue(self) -> DeadLetterQueue:
        rabbit = self.stage.rabbit
        topology = Topology(rabbit.queue, rabbit.prefix, Backoff(1000, 30_000, 3))
        return DeadLetterQueue(lambda: self.stage.url, topology, 15, KEY, retention=self.retention)

    @property
    def name(self) -> str:
        return self.queue.topology.dead

    async def declare(self) -> None:
        await self.stage.rabbit.channel.declare_queue(self.name, durable=True, arguments={"x-queue-type": "quorum"})

    async def put(self, *job_ids: str, died: int = 0, expiration: float | None = None) -> None:
        """Publish dead letters that died `died` milliseconds ago, as a version without retention did."""
        exchange = self.stage.rabbit.channel.default_exchange
        for job_id in job_ids:
            body = json.dumps({"email": "ada@example.com", "otp": CODE, "jobId": job_id}).encode()
            at_ms = now_ms() - died
            headers: dict[str, Any] = {
                "x-otp-reason": "rejected", "x-otp-error": "550 no", "x-otp-job-id": job_id, "x-otp-attempt": 1,
                "x-otp-first-seen": at_ms, "x-otp-died-at": at_ms,
            }  # fmt: skip
            sign(headers, body, KEY)
            message = Message(body, headers=headers, delivery_mode=DeliveryMode.PERSISTENT, expiration=expiration)
            await exchange.publish(message, self.name)

    async def sweep(self) -> Swept:
        return await Sweep(self.queue).run()

    async def read(self) -> list[StoredDeadLetter]:
        found: list[StoredDeadLetter] = []
        assert await self.queue.for_each(found.append) == 0
        return found

    async def ids(self) -> Counter[str]:
        return Counter(it.dead_letter.job_id for it in await self.read())

    async def depth(self) -> int:
        return await self.stage.rabbit.depth(self.name)


@pytest.fixture
async def dead_letters(stage: Stage) -> DeadLetters:
    dead_letters = DeadLetters(stage)
    await dead_letters.declare()
    return dead_letters


async def test_rabbitmq_deletes_a_dead_letter_when_its_retention_ends(stage: Stage) -> None:
    worker = await stage.run(DEAD_LETTER_RETENTION="3s", HTTP_TOKEN=TOKEN)
    stage.relay.always("rcpt", "550 5.1.1 unknown")
    began_ms = now_ms()
    await Ledger(stage).publish(3)

    async def died() -> bool:
        return await worker.metric('otp_jobs_total{outcome="rejected"}') == 3

    await until(died, "three dead letters")
    await stage.rabbit.wait_depth(0, f"{stage.rabbit.prefix}.dead")
    assert now_ms() - began_ms > 2_900


async def test_dead_letters_stay_if_retention_is_off(stage: Stage) -> None:
    worker = await stage.run(DEAD_LETTER_RETENTION="off", HTTP_TOKEN=TOKEN)
    deployment = Deployment(stage, worker, Ledger(stage))
    await deployment.die(1)
    (message,) = await stage.rabbit.dead()
    assert message.expiration is None


async def test_a_code_that_has_expired_before_its_job_died_is_never_stored(stage: Stage) -> None:
    await stage.run(HTTP_TOKEN=TOKEN)
    rabbit = stage.rabbit
    body = {
        "email": "ada@corp.example", "otp": CODE, "jobId": "late", "timestamp": now_ms() - 20 * MINUTE,
        "metadata": {"userName": "Ada", "text": f"Your code is {CODE}"},
    }  # fmt: skip
    message = Message(json.dumps(body).encode(), headers={"customer-code": CODE}, message_id=CODE, type=CODE)
    await rabbit.channel.default_exchange.publish(message, rabbit.queue)
    (dead,) = await rabbit.dead()
    assert CODE not in f"{dead.body!r}{dead.headers}{dead.properties}"
    assert json.loads(dead.body)["metadata"] == {"userName": "Ada"}
    assert dead.headers["x-otp-reason"] == "expired"
    assert int(str(dead.headers["x-otp-code-erased"])) == dead.headers["x-otp-died-at"]


async def test_old_dead_letters_without_expiration_are_swept_and_the_queue_is_not_declared_again(
    dead_letters: DeadLetters,
) -> None:
    await dead_letters.put("ancient", died=8 * DAY)
    await dead_letters.put("old", died=DAY)
    await dead_letters.put("new")
    swept = await dead_letters.sweep()
    assert (swept.read, swept.erased, swept.too_old, swept.complete) == (3, 1, 1, True)
    left = {it.dead_letter.job_id: it for it in await dead_letters.read()}
    assert left.keys() == {"old", "new"}
    assert CODE.encode() in left["new"].message.body
    old = left["old"]
    assert CODE not in f"{old.message.body!r}{old.message.headers}"
    assert (old.dead_letter.verified, old.dead_letter.recipient) == (True, "a***@example.com")
    assert 5.9 * DAY < int(old.message.expiration) <= 6 * DAY
    again = await dead_letters.sweep()
    assert (again.erased, again.too_old, again.read) == (0, 0, 2)


async def test_a_forged_time_in_the_future_keeps_no_dead_letter_and_no_code(dead_letters: DeadLetters) -> None:
    exchange = dead_letters.stage.rabbit.channel.default_exchange
    forged = {"x-otp-reason": "rejected", "x-otp-died-at": now_ms() + 365 * DAY, "x-otp-first-seen": now_ms() + DAY}
    body = json.dumps({"email": "ada@example.com", "otp": CODE, "jobId": "forged"}).encode()
    await exchange.publish(Message(body, headers=forged), dead_letters.name)
    assert not (await dead_letters.sweep()).erased
    (read,) = await dead_letters.read()
    assert read.since_ms is not None
    assert read.needed_until_ms is not None
    assert max(read.since_ms, read.needed_until_ms - 15 * MINUTE) <= now_ms()
    assert int(read.message.expiration) <= 7 * DAY


async def test_beyond_the_maximum_the_oldest_are_deleted(dead_letters: DeadLetters) -> None:
    dead_letters.retention = Retention(limit=3, keeps_codes=True)
    ages = list(range(10))
    random.Random(3).shuffle(ages)  # noqa: S311
    for age in ages:
        await dead_letters.put(f"j{age}", died=age * MINUTE)
    swept = await dead_letters.sweep()
    assert (swept.too_many, swept.left) == (7, 3)
    assert await dead_letters.ids() == Counter(("j0", "j1", "j2"))


async def test_a_sweep_that_is_killed_loses_no_dead_letter(dead_letters: DeadLetters) -> None:
    total = 200
    await dead_letters.put(*(f"j{number}" for number in range(total)), died=DAY)
    chance = random.Random(5)  # noqa: S311
    rabbit = dead_letters.stage.rabbit
    killed = 3
    for _ in range(killed):
        count, rounds = chance.randrange(5, 50), chance.randrange(4)
        arguments = (dead_letters.stage.url, rabbit.queue, rabbit.prefix, str(count), str(rounds))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _KILLED_SWEEP, *arguments, cwd=Path(__file__).parents[2]
        )
        assert await asyncio.wait_for(process.wait(), 60) == -signal.SIGKILL

    async def is_free() -> bool:
        try:
            return (await dead_letters.sweep()).complete
        except DeadLettersInUseError:
            return False

    await until(is_free, "end of the killed sweep's connection")
    found = await dead_letters.read()
    ids = Counter(it.dead_letter.job_id for it in found)
    assert ids.keys() == {f"j{number}" for number in range(total)}
    # killed between the confirm of the copy and the ack: then both exist
    assert sum(ids.values()) - total <= killed
    assert all(it.dead_letter.erased_ms is not None for it in found)


_KILLED_SWEEP = """
import asyncio, os, signal, sys
from otp_stream.broker.topology import Topology
from otp_stream.core.backoff import Backoff
from otp_stream.core.dead_letter import DeadLettersInUseError
from otp_stream.dead_letters import DeadLetterQueue
from otp_stream.dead_letters.exclusive_queue import ExclusiveQueue
from otp_stream.dead_letters.sweep import Sweep

url, queue, prefix, count, rounds = sys.argv[1:]
left, replace = int(count), ExclusiveQueue.replace

def kill(rounds):
    if rounds:
        asyncio.get_running_loop().call_soon(kill, rounds - 1)
    else:
        os.kill(os.getpid(), signal.SIGKILL)

async def count_down(*arguments):
    global left
    left -= 1
    if left == 0:
        kill(int(rounds))
    await replace(*arguments)

async def main():
    topology = Topology(queue, prefix, Backoff(1000, 30_000, 3))
    while True:
        try:
            await Sweep(DeadLetterQueue(lambda: url, topology, 15, b"k" * 32)).run()
            return
        except DeadLettersInUseError:  # of the process before it
            await asyncio.sleep(0.1)

ExclusiveQueue.replace = count_down
asyncio.run(main())
"""
"""Kills itself so many iterations of the event loop after it has begun to replace so many dead letters."""


async def test_an_operators_command_ends_a_sweep_and_sees_every_dead_letter(
    dead_letters: DeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otp_stream.dead_letters.sweep._ASK_EVERY_S", 0.02)
    total = 800
    await dead_letters.put(*(f"j{number}" for number in range(total)), died=DAY)
    sweep = Sweep(dead_letters.queue)
    sweeping = asyncio.create_task(sweep.run())
    await until(lambda: _is(lambda: sweep.swept.read > 0), "the first dead letter")
    assert not sweeping.done()
    found = await dead_letters.read()
    swept = await sweeping
    assert not swept.complete
    assert 0 < swept.read < total
    assert len({it.dead_letter.job_id for it in found}) == len(found) == total


async def test_one_of_two_workers_sweeps(dead_letters: DeadLetters) -> None:
    await dead_letters.put(*(f"j{number}" for number in range(20)), died=DAY)
    sweepers = [_sweeper(dead_letters) for _ in range(2)]
    running = [asyncio.create_task(it.run()) for it in sweepers]

    def erased() -> int:
        return sum(it.state.erased for it in sweepers)

    try:
        await until(lambda: _is(lambda: erased() == 20), "all codes erased")
        await dead_letters.put("more", died=DAY)
        await until(lambda: _is(lambda: erased() == 21), "one more code erased")
        assert sorted(it.state.erased for it in sweepers) == [0, 21]
        (leader,) = [it for it in sweepers if it.state.erased]
        running[sweepers.index(leader)].cancel()
        await dead_letters.put("last", died=DAY)
        await until(lambda: _is(lambda: erased() == 22), "the other worker")
    finally:
        for it in running:
            it.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    assert await dead_letters.ids() == Counter([*(f"j{number}" for number in range(20)), "more", "last"])


async def test_an_idle_sweeper_reads_nothing_until_something_is_due(dead_letters: DeadLetters) -> None:
    await dead_letters.put("one")
    reported = [1]
    sweeper = _sweeper(dead_letters, lambda: reported[0])
    running = asyncio.create_task(sweeper.run())
    try:
        await until(lambda: _is(lambda: sweeper.state.complete == 1), "the first sweep")
        await asyncio.sleep(1)  # many times its interval
        assert sweeper.state.complete == 1
        await dead_letters.put("two", died=DAY)
        reported[0] += 1
        await until(lambda: _is(lambda: sweeper.state.erased == 1), "the next sweep")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_worker_erases_at_its_start_what_an_earlier_version_left(stage: Stage) -> None:
    worker = await stage.run(HTTP_TOKEN=TOKEN, HEARTBEAT_INTERVAL_MS="1000")
    name = f"{stage.rabbit.prefix}.dead"
    body = json.dumps({"email": "ada@example.com", "otp": CODE, "timestamp": now_ms() - DAY}).encode()
    await stage.rabbit.channel.default_exchange.publish(Message(body), name)
    swept = await until(lambda: _logged(worker, "dead letters swept"), "a sweep", 60)
    assert (swept["codes_erased"], swept["left"], swept["complete"]) == (1, 1, True)
    (message,) = await stage.rabbit.dead()
    assert CODE.encode() not in message.body

    async def counted() -> bool:
        _, metrics = await worker.get("/metrics")
        wanted = "otp_dead_letter_codes_erased_total 1.0", 'otp_dead_letter_sweeps_total{result="complete"} 1.0'
        return all(it in metrics for it in wanted)

    await until(counted, "the sweep in the metrics")


async def test_a_dead_letter_without_its_code_is_not_replayed_and_the_command_and_the_page_say_why(
    stage: Stage,
) -> None:
    worker = await stage.run(HTTP_TOKEN=TOKEN)
    deployment = Deployment(stage, worker, Ledger(stage))
    await stage.rabbit.publish(
        json.dumps({"email": "ada@corp.example", "otp": CODE, "jobId": "late", "timestamp": now_ms() - DAY}).encode()
    )
    await deployment.wait_depth(1)
    ran = await deployment.dead("replay", "--all", "--yes", "--fresh-expiry")
    assert ran.code == 1
    assert "1 stay, because the code was erased when it expired" in ran.out
    counted = json.loads((await deployment.dead("replay", "--all", "--yes", "--json")).out)
    assert (counted["deadLetters"], counted["expiredStay"], counted["erasedStay"]) == (0, 1, 1)
    assert "erased" in (await deployment.dead("list", "--each")).out
    shown = await deployment.dead("show", "late")
    assert "It cannot be replayed: the code was erased when it expired" in shown.out
    assert "a***@corp.example" in shown.out
    page = await deployment.page()
    assert "the code expired and was erased" in page
    assert "<button>Send again" not in page
    await deployment.wait_depth(1)


def _sweeper(dead_letters: DeadLetters, depth: Callable[[], int | None] = lambda: None) -> Sweeper:
    return Sweeper(dead_letters.queue, depth, lambda: True, least_s=0.1, check_s=0.05, share=1)


async def _logged(worker: Worker, event: str) -> dict[str, Any] | None:
    return next((it for it in worker.lines if it["event"] == event), None)


async def _is(condition: Callable[[], bool]) -> bool:
    return condition()
