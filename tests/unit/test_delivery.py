"""The way of a job, with every room played by a fake."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from otp_stream.core.admission import Limit, SentBefore, Unknown
from otp_stream.core.backoff import Backoff
from otp_stream.core.decision import Ack, Dead, Final, Park, Retry
from otp_stream.core.job import Job
from otp_stream.core.mail import ComposeError, Mail
from otp_stream.core.otp_job import OtpJob
from otp_stream.core.outcome import Accepted, Deferred, Outcome, Rejected, Reply, TimedOut, Unavailable, Uncertain
from otp_stream.delivery import HOLD_LIMIT_MS, Delivery
from otp_stream.tables import KeyBuilder, MemoryTables, Tables
from otp_stream.telemetry_errors import ERRORS

NOW = 1_700_000_000_000
OK = Accepted(Reply(250, None, "ok", "body"))
LATER = Deferred(Reply(451, None, "later", "rcpt"))


def make_tables(*limits: Limit, supersede: bool = False) -> Tables:
    memory = MemoryTables(limits, sent_ttl_ms=86_400_000, sent_limit=1_000)
    return Tables(KeyBuilder(b"k" * 32, supersede=supersede, limits=limits), memory, now_ms=lambda: NOW)


@dataclass
class Rooms:
    """Composer, relay and observer in one."""

    outcomes: list[Outcome | Exception | Callable[[], Awaitable[Outcome]]] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    told: list[tuple[str, Any]] = field(default_factory=list)
    settlements: list[Final] = field(default_factory=list)
    stands: bool = True
    now_ms: int = NOW
    tables: Tables = field(default_factory=make_tables)
    compose_error: ComposeError | None = None
    wanted: Callable[[], bool] | None = None
    resend_uncertain: bool = True
    settle: Callable[[Final], Awaitable[bool]] | None = None
    """What a settlement does besides being kept, where it is given."""

    def compose(self, job: Job) -> Mail:
        if self.compose_error:
            raise self.compose_error
        return Mail(job.request.email, b"mail")

    async def compose_isolated(self, job: Job) -> Mail:
        self.steps.append("apart")
        return self.compose(job)

    async def send(self, mail: Mail, **asked: Any) -> Outcome:
        self.wanted = asked.pop("wanted")
        self.asked.append(asked)
        met = self.outcomes.pop(0)
        if isinstance(met, Exception):
            raise met
        return await met() if callable(met) else met

    rechecks: int = 0
    ended: list[str] = field(default_factory=list)
    """Calls of telemetry after a span's body, in order."""
    failing: frozenset[str] = frozenset()
    """The calls of telemetry that raise."""

    def recheck(self) -> None:
        self.rechecks += 1

    def job_span(self, job: Job, trace_context: object) -> AbstractContextManager[None]:
        self.fail("job")
        return self.span("job")

    def step_span(self, name: str) -> AbstractContextManager[None]:
        self.steps.append(name)
        self.fail(name)
        return self.span(name)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        self.fail(f"enter {name}")
        yield
        self.ended.append(name)
        self.fail(f"exit {name}")

    def fail(self, name: str) -> None:
        if name in self.failing:
            raise KeyError(name)

    def attempt_ended(self, job: Job, outcome: Outcome) -> None:
        self.told.append(("attempt_ended", outcome))
        self.ended.append("attempt_ended")
        self.fail("attempt_ended")

    def job_settled(self, job: Job, settlement: Final) -> None:
        self.told.append(("job_settled", settlement))
        self.ended.append("job_settled")
        self.fail("job_settled")

    def settlement_failed(self, job: Job, settlement: Final) -> None:
        self.told.append(("settlement_failed", settlement))
        self.fail("settlement_failed")

    async def deliver(self, job: Job) -> Final | None:
        way = Delivery(
            self, self, self.tables, self, Backoff(1000, 30000, 3),
            resend_uncertain=self.resend_uncertain, now_ms=lambda: self.now_ms, fraction=lambda: 0.0,
        )  # fmt: skip
        await way(job, _Settle(self), {})
        return self.settlements[-1] if self.settlements else None


