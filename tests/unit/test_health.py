"""Whether codes are going out, judged in one place."""

from dataclasses import replace
from typing import cast

import pytest

from otp_stream.broker.backlog import Backlog
from otp_stream.broker.lane import Desk, LaneConsumer
from otp_stream.broker.topology import Depth
from otp_stream.core.health import LATE_MS, STALE_MS, checks, kept_apart, worst
from otp_stream.core.state import BrokerState, LaneState, RelayState, Stats, TablesState, WorkerState

NOW = 1_700_000_000_000
NONE = Stats(0)
LANES = tuple(LaneState(lane, f"q.{lane}", 10, depth=0, consumers=1) for lane in ("jobs", "high", "due"))
BROKER = BrokerState("amqp://h", connected=True, looked_ms=NOW, lanes=LANES)
RELAY = RelayState("relay:25")
GOOD = WorkerState("consuming", BROKER, (RELAY,))
SHUT = replace(RELAY, gate="closed", trouble="tls_failed", error="expired")
PROBED = replace(RELAY, gate="half_open", trouble="throttled")


def test_all_is_well() -> None:
    assert worst(checks(GOOD, NONE, NOW)) == "healthy"


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
    found = checks(state, NONE, NOW)
    assert worst(found) == status
    assert any(text in check.text for check in found if check.status == status)


def test_a_relay_that_is_slowed_down_is_told_of_and_healthy() -> None:
    found = checks(replace(GOOD, relays=(replace(RELAY, rate=12.04, slowed=True),)), NONE, NOW)
    assert worst(found) == "healthy"
    assert [it.text for it in found if it.name == "relay"] == [
        "relay:25: the gate is open, slowed to 12/s after a throttle"
    ]


LATE = NOW - LATE_MS - 1


@pytest.mark.parametrize(
    ("lane", "text"),
    [
        (replace(LANES[0], oldest_held_ms=LATE), "the oldest job in hand from q.jobs came 10 s ago"),
        (replace(LANES[0], depth=7, waiting_ms=LATE), "7 wait in q.jobs, the oldest for 10 s"),
        (replace(LANES[0], depth=7, waiting_ms=NOW - 150_000), "the oldest for 2.5 min"),
    ],
)
def test_codes_that_are_late_are_trouble_though_they_go_out(lane: LaneState, text: str) -> None:
    found = checks(replace(GOOD, broker=replace(BROKER, lanes=(lane, *LANES[1:]))), NONE, NOW)
    assert worst(found) == "degraded"
    assert text in found[-1].text
    assert found[-1].text.startswith("codes are late: ")


def test_a_job_that_came_just_now_is_not_late() -> None:
    soon = replace(LANES[0], depth=7, oldest_held_ms=NOW - LATE_MS, waiting_ms=NOW - LATE_MS)
    assert worst(checks(replace(GOOD, broker=replace(BROKER, lanes=(soon,))), NONE, NOW)) == "healthy"


def test_behind_closed_gates_the_relay_is_the_trouble_and_told_of_alone() -> None:
    late = replace(LANES[0], depth=7, waiting_ms=LATE, oldest_held_ms=LATE)
    shut = replace(GOOD, broker=replace(BROKER, lanes=(late,)), relays=(SHUT,))
    assert [it.name for it in checks(shut, NONE, NOW)] == ["phase", "broker", "relay", "endings"]
    assert [it.name for it in checks(replace(shut, relays=(SHUT, RELAY)), NONE, NOW)][-1] == "pace"


def test_a_lane_knows_since_when_at_least_something_waits_in_its_queue() -> None:
    lane = LaneConsumer("jobs", "q", 10, cast("Desk", None))
    lane.saw(Depth(3, 1))
    first = lane.state.waiting_ms
    lane.saw(None)  # away: nothing is known of it
    lane.saw(Depth(2, 1))
    assert first is not None
    assert (lane.state.empty_ms, lane.state.waiting_ms) == (None, first)
    lane.saw(Depth(0, 1))
    assert lane.state.waiting_ms is None
    assert lane.state.empty_ms is not None


