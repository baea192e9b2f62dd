"""Delivery of one job, with fakes for everything that it uses."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from otp_stream.core.admission import Limit, LimitName, SentBefore, Unknown
from otp_stream.core.backoff import Backoff
from otp_stream.core.decision import Ack, Dead, Final, Park, Retry
from otp_stream.core.job import Job
from otp_stream.core.mail import ComposeError, Mail, OutdatedMailError, TenantRemovedError
from otp_stream.core.otp_job import OtpJob
from otp_stream.core.outcome import Accepted, Deferred, Outcome, Rejected, Reply, TimedOut, Unavailable, Uncertain
from otp_stream.delivery import HOLD_LIMIT_MS, Delivery
from otp_stream.tables import KeyBuilder, MemoryTables, Tables, TenantLimits
from otp_stream.telemetry_errors import ERRORS

NOW = 1_700_000_000_000
OK = Accepted(Reply(250, None, "ok", "body"))
LATER = Deferred(Reply(451, None, "later", "rcpt"))


def make_tables(*limits: Limit, supersede: bool = False) -> Tables:
    memory = MemoryTables(limits, sent_ttl_ms=86_400_000, sent_limit=1_000)
    return Tables(KeyBuilder(b"k" * 32, supersede=supersede, limits=limits), memory, now_ms=lambda: NOW)


@dataclass
class Fakes:
    """Composer, relay and observer in one."""

    outcomes: list[Outcome | Exception | Callable[[], Awaitable[Outcome]]] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    sends: list[dict[str, Any]] = field(default_factory=list)
    observed: list[tuple[str, Any]] = field(default_factory=list)
    settlements: list[Final] = field(default_factory=list)
    settles: bool = True
    now_ms: int = NOW
    tables: Tables = field(default_factory=make_tables)
    compose_error: ComposeError | None = None
    sent: list[Mail] = field(default_factory=list)
    wanted: Callable[[], bool] | None = None
    resend_uncertain: bool = True
    settle: Callable[[Final], Awaitable[bool]] | None = None
    """Called for each settlement instead of returning `settles`."""

    def compose(self, job: Job) -> Mail:
        self.steps.append("render")
        if self.compose_error:
            raise self.compose_error
        return Mail(job.request.email, b"mail %d" % self.steps.count("render"))

    async def compose_isolated(self, job: Job) -> Mail:
        self.steps.append("isolated")
        return self.compose(job)

    async def send(self, mail: Mail, **arguments: Any) -> Outcome:
        self.steps.append("send")
        self.sent.append(mail)
        self.wanted = arguments.pop("wanted")
        self.sends.append(arguments)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return await outcome() if callable(outcome) else outcome

    rechecks: int = 0
    ended: list[str] = field(default_factory=list)
    """The settlement, and the calls of telemetry after a span's body, in order."""
    failing: frozenset[str] = frozenset()
    """The calls of telemetry that raise."""

    def recheck(self) -> None:
        self.rechecks += 1

    def job_span(self, job: Job, trace_context: object) -> AbstractContextManager[None]:
        self.fail("job")
        return self.span("job")

    def send_span(self) -> AbstractContextManager[None]:
        self.fail("send")
        return self.span("send")

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        self.fail(f"enter {name}")
        yield
        self.ended.append(name)
        self.fail(f"exit {name}")

    def fail(self, name: str) -> None:
        if name in self.failing:
            raise KeyError(name)

    def send_ended(self, outcome: Outcome) -> None:
        self.ended.append("send_ended")
        self.fail("send_ended")

    def attempt_ended(self, job: Job, outcome: Outcome) -> None:
        self.observed.append(("attempt_ended", outcome))
        self.ended.append("attempt_ended")
        self.fail("attempt_ended")

    def job_settled(self, job: Job, settlement: Final) -> None:
        self.observed.append(("job_settled", settlement))
        self.ended.append("job_settled")
        self.fail("job_settled")

    def settlement_failed(self, job: Job, settlement: Final) -> None:
        self.observed.append(("settlement_failed", settlement))
        self.fail("settlement_failed")

    async def deliver(self, job: Job) -> Final | None:
        delivery = Delivery(
            self, self, self.tables, self, Backoff(1000, 30000, 3),
            resend_uncertain=self.resend_uncertain, now_ms=lambda: self.now_ms, fraction=lambda: 0.0,
        )  # fmt: skip
        await delivery(job, _Settle(self), {})
        return self.settlements[-1] if self.settlements else None


