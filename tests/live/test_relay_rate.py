"""No relay gets mail faster than it is allowed to; jobs wait for their slot, and a throttle slows all of them down."""

import asyncio
import time
from collections.abc import Sequence

import pytest
from conftest import Stage
from rabbitmq import until
from smtp_relay import Act, Received, ScriptedRelay, client, config, send
from worker import job

from otp_stream.core.outcome import Accepted, Outcome, Unavailable
from otp_stream.core.rate import Grant
from otp_stream.core.state import RelayState
from otp_stream.relay import RelayLimits, Sharing, SmtpRelay

THROTTLE = "454 Throttling failure: Maximum sending rate exceeded."
AHEAD_S = 0.1
"""A worker may use a slot 50 ms before its time."""
SLACK = 6
"""Slots of 50 ms at 50 a second, and a machine that reads late what came earlier."""

pytestmark = pytest.mark.usefixtures("never_suspended")


@pytest.fixture
async def relay():
    async with ScriptedRelay() as relay:
        yield relay


async def deliver(smtp: SmtpRelay, to: str = "user@example.com", rank: int = 2) -> Outcome:
    """Do as delivery does: call again for as long as the relay is unavailable."""
    while isinstance(outcome := await send(smtp, to, rank=rank), Unavailable):
        pass
    return outcome


def most_within_a_second(mails: Sequence[Received], window_s: float = 1.0) -> int:
    times = sorted(mail.at for mail in mails)
    return max(sum(begin <= at < begin + window_s for at in times) for begin in times)


async def test_mails_leave_at_the_rate_that_is_set(relay: ScriptedRelay):
    begun = time.monotonic()
    async with client(relay, rate=50.0) as smtp:
        outcomes = await asyncio.gather(*(send(smtp, f"u{at}@example.com") for at in range(100)))
        [state] = smtp.state()
    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    assert relay.ahead_of_rate_s(begun, 50) <= AHEAD_S
    assert 1.9 <= time.monotonic() - begun <= 10
    assert (state.rate, state.slowed) == (50.0, False)


async def test_no_connection_is_opened_for_a_job_without_a_slot(relay: ScriptedRelay):
    async with client(relay, rate=10.0) as smtp:
        jobs = [asyncio.create_task(send(smtp, f"u{at}@example.com")) for at in range(200)]
        await relay.wait_accepted(8)
        assert smtp.state()[0].waiting > 150
        assert relay.connections < 10  # one, and one for each slot that a busy machine has missed
        smtp.finish()
        await asyncio.gather(*jobs, return_exceptions=True)


async def test_a_slow_relay_gets_connections_until_the_rate_is_kept(relay: ScriptedRelay):
    relay.always("body", Act(delay_s=0.3))
    async with client(relay, pool_size=60, rate=30.0) as smtp:
        begun = time.monotonic()
        await asyncio.gather(*(send(smtp, f"u{at}@example.com") for at in range(90)))
        assert 2.9 <= time.monotonic() - begun <= 12
    assert 5 <= relay.connections < 40  # about nine, and more after a pause of a busy machine


async def test_the_slot_goes_to_the_most_urgent(relay: ScriptedRelay):
    async with client(relay, rate=10.0) as smtp:
        jobs = [asyncio.create_task(send(smtp, f"u{at}@example.com", rank=3)) for at in range(20)]
        await relay.wait_accepted(3)
        assert isinstance(await send(smtp, "urgent@example.com", rank=0), Accepted)
        assert [mail.recipient for mail in relay.accepted].index("urgent@example.com") <= 6
        await asyncio.gather(*jobs)


async def test_a_closed_circuit_breaker_lets_no_burst_out(relay: ScriptedRelay):
    relay.then("mail", Act("421 4.3.0 down", then="close"))
    async with client(relay, rate=20.0) as smtp:
        outcomes = await asyncio.gather(*(deliver(smtp, f"u{at}@example.com") for at in range(30)))
        assert all(isinstance(outcome, Accepted) for outcome in outcomes)
        assert smtp.state()[0].slowed is False
    assert most_within_a_second(relay.accepted) <= 20 + SLACK
    assert most_within_a_second(relay.accepted, 0.25) <= 5 + SLACK


async def test_a_throttle_slows_down_and_the_full_rate_comes_back(relay: ScriptedRelay):
    changes: list[RelayState] = []
    relay.then("body", Act(), Act(), THROTTLE)
    limits = RelayLimits(recovery_s=1.0)
    smtp = SmtpRelay(config(relay, rate=40.0, limits=limits), on_rate=changes.append, fraction=lambda: 0.0)
    jobs = [asyncio.create_task(deliver(smtp, f"u{at}@example.com")) for at in range(90)]
    await relay.wait(lambda: bool(changes), "report of a slower rate")
    assert changes[0].slowed
    assert changes[0].rate == pytest.approx(20.0, abs=0.1)
    assert changes[0].circuit_breaker == "open"
    await relay.wait(lambda: len(changes) == 2, "report of the full rate")
    assert (changes[1].slowed, changes[1].rate) == (False, 40.0)
    assert all(isinstance(outcome, Accepted) for outcome in await asyncio.gather(*jobs))
    await smtp.close()
    after = sorted(mail.at for mail in relay.accepted)[3:]
    # ½ of the rate, and half of what a second adds
    assert sum(at < after[0] + 0.5 for at in after) <= 13 + SLACK
    assert len(changes) == 2


