"""Two relays: jobs go to the second while the first takes none, and back; a copy goes where its original may be."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from conftest import Stage
from ledger import Ledger
from patience import deadline
from rabbitmq import until
from smtp_relay import Act, ScriptedRelay
from stalls import Stalls, stalls
from worker import Worker

JOBS = 60
TAKEN_THEN_CLOSED = Act(reply="", keep=True, then="close")


@pytest.fixture
async def second() -> AsyncIterator[ScriptedRelay]:
    async with ScriptedRelay() as relay:
        yield relay


@pytest.fixture
async def stalled() -> AsyncIterator[Stalls]:
    async with stalls() as counted:
        yield counted


@pytest.fixture
def ledger(stage: Stage, second: ScriptedRelay) -> Ledger:
    return Ledger(stage, second)


async def begin(stage: Stage, second: ScriptedRelay, **changes: str) -> Worker:
    url = f"smtp://127.0.0.1:{second.port}?tls=none"
    worker = stage.worker(SMTP_POOL_SIZE="5", SMTP_FALLBACK_URLS=url, **changes)
    await worker.start()
    return worker


async def test_jobs_move_to_the_next_relay_and_back(
    stage: Stage, second: ScriptedRelay, ledger: Ledger, stalled: Stalls
) -> None:
    worker = await begin(stage, second)
    await ledger.publish(JOBS)
    await stage.relay.wait(lambda: not ledger.lost, "accepted mails")
    assert not second.accepted or stalled.count
    await stage.relay.stop()
    await ledger.publish(JOBS)
    await second.wait(lambda: not ledger.lost, "mails at the fallback")
    status, _ = await worker.get("/readyz")
    assert status == 200  # degraded, and codes go out
    await stage.relay.start()
    ledger.fault_ended()
    ends = deadline(30)
    while "circuit breaker closed" not in worker.log:  # a job is the probe
        assert time.monotonic() < ends
        await ledger.publish(1)
        await asyncio.sleep(0.1)
    await ledger.balance()
    taken = len(second.accepted)
    await ledger.publish(JOBS)
    await ledger.balance()
    row = ledger.row("first relay down: to the fallback and back")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)
    assert len(second.accepted) == taken or stalled.count
    assert "job will be retried" not in worker.log


@pytest.mark.parametrize(
    ("step", "act"),
    [
        ("body", Act("454 Throttling failure: Maximum sending rate exceeded.")),
        ("mail", Act("421 4.3.2 shutting down", then="close")),
        ("greeting", Act("554 5.7.1 not you", then="close")),
        pytest.param("greeting", Act("", then="hang"), marks=pytest.mark.waits),
        pytest.param("mail", Act("", then="hang"), marks=pytest.mark.waits),
    ],
    ids=["throttles", "shuts down", "refuses this host", "sends no greeting", "does not reply to MAIL"],
)
async def test_the_second_relay_takes_over_in_every_fault_of_the_first(
    stage: Stage, second: ScriptedRelay, ledger: Ledger, step: str, act: Act, request: pytest.FixtureRequest
) -> None:
    stage.relay.always(step, act)
    worker = await begin(stage, second)
    await ledger.publish(JOBS)
    # mails in flight there wait until the relay closes
    await second.wait_accepted(JOBS - 5, timeout=30)
    stage.relay.always(step, None)
    await stage.relay.stop()
    await stage.relay.start()
    ledger.fault_ended()
    await ledger.balance()
    row = ledger.row(f"first relay {request.node.callspec.id}: to the fallback")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)
    assert "job will be retried" not in worker.log


async def test_with_both_down_jobs_wait_for_the_first_that_recovers(
    stage: Stage, second: ScriptedRelay, ledger: Ledger
) -> None:
    await stage.relay.stop()
    await second.stop()
    worker = await begin(stage, second)
    await ledger.publish(JOBS)
    await worker.wait_log(f'"relay":"127.0.0.1:{second.port}","reason":"unreachable"')
    await second.start()
    ledger.fault_ended()
    await ledger.balance()
    row = ledger.row("both relays down, the fallback comes back")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)
    assert len(second.accepted) == JOBS


async def test_a_copy_goes_where_its_original_may_be(stage: Stage, second: ScriptedRelay, ledger: Ledger) -> None:
    await stage.relay.stop()
    second.then("body", TAKEN_THEN_CLOSED)
    await begin(stage, second, BASE_DELAY_MS="4000")
    await ledger.publish(1)
    await second.wait_accepted(1)
    # the first is back long before the copy is due, and takes everything else
    await stage.relay.start()
    ends = deadline(30)
    while not stage.relay.accepted:
        assert time.monotonic() < ends
        await ledger.publish(1)
        await asyncio.sleep(0.2)
    ledger.fault_ended()

    async def copied() -> bool:
        return "job0" in ledger.duplicated

    await until(copied, "copy")
    await ledger.balance()
    row = ledger.row("fallback accepts a mail without a reply: sent again")
    assert (row.lost, ledger.duplicated) == (0, {"job0"})
    assert sum(mail.recipient == "job0@example.com" for mail in second.accepted) == 2
    assert ledger.copies_are_identical


async def test_a_recipient_that_is_refused_is_not_tried_elsewhere(
    stage: Stage, second: ScriptedRelay, ledger: Ledger, stalled: Stalls
) -> None:
    stage.relay.always("rcpt", "550 5.1.1 no such user", to="job7@example.com")
    worker = await begin(stage, second)
    await ledger.publish(JOBS)
    await ledger.balance()
    row = ledger.row("first relay refuses one recipient: no fallback")
    assert (row.lost, row.duplicated, ledger.reasons) == (0, 0, {"rejected": 1})
    assert "job7@example.com" not in str(second.log)
    assert not second.connections or stalled.count
    assert "circuit breaker open" not in worker.log
