"""One tenant has trouble, or a backlog: the codes of the others are sent as before, and none of its jobs is lost."""

import asyncio
from collections.abc import AsyncIterator
from time import monotonic

import pytest
from conftest import LONG, Stage
from ledger import Ledger, Row
from rabbitmq import until
from smtp_relay import SILENCE, Act, ScriptedRelay
from tenants import at, job_of, tenants_toml, write
from worker import Worker

BACKLOG = 50_000 if LONG else 2_000
TROUBLE = 200
"""Jobs of the tenant that has trouble."""
OTHERS = 100
GOOD = {"sender_email": "no-reply@good.example"}
REFUSED = "no-reply@bad.example"


@pytest.fixture
async def own() -> AsyncIterator[ScriptedRelay]:
    """The relay of the tenant that has trouble."""
    async with ScriptedRelay() as relay:
        yield relay


async def run(stage: Stage, trouble: dict[str, object], **changes: str) -> Worker:
    file = stage.folder / "tenants.toml"
    write(file, tenants_toml({"trouble": trouble, "good": GOOD}))
    return await stage.run(TENANTS_FILE=str(file), PREFETCH_COUNT="50", **changes)


async def others(stage: Stage, case: str) -> Row:
    """Publish single codes of another tenant while there is trouble, and wait until they are sent."""
    ledger = Ledger(stage)
    for _ in range(OTHERS):
        await ledger.publish(1, metadata={"tenant": "good"})
        await asyncio.sleep(0.02)
    await stage.relay.wait(lambda: not ledger.lost, "mails of the others")
    return ledger.row(f"tenants: {case}; the others")


def check(row: Row, sent: list[str], count: int) -> None:
    assert (row.lost, row.duplicated, row.expired) == (0, 0, 0)
    assert row.late_p99_ms < 10_000  # a busy machine; a job that waits for the trouble takes much longer
    assert len(set(sent)) == len(sent) == count


@pytest.mark.waits
@pytest.mark.parametrize(
    ("step", "act", "case"),
    [
        ("greeting", SILENCE, "its relay does not greet"),
        ("mail", SILENCE, "its relay hangs at MAIL"),
        ("body", Act(delay_s=5), "its relay takes 5 s for its last reply"),
        ("rcpt", Act("450 4.2.0 later"), "its relay defers every recipient"),
        ("ehlo", Act("421 4.3.2 closing"), "its relay closes every connection"),
    ],
)
async def test_the_relay_of_one_tenant_is_in_trouble(
    stage: Stage, own: ScriptedRelay, step: str, act: Act, case: str
) -> None:
    own.always(step, act)
    worker = await run(stage, at(own), MAX_RETRIES="100", BASE_DELAY_MS="500", MAX_DELAY_MS="1000")
    await stage.rabbit.publish(*(job_of("trouble", number) for number in range(TROUBLE)))

    async def is_busy() -> bool:
        return own.connections > 0

    await until(is_busy, "a connection of the tenant in trouble")
    row = await others(stage, case)
    own.always(step, None)
    if act.then == "hang":  # a connection that is cut after the relay has accepted a mail would double it
        own.cut()
    await own.wait_accepted(TROUBLE, 90)
    check(row, [mail.recipient for mail in own.accepted], TROUBLE)
    await stage.rabbit.wait_depth(0, f"{stage.rabbit.prefix}.tenant.trouble")
    await worker.stop()


@pytest.mark.waits
async def test_the_relay_of_one_tenant_is_down(stage: Stage, own: ScriptedRelay) -> None:
    await own.stop()
    worker = await run(stage, at(own))
    await stage.rabbit.publish(*(job_of("trouble", number) for number in range(TROUBLE)))
    await worker.wait_log("relay takes no mail: circuit breaker open")
    row = await others(stage, "its relay is down")
    await own.start()
    await own.wait_accepted(TROUBLE, 90)
    check(row, [mail.recipient for mail in own.accepted], TROUBLE)


