"""Workers that share their tables through Redis, as processes: killed, disconnected and suspended, and so is Redis."""

import asyncio
import json
import os
import random
import signal
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import pairwise
from math import inf
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from amqp_proxy import CONSUME, amqp_proxy
from conftest import Stage
from ground import FAKETIME
from ledger import Ledger
from rabbitmq import until
from redis_server import RedisServer
from smtp_relay import Act, ScriptedRelay
from worker import Worker, job

from otp_stream.tables.redis_session import LEASE_S

SEED = int(os.environ.get("FAULTS_SEED", "1"))
CONNECTIONS = 5
PREFETCH = 2 * CONNECTIONS
"""A killed worker has at most this many jobs in flight."""
LATEST_S = 0.06
"""The slowest answer of the relay to a mail."""
WINDOW_S = 0.5
"""How long a busy machine may take for what otherwise happens at once."""


@pytest.fixture
async def other_relay() -> AsyncIterator[ScriptedRelay]:
    async with ScriptedRelay() as relay:
        yield relay


def worker(stage: Stage, redis: RedisServer, **changes: Any) -> Worker:
    usual = {"SMTP_POOL_SIZE": str(CONNECTIONS), "PREFETCH_COUNT": "50", "REDIS_URL": redis.url, "LOG_LEVEL": "info"}
    usual["REDIS_NAMESPACE"] = "one-broker"  # proxies give it several addresses
    return stage.worker(**usual | changes)


CLOSED = {"STATE_FAIL": "closed"}
"""For what workers guarantee while Redis answers: on a busy machine, it may take longer than they wait for a reply."""


async def two_workers(stage: Stage, redis: RedisServer, **changes: Any) -> tuple[Worker, Worker]:
    one, two = worker(stage, redis, **changes), worker(stage, redis, **changes)
    await asyncio.gather(one.start(), two.start())
    await asyncio.gather(shares(one), shares(two))
    return one, two


async def shares(it: Worker) -> None:
    await sees(it, "otp_redis_connected", 1)


async def sees(it: Worker, metric: str, value: float) -> None:
    async def seen() -> bool:
        return await it.metric(metric) == value

    await until(seen, f"{metric} = {value}")


async def total(metric: str, *workers: Worker) -> float:
    return sum([await it.metric(metric) for it in workers])


async def ended(how: str, *workers: Worker) -> float:
    return await total(f'otp_jobs_total{{outcome="{how}"}}', *workers)


async def empty(stage: Stage) -> None:
    """Wait until no message is left in a queue, and none in a worker that runs."""

    async def nothing_left() -> bool:
        queued = any([await stage.rabbit.depth(name) for name in stage.rabbit.names()])
        return not queued and not any([await it.may_have_unacked() for it in stage.workers if it.is_running])

    await until(nothing_left, "empty queues")


def random_delays(relay: ScriptedRelay, chance: random.Random) -> None:
    """Let the relay take a random time for each mail."""
    act = relay.act

    def slowly(step: str, recipient: str | None, sender: str | None = None) -> Act:
        return Act(delay_s=chance.uniform(0, LATEST_S)) if step == "body" else act(step, recipient, sender)

    relay.act = slowly


def copies(ids: list[str], *, share: float, chance: random.Random) -> list[bytes]:
    """Return jobs in random order, some of them twice."""
    again = chance.sample(ids, round(len(ids) * share))
    made = _now_ms()  # one time for a job and its copy: the e-mail shows it
    bodies = [job(f"{job_id}@example.com", jobId=job_id, timestamp=made) for job_id in [*ids, *again]]
    chance.shuffle(bodies)
    return bodies


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def publish(ledger: Ledger, bodies: list[bytes], per_s: float) -> None:
    """Publish at a steady rate."""
    began = time.monotonic()
    for number, body in enumerate(bodies):
        ledger.published.setdefault(json.loads(body)["jobId"], time.monotonic())
        await ledger.rabbit.publish(body)
        await asyncio.sleep(max(began + number / per_s - time.monotonic(), 0))


