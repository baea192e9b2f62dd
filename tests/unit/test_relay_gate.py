from typing import cast

import pytest

from otp_stream.core.outcome import UnavailableReason
from otp_stream.relay.gate import ON_REQUEST_MS, Gate

NOW = 1_000_000


def closed(reason: UnavailableReason = "unreachable", fraction: float = 0.0) -> Gate:
    gate = Gate(NOW, lambda: fraction)
    assert gate.close(reason, "why", NOW)
    return gate


def pauses(reason: UnavailableReason, count: int, fraction: float = 0.0) -> list[int]:
    """Fail one probe after another."""
    gate = closed(reason, fraction)
    found: list[int] = []
    for _ in range(count):
        assert gate.probe_ms is not None
        found.append(gate.probe_ms - gate.since_ms)
        assert gate.half_open(gate.probe_ms)
        gate.probing = True
        assert gate.close(reason, "again", gate.since_ms, probe=True)
    return found


def test_an_open_gate_lets_all_pass():
    gate = Gate(NOW, lambda: 0.0)
    assert gate.passable
    assert not gate.open(NOW)


def test_a_failure_closes_it_and_keeps_the_reason():
    gate = closed("login_refused")
    assert (gate.state, gate.reason, gate.error, gate.since_ms) == ("closed", "login_refused", "why", NOW)
    assert not gate.passable


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


def test_jitter_makes_a_pause_up_to_a_quarter_longer():
    assert closed(fraction=1.0).probe_ms == NOW + 1250


def test_no_pause_is_longer_than_its_cap():
    assert max(pauses("login_refused", 6, fraction=1.0)) == 60_000


def test_another_reason_starts_with_its_shortest_pause():
    gate = closed("unreachable")
    for at, reason in enumerate(("unreachable", "unreachable", "login_refused", "login_refused", "throttled")):
        gate.half_open(NOW + 10**6 * (at + 1))
        gate.probing = True
        gate.close(cast("UnavailableReason", reason), "again", NOW + 10**6 * (at + 1), probe=True)
        assert gate.probe_ms is not None
        expected = {0: 2000, 1: 4000, 2: 5000, 3: 10_000, 4: 2000}[at]
        assert gate.probe_ms - gate.since_ms == expected


def test_it_opens_half_only_when_the_pause_is_over():
    gate = closed()
    assert not gate.half_open(NOW + 999)
    assert gate.half_open(NOW + 1000)
    assert (gate.state, gate.since_ms) == ("half_open", NOW + 1000)
    assert not gate.half_open(NOW + 2000)


def test_a_requested_probe_does_not_wait_for_the_pause_but_for_a_few_seconds_after_a_failure():
    gate = closed("login_refused", fraction=1.0)
    for _ in range(6):
        gate.half_open(gate.since_ms + 60_000)
        gate.probing = True
        gate.close("login_refused", "again", gate.since_ms, probe=True)
    assert gate.probe_ms == gate.since_ms + 60_000
    assert not gate.half_open(gate.since_ms + ON_REQUEST_MS)
    assert not gate.half_open(gate.since_ms + ON_REQUEST_MS - 1, requested=True)
    assert gate.half_open(gate.since_ms + ON_REQUEST_MS, requested=True)
    assert not gate.half_open(gate.since_ms + ON_REQUEST_MS, requested=True)


def test_a_requested_probe_never_waits_longer_than_one_that_goes_out_by_itself():
    gate = closed("unreachable")
    assert not gate.half_open(NOW + 999, requested=True)
    assert gate.half_open(NOW + 1000, requested=True)


def test_half_open_lets_one_probe_pass():
    gate = closed()
    gate.half_open(NOW + 1000)
    assert gate.passable
    gate.probing = True
    assert not gate.passable


def test_a_probe_that_comes_through_opens_it_and_shortens_the_next_pause():
    gate = closed()
    for _ in range(3):
        gate.half_open(NOW + 10**6)
        gate.probing = True
        gate.close("unreachable", "again", NOW, probe=True)
    gate.half_open(NOW + 10**6)
    gate.probing = True
    assert gate.open(NOW + 10**6)
    assert gate.passable
    assert (gate.reason, gate.error, gate.probe_ms) == (None, None, None)
    gate.close("unreachable", "why", NOW)
    assert gate.probe_ms == NOW + 1000


def test_what_earlier_jobs_meet_does_not_lengthen_the_pause():
    gate = closed()
    assert not gate.close("unreachable", "also", NOW + 500)
    assert (gate.error, gate.probe_ms) == ("why", NOW + 1000)


def test_only_the_probe_speaks_while_it_is_out():
    gate = closed()
    gate.half_open(NOW + 1000)
    gate.probing = True
    assert not gate.close("throttled", "an old job", NOW + 1001)
    assert gate.state == "half_open"
    assert gate.close("unreachable", "the probe", NOW + 1002, probe=True)
    assert not gate.probing
