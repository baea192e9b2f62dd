import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otp_stream.core.mail import Mail
from otp_stream.core.outcome import TimedOut
from otp_stream.relay.pending_send import PendingSend
from otp_stream.relay.send_queue import SendQueue, Tenants


class Sends:
    """Pending sends with names, so that their order can be read."""

    def __init__(self) -> None:
        self.queue = SendQueue()
        self._loop = asyncio.new_event_loop()

    def push(
        self,
        name: str,
        rank: int = 2,
        lane: str = "jobs",
        expires: int = 100,
        deadline: int | None = None,
        tenant: str = "",
    ):
        mail = Mail(name, b"", tenant=tenant)
        pending = PendingSend(
            mail, rank, lane, expires, expires if deadline is None else deadline, self._loop.create_future()
        )
        self.queue.push(pending)
        return pending

    def order(self, **limits: Any) -> str:
        found: list[str] = []
        while pending := self.queue.take(**limits):
            found.append(pending.mail.recipient)
        return "".join(found)

    def close(self) -> None:
        self._loop.close()


def entries(queue: SendQueue) -> int:
    """Return how many entries the queue stores, those of removed jobs included."""
    shares = [share for rank in queue._ranks for share in rank.turns]
    assert len(shares) == sum(len(rank.shares) for rank in queue._ranks)
    return sum(len(share.fresh) + len(share.due) for share in shares)


def rank_of_turn(turn: int, waiting: list[PendingSend]) -> int:
    """Return the rank from which a job is due: the most urgent one, every fourth time that of the other tenants."""
    by_tenant = {job.mail.tenant: job.rank for job in sorted(waiting, key=lambda job: -job.rank)}
    ranks = sorted(set(by_tenant.values()))
    later = next(times for times in range(len(waiting) + turn) if turn % 4 ** (times + 1))
    return ranks[min(later, len(ranks) - 1)]


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
    assert entries(sends.queue) < 100


def test_an_outcome_is_handed_out_once(sends: Sends):
    pending = sends.push("a")
    pending.resolve(TimedOut())
    pending.resolve(TimedOut())
    assert pending.result.result() == TimedOut()


def test_tenants_take_turns(sends: Sends):
    for at in range(4):
        sends.push("a", expires=at, tenant="a")
    for name in "bbc":
        sends.push(name, expires=1000, tenant=name)
    assert sends.order() == "abcabaa"


def test_a_backlog_of_one_tenant_does_not_hold_up_a_single_code_of_another(sends: Sends):
    for _ in range(1_000):
        sends.push("a", expires=1, tenant="a")
    assert sends.queue.take()
    sends.push("b", expires=10**9, tenant="b")
    assert sends.order()[:2] in {"ab", "ba"}


def test_a_tenant_that_always_has_jobs_does_not_starve_the_others(sends: Sends):
    for name in "bcd":
        sends.push(name, tenant=name)
    taken = ""
    for _ in range(6):
        sends.push("a", expires=0, tenant="a")
        pending = sends.queue.take()
        assert pending
        taken += pending.mail.recipient
    assert taken == "bcdaaa"


def test_a_more_urgent_rank_goes_before_the_turn_of_another_tenant(sends: Sends):
    for tenant, rank in (("a", 3), ("b", 3), ("a", 1), ("b", 2), ("a", 1)):
        sends.push(f"{tenant}{rank} ", rank, tenant=tenant)
    assert sends.order() == "a1 a1 b2 a3 b3 "


def test_urgent_jobs_of_one_tenant_do_not_starve_the_others(sends: Sends):
    for _ in range(40):
        sends.push("a", rank=0, tenant="a")
        sends.push("b", rank=1, tenant="b")
        sends.push("A", rank=2, tenant="a")
    sends.push("c", rank=2, tenant="c")
    sends.push("d", rank=3, tenant="d")
    order = sends.order()
    assert order.startswith("aaabaaabaaabaaacaaabaaabaaabaaad" + "aaab" * 5 + "a")
    # the urgent ones of `a` are sent, so its others get the turns
    assert "bbbAbbbAbbbA" in order