def test_what_was_seen_waiting_counts_until_as_many_have_left() -> None:
    backlog = Backlog()
    backlog.saw(Depth(3, 1), taken=100, at_ms=1000)
    assert [backlog.since_ms(100), backlog.since_ms(102), backlog.since_ms(103)] == [1000, 1000, None]
    # a queue that is busy at every look, and whose jobs are all quick: nothing is late
    backlog.saw(Depth(2, 1), taken=500, at_ms=12_000)
    assert backlog.since_ms(500) == 12_000
    # one of which less leaves than comes: the second look's last is still there
    backlog.saw(Depth(40, 1), taken=501, at_ms=14_000)
    backlog.saw(Depth(70, 1), taken=510, at_ms=16_000)
    assert backlog.since_ms(510) == 14_000
    backlog.saw(Depth(0, 1), taken=511, at_ms=18_000)
    assert backlog.since_ms(511) is None


def test_beside_other_consumers_looks_say_nothing_and_what_came_last_does(monkeypatch: pytest.MonkeyPatch) -> None:
    backlog = Backlog()
    backlog.saw(Depth(30, 1), taken=0, at_ms=1000)
    backlog.saw(Depth(30, 2), taken=0, at_ms=3000)  # the other may have taken all of them
    assert backlog.since_ms(0) is None
    monkeypatch.setattr("otp_stream.broker.lane.now_ms", lambda: 100_000)
    lane = LaneConsumer("jobs", "q", 10, cast("Desk", None))
    lane.saw(Depth(30, 2))
    assert lane.state.waiting_ms is None  # no job has told when it was made
    lane._made_ms, lane._came_ms = 70_000, 95_000
    assert lane.state.waiting_ms == 70_000
    lane._came_ms = 80_000  # since then the others may have taken all that stood behind it
    assert lane.state.waiting_ms is None
    lane._came_ms = 99_000
    lane.saw(Depth(0, 2))
    lane.saw(Depth(5, 2))
    assert lane.state.waiting_ms == 100_000  # a producer's clock may be behind, but the queue was empty


def test_a_backlog_of_hours_is_remembered_from_its_beginning() -> None:
    backlog = Backlog()
    for look in range(1000):
        backlog.saw(Depth(10 + look, 1), taken=look // 100, at_ms=look)
    assert backlog.since_ms(9) == 0
    backlog.saw(Depth(2000, 1), taken=900, at_ms=2000)
    assert backlog.since_ms(900) in range(9, 2001)


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
    found = checks(replace(GOOD, tables=tables), NONE, NOW)
    assert worst(found) == status
    assert [(check.status, check.text) for check in found if check.name == "tables"] == [(status, text)]


def test_state_in_memory_is_nothing_to_judge() -> None:
    assert [check.name for check in checks(replace(GOOD, tables=TablesState()), NONE, NOW)] == [
        "phase", "broker", "relay", "endings", "pace",
    ]  # fmt: skip


def test_several_workers_without_redis_are_told_of_with_consequence_and_cure_and_healthy() -> None:
    several = replace(BROKER, lanes=(replace(LANES[0], consumers=2), *LANES[1:]))
    state = replace(GOOD, broker=several, tables=TablesState())
    note = kept_apart(state) or ""
    assert note.startswith("2 consumers on q.jobs and no REDIS_URL")
    assert "may be sent twice" in note
    assert "Set REDIS_URL" in note
    assert worst(checks(state, NONE, NOW)) == "healthy"
    for well in (
        replace(state, broker=BROKER),
        replace(state, broker=replace(BROKER, lanes=())),
        replace(state, tables=REDIS),
        replace(state, tables=AWAY),
        WorkerState("http_only", None, ()),
    ):
        assert kept_apart(well) is None


@pytest.mark.parametrize(
    ("died", "sent", "status"), [(4, 0, "healthy"), (5, 0, "degraded"), (5, 45, "healthy"), (50, 60, "degraded")]
)
def test_codes_that_die_instead_of_going_out_are_trouble(died: int, sent: int, status: str) -> None:
    found = checks(GOOD, Stats(0, died_last_minute=died, sent_last_minute=sent), NOW)
    assert worst(found) == status
    (endings,) = [it for it in found if it.name == "endings"]
    assert endings.status == status
    assert endings.text.startswith(f"{died} jobs died in the last minute, {sent} were sent")
    assert ("dead list" in endings.text) == (status == "degraded")


def test_without_worker_nothing_can_be_wrong() -> None:
    assert worst(checks(WorkerState("http_only", None, ()), NONE, NOW)) == "healthy"
