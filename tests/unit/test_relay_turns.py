import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otp_stream.core.mail import Mail
from otp_stream.core.outcome import TimedOut
from otp_stream.relay.turns import Turn, Turns


class Line:
    """Turns with names, so that their order can be read."""

    def __init__(self) -> None:
        self.turns = Turns()
        self._loop = asyncio.new_event_loop()

    def push(self, name: str, rank: int = 2, lane: str = "jobs", expires: int = 100, deadline: int | None = None):
        mail = Mail(name, b"")
        turn = Turn(mail, rank, lane, expires, expires if deadline is None else deadline, self._loop.create_future())
        self.turns.push(turn)
        return turn

    def order(self) -> str:
        found: list[str] = []
        while turn := self.turns.take():
            found.append(turn.mail.recipient)
        return "".join(found)

    def close(self) -> None:
        self._loop.close()


@pytest.fixture
def line():
    line = Line()
    yield line
    line.close()


def test_the_most_urgent_rank_goes_first(line: Line):
    for name, rank in (("d", 3), ("c", 2), ("b", 1), ("a", 0)):
        line.push(name, rank)
    assert line.order() == "abcd"


def test_within_a_lane_the_earliest_expiry_goes_first_then_arrival(line: Line):
    line.push("c", expires=300)
    line.push("a", expires=100)
    line.push("b", expires=100)
    assert line.order() == "abc"


def test_due_jobs_and_fresh_jobs_alternate(line: Line):
    for at in range(4):
        line.push("d", lane="due", expires=at)
        line.push("f", lane="jobs", expires=1000 + at)
    assert line.order() == "fdfdfdfd"


def test_a_lone_fresh_job_is_next_after_a_flood_of_due_ones(line: Line):
    for _ in range(5):
        line.push("d", lane="due", expires=1)
    assert line.turns.take()
    line.push("f", expires=10**9)
    assert line.order() == "fdddd"


def test_urgent_jobs_can_be_asked_for_alone(line: Line):
    line.push("c", 2)
    assert line.turns.take(urgent_only=True) is None
    line.push("b", 1)
    assert line.turns.urgent == 1
    assert line.turns.take(urgent_only=True)
    assert len(line.turns) == 1


def test_who_leaves_is_not_called(line: Line):
    stays, goes = line.push("a"), line.push("b", expires=1)
    line.turns.leave(goes)
    line.turns.leave(goes)
    assert len(line.turns) == 1
    assert line.turns.take() is stays
    line.turns.leave(stays)
    assert len(line.turns) == 0


def test_who_comes_back_keeps_the_place(line: Line):
    first = line.push("a")
    line.push("b")
    assert line.turns.take() is first
    line.turns.push(first)
    assert line.order() == "ab"


def test_those_past_their_deadline_lapse_at_that_moment(line: Line):
    early, late = line.push("a", deadline=50), line.push("b", deadline=60)
    assert line.turns.lapsed(49) == []
    assert line.turns.lapsed(50) == [early]
    assert line.turns.lapsed(59) == []
    assert line.turns.lapsed(60) == [late]
    assert len(line.turns) == 0


def test_the_deadline_of_one_who_left_delays_nobody(line: Line):
    gone = line.push("a", deadline=50)
    line.turns.leave(gone)
    late = line.push("b", deadline=60)
    assert line.turns.lapsed(55) == []
    assert line.turns.lapsed(60) == [late]


def test_places_that_were_left_do_not_pile_up(line: Line):
    for _ in range(1000):
        line.turns.leave(line.push("x"))
    assert sum(len(heap) for pair in line.turns._heaps for heap in pair) < 100


def test_an_outcome_is_handed_out_once(line: Line):
    turn = line.push("a")
    turn.end(TimedOut())
    turn.end(TimedOut())
    assert turn.result.result() == TimedOut()


@given(st.lists(st.tuples(st.sampled_from(["push", "take", "leave", "lapse"]), st.integers(0, 99)), max_size=80))
def test_everyone_who_came_goes_exactly_once(steps: list[tuple[str, int]]):
    line = Line()
    waiting: list[Turn] = []
    try:
        for at, (step, number) in enumerate(steps):
            gone: list[Turn] = []
            if step == "push":
                waiting.append(line.push("x", number % 4, "due" if number % 3 else "jobs", number, at + number))
            elif step == "take" and (turn := line.turns.take()):
                assert turn.rank == min(other.rank for other in waiting)
                gone = [turn]
            elif step == "leave" and waiting:
                gone = [waiting[number % len(waiting)]]
                line.turns.leave(gone[0])
            elif step == "lapse":
                gone = line.turns.lapsed(at)
                assert {id(turn) for turn in gone} == {id(turn) for turn in waiting if turn.deadline_ms <= at}
            for turn in gone:
                waiting.remove(turn)
            assert len(line.turns) == len(waiting)
        assert len(line.order()) == len(waiting)
    finally:
        line.close()