@dataclass
class _Settle:
    rooms: Rooms

    def possible(self) -> bool:
        return self.rooms.stands

    async def __call__(self, settlement: Final) -> bool:
        self.rooms.settlements.append(settlement)
        if self.rooms.settle is not None:
            return await self.rooms.settle(settlement)
        return self.rooms.stands


def job(job_id: str = "j-1", *, attempts_made: int = 0, otp: str = "123456", at: int | None = None) -> Job:
    request = OtpJob.model_validate({"email": "user@example.com", "otp": otp, "timestamp": at})
    return Job.from_request(
        request, job_id=job_id, lane="jobs", first_seen_ms=NOW, attempts_made=attempts_made, default_expiry_minutes=15
    )


async def test_a_job_is_rendered_sent_and_settled_in_this_order() -> None:
    rooms = Rooms([OK])
    assert await rooms.deliver(job()) == Ack("sent")
    assert rooms.steps == ["render", "send", "settle"]
    assert rooms.told == [("attempt_ended", OK), ("job_settled", Ack("sent"))]
    assert rooms.asked == [
        {"rank": 2, "lane": "jobs", "expires_ms": NOW + 900_000, "deadline_ms": NOW + HOLD_LIMIT_MS, "prefer": None}
    ]


STEPS = ("job", "render", "send", "settle")
TELEMETRY = [
    *STEPS,
    *(f"{end} {step}" for end in ("enter", "exit") for step in STEPS),
    "attempt_ended",
    "job_settled",
    "settlement_failed",
]


@pytest.mark.parametrize("call", TELEMETRY)
async def test_an_exception_in_telemetry_changes_no_settlement_and_is_counted(call: str) -> None:
    before = ERRORS.count
    rooms = Rooms([OK, LATER, Rejected(Reply(550, None, "no", "rcpt"))], failing=frozenset({call}))
    assert await rooms.deliver(job()) == Ack("sent")
    assert await rooms.deliver(job("j-2")) == Retry(1000, 1, "451 later (to RCPT)")
    assert await rooms.deliver(job("j-3")) == Dead("rejected", "550 no (to RCPT)", 1)
    rooms.stands = False
    assert await rooms.deliver(job()) == Ack("duplicate")
    assert ERRORS.count > before


async def test_a_mail_that_the_relay_accepted_is_recorded_as_sent_before_any_telemetry_runs() -> None:
    rooms = Rooms([OK])
    asked: list[object] = []

    class Claims(Tables):
        def mark_sent(self, claim: Any) -> None:
            asked.append(list(rooms.ended))
            super().mark_sent(claim)

    rooms.tables = Claims(
        KeyBuilder(b"k" * 32), MemoryTables((), sent_ttl_ms=1_000, sent_limit=1_000), now_ms=lambda: NOW
    )
    await rooms.deliver(job())
    assert asked == [["render"]]
    assert rooms.ended == ["render", "send", "settle", "attempt_ended", "job_settled", "job"]


async def test_a_job_that_comes_again_is_composed_apart() -> None:
    rooms = Rooms([OK])
    assert await rooms.deliver(replace(job(), suspect=True)) == Ack("sent")
    assert rooms.steps == ["render", "apart", "send", "settle"]


async def test_an_expired_job_meets_no_relay() -> None:
    rooms = Rooms(now_ms=NOW + 900_000)
    settlement = await rooms.deliver(job())
    assert isinstance(settlement, Dead)
    assert settlement.reason == "expired"
    assert rooms.steps == ["settle"]


