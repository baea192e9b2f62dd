"""The way of a job, with every room played by a fake."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from otp_stream.core.admission import Limit, Unknown
from otp_stream.core.backoff import Backoff
from otp_stream.core.decision import Ack, Dead, Final, Park, Retry
from otp_stream.core.job import Job, OtpJob, carry
from otp_stream.core.mail import ComposeError, Mail
from otp_stream.core.outcome import Accepted, Deferred, Lapsed, Outcome, Rejected, Reply, Unavailable
from otp_stream.delivery import HOLD_LIMIT_MS, Delivery
from otp_stream.tables import Asker, MemoryTables, Tables

NOW = 1_700_000_000_000
OK = Accepted(Reply(250, None, "ok", "body"))
LATER = Deferred(Reply(451, None, "later", "rcpt"))


def make_tables(*limits: Limit, supersede: bool = False) -> Tables:
    memory = MemoryTables(limits, sent_ttl_ms=86_400_000, sent_limit=1_000)
    return Tables(Asker(b"k" * 32, supersede=supersede, limits=limits), memory, now_ms=lambda: NOW)


@dataclass
class Rooms:
    """Mailroom, relay and watch in one."""

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

    def compose(self, job: Job) -> Mail:
        if self.compose_error:
            raise self.compose_error
        return Mail(job.ask.email, b"mail")

    async def compose_apart(self, job: Job) -> Mail:
        self.steps.append("apart")
        return self.compose(job)

    async def send(self, mail: Mail, **asked: Any) -> Outcome:
        self.wanted = asked.pop("wanted")
        self.asked.append(asked)
        met = self.outcomes.pop(0)
        if isinstance(met, Exception):
            raise met
        return await met() if callable(met) else met

    def job(self, job: Job, carrier: object) -> AbstractContextManager[None]:
        return nullcontext()

    def step(self, name: str) -> AbstractContextManager[None]:
        self.steps.append(name)
        return nullcontext()

    def met(self, job: Job, outcome: Outcome) -> None:
        self.told.append(("met", outcome))

    def settled(self, job: Job, settlement: Final) -> None:
        self.told.append(("settled", settlement))

    def unsettled(self, job: Job, settlement: Final) -> None:
        self.told.append(("unsettled", settlement))

    async def deliver(self, job: Job) -> Final | None:
        way = Delivery(
            self, self, self.tables, self, Backoff(1000, 30000, 3), now_ms=lambda: self.now_ms, fraction=lambda: 0.0
        )
        await way(job, _Settle(self), {})
        return self.settlements[-1] if self.settlements else None


@dataclass
class _Settle:
    rooms: Rooms

    def possible(self) -> bool:
        return self.rooms.stands

    async def __call__(self, settlement: Final) -> bool:
        self.rooms.settlements.append(settlement)
        return self.rooms.stands


def job(job_id: str = "j-1", *, attempts_made: int = 0, otp: str = "123456", at: int | None = None) -> Job:
    ask = OtpJob.model_validate({"email": "user@example.com", "otp": otp, "timestamp": at})
    return carry(
        ask, job_id=job_id, lane="jobs", first_seen_ms=NOW, attempts_made=attempts_made, default_expiry_minutes=15
    )


async def test_a_job_is_rendered_sent_and_settled_in_this_order() -> None:
    rooms = Rooms([OK])
    assert await rooms.deliver(job()) == Ack("sent")
    assert rooms.steps == ["render", "send", "settle"]
    assert rooms.told == [("met", OK), ("settled", Ack("sent"))]
    assert rooms.asked == [
        {"rank": 2, "lane": "jobs", "expires_ms": NOW + 900_000, "deadline_ms": NOW + HOLD_LIMIT_MS, "prefer": None}
    ]


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


async def test_a_closed_gate_holds_the_job_and_counts_nothing() -> None:
    away = Unavailable("unreachable", "refused")
    rooms = Rooms([away, away, OK])
    assert await rooms.deliver(job()) == Ack("sent")
    assert len(rooms.asked) == 3


async def test_a_job_is_held_no_longer_than_the_broker_allows() -> None:
    rooms = Rooms([Lapsed()])
    long = carry(job().ask, job_id="j", lane="jobs", first_seen_ms=NOW, attempts_made=2, default_expiry_minutes=600)
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
    assert rooms.told[-1] == ("unsettled", Ack("sent"))
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
        return Lapsed()

    # the newer one has a timestamp that is not older, and arrives later
    rooms.outcomes = [until_unwanted, OK]
    assert await rooms.deliver(job("j-1", otp="111111", at=NOW)) == Ack("superseded")
    assert rooms.settlements == [Ack("sent"), Ack("superseded")]


async def test_a_claim_that_was_lost_and_holds_again_goes_back_to_wait_for_its_turn() -> None:
    rooms = Rooms(tables=_Flickering())
    rooms.outcomes = [Lapsed(), OK]
    assert await rooms.deliver(job()) == Ack("sent")
    assert len(rooms.asked) == 2


async def test_a_job_of_which_nobody_knows_waits_in_the_broker() -> None:
    rooms = Rooms(tables=_Silent())
    assert await rooms.deliver(job()) == Park(5200)
    assert "send" not in rooms.steps


class _Flickering(Tables):
    """Its first claim does not hold until it is asked again."""

    def __init__(self) -> None:
        super().__init__(Asker(b"k"), MemoryTables((), sent_ttl_ms=1000, sent_limit=10))
        self.asked = 0

    @property
    def may_send(self) -> bool:
        return self.asked > 0

    async def renew(self, *args: Any) -> Any:
        self.asked += 1
        return await super().renew(*args)


class _Silent(Tables):
    def __init__(self) -> None:
        super().__init__(Asker(b"k"), MemoryTables((), sent_ttl_ms=1000, sent_limit=10))

    async def admit(self, *args: Any) -> Any:
        return Unknown()
