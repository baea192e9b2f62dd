import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import rabbitmq

from otp_stream.core.rate import Grant
from otp_stream.relay.pace import Pace
from otp_stream.relay.rate import Rate


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
class Line:
    """What stands before a pace: jobs that wait, and somebody who sends them when called."""

    rate: Rate
    others: Others | None = None
    waiting: int = 100
    calls: int = 0

    def __post_init__(self) -> None:
        self.pace = Pace("relay:25", self.rate, self.others, lambda: self.waiting, self.serve)

    def serve(self) -> None:
        self.calls += 1

    def send(self) -> int:
        """Use every slot that is there."""
        sent = 0
        while self.waiting and self.pace.slots():
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


async def test_it_comes_back_when_a_slot_is_due():
    line = Line(Rate(20.0))
    assert line.send() == 1
    await until(lambda: line.calls == 1)
    assert line.send() == 1
    line.pace.close()


async def test_with_nobody_waiting_there_is_nothing_to_come_back_for(others: Others):
    line = Line(Rate(20.0), others, waiting=0)
    assert line.pace.slots() == 0
    assert line.pace.lacking() == 0
    assert line.pace._timer is line.pace._asking is None
    assert others.asked == []


async def test_slots_are_asked_for_and_used(others: Others):
    line = Line(Rate(100.0), others)
    assert line.send() == 0
    assert line.send() == 0
    await until(lambda: bool(others.asked))
    assert others.asked == [("relay:25", 5, 100.0, False)]  # one question at a time
    others.answer(Grant(0.0, 0.01, 5, 100.0))
    await until(lambda: line.calls == 1)
    await until(lambda: line.send() >= 0 and line.waiting == 95)
    await until(lambda: len(others.asked) == 2)  # ahead of their end
    line.pace.close()


async def test_while_nobody_can_be_asked_each_keeps_its_share(others: Others):
    line = Line(Rate(100.0, share=lambda: 2), others)
    line.send()
    await until(lambda: bool(others.asked))
    others.answer(None)
    await until(lambda: line.calls == 1)
    assert line.rate.alone
    assert 1 <= line.send() <= 3
    assert len(others.asked) == 1
    line.pace._ask_from = 0.0  # a second later
    line.pace.slots()
    await until(lambda: len(others.asked) == 2)
    assert line.rate.alone  # the question keeps nobody waiting
    others.answer(Grant(0.0, 0.01, 1, 100.0))
    await until(lambda: not line.rate.alone)
    line.pace.close()


async def test_an_answer_that_fails_counts_as_none(others: Others):
    line = Line(Rate(100.0), others)
    line.send()
    asking = line.pace._asking
    await until(lambda: bool(others.asked))
    others.answers[-1].set_exception(OSError("away"))
    await until(lambda: line.rate.alone)
    assert asking is not None
    assert isinstance(asking.exception(), OSError)
    line.pace.close()


async def test_an_answer_that_does_not_come_counts_as_none(others: Others, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("otp_stream.relay.pace._ANSWER_S", 0.01)
    line = Line(Rate(100.0), others)
    line.send()
    await until(lambda: line.rate.alone)
    line.pace.close()


async def test_a_throttle_is_reported_at_once_and_once(others: Others):
    line = Line(Rate(100.0), others)
    line.pace.throttled()
    assert line.rate.allowed(asyncio.get_running_loop().time()) == pytest.approx(50, abs=0.1)
    await until(lambda: bool(others.asked))
    assert others.asked == [("relay:25", 1, 100.0, True)]
    others.answer(Grant(0.0, 0.02, 1, 50.0))
    await until(lambda: line.calls == 1)
    line.send()
    await until(lambda: len(others.asked) == 2)
    assert others.asked[1][3] is False
    line.pace.close()


async def test_a_throttle_while_a_question_is_out_is_reported_with_the_next(others: Others):
    line = Line(Rate(100.0), others)
    line.send()
    await until(lambda: len(others.asked) == 1)
    line.pace.throttled()
    others.answer(Grant(0.0, 0.01, 5, 100.0))
    await until(lambda: len(others.asked) == 2)
    assert [slowed for *_, slowed in others.asked] == [False, True]
    assert line.rate.allowed(asyncio.get_running_loop().time()) == pytest.approx(50, abs=0.5)
    line.pace.close()


async def test_without_a_ceiling_nobody_is_asked(others: Others):
    line = Line(Rate(None), others)
    line.pace.throttled()
    assert line.rate.alone
    assert line.pace._asking is None


async def test_after_the_end_it_comes_back_no_more(others: Others):
    line = Line(Rate(20.0), others)
    line.send()
    asking = line.pace._asking
    line.pace.close()
    assert asking is not None
    await asyncio.gather(asking, return_exceptions=True)
    alone = Line(Rate(20.0))
    alone.send()
    timer = alone.pace._timer
    alone.pace.close()
    assert timer is not None
    assert timer.cancelled()
    assert (line.calls, line.send(), alone.calls) == (0, 0, 0)
