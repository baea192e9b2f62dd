"""While the relay takes no mail, jobs wait: no attempt is counted, and none stays longer than its code is valid."""

import asyncio

from conftest import Stage
from ledger import Ledger
from rabbitmq import until
from smtp_relay import Act
from worker import Worker

JOBS = 100
CONNECTIONS = 5


async def test_the_backlog_drains_in_order_and_without_a_herd(stage: Stage) -> None:
    ledger = Ledger(stage)
    worker = stage.worker(SMTP_POOL_SIZE=str(CONNECTIONS))
    await worker.start()
    await stage.relay.stop()
    await ledger.publish(30, priority="low")
    await ledger.publish(30, metadata={"expiryMinutes": 20})
    await ledger.publish(30, metadata={"expiryMinutes": 10})
    await ledger.publish(5, priority="high")
    await ledger.publish(5, to=f"{stage.rabbit.queue}.high")
    late_low, late, soon, high, lane = (range(*it) for it in ((0, 30), (30, 60), (60, 90), (90, 95), (95, 100)))

    async def waiting() -> bool:
        return await worker.metric("otp_relay_sends_pending") >= JOBS - 1

    await until(waiting, "all jobs behind the circuit breaker")
    known = stage.relay.connections
    probed = asyncio.Event()
    stage.relay.then("body", Act(until=probed))
    stage.relay.always("body", Act(delay_s=0.1))
    await stage.relay.start()
    await stage.relay.wait(lambda: "DATA" in stage.relay.commands(known + 1), "probe", 30)
    await asyncio.sleep(0.5)  # time enough for others, if any were let through
    assert not stage.relay.accepted
    assert stage.relay.connections == known + 1  # one probes, alone
    probed.set()
    ledger.fault_ended()
    await ledger.balance()
    row = ledger.row("relay down: a backlog of every priority drains")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)
    assert stage.relay.connections - known <= CONNECTIONS
    place = {mail.recipient.partition("@")[0]: at for at, mail in enumerate(stage.relay.accepted)}
    first, last = (
        [pick(place[f"job{number}"] for number in numbers) for numbers in (lane, high, soon, late, late_low)]
        for pick in (min, max)
    )
    for urgent, next_ in zip(last, first[1:], strict=False):
        assert urgent < next_ + CONNECTIONS  # mails in flight may overtake
    assert "job will be retried" not in worker.log


async def test_no_job_is_held_longer_than_its_code_lives(stage: Stage) -> None:
    ledger = Ledger(stage)
    worker = stage.worker(SMTP_POOL_SIZE=str(CONNECTIONS))
    await worker.start()
    await stage.relay.stop()
    await ledger.publish(JOBS, metadata={"expiryMinutes": 2 / 60})
    await ledger.publish(JOBS)  # these live for 15 minutes

    async def expired() -> bool:
        await ledger.read_dead_letters()
        return ledger.reasons["expired"] == JOBS

    await until(expired, "expired jobs")
    await stage.relay.start()
    ledger.fault_ended()
    await ledger.balance()
    row = ledger.row("relay down: half of the codes expire")
    assert (row.lost, row.duplicated, ledger.reasons) == (0, 0, {"expired": JOBS})
    assert len(stage.relay.accepted) == JOBS
    assert await worker.metric('otp_ledger_unacked{lane="jobs"}') == 0


async def test_a_relay_that_throttles_is_probed_by_one_job_at_a_time(stage: Stage) -> None:
    ledger = Ledger(stage)
    stage.relay.always("mail", "450 4.7.0 rate limit exceeded")
    worker = stage.worker(SMTP_POOL_SIZE=str(CONNECTIONS))
    await worker.start()
    await ledger.publish(JOBS)
    await worker.wait_log('"reason":"throttled"')

    async def answered() -> bool:
        return await worker.metric(f'otp_relay_sends_in_flight{{relay="127.0.0.1:{stage.relay.port}"}}') == 0

    await until(answered, "answer to all that was on the wire")
    probes, mails = await _after_a_probe(stage, worker)
    more_probes, more_mails = await _after_a_probe(stage, worker, probes + 1)
    assert more_mails - mails == more_probes - probes
    stage.relay.always("mail", None)
    ledger.fault_ended()
    await ledger.balance()
    row = ledger.row("relay throttles: one job probes at a time")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)
    assert "job will be retried" not in worker.log


async def _after_a_probe(stage: Stage, worker: Worker, least: int = 1) -> tuple[int, int]:
    """Wait until `least` probes have ended. Returns how many have, and how often the relay has read MAIL."""

    async def ended() -> tuple[int, int] | None:
        before = worker.log
        mails, probes = stage.relay.commands().count("MAIL"), before.count("circuit breaker half-open")
        is_open = before.count("circuit breaker open") > probes
        # no other probe has begun since
        return (probes, mails) if is_open and probes >= least and worker.log == before else None

    return await until(ended, f"end of probe {least}", 30) or (0, 0)
