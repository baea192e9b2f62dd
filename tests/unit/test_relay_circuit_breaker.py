import asyncio
from typing import cast

import pytest

from otp_stream.core.mail import Mail
from otp_stream.core.outcome import UnavailableReason
from otp_stream.relay import availability
from otp_stream.relay.availability import STALLED_S, Availability
from otp_stream.relay.circuit_breaker import ON_REQUEST_MS, CircuitBreaker
from otp_stream.relay.pending_send import PendingSend

NOW = 1_000_000


def opened(reason: UnavailableReason = "unreachable", fraction: float = 0.0) -> CircuitBreaker:
    breaker = CircuitBreaker(NOW, lambda: fraction)
    assert breaker.open(reason, "why", NOW)
    return breaker


def pauses(reason: UnavailableReason, count: int, fraction: float = 0.0) -> list[int]:
    """Fail one probe after another."""
    breaker = opened(reason, fraction)
    found: list[int] = []
    for _ in range(count):
        assert breaker.probe_ms is not None
        found.append(breaker.probe_ms - breaker.since_ms)
        assert breaker.half_open(breaker.probe_ms)
        breaker.probing = True
        assert breaker.open(reason, "again", breaker.since_ms, probe=True)
    return found


def test_a_closed_circuit_breaker_lets_all_pass():
    breaker = CircuitBreaker(NOW, lambda: 0.0)
    assert breaker.passable
    assert not breaker.close(NOW)


def test_a_failure_opens_it_and_keeps_the_reason():
    breaker = opened("login_refused")
    assert (breaker.state, breaker.reason, breaker.error, breaker.since_ms) == ("open", "login_refused", "why", NOW)
    assert not breaker.passable


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("unreachable", [1000, 2000, 4000, 5000, 5000]),
        ("tls_failed", [1000, 2000, 4000, 8000, 16000, 30000, 30000]),
        ("throttled", [2000, 4000, 8000, 16000, 30000, 30000]),
        ("login_refused", [5000, 10000, 20000, 40000, 60000, 60000]),
        ("sender_refused", [5000, 10000, 20000, 40000, 60000, 60000]),
    ],
)
def test_pauses_double_up_to_their_cap(reason: UnavailableReason, expected: list[int]):
    assert pauses(reason, len(expected)) == expected


def test_a_probe_may_be_earlier_than_scheduled_but_not_later():
    assert not opened().half_open(NOW + 299, early_ms=300)
    assert opened().half_open(NOW + 300, early_ms=300)
    assert opened().half_open(NOW + 1_000, early_ms=3_000)


def test_jitter_makes_a_pause_up_to_a_quarter_longer():
    assert opened(fraction=1.0).probe_ms == NOW + 1250


def test_no_pause_is_longer_than_its_cap():
    assert max(pauses("login_refused", 6, fraction=1.0)) == 60_000


def test_another_reason_starts_with_its_shortest_pause():
    breaker = opened("unreachable")
    for at, reason in enumerate(("unreachable", "unreachable", "login_refused", "login_refused", "throttled")):
        breaker.half_open(NOW + 10**6 * (at + 1))
        breaker.probing = True
        breaker.open(cast("UnavailableReason", reason), "again", NOW + 10**6 * (at + 1), probe=True)
        assert breaker.probe_ms is not None
        expected = {0: 2000, 1: 4000, 2: 5000, 3: 10_000, 4: 2000}[at]
        assert breaker.probe_ms - breaker.since_ms == expected


def test_it_becomes_half_open_only_when_the_pause_is_over():
    breaker = opened()
    assert not breaker.half_open(NOW + 999)
    assert breaker.half_open(NOW + 1000)
    assert (breaker.state, breaker.since_ms) == ("half_open", NOW + 1000)
    assert not breaker.half_open(NOW + 2000)


def test_a_requested_probe_does_not_wait_for_the_pause_but_for_a_few_seconds_after_a_failure():
    breaker = opened("login_refused", fraction=1.0)
    for _ in range(6):
        breaker.half_open(breaker.since_ms + 60_000)
        breaker.probing = True
        breaker.open("login_refused", "again", breaker.since_ms, probe=True)
    assert breaker.probe_ms == breaker.since_ms + 60_000
    assert not breaker.half_open(breaker.since_ms + ON_REQUEST_MS)
    assert not breaker.half_open(breaker.since_ms + ON_REQUEST_MS - 1, requested=True)
    assert breaker.half_open(breaker.since_ms + ON_REQUEST_MS, requested=True)
    assert not breaker.half_open(breaker.since_ms + ON_REQUEST_MS, requested=True)


def test_a_requested_probe_never_waits_longer_than_a_scheduled_one():
    breaker = opened("unreachable")
    assert not breaker.half_open(NOW + 999, requested=True)
    assert breaker.half_open(NOW + 1000, requested=True)


def test_half_open_lets_one_probe_pass():
    breaker = opened()
    breaker.half_open(NOW + 1000)
    assert breaker.passable
    breaker.probing = True
    assert not breaker.passable


def test_an_accepted_probe_closes_it_and_shortens_the_next_pause():
    breaker = opened()
    for _ in range(3):
        breaker.half_open(NOW + 10**6)
        breaker.probing = True
        breaker.open("unreachable", "again", NOW, probe=True)
    breaker.half_open(NOW + 10**6)
    breaker.probing = True
    assert breaker.close(NOW + 10**6)
    assert breaker.passable
    assert (breaker.reason, breaker.error, breaker.probe_ms) == (None, None, None)
    breaker.open("unreachable", "why", NOW)
    assert breaker.probe_ms == NOW + 1000


def test_failures_of_earlier_jobs_do_not_lengthen_the_pause():
    breaker = opened()
    assert not breaker.open("unreachable", "also", NOW + 500)
    assert (breaker.error, breaker.probe_ms) == ("why", NOW + 1000)


def test_only_the_probe_counts_while_it_is_in_flight():
    breaker = opened()
    breaker.half_open(NOW + 1000)
    breaker.probing = True
    assert not breaker.open("throttled", "an old job", NOW + 1001)
    assert breaker.state == "half_open"
    assert breaker.open("unreachable", "the probe", NOW + 1002, probe=True)
    assert not breaker.probing


def test_a_slow_probe_that_is_lost_makes_no_third_mail_a_probe_beside_its_successor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.new_event_loop()
    slow, other, third = (
        PendingSend(Mail(f"u@{name}.example", b""), 2, "jobs", 9_000, 9_000, loop.create_future()) for name in "abc"
    )
    loop.close()
    now = [0.0]
    monkeypatch.setattr(availability, "monotonic", lambda: now[0])
    relay = Availability("mx:25", 0, lambda: 0.0)
    assert relay.breaker.open("unreachable", "away", 0)
    assert relay.half_open(5_000)
    slow.probe = other.probe = third.probe = True
    relay.started(slow)
    now[0] += STALLED_S + 1
    relay.replace_slow_probe(now_ms=16_000)
    assert relay.breaker.passable
    relay.started(other)
    relay.probe_withdrawn(slow)
    assert not relay.breaker.passable
    relay.probe_withdrawn(other)
    assert relay.breaker.passable
    relay.started(third)
    assert not relay.breaker.passable