@dataclass
class _Settle:
    fakes: Fakes

    def possible(self) -> bool:
        return self.fakes.settles

    async def __call__(self, settlement: Final) -> bool:
        self.fakes.steps.append("settle")
        self.fakes.ended.append("settle")
        self.fakes.settlements.append(settlement)
        if self.fakes.settle is not None:
            return await self.fakes.settle(settlement)
        return self.fakes.settles


def job(job_id: str = "j-1", *, attempts_made: int = 0, otp: str = "123456", at: int | None = None) -> Job:
    request = OtpJob.model_validate({"email": "user@example.com", "otp": otp, "timestamp": at})
    return Job.from_request(
        request, job_id=job_id, lane="jobs", first_seen_ms=NOW, attempts_made=attempts_made, default_expiry_minutes=15
    )


async def test_a_job_is_rendered_sent_and_settled_in_this_order() -> None:
    fakes = Fakes([OK])
    assert await fakes.deliver(job()) == Ack("sent")
    assert fakes.steps == ["render", "send", "settle"]
    assert fakes.observed == [("attempt_ended", OK), ("job_settled", Ack("sent"))]
    assert fakes.sends == [
        {"rank": 2, "lane": "jobs", "expires_ms": NOW + 900_000, "deadline_ms": NOW + HOLD_LIMIT_MS, "prefer": None}
    ]


SPANS = ("job", "send")
TELEMETRY = [
    *SPANS,
    *(f"{end} {span}" for end in ("enter", "exit") for span in SPANS),
    "attempt_ended",
    "job_settled",
    "settlement_failed",
]


@pytest.mark.parametrize("call", TELEMETRY)
async def test_an_exception_in_telemetry_changes_no_settlement_and_is_counted(call: str) -> None:
    before = ERRORS.count
    fakes = Fakes([OK, LATER, Rejected(Reply(550, None, "no", "rcpt"))], failing=frozenset({call}))
    assert await fakes.deliver(job()) == Ack("sent")
    assert await fakes.deliver(job("j-2")) == Retry(1000, 1, "451 later (to RCPT)")
    assert await fakes.deliver(job("j-3")) == Dead("rejected", "550 no (to RCPT)", 1)
    fakes.settles = False
    assert await fakes.deliver(job()) == Ack("duplicate")
    assert ERRORS.count > before


async def test_a_mail_that_the_relay_accepted_is_recorded_as_sent_before_any_telemetry_runs() -> None:
    fakes = Fakes([OK])
    asked: list[object] = []

    class Claims(Tables):
        def mark_sent(self, claim: Any) -> None:
            asked.append(list(fakes.ended))
            super().mark_sent(claim)

    fakes.tables = Claims(
        KeyBuilder(b"k" * 32), MemoryTables((), sent_ttl_ms=1_000, sent_limit=1_000), now_ms=lambda: NOW
    )
    await fakes.deliver(job())
    assert asked == [[]]
    assert fakes.ended == ["send_ended", "send", "settle", "attempt_ended", "job_settled", "job"]


async def test_a_suspect_job_is_composed_in_isolation() -> None:
    fakes = Fakes([OK])
    assert await fakes.deliver(replace(job(), suspect=True)) == Ack("sent")
    assert fakes.steps == ["isolated", "render", "send", "settle"]


async def test_a_mail_for_an_earlier_sender_or_relay_is_composed_again() -> None:
    fakes = Fakes([OutdatedMailError(), OutdatedMailError(), OK])
    assert await fakes.deliver(job()) == Ack("sent")
    assert [mail.content for mail in fakes.sent] == [b"mail 1", b"mail 2", b"mail 3"]


async def test_a_job_of_a_removed_tenant_is_read_again() -> None:
    fakes = Fakes(compose_error=TenantRemovedError("there is no tenant shop"))
    assert isinstance(await fakes.deliver(job()), Park)
    assert fakes.steps == ["render", "settle"]


