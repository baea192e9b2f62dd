import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otp_stream.core.mail import Mail
from otp_stream.core.outcome import TimedOut
from otp_stream.relay.send_queue import PendingSend, SendQueue


class Sends:
    """Pending sends with names, so that their order can be read."""

    def __init__(self) -> None:
        self.queue = SendQueue()
        self._loop = asyncio.new_event_loop()

    def push(self, name: str, rank: int = 2, lane: str = "jobs", expires: int = 100, deadline: int | None = None):
        mail = Mail(name, b"")
        pending = PendingSend(
            mail, rank, lane, expires, expires if deadline is None else deadline, self._loop.create_future()
        )
        self.queue.push(pending)
        return pending

    def order(self) -> str:
        found: list[str] = []
        while pending := self.queue.take():
            found.append(pending.mail.recipient)
        return "".join(found)

    def close(self) -> None:
        self._loop.close()


@pytest.fixture
def sends():
    sends = Sends()
    yield sends
    sends.close()


def test_the_most_urgent_rank_goes_first(sends: Sends):
    for name, rank in (("d", 3), ("c", 2), ("b", 1), ("a", 0)):
        sends.push(name, rank)
    assert sends.order() == "abcd"


def test_within_a_lane_the_earliest_expiry_goes_first_then_arrival(sends: Sends):
    sends.push("c", expires=300)
    sends.push("a", expires=100)
    sends.push("b", expires=100)
    assert sends.order() == "abc"


def test_due_jobs_and_fresh_jobs_alternate(sends: Sends):
    for at in range(4):
        sends.push("d", lane="due", expires=at)
        sends.push("f", lane="jobs", expires=1000 + at)
    assert sends.order() == "fdfdfdfd"


def test_a_lone_fresh_job_is_next_after_a_flood_of_due_ones(sends: Sends):
    for _ in range(5):
        sends.push("d", lane="due", expires=1)
    assert sends.queue.take()
    sends.push("f", expires=10**9)
    assert sends.order() == "fdddd"


def test_urgent_jobs_can_be_asked_for_alone(sends: Sends):
    sends.push("c", 2)
    assert sends.queue.take(urgent_only=True) is None
    sends.push("b", 1)
    assert sends.queue.urgent == 1
    assert sends.queue.take(urgent_only=True)
    assert len(sends.queue) == 1


def test_a_removed_job_is_not_taken(sends: Sends):
    stays, goes = sends.push("a"), sends.push("b", expires=1)
    sends.queue.remove(goes)
    sends.queue.remove(goes)
    assert len(sends.queue) == 1
    assert sends.queue.take() is stays
    sends.queue.remove(stays)
    assert len(sends.queue) == 0


def test_a_job_that_comes_back_keeps_its_place(sends: Sends):
    first = sends.push("a")
    sends.push("b")
    assert sends.queue.take() is first
    sends.queue.push(first)
    assert sends.order() == "ab"


def test_jobs_time_out_at_their_deadline(sends: Sends):
    early, late = sends.push("a", deadline=50), sends.push("b", deadline=60)
    assert sends.queue.pop_timed_out(49) == []
    assert sends.queue.pop_timed_out(50) == [early]
    assert sends.queue.pop_timed_out(59) == []
    assert sends.queue.pop_timed_out(60) == [late]
    assert len(sends.queue) == 0


def test_the_deadline_of_a_removed_job_delays_no_other(sends: Sends):
    gone = sends.push("a", deadline=50)
    sends.queue.remove(gone)
    late = sends.push("b", deadline=60)
    assert sends.queue.pop_timed_out(55) == []
    assert sends.queue.pop_timed_out(60) == [late]


def test_removed_entries_do_not_pile_up(sends: Sends):
    for _ in range(1000):
        sends.queue.remove(sends.push("x"))
    assert sum(len(heap) for pair in sends.queue._heaps for heap in pair) < 100


def test_an_outcome_is_handed_out_once(sends: Sends):
    pending = sends.push("a")
    pending.resolve(TimedOut())
    pending.resolve(TimedOut())
    assert pending.result.result() == TimedOut()


@given(st.lists(st.tuples(st.sampled_from(["push", "take", "remove", "time_out"]), st.integers(0, 99)), max_size=80))
def test_every_job_that_is_pushed_leaves_exactly_once(steps: list[tuple[str, int]]):
    sends = Sends()
    waiting: list[PendingSend] = []
    try:
        for at, (step, number) in enumerate(steps):
            gone: list[PendingSend] = []
            if step == "push":
                waiting.append(sends.push("x", number % 4, "due" if number % 3 else "jobs", number, at + number))
            elif step == "take" and (pending := sends.queue.take()):
                assert pending.rank == min(other.rank for other in waiting)
                gone = [pending]
            elif step == "remove" and waiting:
                gone = [waiting[number % len(waiting)]]
                sends.queue.remove(gone[0])
            elif step == "time_out":
                gone = sends.queue.pop_timed_out(at)
                assert {id(pending) for pending in gone} == {
                    id(pending) for pending in waiting if pending.deadline_ms <= at
                }
            for pending in gone:
                waiting.remove(pending)
            assert len(sends.queue) == len(waiting)
        assert len(sends.order()) == len(waiting)
    finally:
        sends.close()