def test_the_lanes_of_each_tenant_alternate(sends: Sends):
    for name, tenant in (("d", "a"), ("D", "b")):
        for at in range(2):
            sends.push(name, lane="due", expires=at, tenant=tenant)
            sends.push("f" if name == "d" else "F", expires=1000 + at, tenant=tenant)
    assert sends.order() == "fFdDfFdD"


def test_a_job_that_comes_back_keeps_its_place_among_those_of_its_tenant(sends: Sends):
    sends.push("a", tenant="a")
    sends.push("c", tenant="a")
    sends.push("b", tenant="b")
    first = sends.queue.take()
    assert first
    sends.queue.push(first)
    assert sends.order() == "bac"


def test_a_tenant_without_jobs_takes_no_turn_and_no_memory(sends: Sends):
    kept = [sends.push(name, tenant=name) for name in "abc"]
    for at in range(1_000):
        sends.queue.remove(sends.push("x", tenant=f"t{at}"))
        sends.push("y", rank=1, tenant=f"t{at}")
        assert sends.queue.take(urgent_only=True)
    sends.queue.remove(kept[1])
    assert entries(sends.queue) == 2
    assert sends.order() == "ac"
    # the last tenant of each rank stays, so that a single one costs nothing
    assert [list(rank.shares) for rank in sends.queue._ranks] == [[], ["t999"], ["c"], []]
    sends.push("d", tenant="d")
    assert [list(rank.shares) for rank in sends.queue._ranks] == [[], ["t999"], ["d"], []]


def test_removed_entries_of_one_tenant_among_others_do_not_pile_up(sends: Sends):
    stays = [sends.push("a", tenant="a"), sends.push("b", tenant="b")]
    for _ in range(1000):
        sends.queue.remove(sends.push("x", tenant="a"))
    assert entries(sends.queue) < 100
    assert sends.order() == "ab"
    assert not any(pending.waiting for pending in stays)


def test_jobs_of_some_tenants_can_be_asked_for_alone(sends: Sends):
    for name in "abcabc":
        sends.push(name, rank=1 if name == "a" else 2, tenant=name)
    assert sends.queue.count(Tenants(frozenset("ab"))) == (2, 2)
    assert sends.queue.count(Tenants(frozenset("b"), others=True)) == (2, 2)
    assert sends.queue.count() == (2, 4)
    assert sends.queue.take(tenants=Tenants(frozenset("x"))) is None
    assert sends.queue.take(urgent_only=True, tenants=Tenants(frozenset("a"), others=True)) is None
    assert sends.order(tenants=Tenants(frozenset("a"), others=True)) == "bcbc"
    assert sends.order(tenants=Tenants(frozenset("ab"))) == "aa"


def test_tenants_that_are_passed_over_keep_their_turn(sends: Sends):
    for name in "abcabc":
        sends.push(name, tenant=name)
    taken = sends.queue.take(tenants=Tenants(frozenset("a"), others=True))
    assert taken
    assert taken.mail.recipient == "b"
    assert sends.order() == "acbac"


@given(st.lists(st.tuples(st.sampled_from(["push", "take", "remove", "time_out"]), st.integers(0, 99)), max_size=80))
def test_every_job_that_is_pushed_leaves_exactly_once(steps: list[tuple[str, int]]):
    sends = Sends()
    waiting: list[PendingSend] = []
    turn = 0
    try:
        for at, (step, number) in enumerate(steps):
            gone: list[PendingSend] = []
            if step == "push":
                waiting.append(
                    sends.push("x", number % 4, "due" if number % 3 else "jobs", number, at + number, "abc"[number % 3])
                )
            elif step == "take" and (pending := sends.queue.take()):
                turn += 1
                assert pending.rank == rank_of_turn(turn, waiting)
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
            for tenant in "abc":
                its = [pending.rank < 2 for pending in waiting if pending.mail.tenant == tenant]
                assert sends.queue.count(Tenants(frozenset(tenant))) == (sum(its), len(its) - sum(its))
            shares = [share for rank in sends.queue._ranks if len(rank.turns) > 1 for share in rank.turns]
            assert all(share.count for share in shares)
        assert len(sends.order()) == len(waiting)
    finally:
        sends.close()
