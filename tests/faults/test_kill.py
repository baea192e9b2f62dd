"""kill -9 at every step of a job: nothing is lost, and there are duplicates only within the documented bound."""

import asyncio
import os
import random
from collections.abc import AsyncIterator

import pytest
from amqp_proxy import ACK, PUBLISH, AmqpProxy, Method, amqp_proxy
from conftest import LONG, Stage
from event_loop import rounds
from ledger import Ledger
from rabbitmq import until
from smtp_relay import Act
from worker import Worker

JOBS = 60
CONNECTIONS = 5
PREFETCH = 2 * CONNECTIONS
"""RabbitMQ may lose the last acknowledgements of a dying worker: at most this many jobs come again."""
SEED = int(os.environ.get("FAULTS_SEED", "1"))
ROUNDS = int(os.environ.get("FAULTS_ROUNDS", "50" if LONG else "2"))


@pytest.fixture
def ledger(stage: Stage) -> Ledger:
    return Ledger(stage)


@pytest.fixture
async def proxied(stage: Stage) -> AsyncIterator[tuple[AmqpProxy, str]]:
    async with amqp_proxy(stage.url) as proxy:
        yield proxy


def worker(stage: Stage, url: str | None = None, **changes: str) -> Worker:
    changes = {"SMTP_POOL_SIZE": str(CONNECTIONS), "BASE_DELAY_MS": "1000", "LOG_LEVEL": "info"} | changes
    return stage.worker(url=url, **changes)


async def begin(stage: Stage, ledger: Ledger, url: str | None = None, **changes: str) -> Worker:
    """Start a worker and give it jobs."""
    first = worker(stage, url, **changes)
    await first.start()
    await ledger.publish(JOBS)
    return first


async def crash(stage: Stage, ledger: Ledger, first: Worker, proxy: AmqpProxy | None = None) -> None:
    """Kill the first worker and start a second one; wait until every job has ended."""
    await first.kill()
    if proxy is not None:
        proxy.cut()  # what it kept back dies with the worker
    ledger.fault_ended()
    second = worker(stage)
    await second.start()
    await ledger.balance()


STEPS = {
    "greeting": "connecting to the relay",
    "mail": "before the reply to MAIL",
    "rcpt": "before the reply to RCPT",
    "data": "before the reply to DATA",
    "body": "after the final dot, not accepted",
}


@pytest.mark.parametrize("step", STEPS)
async def test_killed_while_the_relay_holds_the_dialogue(stage: Stage, ledger: Ledger, step: str) -> None:
    stage.relay.always(step, Act(until=asyncio.Event()))
    first = await begin(stage, ledger)

    async def reached() -> bool:
        wanted = {"greeting": "", "mail": "MAIL", "rcpt": "RCPT", "data": "DATA", "body": "DATA"}[step]
        return wanted in [*stage.relay.commands(), ""] and stage.relay.connections > 0

    await until(reached, f"the step {step}")
    await asyncio.sleep(0.2)  # so that several jobs reach the step
    await first.kill()
    stage.relay.cut()  # a mail that is on its way now would be accepted, and sent again
    await rounds()
    stage.relay.always(step, None)
    await crash(stage, ledger, first)
    row = ledger.row(f"kill -9 {STEPS[step]}")
    assert (row.lost, row.duplicated, row.expired) == (0, 0, 0)


async def test_killed_after_the_relay_accepted_and_before_its_reply(stage: Stage, ledger: Ledger) -> None:
    stage.relay.always("body", Act(reply="", keep=True, then="hang"))
    first = await begin(stage, ledger)
    await stage.relay.wait_accepted(CONNECTIONS - 1)
    stage.relay.always("body", None)
    await crash(stage, ledger, first)
    row = ledger.row("kill -9 after acceptance, before the 250 arrives")
    assert row.lost == 0
    assert 1 <= row.duplicated <= CONNECTIONS  # one for each mail that was being sent: its outcome is unknown
    assert ledger.copies_are_identical