@dataclass
class Slot:
    """A worker that is killed and started again, always with the same relay."""

    stage: Stage
    redis: RedisServer
    relay: ScriptedRelay
    kills: list[float] = field(default_factory=list[float])
    worker: Worker | None = None
    ended_at: dict[Path, float] = field(default_factory=dict[Path, float])
    """When each worker that was killed ended, in seconds since 1970, by its folder."""

    async def start(self) -> None:
        more = {"SMTP_PORT": str(self.relay.port), "PREFETCH_COUNT": str(PREFETCH), **CLOSED}
        self.worker = worker(self.stage, self.redis, **more)
        await self.worker.start(ready=False)
        await self.worker.wait_log('"event":"consuming"')

    async def kill(self) -> None:
        assert self.worker is not None
        self.kills.append(time.monotonic())
        await self.worker.kill()
        self.ended_at[self.worker.folder] = time.time()

    def was_killed_between(self, accepted_at: float, again_at: float) -> bool:
        """Whether there was a kill that explains why a mail was sent again."""
        return any(accepted_at - LATEST_S - WINDOW_S < kill < again_at for kill in self.kills)


def unshared_s(workers: list[Worker], ended_at: dict[Path, float]) -> list[float]:
    """Return how long a worker lived after it had logged a job as sent that another worker sent again later."""
    logged: dict[str, list[tuple[float, float]]] = {}
    for it in workers:
        for line in it.lines:
            if line["event"] == "job sent":
                at = datetime.fromisoformat(line["timestamp"]).timestamp()
                logged.setdefault(line["job_id"], []).append((at, ended_at.get(it.folder, inf) - at))
    assert logged
    return [lived_s for times in logged.values() for _, lived_s in sorted(times)[:-1]]


async def test_workers_killed_at_random_send_twice_only_what_was_accepted_at_that_moment(
    stage: Stage, redis: RedisServer, other_relay: ScriptedRelay
) -> None:
    chance = random.Random(SEED)  # noqa: S311 - a seed makes a failure repeatable
    slots = [Slot(stage, redis, relay) for relay in (stage.relay, other_relay)]
    for slot in slots:
        random_delays(slot.relay, chance)
    ledger = Ledger(stage, other_relay)
    await stage.rabbit.declare()
    bodies = copies([f"job{number}" for number in range(800)], share=1 / 2, chance=chance)
    publishing = asyncio.create_task(publish(ledger, bodies, per_s=220))
    await asyncio.gather(*(slot.start() for slot in slots))
    for victim in (0, 1, 0, 1):
        await asyncio.sleep(chance.uniform(0.1, 0.8))
        await slots[victim].kill()
        await slots[victim].start()
    await publishing
    ledger.fault_ended()
    await ledger.balance(60)
    kills = sum(len(slot.kills) for slot in slots)
    row = ledger.row(
        f"tables: 2 workers, {kills} x kill -9, {len(bodies)} messages of which a third are copies, seed {SEED}"
    )
    assert (row.lost, ledger.reasons.total()) == (0, 0)
    assert ledger.copies_are_identical
    assert row.duplicated <= kills * PREFETCH
    sent: dict[str, list[tuple[float, Slot]]] = {}
    for slot in slots:
        for mail in slot.relay.accepted:
            sent.setdefault(mail.recipient, []).append((mail.at, slot))
    for recipient, mails in sent.items():
        mails.sort(key=itemgetter(0))
        # several kills may affect one mail
        for (accepted_at, slot), (again_at, _) in pairwise(mails):
            assert slot.was_killed_between(accepted_at, again_at), recipient
    ended_at = {folder: at for slot in slots for folder, at in slot.ended_at.items()}
    assert max(unshared_s(stage.workers, ended_at), default=0) < WINDOW_S
    workers = [slot.worker for slot in slots if slot.worker]
    assert await total("otp_possible_duplicates_total", *workers) == 0


async def test_redis_that_crashes_and_comes_back_empty_loses_nothing(stage: Stage, redis: RedisServer) -> None:
    chance = random.Random(SEED)  # noqa: S311
    random_delays(stage.relay, chance)
    ledger = Ledger(stage)
    workers = await two_workers(stage, redis)
    ids = [f"job{number}" for number in range(400)]
    bodies = copies(ids, share=1 / 2, chance=chance)
    publishing = asyncio.create_task(publish(ledger, bodies, per_s=200))
    await stage.relay.wait_accepted(50)
    redis.kill()
    await asyncio.gather(*(sees(it, "otp_redis_connected", 0) for it in workers))
    await until(partial(_has_status, workers[0], "degraded"), "a degraded status")
    await until(partial(_has_unshared, workers), "mails that were sent without Redis")
    await asyncio.to_thread(redis.start)
    ledger.fault_ended()
    await asyncio.gather(publishing, *map(shares, workers))
    await ledger.balance()
    row = ledger.row(
        f"tables: Redis killed and restarted empty under load, {len(bodies)} messages of which a third are copies"
    )
    unshared = await total("otp_possible_duplicates_total", *workers)
    assert (row.lost, ledger.reasons.total()) == (0, 0)
    assert row.duplicated <= unshared

    async def recorded() -> bool:
        return await total("otp_sent_records_pending", *workers) == 0

    await until(recorded, "sent records in Redis")
    # both workers have the sent records of both now, unless Redis is unavailable once more, as on a machine that was
    # suspended
    sent = len(stage.relay.accepted)
    await publish(ledger, copies(ids, share=0, chance=chance), per_s=2000)
    await until(partial(_all_ended, workers, len(bodies) + len(ids)), "ends of all copies", 40)
    assert len(stage.relay.accepted) - sent <= await total("otp_possible_duplicates_total", *workers) - unshared


