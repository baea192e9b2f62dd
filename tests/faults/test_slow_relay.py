"""Two relays, of which the first is slow: mails go to the second while their content has not been sent, once each."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest
from conftest import LONG, Stage
from ledger import Ledger, Row
from rabbitmq import until
from smtp_relay import KEYWORDS, SILENCE, Act, ScriptedRelay
from stalls import stalls
from worker import Worker

JOBS = 300
PER_S = 30
DOMAINS = ("example.com", "example.org", "example.net", "one.example", "two.example", "three.example")
STALL = Act(delay_s=60 if LONG else 15)
STEPS = {"greeting": "the greeting", "mail": "MAIL", "rcpt": "RCPT", "data": "DATA"}


@pytest.fixture
async def second() -> AsyncIterator[ScriptedRelay]:
    async with ScriptedRelay() as relay:
        yield relay


@pytest.fixture
def ledger(stage: Stage, second: ScriptedRelay) -> Ledger:
    return Ledger(stage, second, DOMAINS)


async def begin(stage: Stage, second: ScriptedRelay, warm_up: Ledger) -> Worker:
    """Start a worker that knows how long the first relay usually takes."""
    url = f"smtp://127.0.0.1:{second.port}?tls=none"
    worker = await stage.run(SMTP_POOL_SIZE="20", SMTP_FALLBACK_URLS=url)
    await warm_up.publish(60)
    await stage.relay.wait_accepted(60)
    return worker


async def flow(
    ledger: Ledger, count: int = JOBS, at_each: Callable[[float], None] = lambda _: None, per_s: float = PER_S
) -> None:
    """Publish jobs at a steady rate. Calls `at_each` before each one with the part of the jobs that is done."""
    began = time.monotonic()
    for number in range(count):
        at_each(number / count)
        await ledger.publish(1)
        await asyncio.sleep(max(began + number / per_s - time.monotonic(), 0))


def check(row: Row, ledger: Ledger, second: ScriptedRelay) -> None:
    """Check what holds in every case: nothing is lost or sent twice, nor begun at the second relay for nothing."""
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)
    transactions = second.commands().count("MAIL")
    assert transactions <= max(len(second.accepted) * 1.05, 1)


@pytest.mark.waits
@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelining", "no pipelining"])
@pytest.mark.parametrize("step", STEPS)
async def test_one_in_five_stalls(
    stage: Stage, second: ScriptedRelay, ledger: Ledger, step: str, *, pipelining: bool
) -> None:
    if not pipelining:
        stage.relay.keywords = tuple(it for it in KEYWORDS if it != "PIPELINING")
    worker = await begin(stage, second, ledger)
    if step == "greeting":
        stage.relay.cut()
    stage.relay.every(5, step, SILENCE)
    await flow(ledger)
    await ledger.balance()
    without = "" if pipelining else ", without PIPELINING"
    row = ledger.row(f"slow: 20 % of transactions stall at {STEPS[step]}{without}")
    check(row, ledger, second)
    assert row.late_p99_ms < 10_000
    if step != "greeting":
        assert second.accepted
        name = f"127.0.0.1:{stage.relay.port}"
        assert await worker.metric(f'otp_relay_switches_total{{relay="{name}",step="{step}"}}') > 0
        assert f'"switched_from":"{name}"' in worker.log

        async def shown() -> bool:
            return "Left for a faster relay by" in (await worker.get("/"))[1]

        await until(shown, "switches on the page")


@pytest.mark.waits
async def test_one_in_five_stalls_at_the_last_reply(stage: Stage, second: ScriptedRelay, ledger: Ledger) -> None:
    """A mail whose content has been sent never changes its relay."""
    await begin(stage, second, ledger)
    stage.relay.every(5, "body", STALL)
    await flow(ledger)
    await ledger.balance(90)
    row = ledger.row("slow: 20 % of transactions stall at the final dot")
    check(row, ledger, second)
    assert second.accepted


@pytest.mark.waits
async def test_one_in_five_stalls_at_rcpt_of_a_relay_that_takes_chunks(
    stage: Stage, second: ScriptedRelay, ledger: Ledger
) -> None:
    stage.relay.keywords = (*KEYWORDS, "CHUNKING")
    await begin(stage, second, ledger)
    stage.relay.every(5, "rcpt", STALL)
    await flow(ledger)
    await ledger.balance(90)
    row = ledger.row("slow: 20 % of transactions stall at RCPT, with CHUNKING")
    check(row, ledger, second)
    assert second.accepted


@pytest.mark.waits
@pytest.mark.parametrize(("step", "name"), [("rcpt", "RCPT"), ("body", "the final dot")])
async def test_the_latency_creeps_up(stage: Stage, second: ScriptedRelay, ledger: Ledger, step: str, name: str) -> None:
    await begin(stage, second, ledger)

    def creep(part: float) -> None:
        stage.relay.always(step, Act(delay_s=min(0.02 * 400 ** (part * 1.25), 8.0)))

    await flow(ledger, JOBS * (4 if LONG else 2), creep, per_s=20)
    await ledger.balance()
    row = ledger.row(f"slow: latency creeps from 20 ms to 8 s at {name}")
    check(row, ledger, second)
    assert second.accepted


@pytest.mark.waits
async def test_it_is_slow_for_one_domain(stage: Stage, second: ScriptedRelay, ledger: Ledger) -> None:
    worker = await begin(stage, second, ledger)
    stage.relay.always("rcpt", SILENCE, to="@example.net")
    async with stalls() as stalled:
        await flow(ledger)
        await ledger.balance()
    row = ledger.row("slow: for one domain of six")
    check(row, ledger, second)
    assert row.late_p99_ms < 10_000
    others = [mail for mail in second.accepted if not mail.recipient.endswith("@example.net")]
    assert "relay is slow for some domains" in worker.log
    if not stalled.count:  # otherwise, the relay was slow for all
        assert len(others) <= JOBS * 0.02
        assert "relay is slow: most mails" not in worker.log


@pytest.mark.waits
async def test_all_are_slow(stage: Stage, second: ScriptedRelay, ledger: Ledger) -> None:
    worker = await begin(stage, second, ledger)
    for relay in (stage.relay, second):
        relay.always("rcpt", Act(delay_s=3))
    await flow(ledger, JOBS // 3, per_s=5)
    await ledger.balance()
    row = ledger.row("slow: both relays, 3 s at RCPT")
    check(row, ledger, second)
    # each job changes its relay once at most, and few do
    assert len(second.accepted) < 40
    assert worker.log.count("relay is slow") <= 4