async def test_killed_with_chunks_in_flight(stage: Stage, ledger: Ledger) -> None:
    stage.relay.keywords = (*stage.relay.keywords, "CHUNKING")
    first = await begin(stage, ledger)
    stage.relay.always("body", Act(reply="", keep=True, then="hang"))
    await ledger.publish(JOBS)

    async def hung() -> bool:
        """Return whether each connection has an accepted mail without a reply, and all mails before are settled."""
        settled = await first.metric('otp_jobs_total{outcome="sent"}')
        return 0 < len(stage.relay.accepted) == settled + stage.relay.connections

    await until(hung, "an accepted mail without a reply on each connection")
    await first.kill()
    stage.relay.always("body", None)
    await crash(stage, ledger, first)
    row = ledger.row("kill -9 after acceptance by BDAT, before the 250 arrives")
    assert row.lost == 0
    assert 1 <= row.duplicated <= CONNECTIONS  # the relay reads the next chunk only after its reply
    assert ledger.copies_are_identical


async def test_killed_after_the_250_and_before_the_acknowledgement(
    stage: Stage, ledger: Ledger, proxied: tuple[AmqpProxy, str]
) -> None:
    proxy, url = proxied
    first = worker(stage, url, PREFETCH_COUNT="5")
    await first.start()
    hold = proxy.hold("to broker", ACK)
    await ledger.publish(JOBS)
    await asyncio.wait_for(hold.reached.wait(), 20)
    await stage.relay.wait_accepted(5)
    await crash(stage, ledger, first, proxy)
    row = ledger.row("kill -9 after the 250, before the ack")
    assert row.lost == 0
    assert 1 <= row.duplicated <= 5  # the prefetch count
    assert ledger.copies_are_identical


@pytest.mark.parametrize(
    ("frame", "name"),
    [
        (PUBLISH, "before the retry reaches the broker"),
        (ACK, "after the retry's confirm, before the ack"),
    ],
    ids=["before the confirm", "before the ack"],
)
async def test_killed_on_the_way_to_a_retry(
    stage: Stage, ledger: Ledger, proxied: tuple[AmqpProxy, str], frame: Method, name: str
) -> None:
    proxy, url = proxied
    for number in range(JOBS):
        stage.relay.then("rcpt", "451 4.3.0 later", to=f"job{number}@example.com")
    first = worker(stage, url)
    await first.start()
    hold = proxy.hold("to broker", frame)
    await ledger.publish(JOBS)
    await asyncio.wait_for(hold.reached.wait(), 20)
    await crash(stage, ledger, first, proxy)
    row = ledger.row(f"kill -9 {name}")
    assert (row.lost, row.duplicated) == (0, 0)


@pytest.mark.waits
async def test_killed_while_every_job_waits_for_its_retry(stage: Stage, ledger: Ledger) -> None:
    for number in range(JOBS):
        stage.relay.then("rcpt", "451 4.3.0 later", to=f"job{number}@example.com")
    # long enough that none is due, and on the wire, when the worker is killed
    first = await begin(stage, ledger, BASE_DELAY_MS="10000")

    async def waiting() -> bool:
        return first.log.count("job will be retried") == JOBS

    await until(waiting, "all jobs in the wait queues")
    assert not stage.relay.accepted
    await crash(stage, ledger, first)
    row = ledger.row("kill -9 with every job waiting for a retry")
    assert (row.lost, row.duplicated) == (0, 0)


@pytest.mark.parametrize("round_", range(ROUNDS))
async def test_killed_at_random_times_under_load(stage: Stage, ledger: Ledger, round_: int) -> None:
    chance = random.Random(SEED * 1000 + round_)  # noqa: S311 - a seed makes a failure repeatable
    # so slow that jobs are left for each worker, whatever the machine
    stage.relay.always("body", Act(delay_s=0.04))
    for number in range(0, 500, 3):
        stage.relay.then("rcpt", "451 4.3.0 later", to=f"job{number}@example.com")
    await stage.rabbit.declare()
    await ledger.publish(500)
    kills = 3
    for _ in range(kills):
        victim = worker(stage, PREFETCH_COUNT=str(PREFETCH))
        await victim.start(ready=False)
        await victim.wait_log("job started")
        await asyncio.sleep(chance.uniform(0, 1.0))
        await victim.kill()
    ledger.fault_ended()
    last = worker(stage)
    await last.start()
    await ledger.balance(60)
    row = ledger.row(f"kill -9 at {kills} random times under load, seed {SEED}.{round_}")
    assert row.lost == 0
    assert row.duplicated <= kills * PREFETCH
    assert ledger.copies_are_identical
    assert ledger.reasons.total() == 0
