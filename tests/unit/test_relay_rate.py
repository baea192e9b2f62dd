from itertools import pairwise

import pytest

from otp_stream.core.rate import Grant
from otp_stream.relay.rate import Rate

NOW = 1000.0
MS = 0.001


def leave(rate: Rate, begin: float, end: float, step: float = MS) -> list[float]:
    """Send whenever a slot is there, as if jobs without end waited; return when."""
    found: list[float] = []
    for at in range(round((end - begin) / step) + 1):
        now = begin + at * step
        while rate.slots(now):
            rate.use(now)
            found.append(now)
    return found


def most_within(times: list[float], window_s: float) -> int:
    return max(sum(begin <= at < begin + window_s for at in times) for begin in times)


def slowed(rate: Rate, now: float = NOW) -> Rate:
    rate.slow(now)
    assert rate.update(now)
    return rate


@pytest.mark.parametrize("ceiling", [0.5, 2.0, 14.0, 20.0])
def test_slots_of_a_low_rate_are_evenly_spaced(ceiling: float):
    times = leave(Rate(ceiling), NOW, NOW + 10)
    assert all(later - earlier >= 1 / ceiling - 3 * MS for earlier, later in pairwise(times))
    assert len(times) == int(10 * ceiling) + 1


@pytest.mark.parametrize("ceiling", [50.0, 123.0, 500.0])
def test_a_high_rate_is_kept_in_chunks_of_50_ms(ceiling: float):
    times = leave(Rate(ceiling), NOW, NOW + 3)
    chunk = 0.05 * ceiling + 1
    assert 3 * ceiling <= len(times) <= 3 * ceiling + chunk
    assert most_within(times, 1 - MS) <= ceiling + chunk


def test_a_timer_that_comes_late_costs_a_high_rate_nothing():
    assert len(leave(Rate(200.0), NOW, NOW + 4, step=0.04)) >= 800


@pytest.mark.parametrize(("ceiling", "most"), [(5.0, 1), (20.0, 1), (50.0, 3), (1000.0, 51)])
def test_an_idle_worker_saves_up_no_burst(ceiling: float, most: int):
    rate = Rate(ceiling)
    leave(rate, NOW, NOW + 1)
    assert len(leave(rate, NOW + 3600, NOW + 3600)) <= most


def test_the_next_slot_is_announced():
    rate = Rate(4.0)
    rate.use(NOW)
    wait_s = rate.wait_s(NOW)
    assert wait_s == pytest.approx(0.25, abs=3 * MS)
    assert not rate.slots(NOW + wait_s - MS)
    assert rate.slots(NOW + wait_s) == 1


def test_without_a_ceiling_nothing_is_limited():
    rate = Rate(None)
    assert not rate.limited
    assert rate.allowed(NOW) is None


def test_a_throttle_halves_the_rate_at_most_once_a_second():
    rate = slowed(Rate(100.0))
    assert (rate.allowed(NOW), rate.slowed) == (50.0, True)
    rate.slow(NOW + 0.9)
    assert rate.allowed(NOW) == 50.0
    rate.slow(NOW + 1)
    assert rate.allowed(NOW + 1) == pytest.approx(52.5 / 2)


def test_no_number_of_throttles_stops_it():
    rate = Rate(50.0)
    for at in range(100):
        rate.slow(NOW + 30 * at)
        rate.hold(NOW + 30 * at)
    assert rate.allowed(NOW + 3000) == 0.5
    low = Rate(0.05)
    low.slow(NOW)
    assert low.allowed(NOW) == 0.05


def test_it_recovers_steadily_within_20_seconds_and_reports_it_once():
    rate = slowed(Rate(40.0))
    assert rate.allowed(NOW + 10) == pytest.approx(30.0)
    assert not rate.update(NOW + 19)
    assert rate.update(NOW + 20)
    assert not rate.update(NOW + 21)
    assert (rate.allowed(NOW + 21), rate.slowed, rate.limited) == (40.0, False, True)


def test_slots_follow_a_rate_that_recovers():
    rate = slowed(Rate(10.0, recovery_s=2))
    assert len(leave(rate, NOW, NOW + 2)) == pytest.approx(15, abs=1)


def test_the_rate_does_not_recover_while_the_breaker_is_open():
    rate = slowed(Rate(100.0))
    rate.hold(NOW)
    assert rate.allowed(NOW + 30) == 50.0
    rate.resume(NOW + 30)
    rate.resume(NOW + 32)  # half open, then open
    assert rate.allowed(NOW + 34) == pytest.approx(60.0)


