"""Whether codes are going out, judged in one place."""

from dataclasses import replace

import pytest

from otp_stream.core.health import STALE_MS, checks, kept_apart, worst
from otp_stream.core.state import BrokerState, LaneState, RelayState, TablesState, WorkerState

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


REDIS = TablesState(url="redis://h", connected=True)
AWAY = replace(REDIS, connected=False, error="refused", unshared=3)


@pytest.mark.parametrize(
    ("tables", "status", "text"),
    [
        (REDIS, "healthy", "redis://h shares the state"),
        (AWAY, "degraded", "redis://h is away, 3 codes went out without shared state: refused"),
        (replace(AWAY, fail="closed"), "unhealthy", "redis://h is away, jobs wait (STATE_FAIL=closed): refused"),
    ],
)
def test_redis_is_judged_by_what_its_absence_does_to_codes(tables: TablesState, status: str, text: str) -> None:
    found = checks(replace(GOOD, tables=tables), NOW)
    assert worst(found) == status
    assert [(check.status, check.text) for check in found if check.name == "tables"] == [(status, text)]


def test_state_in_memory_is_nothing_to_judge() -> None:
    assert [check.name for check in checks(replace(GOOD, tables=TablesState()), NOW)] == ["phase", "broker", "relay"]


def test_several_workers_without_redis_are_told_of_with_consequence_and_cure_and_healthy() -> None:
    several = replace(BROKER, lanes=(replace(LANES[0], consumers=2), *LANES[1:]))
    state = replace(GOOD, broker=several, tables=TablesState())
    note = kept_apart(state) or ""
    assert note.startswith("2 consumers on q.jobs and no REDIS_URL")
    assert "may be sent twice" in note
    assert "Set REDIS_URL" in note
    assert worst(checks(state, NOW)) == "healthy"
    for well in (
        replace(state, broker=BROKER),
        replace(state, broker=replace(BROKER, lanes=())),
        replace(state, tables=REDIS),
        replace(state, tables=AWAY),
        WorkerState("http_only", None, ()),
    ):
        assert kept_apart(well) is None


def test_without_worker_nothing_can_be_wrong() -> None:
    assert worst(checks(WorkerState("http_only", None, ()), NOW)) == "healthy"