async def test_a_job_that_was_sent_is_a_duplicate_and_one_that_failed_is_not() -> None:
    rooms = Rooms([LATER, OK])
    assert await rooms.deliver(job()) == Retry(1000, 1, "451 later (to RCPT)")
    assert await rooms.deliver(job(attempts_made=1)) == Ack("sent")
    assert await rooms.deliver(job()) == Ack("duplicate")


async def test_two_copies_at_once_are_sent_once() -> None:
    let_go = asyncio.Event()

    async def slowly() -> Outcome:
        await let_go.wait()
        return OK

    rooms = Rooms([slowly])
    copies = [asyncio.create_task(rooms.deliver(job())) for _ in range(2)]
    await asyncio.sleep(0)
    let_go.set()
    await asyncio.gather(*copies)
    assert sorted(settlement.ending for settlement in rooms.settlements if isinstance(settlement, Ack)) == [
        "duplicate", "sent",
    ]  # fmt: skip


async def test_a_opened_breaker_holds_the_job_and_counts_nothing() -> None:
    away = Unavailable("unreachable", "refused")
    rooms = Rooms([away, away, OK])
    assert await rooms.deliver(job()) == Ack("sent")
    assert len(rooms.asked) == 3


async def test_a_job_is_held_no_longer_than_the_broker_allows() -> None:
    rooms = Rooms([TimedOut()])
    long = Job.from_request(
        job().request, job_id="j", lane="jobs", first_seen_ms=NOW, attempts_made=2, default_expiry_minutes=600
    )
    assert await rooms.deliver(long) == Park(5200)
    assert rooms.asked[0]["deadline_ms"] == NOW + HOLD_LIMIT_MS


async def test_a_template_that_fails_is_crashed_and_meets_no_relay() -> None:
    rooms = Rooms(compose_error=ComposeError("template otp/body.txt: 'x' is undefined"))
    assert await rooms.deliver(job()) == Dead("crashed", "template otp/body.txt: 'x' is undefined", 0)
    assert "send" not in rooms.steps


async def test_a_bug_in_the_relay_room_ends_the_job_visibly_and_tells_no_secret() -> None:
    rooms = Rooms([ValueError("user@example.com 123456")])
    assert await rooms.deliver(job()) == Dead("crashed", "internal error: ValueError", 0)


async def test_what_the_relay_quotes_never_leaves() -> None:
    rooms = Rooms([Rejected(Reply(550, None, "<user@example.com> 123456 no", "rcpt"))])
    settlement = await rooms.deliver(job())
    assert settlement == Dead("rejected", "550 <***> *** no (to RCPT)", 1)


async def test_a_settlement_that_does_not_stand_is_told_as_such_and_the_mail_is_not_sent_twice() -> None:
    rooms = Rooms([OK], stands=False)
    await rooms.deliver(job())
    assert rooms.told[-1] == ("settlement_failed", Ack("sent"))
    rooms.stands = True
    assert await rooms.deliver(job()) == Ack("duplicate")