def test_a_throttle_where_there_is_no_ceiling_sets_one_for_a_while():
    rate = Rate(None)
    for at in range(51):
        rate.count(round(at * 0.1 * 80), NOW - 5 + at * 0.1)
    slowed(rate)
    assert rate.limited
    assert rate.allowed(NOW) == pytest.approx(40.0, rel=0.02)
    assert rate.allowed(NOW + 10) == pytest.approx(60.0, rel=0.02)
    assert rate.update(NOW + 20)
    assert not rate.limited
    assert rate.allowed(NOW + 20) is None


def test_a_relay_that_throttles_the_first_mails_is_not_slowed():
    rate = Rate(None)
    rate.slow(NOW)
    rate.count(0, NOW)
    rate.count(2, NOW + 2.9)
    rate.slow(NOW + 2.9)
    rate.slow(NOW + 3600)
    assert not rate.limited
    assert not rate.update(NOW + 3600)


def test_connections_are_lacking_for_slots_alone_and_for_those_that_pass():
    rate = Rate(10.0)
    assert rate.lacking(NOW) == 1
    assert rate.lacking(NOW + 0.25) == 3
    rate.use(NOW + 0.25)
    assert rate.lacking(NOW + 0.26) == 0
    assert rate.lacking(NOW + 3600) == 1


def test_granted_slots_are_used_at_their_time():
    rate = Rate(20.0)
    rate.take(Grant(0.1, 0.05, 3, 20.0), NOW, newer=True)
    assert not rate.slots(NOW)
    assert rate.wait_s(NOW) == pytest.approx(0.1)
    assert leave(rate, NOW, NOW + 1) == pytest.approx([NOW + 0.1, NOW + 0.15, NOW + 0.2], abs=3 * MS)
    assert rate.wait_s(NOW + 1) is None


def test_a_granted_slot_that_is_not_used_passes():
    rate = Rate(20.0)
    rate.take(Grant(0.0, 0.05, 3, 20.0), NOW, newer=True)
    assert rate.slots(NOW + 0.3) == 2
    assert rate.slots(NOW + 1) == 0


def test_no_more_is_reserved_than_jobs_wait_nor_than_50_ms_hold():
    rate = Rate(100.0)
    assert [rate.slots_to_reserve(waiting, NOW) for waiting in (1, 3, 5, 500)] == [1, 3, 5, 5]
    rate.take(Grant(0.0, 0.01, 5, 100.0), NOW, newer=True)
    assert rate.slots_to_reserve(7, NOW) == 2
    rate.take(Grant(0.05, 0.01, 5, 100.0), NOW, newer=True)
    assert rate.slots_to_reserve(500, NOW) == 0  # enough for now
    assert rate.slots_to_reserve(500, NOW + 0.05) == 5
    assert Rate(3.0).slots_to_reserve(500, NOW) == 1


def test_granted_slots_are_dropped_when_the_circuit_breaker_opens():
    rate = Rate(20.0)
    rate.take(Grant(0.0, 0.05, 3, 20.0), NOW, newer=True)
    rate.hold(NOW)
    rate.take(Grant(0.0, 0.05, 3, 10.0), NOW, newer=True)  # was under way
    assert rate.slots(NOW + 0.1) == 0
    assert rate.allowed(NOW + 5) == 10.0


def test_the_rate_that_all_share_is_taken_over_unless_our_throttle_is_newer():
    rate = Rate(100.0)
    rate.take(Grant(0.0, 0.02, 1, 50.0), NOW, newer=True)
    assert rate.allowed(NOW) == 50.0
    assert rate.update(NOW)
    rate.take(Grant(0.0, 0.01, 1, 100.0), NOW, newer=False)
    assert rate.allowed(NOW) == 50.0
    rate.take(Grant(0.0, 0.01, 1, 99.99), NOW, newer=True)
    assert rate.update(NOW)


def test_alone_each_worker_keeps_its_share():
    rate = Rate(40.0, share=lambda: 4)
    rate.take(Grant(0.0, 0.025, 2, 40.0), NOW, newer=True)
    rate.use(NOW)
    rate.no_grants()
    times = leave(rate, NOW, NOW + 2)
    assert len(times) == pytest.approx(20, abs=1)
    assert times[0] >= NOW + 0.09  # not at once after the slot that was granted
