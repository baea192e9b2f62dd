"""Whether codes are going out, judged in one place."""

from dataclasses import replace

import pytest

from otp_stream.core.health import STALE_MS, checks, worst
from otp_stream.core.state import BrokerState, LaneState, RelayState, WorkerState

NOW = 1_700_000_000_000
LANES = tuple(LaneState(lane, f"q.{lane}", 10, depth=0, consumers=1) for lane in ("jobs", "high", "due"))
BROKER = BrokerState("amqp://h", connected=True, looked_ms=NOW, lanes=LANES)
RELAY = RelayState("relay:25")
GOOD = WorkerState("consuming", BROKER, (RELAY,))
SHUT = replace(RELAY, gate="closed", trouble="tls_failed", error="expired")
PROBED = replace(RELAY, gate="half_open", trouble="throttled")


def test_all_is_well() -> None:
    assert worst(checks(GOOD, NOW)) == "healthy"


@pytest.mark.parametrize(
    ("state", "status", "text"),
    [
        (replace(GOOD, phase="starting"), "unhealthy", "waiting for RabbitMQ"),
        (replace(GOOD, phase="stopping"), "unhealthy", "stopping"),
        (replace(GOOD, broker=replace(BROKER, connected=False, error="refused")), "unhealthy", "is away: refused"),
        (replace(GOOD, broker=replace(BROKER, looked_ms=None)), "unhealthy", "does not answer"),
        (replace(GOOD, broker=replace(BROKER, looked_ms=NOW - STALE_MS - 1)), "unhealthy", "does not answer"),
        (
            replace(GOOD, broker=replace(BROKER, lanes=(replace(LANES[0], consumers=0),))),
            "unhealthy",
            "the broker sees no consumer on q.jobs",
        ),
        (
            replace(GOOD, broker=replace(BROKER, lanes=(LANES[0], replace(LANES[1], depth=None, consumers=None)))),
            "degraded",
            "away at the broker: q.high",
        ),
        (
            replace(GOOD, broker=replace(BROKER, lanes=(replace(LANES[0], depth=None, consumers=None), LANES[1]))),
            "unhealthy",
            "away at the broker: q.jobs",
        ),
        (replace(GOOD, broker=replace(BROKER, blocked=True)), "degraded", "memory or disk"),
        (replace(GOOD, broker=replace(BROKER, error="odd")), "degraded", "odd"),
        (replace(GOOD, relays=(SHUT,)), "unhealthy", "tls_failed"),
        (replace(GOOD, relays=(PROBED,)), "degraded", "throttled"),
        (
            replace(GOOD, relays=(SHUT, RELAY)),
            "degraded",
            "the gate is closed, tls_failed: expired; relay:25: the gate is open",
        ),
        (replace(GOOD, relays=(replace(RELAY, stalled=True),)), "degraded", "does not answer"),
        (replace(GOOD, relays=(SHUT, PROBED)), "degraded", "probing"),
        (replace(GOOD, relays=(SHUT, SHUT)), "unhealthy", "tls_failed"),
    ],
)
def test_each_trouble_is_seen_and_told(state: WorkerState, status: str, text: str) -> None:
    found = checks(state, NOW)
    assert worst(found) == status
    assert any(text in check.text for check in found if check.status == status)


def test_a_relay_that_is_slowed_down_is_told_of_and_healthy() -> None:
    found = checks(replace(GOOD, relays=(replace(RELAY, rate=12.04, slowed=True),)), NOW)
    assert worst(found) == "healthy"
    assert found[-1].text == "relay:25: the gate is open, slowed to 12/s after a throttle"


def test_without_worker_nothing_can_be_wrong() -> None:
    assert worst(checks(WorkerState("http_only", None, ()), NOW)) == "healthy"