async def test_a_limit_that_needs_a_restart_leaves_no_tenant_without_a_limit() -> None:
    old, new, total = Limit("recipient", 1, 60_000), Limit("recipient", 9, 60_000), Limit("total", 99, 60_000)
    own = frozenset[LimitName](("recipient",))
    tenants = {"": TenantLimits(frozenset({old})), "shop": TenantLimits(frozenset({old, total}), own)}
    memory = MemoryTables((old, total), sent_ttl_ms=86_400_000, sent_limit=1_000)
    tables = Tables(KeyBuilder(b"k" * 32, limits=(old, total), tenants=tenants), memory, now_ms=lambda: NOW)
    limits = TenantLimits(frozenset({new, total}), own)
    assert tables.use_tenants({"": tenants[""], "shop": limits, "later": limits}) == {new}
    for tenant in ("shop", "later", ""):
        fakes = Fakes([OK], tables=tables)
        assert await fakes.deliver(replace(job(f"{tenant}1"), tenant=tenant)) == Ack("sent")
        refused = await fakes.deliver(replace(job(f"{tenant}2"), tenant=tenant))
        assert isinstance(refused, Dead)
        assert refused.reason == "throttled"


async def test_an_expired_job_is_not_sent() -> None:
    fakes = Fakes(now_ms=NOW + 900_000)
    settlement = await fakes.deliver(job())
    assert isinstance(settlement, Dead)
    assert settlement.reason == "expired"
    assert fakes.steps == ["settle"]


async def test_a_job_that_was_sent_is_a_duplicate_and_one_that_failed_is_not() -> None:
    fakes = Fakes([LATER, OK])
    assert await fakes.deliver(job()) == Retry(1000, 1, "451 later (to RCPT)")
    assert await fakes.deliver(job(attempts_made=1)) == Ack("sent")
    assert await fakes.deliver(job()) == Ack("duplicate")


async def test_two_copies_at_once_are_sent_once() -> None:
    release = asyncio.Event()

    async def slowly() -> Outcome:
        await release.wait()
        return OK

    fakes = Fakes([slowly])
    copies = [asyncio.create_task(fakes.deliver(job())) for _ in range(2)]
    await asyncio.sleep(0)
    release.set()
    await asyncio.gather(*copies)
    assert sorted(settlement.ending for settlement in fakes.settlements if isinstance(settlement, Ack)) == [
        "duplicate", "sent",
    ]  # fmt: skip


async def test_an_open_circuit_breaker_costs_no_attempt() -> None:
    unavailable = Unavailable("unreachable", "refused")
    fakes = Fakes([unavailable, unavailable, OK])
    assert await fakes.deliver(job()) == Ack("sent")
    assert len(fakes.sends) == 3


async def test_a_job_is_unacked_no_longer_than_the_broker_allows() -> None:
    fakes = Fakes([TimedOut()])
    long = Job.from_request(
        job().request, job_id="j", lane="jobs", first_seen_ms=NOW, attempts_made=2, default_expiry_minutes=600
    )
    assert await fakes.deliver(long) == Park(5200)
    assert fakes.sends[0]["deadline_ms"] == NOW + HOLD_LIMIT_MS


async def test_a_job_whose_template_fails_has_crashed_and_is_not_sent() -> None:
    fakes = Fakes(compose_error=ComposeError("template otp/body.txt: 'x' is undefined"))
    assert await fakes.deliver(job()) == Dead("crashed", "template otp/body.txt: 'x' is undefined", 0)
    assert "send" not in fakes.steps


async def test_an_exception_in_the_relay_dead_letters_the_job_and_reveals_no_secret() -> None:
    fakes = Fakes([ValueError("user@example.com 123456")])
    assert await fakes.deliver(job()) == Dead("crashed", "internal error: ValueError", 0)


async def test_a_code_and_an_address_quoted_by_the_relay_are_redacted() -> None:
    fakes = Fakes([Rejected(Reply(550, None, "<user@example.com> 123456 no", "rcpt"))])
    settlement = await fakes.deliver(job())
    assert settlement == Dead("rejected", "550 <***> *** no (to RCPT)", 1)


async def test_a_failed_settlement_is_reported_and_the_mail_is_not_sent_twice() -> None:
    fakes = Fakes([OK], settles=False)
    await fakes.deliver(job())
    assert fakes.observed[-1] == ("settlement_failed", Ack("sent"))
    fakes.settles = True
    assert await fakes.deliver(job()) == Ack("duplicate")


