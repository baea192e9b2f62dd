"""Waits: as long as was asked, not much longer, and a flood of them delays no fresh job."""

import asyncio
import datetime as dt
import json
import time
from bisect import bisect_left
from collections import defaultdict

from aio_pika import Message
from conftest import Stage
from ledger import Ledger
from rabbitmq import until
from smtp_relay import Act, ScriptedRelay
from worker import CODE, Worker

FLOOD = 2_000
FRESH = 120
PER_S = 50
TAKES_S = 0.06
CONNECTIONS = 10
PREFETCH = 200


async def test_two_thousand_jobs_due_at_once_delay_no_fresh_one(stage: Stage) -> None:
    ledger = Ledger(stage)
    stage.relay.always("body", Act(delay_s=TAKES_S))
    worker = stage.worker(SMTP_POOL_SIZE=str(CONNECTIONS), PREFETCH_COUNT=str(PREFETCH), LOG_LEVEL="warning")
    await worker.start()
    alone_ms, _ = await _fresh(ledger, stage.relay)
    await _flood(stage, ledger)
    # putting it there has kept the broker and this process busy, which no wait that ends would do
    under_way = len(stage.relay.accepted) + FRESH
    await until(lambda: _accepted(stage.relay, under_way), "flood under way")
    beside_ms, overtaken_by = await _fresh(ledger, stage.relay)
    assert len(stage.relay.accepted) < 2 * FRESH + FLOOD  # the retries had not all been sent by then
    ledger.fault_ended()
    await ledger.balance(60)
    row = ledger.row(
        f"{FLOOD} retries due at once: p99 of new jobs {alone_ms:.0f} ms before, {beside_ms:.0f} ms with them"
    )
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)
    # On a machine that is busy with other tests, deliveries that the worker has not read yet count too: the prefetch
    # count, and those that replace them meanwhile. The table shows how long it takes.
    assert overtaken_by < 2 * (PREFETCH + CONNECTIONS)


async def _fresh(ledger: Ledger, relay: ScriptedRelay) -> tuple[float, int]:
    """Publish at a steady rate.

    Returns the p99 of the time to acceptance, milliseconds, and of how many mails of others came in between.
    """
    first = len(ledger.published)
    for _ in range(FRESH):
        due = time.monotonic() + 1 / PER_S
        await ledger.publish(1)
        await asyncio.sleep(max(due - time.monotonic(), 0))
    mine = [f"job{number}" for number in range(first, first + FRESH)]

    async def all_accepted() -> bool:
        return set(mine) <= {mail.recipient.partition("@")[0] for mail in relay.accepted}

    await until(all_accepted, "fresh jobs", 40)
    at = {mail.recipient.partition("@")[0]: mail.at for mail in relay.accepted}
    others = sorted(at[job_id] for job_id in at.keys() - set(mine))
    took = sorted(at[job_id] - ledger.published[job_id] for job_id in mine)
    between = sorted(bisect_left(others, at[job_id]) - bisect_left(others, ledger.published[job_id]) for job_id in mine)
    p99 = FRESH * 99 // 100
    return (TAKES_S + took[p99]) * 1000, between[p99]


async def _flood(stage: Stage, ledger: Ledger) -> None:
    """Put jobs where their wait has just ended."""
    now_ms = time.time_ns() // 1_000_000
    confirmed: list[asyncio.Future[object]] = []
    for _ in range(FLOOD):
        job_id = f"job{len(ledger.published)}"
        ledger.published[job_id] = time.monotonic()
        body = {"email": f"{job_id}@example.com", "otp": CODE, "jobId": job_id, "timestamp": now_ms, "retryCount": 1}
        message = Message(json.dumps(body).encode(), delivery_mode=2, headers={"x-otp-attempt": 1})
        publishing = stage.rabbit.channel.default_exchange.publish(message, f"{stage.rabbit.prefix}.retry.due")
        confirmed.append(asyncio.ensure_future(publishing))
    await asyncio.gather(*confirmed)


async def _accepted(relay: ScriptedRelay, count: int) -> bool:
    return len(relay.accepted) >= count


async def test_a_wait_is_never_shorter_than_asked_and_late_by_little(stage: Stage) -> None:
    ledger = Ledger(stage)
    jobs = 200
    for number in range(jobs):
        later = ["451 4.3.0 later"] * (1 + number % 3)
        stage.relay.then("rcpt", *later, to=f"job{number}@example.com")
    worker = stage.worker(SMTP_POOL_SIZE=str(CONNECTIONS), BASE_DELAY_MS="500", MAX_RETRIES="3")
    await worker.start()
    for _ in range(jobs):
        await ledger.publish(1)
        await asyncio.sleep(1 / PER_S)
    await ledger.balance(30)
    waits = _waits(worker)
    assert len(waits) == sum(1 + number % 3 for number in range(jobs))
    # the line is logged after the wait has begun, so the wait is measured from the attempt before it
    assert min(after_attempt_ms - requested_ms for _, requested_ms, after_attempt_ms, _ in waits) >= 0
    late: dict[int, list[float]] = defaultdict(list)
    for retry, requested_ms, _, after_line_ms in waits:
        late[retry].append(after_line_ms - requested_ms * 1.1)
    row = ledger.row(f"{len(waits)} waits, at most delay + 10 % + {max(map(max, late.values())):.0f} ms")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)
    # on a busy machine many of the lines come late, not three quarters; a wrong wait queue makes each 500 ms late
    for of_retry in late.values():
        assert sorted(of_retry)[len(of_retry) // 4] < 250


def _waits(worker: Worker) -> list[tuple[int, float, float, float]]:
    """Return, for each retry, its number, the delay, and how long after attempt and log line the next one began."""
    began: dict[str, list[float]] = defaultdict(list)
    asked: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in worker.lines:
        job_id = str(line.get("job_id"))
        at_ms = dt.datetime.fromisoformat(line["timestamp"]).timestamp() * 1000
        if line["event"] == "job will be retried":
            asked[job_id].append((line["delay_ms"], at_ms))
        elif line["event"] == "job started":
            began[job_id].append(at_ms)
    # on a busy machine the word of a wait may come when the wait has ended: each belongs to the attempt of its number
    return [
        (retry, delay_ms, after - before, after - word_ms)
        for job_id, waits in asked.items()
        for retry, ((delay_ms, word_ms), before, after) in enumerate(
            zip(waits, began[job_id], began[job_id][1:], strict=False), 1
        )
    ]