@pytest.mark.waits
async def test_the_shared_relay_refuses_the_sender_of_one_tenant(stage: Stage) -> None:
    stage.relay.always("mail", f"553 5.7.1 <{REFUSED}>: Sender address rejected: not owned by user", by=REFUSED)
    await run(stage, {"sender_email": REFUSED})
    await stage.rabbit.publish(*(job_of("trouble", number) for number in range(TROUBLE)))
    await stage.relay.wait(lambda: any(REFUSED in line for _, line in stage.relay.log), "refused senders")
    row = await others(stage, "the shared relay refuses its sender")
    stage.relay.always("mail", None, by=REFUSED)
    await stage.relay.wait_accepted(OTHERS + TROUBLE, 90)
    check(row, [it.recipient for it in stage.relay.accepted if it.sender == REFUSED], TROUBLE)


@pytest.mark.waits
@pytest.mark.parametrize(
    ("step", "reply"),
    [
        ("mail", "450 4.7.1 Sender rate limit exceeded, try again later"),
        ("rcpt", f"450 4.7.1 <{REFUSED}>: Sender address rejected: Policy rejection: Message quota exceeded"),
        ("body", f"451 4.3.2 sender {REFUSED} thread limit exceeded"),
    ],
)
async def test_the_shared_relay_limits_the_rate_of_one_sender(stage: Stage, step: str, reply: str) -> None:
    """Five mails a second of the tenant that floods. The limit neither slows nor stops the relay for the others."""
    limit = _SenderLimit(stage.relay, step, reply, per_s=5)
    worker = await run(stage, {"sender_email": REFUSED})
    await stage.rabbit.publish(*(job_of("trouble", number) for number in range(TROUBLE)))
    await stage.relay.wait(lambda: limit.refusals > 0, "refused mails")
    row = await others(stage, f"the shared relay limits its sender at {step.upper()}")
    assert limit.refusals < limit.attempts
    before = limit.accepted
    await stage.relay.wait(lambda: limit.accepted >= before + 10, "mails that the limit lets through", 60)
    assert "circuit breaker open" not in worker.log
    assert "relay throttles" not in worker.log
    assert "relay refuses the tenant's sender: its jobs wait" in worker.log
    limit.per_s = TROUBLE
    await stage.relay.wait_accepted(OTHERS + TROUBLE, 60)
    check(row, [it.recipient for it in stage.relay.accepted if it.sender == REFUSED], TROUBLE)


class _SenderLimit:
    """Lets `per_s` mails of one sender pass a step of the relay in each second."""

    def __init__(self, relay: ScriptedRelay, step: str, reply: str, per_s: int) -> None:
        self.per_s = per_s
        self.attempts = self.accepted = 0
        self._step, self._reply = step, reply
        self._second = self._in_second = 0
        self._usual = relay.act
        relay.act = self._act

    @property
    def refusals(self) -> int:
        """How many mails did not pass."""
        return self.attempts - self.accepted

    def _act(self, step: str, recipient: str | None, sender: str | None = None) -> Act:
        if step != self._step or sender != REFUSED:
            return self._usual(step, recipient, sender)
        if self._second != (second := int(monotonic())):
            self._second, self._in_second = second, 0
        self.attempts += 1
        self._in_second += 1
        if self._in_second > self.per_s:
            return Act(self._reply)
        self.accepted += 1
        return Act()


@pytest.mark.waits
async def test_one_tenant_has_a_backlog_at_the_shared_relay(stage: Stage) -> None:
    """The relay takes ten mails at a time, 0.1 s each, so the backlog alone needs much longer than the others."""
    stage.relay.always("body", Act(delay_s=0.1))
    await run(stage, {"sender_email": REFUSED}, SMTP_POOL_SIZE="10")
    for start in range(0, BACKLOG, 1_000):
        await stage.rabbit.publish(*(job_of("trouble", start + number) for number in range(1_000)))
    row = await others(stage, f"it has a backlog of {BACKLOG:,} at the shared relay")
    assert row.late_p99_ms < 10_000
    assert len(stage.relay.accepted) < OTHERS + BACKLOG
    stage.relay.always("body", None)
    await stage.relay.wait_accepted(OTHERS + BACKLOG, 60 + BACKLOG / 100)
    sent = [it.recipient for it in stage.relay.accepted]
    assert (row.lost, row.duplicated, len(set(sent)), len(sent)) == (0, 0, OTHERS + BACKLOG, OTHERS + BACKLOG)