async def test_a_cancelled_job_releases_its_claim() -> None:
    async def never() -> Outcome:
        await asyncio.Event().wait()
        return OK

    fakes = Fakes([never, OK])
    task = asyncio.create_task(fakes.deliver(job()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await fakes.deliver(job()) == Ack("sent")


async def test_a_job_over_a_limit_is_dead_with_when_it_would_be_allowed() -> None:
    fakes = Fakes([OK], tables=make_tables(Limit("recipient", 1, 600_000)))
    assert await fakes.deliver(job()) == Ack("sent")
    settlement = await fakes.deliver(job("j-2"))
    assert settlement == Dead(
        "throttled", "over RECIPIENT_LIMIT=1/10m: allowed again at 2023-11-14T22:23:24Z", 0, NOW + 604_000
    )
    assert fakes.steps.count("send") == 1


async def test_a_job_that_waits_for_the_relay_ends_as_superseded_when_a_newer_code_arrives() -> None:
    fakes = Fakes(tables=make_tables(supersede=True))

    async def until_unwanted() -> Outcome:
        wanted = fakes.wanted
        assert wanted is not None
        assert wanted()
        assert await fakes.deliver(job("j-2", otp="222222", at=NOW)) == Ack("sent")
        assert not wanted()
        assert fakes.rechecks == 1  # so that the send queue drops the older mail at once
        return TimedOut()

    # the newer one has a timestamp that is not older, and arrives later
    fakes.outcomes = [until_unwanted, OK]
    assert await fakes.deliver(job("j-1", otp="111111", at=NOW)) == Ack("superseded")
    assert fakes.settlements == [Ack("sent"), Ack("superseded")]


async def test_a_job_whose_mail_cannot_be_made_does_not_supersede_the_one_that_waits() -> None:
    fakes = Fakes(tables=make_tables(supersede=True))

    async def waits() -> Outcome:
        wanted = fakes.wanted
        assert wanted is not None
        fakes.compose_error = ComposeError("no template no-such")
        assert await fakes.deliver(job("j-2", otp="222222", at=NOW)) == Dead("crashed", "no template no-such", 0)
        assert wanted()
        return OK

    fakes.outcomes = [waits]
    assert await fakes.deliver(job("j-1", otp="111111", at=NOW)) == Ack("sent")


async def test_a_job_that_was_sent_is_a_duplicate_even_where_its_mail_can_no_longer_be_made() -> None:
    fakes = Fakes([OK])
    assert await fakes.deliver(job()) == Ack("sent")
    fakes.compose_error = ComposeError("no template otp")
    assert await fakes.deliver(job()) == Ack("duplicate")


async def test_an_id_with_another_code_is_another_job_and_is_sent() -> None:
    fakes = Fakes([OK, OK])
    assert await fakes.deliver(job()) == Ack("sent")
    assert await fakes.deliver(job(otp="654321")) == Ack("sent")
    assert await fakes.deliver(job(otp="654321")) == Ack("duplicate")


async def test_a_job_whose_claim_was_lost_and_renewed_is_queued_again() -> None:
    fakes = Fakes(tables=_LostOnce())
    fakes.outcomes = [TimedOut(), OK]
    assert await fakes.deliver(job()) == Ack("sent")
    assert len(fakes.sends) == 2


async def test_a_job_is_parked_if_the_tables_do_not_answer() -> None:
    fakes = Fakes(tables=_Silent())
    assert await fakes.deliver(job()) == Park(5200)
    assert "send" not in fakes.steps


class _LostOnce(Tables):
    """Its first claim does not hold until it is renewed."""

    def __init__(self) -> None:
        super().__init__(KeyBuilder(b"k"), MemoryTables((), sent_ttl_ms=1000, sent_limit=10))
        self.renewals = 0

    @property
    def may_send(self) -> bool:
        return self.renewals > 0

    async def renew(self, *args: Any) -> Any:
        self.renewals += 1
        return await super().renew(*args)


class _Silent(Tables):
    def __init__(self) -> None:
        super().__init__(KeyBuilder(b"k"), MemoryTables((), sent_ttl_ms=1000, sent_limit=10))

    async def admit(self, *args: Any, **_: Any) -> Any:
        return Unknown()


MAYBE = Uncertain("the connection was lost, after the final dot", "relay:25")


async def test_a_mail_that_the_relay_may_have_is_sent_once_more_and_to_the_same_relay() -> None:
    fakes = Fakes([MAYBE, MAYBE])
    first = await fakes.deliver(job())
    assert isinstance(first, Retry)
    assert first.uncertain == "relay:25"
    second = await fakes.deliver(replace(job(attempts_made=1), uncertain="relay:25"))
    assert isinstance(second, Dead)
    assert (second.reason, second.attempt) == ("retries_exhausted", 2)
    assert [it["prefer"] for it in fakes.sends] == [None, "relay:25"]


async def test_a_mail_that_the_relay_may_have_is_not_sent_again_where_that_is_not_wanted() -> None:
    fakes = Fakes([MAYBE], resend_uncertain=False)
    settlement = await fakes.deliver(job())
    assert isinstance(settlement, Dead)
    assert settlement.reason == "retries_exhausted"


async def test_outcomes_are_reported_without_code_and_address() -> None:
    fakes = Fakes([Uncertain("lost after 123456 for user@example.com", "relay:25")])
    await fakes.deliver(job())
    assert fakes.observed[0][0] == "attempt_ended"
    assert "123456" not in str(fakes.observed) + str(fakes.settlements)
    assert "user@" not in str(fakes.observed) + str(fakes.settlements)


async def test_rank_lane_and_times_of_a_job_reach_the_relay() -> None:
    fakes = Fakes([OK, OK])
    request = job().request
    urgent = Job.from_request(
        request, job_id="a", lane="high", first_seen_ms=NOW, attempts_made=0, default_expiry_minutes=5
    )
    waited = Job.from_request(
        request, job_id="b", lane="due", first_seen_ms=NOW, attempts_made=1, default_expiry_minutes=600
    )
    await fakes.deliver(urgent)
    await fakes.deliver(waited)
    # no job waits for longer than its code lives, nor than the broker allows
    assert fakes.sends == [
        {"rank": 0, "lane": "high", "expires_ms": NOW + 300_000, "deadline_ms": NOW + 300_000, "prefer": None},
        {"rank": 2, "lane": "due", "expires_ms": NOW + 36_000_000, "deadline_ms": NOW + HOLD_LIMIT_MS, "prefer": None},
    ]


async def test_a_mail_is_not_wanted_once_the_broker_may_redeliver_its_job() -> None:
    fakes = Fakes()

    async def channel_closed() -> Outcome:
        wanted = fakes.wanted
        assert wanted is not None
        assert wanted()
        fakes.settles = False
        assert not wanted()
        return TimedOut()

    fakes.outcomes = [channel_closed]
    await fakes.deliver(job())
    assert fakes.observed[-1] == ("settlement_failed", Park(5200))


async def test_a_job_is_marked_as_sent_before_it_is_settled() -> None:
    # a worker that is killed in between must not send it again
    fakes = Fakes([OK])
    asked: list[object] = []

    async def settle(settlement: Final) -> bool:
        asked.append(await fakes.tables.admit(job(), NOW + 1_000))
        return True

    fakes.settle = settle
    async with asyncio.timeout(5):
        await fakes.deliver(job())
    assert asked == [SentBefore()]


@pytest.mark.parametrize("outcome", [LATER, Rejected(Reply(550, None, "no", "rcpt")), TimedOut(), ValueError("bug")])
async def test_a_job_that_was_not_sent_can_be_claimed_again(outcome: Outcome | Exception) -> None:
    fakes = Fakes([outcome, OK])
    await fakes.deliver(job())
    async with asyncio.timeout(5):
        assert await fakes.deliver(job()) == Ack("sent")


async def test_a_code_that_expired_while_its_mail_waited_is_dead_and_not_retried() -> None:
    fakes = Fakes()

    async def until_expired() -> Outcome:
        fakes.now_ms = NOW + 900_000
        return LATER

    fakes.outcomes = [until_expired]
    settlement = await fakes.deliver(job())
    assert isinstance(settlement, Dead)
    assert settlement.reason == "expired"


async def test_a_relay_that_is_away_until_the_code_expires_leaves_a_dead_letter() -> None:
    fakes = Fakes()

    async def until_expired() -> Outcome:
        fakes.now_ms = NOW + 900_000
        return Unavailable("unreachable", "refused")

    fakes.outcomes = [until_expired]
    settlement = await fakes.deliver(job())
    assert isinstance(settlement, Dead)
    assert (settlement.reason, settlement.attempt) == ("expired", 0)