async def _has_status(it: Worker, status: str) -> bool:
    return (await it.health())["status"] == status


async def _has_unshared(workers: tuple[Worker, ...]) -> bool:
    return await total("otp_possible_duplicates_total", *workers) > 0


async def _all_ended(workers: tuple[Worker, ...], count: int) -> bool:
    return await ended("sent", *workers) + await ended("duplicate", *workers) == count


async def test_a_limit_for_all_is_exact_with_two_workers(stage: Stage, redis: RedisServer) -> None:
    await two_workers(stage, redis, TOTAL_LIMIT="200/1h", **CLOSED)
    began_ms = _now_ms()
    ledger = Ledger(stage)
    await ledger.publish(500)
    dead_letters = await stage.rabbit.dead(300)
    await stage.relay.wait_accepted(200)
    await empty(stage)
    assert len(stage.relay.accepted) == 200
    for dead_letter in dead_letters:
        assert dead_letter.headers["x-otp-reason"] == "throttled"
        assert dead_letter.headers["x-otp-allowed-at"] >= began_ms + 3_600_000


async def test_a_copy_is_not_sent_by_a_worker_with_a_new_key(stage: Stage, redis: RedisServer) -> None:
    old, new = "old-key-" * 4, "new-key-" * 4
    changes = {"RECIPIENT_LIMIT": "2/1h", "SUPERSEDE": "latest", **CLOSED}
    one = worker(stage, redis, SECRET_KEY=old, **changes)
    await one.start()
    await shares(one)
    made = _now_ms()
    await stage.rabbit.publish(job(jobId="first", timestamp=made))
    await stage.relay.wait_accepted(1)
    await until(partial(_has_ended, "sent", one, 1), "the record of it")
    await one.stop()
    two = worker(stage, redis, SECRET_KEY=f"{new},{old}", **changes)
    await two.start()
    await shares(two)
    await stage.rabbit.publish(job(jobId="first", timestamp=made))
    await until(partial(_has_ended, "duplicate", two, 1), "a duplicate")
    # the limit keeps its count: there is room for one more
    await stage.rabbit.publish(job(jobId="second", timestamp=made + 1), job(jobId="third", timestamp=made + 2))
    (dead_letter,) = await stage.rabbit.dead(1)
    assert dead_letter.headers["x-otp-reason"] == "throttled"
    await empty(stage)
    assert len(stage.relay.accepted) == 2


async def test_a_newer_code_at_either_worker_ends_those_that_wait_for_the_relay(
    stage: Stage, redis: RedisServer
) -> None:
    # neither worker has room for the codes of all people, and together they have room for newer ones
    workers = await two_workers(stage, redis, SUPERSEDE="latest", PREFETCH_COUNT="30", **CLOSED)
    await stage.relay.stop()
    made = _now_ms() - 1000
    people = [f"user{number}@example.com" for number in range(40)]

    async def publish_codes(code: str, made: int) -> None:
        await stage.rabbit.publish(*(job(it, code, timestamp=made) for it in people))

    async def holding(count: int) -> bool:
        return await total("otp_claims", *workers) == count

    await publish_codes("111111", made)
    await until(partial(holding, 40), "old codes that wait")
    assert all([await it.metric("otp_claims") for it in workers])
    await publish_codes("222222", made + 1)

    async def superseded() -> bool:
        return await ended("superseded", *workers) == 40

    await until(superseded, "superseded codes", 10)
    assert not stage.relay.accepted
    await stage.relay.start()
    await stage.relay.wait_accepted(40, 20)
    await empty(stage)
    assert sorted(mail.recipient for mail in stage.relay.accepted) == sorted(people)
    assert all(b"222222" in mail.content for mail in stage.relay.accepted)


