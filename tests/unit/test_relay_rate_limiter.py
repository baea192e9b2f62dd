import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import rabbitmq

from otp_stream.core.rate import Grant
from otp_stream.relay.rate import Rate
from otp_stream.relay.rate_limiter import RateLimiter


@dataclass
class Others:
    """Answers for those who share the rate: each question waits until the test answers it."""

    asked: list[tuple[str, int, float, bool]] = field(default_factory=list)
    answers: list[asyncio.Future[Grant | None]] = field(default_factory=list)

    async def __call__(self, relay: str, count: int, ceiling: float, slowed: bool) -> Grant | None:  # noqa: FBT001
        self.asked.append((relay, count, ceiling, slowed))
        self.answers.append(asyncio.get_running_loop().create_future())
        return await self.answers[-1]

    def answer(self, answer: Grant | None) -> None:
        self.answers[-1].set_result(answer)


@dataclass
class Sender:
    """Waiting jobs, and the callback that sends them."""

    rate: Rate
    others: Others | None = None
    waiting: int = 100
    calls: int = 0

    def __post_init__(self) -> None:
        self.limiter = RateLimiter("relay:25", self.rate, self.others, lambda: self.waiting, self.serve)

    def serve(self) -> None:
        self.calls += 1

    def send(self) -> int:
        """Use every slot that is there."""
        sent = 0
        while self.waiting and self.limiter.slots():
            self.rate.use(asyncio.get_running_loop().time())
            self.waiting -= 1
            sent += 1
        return sent


async def until(condition: Callable[[], bool]) -> None:
    async def holds() -> bool:
        return condition()

    await rabbitmq.until(holds, "change", 5)


@pytest.fixture
def others():
    return Others()


async def test_it_calls_back_when_a_slot_is_due():
    sender = Sender(Rate(20.0))
    assert sender.send() == 1
    await until(lambda: sender.calls == 1)
    assert sender.send() == 1
    sender.limiter.close()


async def test_without_waiting_jobs_there_is_no_timer(others: Others):
    sender = Sender(Rate(20.0), others, waiting=0)
    assert sender.limiter.slots() == 0
    assert sender.limiter.lacking() == 0
    assert sender.limiter._timer is sender.limiter._reserving is None
    assert others.asked == []


async def test_slots_are_reserved_and_used(others: Others):
    sender = Sender(Rate(100.0), others)
    assert sender.send() == 0
    assert sender.send() == 0
    await until(lambda: bool(others.asked))
    assert others.asked == [("relay:25", 5, 100.0, False)]  # one question at a time
    others.answer(Grant(0.0, 0.01, 5, 100.0))
    await until(lambda: sender.calls == 1)
    await until(lambda: sender.send() >= 0 and sender.waiting == 95)
    await until(lambda: len(others.asked) == 2)  # ahead of their end
    sender.limiter.close()


async def test_without_reservations_each_worker_keeps_its_share(others: Others):
    sender = Sender(Rate(100.0, share=lambda: 2), others)
    sender.send()
    await until(lambda: bool(others.asked))
    others.answer(None)
    await until(lambda: sender.calls == 1)
    assert sender.rate.alone
    assert 1 <= sender.send() <= 3
    assert len(others.asked) == 1
    sender.limiter._reserve_from = 0.0  # a second later
    sender.limiter.slots()
    await until(lambda: len(others.asked) == 2)
    assert sender.rate.alone  # a reservation in flight delays no one
    others.answer(Grant(0.0, 0.01, 1, 100.0))
    await until(lambda: not sender.rate.alone)
    sender.limiter.close()


async def test_an_answer_that_fails_counts_as_none(others: Others):
    sender = Sender(Rate(100.0), others)
    sender.send()
    asking = sender.limiter._reserving
    await until(lambda: bool(others.asked))
    others.answers[-1].set_exception(OSError("away"))
    await until(lambda: sender.rate.alone)
    assert asking is not None
    assert isinstance(asking.exception(), OSError)
    sender.limiter.close()


async def test_an_answer_that_does_not_come_counts_as_none(others: Others, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("otp_stream.relay.rate_limiter._ANSWER_S", 0.01)
    sender = Sender(Rate(100.0), others)
    sender.send()
    await until(lambda: sender.rate.alone)
    sender.limiter.close()


async def test_a_throttle_is_reported_at_once_and_once(others: Others):
    sender = Sender(Rate(100.0), others)
    sender.limiter.throttled()
    assert sender.rate.allowed(asyncio.get_running_loop().time()) == pytest.approx(50, abs=0.1)
    await until(lambda: bool(others.asked))
    assert others.asked == [("relay:25", 1, 100.0, True)]
    others.answer(Grant(0.0, 0.02, 1, 50.0))
    await until(lambda: sender.calls == 1)
    sender.send()
    await until(lambda: len(others.asked) == 2)
    assert others.asked[1][3] is False
    sender.limiter.close()


async def test_a_throttle_during_a_reservation_is_reported_with_the_next(others: Others):
    sender = Sender(Rate(100.0), others)
    sender.send()
    await until(lambda: len(others.asked) == 1)
    sender.limiter.throttled()
    others.answer(Grant(0.0, 0.01, 5, 100.0))
    await until(lambda: len(others.asked) == 2)
    assert [slowed for *_, slowed in others.asked] == [False, True]
    assert sender.rate.allowed(asyncio.get_running_loop().time()) == pytest.approx(50, abs=0.5)
    sender.limiter.close()


async def test_without_a_ceiling_nothing_is_reserved(others: Others):
    sender = Sender(Rate(None), others)
    sender.limiter.throttled()
    assert sender.rate.alone
    assert sender.limiter._reserving is None


async def test_after_close_it_does_not_call_back(others: Others):
    sender = Sender(Rate(20.0), others)
    sender.send()
    asking = sender.limiter._reserving
    sender.limiter.close()
    assert asking is not None
    await asyncio.gather(asking, return_exceptions=True)
    alone = Sender(Rate(20.0))
    alone.send()
    timer = alone.limiter._timer
    alone.limiter.close()
    assert timer is not None
    assert timer.cancelled()
    assert (sender.calls, sender.send(), alone.calls) == (0, 0, 0)