async def test_a_cancelled_job_gives_its_claim_back() -> None:
    async def never() -> Outcome:
        await asyncio.Event().wait()
        return OK

    rooms = Rooms([never, OK])
    task = asyncio.create_task(rooms.deliver(job()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await rooms.deliver(job()) == Ack("sent")


async def test_a_job_over_a_limit_is_dead_with_when_it_would_be_allowed() -> None:
    rooms = Rooms([OK], tables=make_tables(Limit("recipient", 1, 600_000)))
    assert await rooms.deliver(job()) == Ack("sent")
    settlement = await rooms.deliver(job("j-2"))
    assert settlement == Dead(
        "throttled", "over RECIPIENT_LIMIT=1/10m: allowed again at 2023-11-14T22:23:24Z", 0, NOW + 604_000
    )
    assert rooms.steps.count("send") == 1


async def test_a_job_that_waits_for_the_relay_ends_as_superseded_when_a_newer_code_arrives() -> None:
    rooms = Rooms(tables=make_tables(supersede=True))

    async def until_unwanted() -> Outcome:
        wanted = rooms.wanted
        assert wanted is not None
        assert wanted()
        assert await rooms.deliver(job("j-2", otp="222222", at=NOW)) == Ack("sent")
        assert not wanted()
        assert rooms.rechecks == 1  # so that the send queue drops the older mail at once
        return TimedOut()

    # the newer one has a timestamp that is not older, and arrives later
    rooms.outcomes = [until_unwanted, OK]
    assert await rooms.deliver(job("j-1", otp="111111", at=NOW)) == Ack("superseded")
    assert rooms.settlements == [Ack("sent"), Ack("superseded")]


async def test_a_job_whose_mail_cannot_be_made_does_not_supersede_the_one_that_waits() -> None:
    rooms = Rooms(tables=make_tables(supersede=True))

    async def waits() -> Outcome:
        wanted = rooms.wanted
        assert wanted is not None
        rooms.compose_error = ComposeError("no template no-such")
        assert await rooms.deliver(job("j-2", otp="222222", at=NOW)) == Dead("crashed", "no template no-such", 0)
        assert wanted()
        return OK

    rooms.outcomes = [waits]
    assert await rooms.deliver(job("j-1", otp="111111", at=NOW)) == Ack("sent")


async def test_a_job_that_was_sent_is_a_duplicate_even_where_its_mail_can_no_longer_be_made() -> None:
    rooms = Rooms([OK])
    assert await rooms.deliver(job()) == Ack("sent")
    rooms.compose_error = ComposeError("no template otp")
    assert await rooms.deliver(job()) == Ack("duplicate")


async def test_an_id_with_another_code_is_another_job_and_is_sent() -> None:
    rooms = Rooms([OK, OK])
    assert await rooms.deliver(job()) == Ack("sent")
    assert await rooms.deliver(job(otp="654321")) == Ack("sent")
    assert await rooms.deliver(job(otp="654321")) == Ack("duplicate")


async def test_a_claim_that_was_lost_and_holds_again_goes_back_to_wait_for_its_turn() -> None:
    rooms = Rooms(tables=_Flickering())
    rooms.outcomes = [TimedOut(), OK]
    assert await rooms.deliver(job()) == Ack("sent")
    assert len(rooms.asked) == 2


async def test_a_job_of_which_nobody_knows_waits_in_the_broker() -> None:
    rooms = Rooms(tables=_Silent())
    assert await rooms.deliver(job()) == Park(5200)
    assert "send" not in rooms.steps


class _Flickering(Tables):
    """Its first claim does not hold until it is asked again."""

    def __init__(self) -> None:
        super().__init__(KeyBuilder(b"k"), MemoryTables((), sent_ttl_ms=1000, sent_limit=10))
        self.asked = 0

    @property
    def may_send(self) -> bool:
        return self.asked > 0

    async def renew(self, *args: Any) -> Any:
        self.asked += 1
        return await super().renew(*args)


class _Silent(Tables):
    def __init__(self) -> None:
        super().__init__(KeyBuilder(b"k"), MemoryTables((), sent_ttl_ms=1000, sent_limit=10))

    async def admit(self, *args: Any, **_: Any) -> Any:
        return Unknown()


MAYBE = Uncertain("the connection was lost, after the final dot", "relay:25")


async def test_a_mail_that_the_relay_may_have_is_sent_once_more_and_to_the_same_relay() -> None:
    rooms = Rooms([MAYBE, MAYBE])
    first = await rooms.deliver(job())
    assert isinstance(first, Retry)
    assert first.uncertain == "relay:25"
    second = await rooms.deliver(replace(job(attempts_made=1), uncertain="relay:25"))
    assert isinstance(second, Dead)
    assert (second.reason, second.attempt) == ("retries_exhausted", 2)
    assert [asked["prefer"] for asked in rooms.asked] == [None, "relay:25"]


async def test_a_mail_that_the_relay_may_have_is_not_sent_again_where_that_is_not_wanted() -> None:
    rooms = Rooms([MAYBE], resend_uncertain=False)
    settlement = await rooms.deliver(job())
    assert isinstance(settlement, Dead)
    assert settlement.reason == "retries_exhausted"


async def test_what_was_met_is_reported_without_code_and_address() -> None:
    rooms = Rooms([Uncertain("lost after 123456 for user@example.com", "relay:25")])
    await rooms.deliver(job())
    assert rooms.told[0][0] == "attempt_ended"
    assert "123456" not in str(rooms.told) + str(rooms.settlements)
    assert "user@" not in str(rooms.told) + str(rooms.settlements)


async def test_rank_lane_and_times_of_a_job_reach_the_relay() -> None:
    rooms = Rooms([OK, OK])
    request = job().request
    urgent = Job.from_request(
        request, job_id="a", lane="high", first_seen_ms=NOW, attempts_made=0, default_expiry_minutes=5
    )
    waited = Job.from_request(
        request, job_id="b", lane="due", first_seen_ms=NOW, attempts_made=1, default_expiry_minutes=600
    )
    await rooms.deliver(urgent)
    await rooms.deliver(waited)
    # no job waits for longer than its code lives, nor than the broker allows
    assert rooms.asked == [
        {"rank": 0, "lane": "high", "expires_ms": NOW + 300_000, "deadline_ms": NOW + 300_000, "prefer": None},
        {"rank": 2, "lane": "due", "expires_ms": NOW + 36_000_000, "deadline_ms": NOW + HOLD_LIMIT_MS, "prefer": None},
    ]


async def test_a_mail_is_not_wanted_once_the_broker_has_taken_its_job_back() -> None:
    rooms = Rooms()

    async def taken_back() -> Outcome:
        wanted = rooms.wanted
        assert wanted is not None
        assert wanted()
        rooms.stands = False
        assert not wanted()
        return TimedOut()

    rooms.outcomes = [taken_back]
    await rooms.deliver(job())
    assert rooms.told[-1] == ("settlement_failed", Park(5200))


async def test_a_job_is_marked_as_sent_before_it_is_settled() -> None:
    # a worker that is killed in between must not send it again
    rooms = Rooms([OK])
    asked: list[object] = []

    async def settle(settlement: Final) -> bool:
        asked.append(await rooms.tables.admit(job(), NOW + 1_000))
        return True

    rooms.settle = settle
    async with asyncio.timeout(5):
        await rooms.deliver(job())
    assert asked == [SentBefore()]


@pytest.mark.parametrize("outcome", [LATER, Rejected(Reply(550, None, "no", "rcpt")), TimedOut(), ValueError("bug")])
async def test_a_job_that_was_not_sent_can_be_claimed_again(outcome: Outcome | Exception) -> None:
    rooms = Rooms([outcome, OK])
    await rooms.deliver(job())
    async with asyncio.timeout(5):
        assert await rooms.deliver(job()) == Ack("sent")


async def test_a_code_that_expired_while_its_mail_waited_is_dead_and_not_retried() -> None:
    rooms = Rooms()

    async def until_expired() -> Outcome:
        rooms.now_ms = NOW + 900_000
        return LATER

    rooms.outcomes = [until_expired]
    settlement = await rooms.deliver(job())
    assert isinstance(settlement, Dead)
    assert settlement.reason == "expired"


async def test_a_relay_that_is_away_until_the_code_expires_leaves_a_dead_letter() -> None:
    rooms = Rooms()

    async def until_expired() -> Outcome:
        rooms.now_ms = NOW + 900_000
        return Unavailable("unreachable", "refused")

    rooms.outcomes = [until_expired]
    settlement = await rooms.deliver(job())
    assert isinstance(settlement, Dead)
    assert (settlement.reason, settlement.attempt) == ("expired", 0)