async def test_two_workers_together_keep_to_the_relays_rate(stage: Stage, redis: RedisServer) -> None:
    await two_workers(stage, redis, SMTP_RATE_PER_SECOND="40")
    began = time.monotonic()
    await Ledger(stage).publish(160)
    await stage.relay.wait_accepted(160, 40)
    assert time.monotonic() - began >= 3.7
    # the workers use the rate, at least while none of them stops on a busy machine: half of it would be 40 in 2 s
    times = sorted(mail.at for mail in stage.relay.accepted)
    assert max(bisect_left(times, at + 2) - number for number, at in enumerate(times)) >= 60
    # each may lead its slots by 50 ms
    assert stage.relay.ahead_of_rate_s(began, 40) <= 0.15


async def test_a_send_that_outlives_its_connection_to_the_broker_is_the_only_one(
    stage: Stage, redis: RedisServer
) -> None:
    async with amqp_proxy(stage.url) as (proxy, url), amqp_proxy(stage.url) as (other_proxy, other_url):
        one, two = worker(stage, redis, url=url, **CLOSED), worker(stage, redis, url=other_url, **CLOSED)
        waits = other_proxy.hold("to broker", CONSUME)
        await asyncio.gather(one.start(), two.start(ready=False))
        await asyncio.wait_for(waits.reached.wait(), 20)
        await asyncio.gather(shares(one), shares(two))
        go_ahead = asyncio.Event()
        stage.relay.always("body", Act(until=go_ahead))
        await Ledger(stage).publish(2)
        await stage.relay.wait(lambda: stage.relay.contents == 2, "mails on the wire")
        proxy.refuse = True
        proxy.cut()
        other_proxy.release()
        await sees(two, "otp_claims", 2)  # it waits for the first one
        stage.relay.always("body", None)
        await asyncio.sleep(LEASE_S + 1)  # if the claims were not renewed, it would send the mails now
        go_ahead.set()
        await stage.relay.wait_accepted(2, 20)
        await until(partial(_has_ended, "duplicate", two, 2), "duplicates")
    assert len(stage.relay.accepted) == 2


async def _has_ended(how: str, it: Worker, count: int) -> bool:
    return await ended(how, it) == count


async def test_a_suspended_worker_leaves_its_jobs_to_the_other(stage: Stage, redis: RedisServer) -> None:
    one = worker(stage, redis, url=f"{stage.url}?heartbeat=2", **CLOSED)
    await one.start()
    await shares(one)
    await stage.relay.stop()
    await Ledger(stage).publish(40)
    await sees(one, "otp_claims", 40)
    one.signal(signal.SIGSTOP)
    try:
        # before the second worker, which may have the jobs before it is ready, and would not be without a relay
        await stage.relay.start()
        two = worker(stage, redis, **CLOSED)
        await two.start()
        await stage.relay.wait_accepted(40, 40)  # the broker first, then the lease must give the first one up
    finally:
        one.signal(signal.SIGCONT)
    await until(partial(_has_ended, "sent", two, 40), "sent records")
    await sees(one, "otp_claims", 0)
    assert len(stage.relay.accepted) == 40


async def test_closed_means_that_jobs_wait_for_redis_from_the_first_one_on(stage: Stage, redis: RedisServer) -> None:
    redis.kill()
    one = worker(stage, redis, **CLOSED)
    await one.start(ready=False)
    ledger = Ledger(stage)
    await stage.rabbit.declare()
    outages: list[tuple[Callable[[], object], Callable[[], object]]] = [
        (redis.kill, redis.start),
        (redis.freeze, redis.thaw),
    ]
    for number, (harm, recover) in enumerate(outages):
        harm()
        await one.wait_log("Redis does not answer")
        if number:
            await sees(one, "otp_redis_connected", 0)
        await ledger.publish(30)
        await sees(one, "otp_claims", 30)
        await asyncio.sleep(0.5)
        assert len(stage.relay.accepted) == 30 * number
        await until(partial(_has_status, one, "unhealthy"), "an unhealthy status")
        await asyncio.to_thread(recover)
        await stage.relay.wait_accepted(30 * (number + 1))
        await until(partial(_has_ended, "sent", one, 30 * (number + 1)), "sent records")
    await empty(stage)
    assert len({mail.recipient for mail in stage.relay.accepted}) == len(stage.relay.accepted) == 60
    assert await one.metric("otp_possible_duplicates_total") == 0