async def test_without_a_ceiling_a_throttle_sets_one_for_a_while(relay: ScriptedRelay):
    changes: list[RelayState] = []
    relay.always("body", Act(delay_s=0.05))
    limits = RelayLimits(recovery_s=0.5)
    smtp = SmtpRelay(config(relay, pool_size=4, limits=limits), on_rate=changes.append, fraction=lambda: 0.0)
    jobs = [asyncio.create_task(deliver(smtp, f"u{at}@example.com")) for at in range(200)]
    await relay.wait_accepted(60)
    assert smtp.state()[0].rate is None
    relay.then("body", THROTTLE)
    await relay.wait(lambda: bool(changes), "report of a slower rate")
    assert changes[0].slowed
    assert 5 <= (changes[0].rate or 0) <= 45
    await relay.wait(lambda: len(changes) == 2, "report of the full rate")
    assert (changes[1].slowed, changes[1].rate) == (False, None)
    assert all(isinstance(outcome, Accepted) for outcome in await asyncio.gather(*jobs))
    await smtp.close()


async def test_a_relay_without_a_slot_is_not_passed_by_for_its_fallback(relay: ScriptedRelay):
    async with ScriptedRelay() as second:
        smtp = SmtpRelay(config(relay, rate=20.0), fallbacks=[config(second, rate=20.0)])
        await asyncio.gather(*(send(smtp) for _ in range(10)))
        await smtp.close()
        assert (len(relay.accepted), second.connections) == (10, 0)


async def test_workers_that_share_a_schedule_keep_one_rate_together(relay: ScriptedRelay):
    next_at = 0.0

    async def reserve(name: str, count: int, ceiling: float, slowed: bool) -> Grant | None:  # noqa: FBT001
        nonlocal next_at
        await asyncio.sleep(0)
        now = time.monotonic()
        first = max(next_at, now)
        next_at = first + count / ceiling
        return Grant(first - now, 1 / ceiling, count, ceiling)

    workers = [SmtpRelay(config(relay, rate=60.0), sharing=Sharing(reserve, lambda: 3)) for _ in range(3)]
    begun = time.monotonic()
    # one of them has most of the work
    jobs = [send(workers[min(at % 10, 2)], f"u{at}@example.com") for at in range(120)]
    outcomes = await asyncio.gather(*jobs)
    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    assert 1.9 <= time.monotonic() - begun <= 10
    assert relay.ahead_of_rate_s(begun, 60) <= 2 * AHEAD_S
    for worker in workers:
        await worker.close()


async def test_a_worker_keeps_the_rate_and_shows_it(stage: Stage) -> None:
    worker = stage.worker(SMTP_RATE_PER_SECOND="20")
    await worker.start()
    begun = time.monotonic()
    await stage.rabbit.publish(*(job(f"u{at}@example.com", jobId=f"j{at}") for at in range(60)))
    await stage.relay.wait_accepted(60)
    assert stage.relay.ahead_of_rate_s(begun, 20) <= AHEAD_S
    name = f"127.0.0.1:{stage.relay.port}"
    assert await worker.metric(f'otp_relay_rate_limit{{relay="{name}"}}') == 20
    assert "Limit, mails per second" in (await worker.get("/"))[1]

    async def all_sent() -> bool:
        return (await worker.health())["outcomes"].get("sent") == 60

    await until(all_sent, "60 jobs that were sent")
    assert (await worker.health())["stats"]["failedJobs"] == 0
    await worker.stop()


async def test_a_worker_that_is_throttled_logs_it(stage: Stage) -> None:
    stage.relay.then("body", THROTTLE)
    worker = stage.worker(SMTP_RATE_PER_SECOND="20")
    await worker.start()
    await stage.rabbit.publish(*(job(f"u{at}@example.com", jobId=f"j{at}") for at in range(10)))
    await worker.wait_log("relay throttles: slowed down")

    async def reported() -> bool:
        health = await worker.health()
        return health["status"] == "healthy" and "circuit breaker closed, slowed to 1" in str(health["checks"])

    await until(reported, "report of the slower rate")
    assert await worker.metric(f'otp_relay_replies_total{{code="454",relay="127.0.0.1:{stage.relay.port}"}}') == 1
    await stage.relay.wait_accepted(10)
    assert "Slowed to, per second" in (await worker.get("/"))[1]
    assert len({mail.recipient for mail in stage.relay.accepted}) == 10
    await worker.stop()