async def test_a_worker_that_stops_leaves_no_claim_and_waits_for_no_one(stage: Stage, redis: RedisServer) -> None:
    one, two = await two_workers(stage, redis, PREFETCH_COUNT="20")
    await stage.relay.stop()
    ledger = Ledger(stage)
    await ledger.publish(40)
    await until(partial(_all_claimed, (one, two), 40), "claims")
    claims = await _claims(redis)
    assert len(claims) == 2
    await _stops_soon(one)
    assert len(await _claims(redis)) == 1
    redis.freeze()
    try:
        await _stops_soon(two)  # its releases reach no server
    finally:
        redis.thaw()
    await stage.relay.start()
    three = worker(stage, redis, **CLOSED)
    await three.start()
    await ledger.balance()
    assert len(stage.relay.accepted) == 40
    redis.kill()
    await sees(three, "otp_redis_connected", 0)
    await ledger.publish(20)
    await sees(three, "otp_claims", 20)
    await _stops_soon(three)
    await stage.rabbit.wait_depth(20)


async def _stops_soon(it: Worker) -> None:
    """Stop it, long before the end of its grace time of 25 s."""
    it.signal()
    assert await it.stopped(15) in {0, -signal.SIGTERM}


async def _all_claimed(workers: tuple[Worker, ...], count: int) -> bool:
    return await total("otp_claims", *workers) == count


async def _claims(redis: RedisServer) -> Counter[str]:
    """Return how many jobs are claimed in Redis, by worker."""
    script = (
        "local out = {} for _, key in ipairs(redis.call('KEYS', '*:job:*')) do "
        "out[#out + 1] = redis.call('GET', key) end return table.concat(out, ' ')"
    )
    reply = (await asyncio.to_thread(redis.command, "EVAL", script, "0")).split("\r\n", 1)[-1]
    return Counter(word.split(":")[1] for word in reply.split() if word.startswith("c:"))


def _on_host(stage: Stage, name: str) -> dict[str, str]:
    """Return an environment in which the host has this name."""
    folder = stage.folder / name
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"import socket\n\nsocket.gethostname = lambda: {name!r}\n")
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("ahead_s", [3600, -60], ids=["ahead", "behind"])
async def test_the_clock_of_one_worker_is_wrong(stage: Stage, redis: RedisServer, ahead_s: int) -> None:
    # the older codes fill both, so that RabbitMQ gives the first newer one to the third worker
    changes = {"SUPERSEDE": "latest", "PREFETCH_COUNT": "10"}
    right, witness = worker(stage, redis, **changes), worker(stage, redis, **changes, **_on_host(stage, "witness"))
    await asyncio.gather(right.start(), witness.start())
    await asyncio.gather(shares(right), shares(witness))
    await stage.relay.stop()
    people = [f"job{number}@example.com" for number in range(20)]
    made_ms = _now_ms()
    await stage.rabbit.publish(*(job(it, otp="111111", jobId=f"older-{it}", timestamp=made_ms - 1) for it in people))

    async def all_claimed() -> bool:
        return await total("otp_claims", right, witness) == 20

    await until(all_claimed, "20 claims")
    faked = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": f"{ahead_s:+d}", "DONT_FAKE_MONOTONIC": "1"}
    wrong = worker(stage, redis, SUPERSEDE="latest", **faked, **_on_host(stage, "wrong"))
    await wrong.start()
    await wrong.wait_log("this machine's clock is wrong")
    assert round(await wrong.metric("otp_redis_clock_difference_seconds")) == ahead_s
    assert "its time is used" in str((await wrong.health())["checks"])
    assert abs(await right.metric("otp_redis_clock_difference_seconds")) < 5
    await stage.rabbit.publish(*(job(it, otp="222222", jobId=f"newer-{it}", timestamp=made_ms) for it in people))

    async def all_superseded() -> bool:
        return await ended("superseded", right, witness, wrong) == 20

    await until(all_superseded, "superseded codes")
    await stage.relay.start()
    await stage.relay.wait_accepted(20)
    await empty(stage)
    assert sorted(it.recipient for it in stage.relay.accepted) == sorted(people)
    assert all(b"222222" in it.content for it in stage.relay.accepted)
    assert await ended("expired", right, witness, wrong) == 0
    assert await wrong.metric('otp_ledger_received_total{lane="jobs"}') > 0
