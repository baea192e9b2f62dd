"""Whether codes are going out, judged in one place."""

from dataclasses import replace
from typing import Any, cast

import pytest

from otp_stream.broker.incoming import Shared
from otp_stream.broker.lane import Handle, LaneConsumer
from otp_stream.broker.queue_age import QueueAge
from otp_stream.broker.topology import Depth
from otp_stream.core.health import LATE_MS, STALE_MS, Check, Status, checks, unshared_state, worst
from otp_stream.core.state import BrokerState, LaneState, Phase, RelayState, WorkerState
from otp_stream.core.stats import Stats
from otp_stream.core.tables_state import TablesState

NOW = 1_700_000_000_000
NONE = Stats(0)
LANES = tuple(LaneState(lane, f"q.{lane}", 10, depth=0, consumers=1) for lane in ("jobs", "high", "due"))
BROKER = BrokerState("amqp://h", connected=True, reported_ms=NOW, lanes=LANES)
RELAY = RelayState("relay:25")
GOOD = WorkerState("consuming", BROKER, (RELAY,))
CLOSED = replace(RELAY, circuit_breaker="open", reason="tls_failed", error="expired")
PROBED = replace(RELAY, circuit_breaker="half_open", reason="throttled", error="454 later")
FALLBACK = RelayState("fallback:25")
LATE = NOW - LATE_MS - 1


def gone(lane: LaneState) -> LaneState:
    return replace(lane, depth=None, consumers=None)


def test_all_is_well() -> None:
    found = checks(GOOD, NONE, NOW)
    assert worst(found) == "healthy"
    assert found == (
        Check("phase", "healthy", "consuming"),
        Check("broker", "healthy", "amqp://h delivers to us"),
        Check("relay", "healthy", "relay:25: circuit breaker closed"),
        Check("endings", "healthy", "0 jobs failed in the last minute, 0 were sent"),
        Check("pace", "healthy", "no job waits long"),
    )


@pytest.mark.parametrize(
    ("phase", "status", "text"),
    [
        ("http_only", "healthy", "WORKER=false: serving HTTP only, consuming nothing"),
        ("starting", "unhealthy", "starting: waiting for RabbitMQ"),
        ("stopping", "unhealthy", "stopping"),
    ],
)
def test_a_worker_that_does_not_consume_gives_the_reason(phase: Phase, status: Status, text: str) -> None:
    found = checks(replace(GOOD, phase=phase), NONE, NOW)
    assert found[0] == Check("phase", status, text)
    assert worst(found) == status
    # it has no dead jobs and no late jobs
    assert [check.name for check in found] == ["phase", "broker", "relay"]


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({"connected": False, "error": "refused"}, "unhealthy", "amqp://h is away: refused"),
        ({"connected": False}, "unhealthy", "amqp://h is away: connecting"),
        (
            {"connected": False, "refused": True, "error": "refuses the login of u; correct RABBITMQ_URL"},
            "unhealthy",
            "amqp://h refuses the login of u; correct RABBITMQ_URL",
        ),
        ({"reported_ms": None}, "unhealthy", "amqp://h does not answer: not asked yet"),
        ({"reported_ms": NOW - STALE_MS - 1, "error": "timeout"}, "unhealthy", "amqp://h does not answer: timeout"),
        ({"reported_ms": NOW - STALE_MS}, "healthy", "amqp://h delivers to us"),
        (
            {"lanes": (replace(LANES[0], consumers=0), replace(LANES[1], consumers=None), LANES[2])},
            "unhealthy",
            "the broker sees no consumer on q.jobs, q.high",
        ),
        (
            {"lanes": (LANES[0], gone(LANES[1]), gone(LANES[2]))},
            "degraded",
            "not available at the broker: q.high, q.due",
        ),
        ({"lanes": (gone(LANES[0]), LANES[1])}, "unhealthy", "not available at the broker: q.jobs"),
        ({"blocked": True}, "degraded", "amqp://h refuses publishes: it is low on memory or disk space"),
        ({"error": "odd"}, "degraded", "amqp://h: odd"),
    ],
)
def test_a_broker_that_delivers_no_jobs_is_reported_with_the_reason(
    changes: dict[str, Any], status: Status, text: str
) -> None:
    found = checks(replace(GOOD, broker=replace(BROKER, **changes)), NONE, NOW)
    assert [check for check in found if check.name == "broker"] == [Check("broker", status, text)]
    assert worst(found) == status


def test_without_a_connection_to_the_broker_no_queue_is_judged() -> None:
    late = replace(LANES[0], oldest_unacked_ms=LATE)
    found = checks(replace(GOOD, broker=replace(BROKER, connected=False, lanes=(late,))), NONE, NOW)
    assert found[0] == Check("phase", "healthy", "consuming resumes when RabbitMQ is back")
    assert "pace" not in [check.name for check in found]


@pytest.mark.parametrize(
    ("relays", "status", "text"),
    [
        ((CLOSED,), "unhealthy", "relay:25: circuit breaker open, tls_failed: expired"),
        ((PROBED,), "degraded", "relay:25: probing after throttled: 454 later"),
        (
            (CLOSED, FALLBACK),
            "degraded",
            "relay:25: circuit breaker open, tls_failed: expired; fallback:25: circuit breaker closed",
        ),
        (
            (FALLBACK, CLOSED),
            "healthy",
            "fallback:25: circuit breaker closed; relay:25: circuit breaker open, tls_failed: expired",
        ),
        (
            (replace(RELAY, stalled=True),),
            "degraded",
            "relay:25: circuit breaker closed, but the relay does not answer",
        ),
        (
            (RELAY, replace(FALLBACK, stalled=True)),
            "healthy",
            "relay:25: circuit breaker closed; fallback:25: circuit breaker closed, but the relay does not answer",
        ),
        (
            (CLOSED, replace(PROBED, name="fallback:25")),
            "degraded",
            "relay:25: circuit breaker open, tls_failed: expired; fallback:25: probing after throttled: 454 later",
        ),
        (
            (CLOSED, replace(CLOSED, name="fallback:25", reason="unreachable", error="refused")),
            "unhealthy",
            (
                "relay:25: circuit breaker open, tls_failed: expired; "
                "fallback:25: circuit breaker open, unreachable: refused"
            ),
        ),
        (
            (replace(RELAY, rate=12.04, slowed=True),),
            "healthy",
            "relay:25: circuit breaker closed, slowed to 12/s after a throttle",
        ),
        (
            (replace(RELAY, rate=0.26, slowed=True),),
            "healthy",
            "relay:25: circuit breaker closed, slowed to 0.3/s after a throttle",
        ),
        (
            (replace(RELAY, slow=True, slow_sends=20, last_sends=50, first_tries=0.1), FALLBACK),
            "degraded",
            (
                "relay:25: circuit breaker closed, but 40 % of the last 50 mails were slow; it gets 10 % of first "
                "tries; fallback:25: circuit breaker closed"
            ),
        ),
        (
            (replace(RELAY, slow=True, slow_sends=49, last_sends=50, first_tries=0.005), FALLBACK),
            "degraded",
            (
                "relay:25: circuit breaker closed, but 98 % of the last 50 mails were slow; it gets 0.5 % of first "
                "tries; fallback:25: circuit breaker closed"
            ),
        ),
        (
            (replace(RELAY, slow=True, slow_sends=3, last_sends=3), FALLBACK),
            "degraded",
            (
                "relay:25: circuit breaker closed, but 100 % of the last 3 mails were slow; no other relay is faster; "
                "fallback:25: circuit breaker closed"
            ),
        ),
        (
            (replace(RELAY, slow_domains=tuple("abcde")), FALLBACK),
            "degraded",
            (
                "relay:25: circuit breaker closed, but mail to a, b, c and 2 more is slow; a faster relay gets most of "
                "it first; fallback:25: circuit breaker closed"
            ),
        ),
        (
            (RELAY, replace(FALLBACK, slow_domains=("a",))),
            "healthy",
            (
                "relay:25: circuit breaker closed; fallback:25: circuit breaker closed, but mail to a is slow; a "
                "faster relay gets most of it first"
            ),
        ),
        ((replace(RELAY, rate=None, slowed=True),), "healthy", "relay:25: circuit breaker closed"),
        ((replace(RELAY, rate=12.0),), "healthy", "relay:25: circuit breaker closed"),
    ],
)
def test_health_follows_the_first_relay_and_reports_every_one(
    relays: tuple[RelayState, ...], status: Status, text: str
) -> None:
    found = checks(replace(GOOD, relays=relays), NONE, NOW)
    assert [check for check in found if check.name == "relay"] == [Check("relay", status, text)]
    assert worst(found) == status


@pytest.mark.parametrize(
    ("lanes", "text"),
    [
        ((replace(LANES[0], oldest_unacked_ms=LATE),), "the oldest unacked job of q.jobs arrived 10 s ago"),
        ((replace(LANES[0], depth=7, waiting_ms=LATE),), "7 wait in q.jobs, the oldest for 10 s"),
        ((replace(LANES[0], depth=7, waiting_ms=NOW - 150_000),), "7 wait in q.jobs, the oldest for 2.5 min"),
        (
            (
                replace(LANES[0], oldest_unacked_ms=LATE),
                LANES[1],
                replace(LANES[2], depth=1, waiting_ms=NOW - 60_000),
            ),
            "the oldest unacked job of q.jobs arrived 10 s ago; 1 wait in q.due, the oldest for 60 s",
        ),
    ],
)
def test_codes_that_are_late_are_trouble_though_they_go_out(lanes: tuple[LaneState, ...], text: str) -> None:
    found = checks(replace(GOOD, broker=replace(BROKER, lanes=lanes)), NONE, NOW)
    assert worst(found) == "degraded"
    assert found[-1] == Check("pace", "degraded", f"codes are late: {text}")


def test_a_job_that_came_just_now_is_not_late() -> None:
    soon = replace(LANES[0], depth=7, oldest_unacked_ms=NOW - LATE_MS, waiting_ms=NOW - LATE_MS)
    assert worst(checks(replace(GOOD, broker=replace(BROKER, lanes=(soon,))), NONE, NOW)) == "healthy"


def test_behind_open_breakers_the_relay_alone_is_reported() -> None:
    late = replace(LANES[0], depth=7, waiting_ms=LATE, oldest_unacked_ms=LATE)
    shut = replace(GOOD, broker=replace(BROKER, lanes=(late,)), relays=(CLOSED,))
    assert [it.name for it in checks(shut, NONE, NOW)] == ["phase", "broker", "relay", "endings"]
    assert [it.name for it in checks(replace(shut, relays=(CLOSED, RELAY)), NONE, NOW)][-1] == "pace"


def test_a_lane_knows_since_when_at_least_something_waits_in_its_queue() -> None:
    lane = LaneConsumer("jobs", "q", 10, cast("Shared", None), cast("Handle", None))
    lane.record_depth(Depth(3, 1))
    first = lane.state.waiting_ms
    lane.record_depth(None)  # away: nothing is known of it
    lane.record_depth(Depth(2, 1))
    assert first is not None
    assert (lane.state.empty_ms, lane.state.waiting_ms) == (None, first)
    lane.record_depth(Depth(0, 1))
    assert lane.state.waiting_ms is None
    assert lane.state.empty_ms is not None


def test_what_was_seen_waiting_counts_until_as_many_have_left() -> None:
    age = QueueAge()
    age.record(Depth(3, 1), taken=100, at_ms=1000)
    assert [age.since_ms(100), age.since_ms(102), age.since_ms(103)] == [1000, 1000, None]
    # a queue that is busy at every look, and whose jobs are all quick: nothing is late
    age.record(Depth(2, 1), taken=500, at_ms=12_000)
    assert age.since_ms(500) == 12_000
    # one of which less leaves than comes: the second look's last is still there
    age.record(Depth(40, 1), taken=501, at_ms=14_000)
    age.record(Depth(70, 1), taken=510, at_ms=16_000)
    assert age.since_ms(510) == 14_000
    age.record(Depth(0, 1), taken=511, at_ms=18_000)
    assert age.since_ms(511) is None


def test_beside_other_consumers_looks_say_nothing_and_what_came_last_does(monkeypatch: pytest.MonkeyPatch) -> None:
    age = QueueAge()
    age.record(Depth(30, 1), taken=0, at_ms=1000)
    age.record(Depth(30, 2), taken=0, at_ms=3000)  # the other may have taken all of them
    assert age.since_ms(0) is None
    monkeypatch.setattr("otp_stream.broker.lane.now_ms", lambda: 100_000)
    lane = LaneConsumer("jobs", "q", 10, cast("Shared", None), cast("Handle", None))
    lane.record_depth(Depth(30, 2))
    assert lane.state.waiting_ms is None  # no job has a timestamp yet
    lane._made_ms, lane._received_ms = 70_000, 95_000
    assert lane.state.waiting_ms == 70_000
    lane._received_ms = 80_000  # since then other workers may have taken all jobs behind it
    assert lane.state.waiting_ms is None
    lane._received_ms = 99_000
    lane.record_depth(Depth(0, 2))
    lane.record_depth(Depth(5, 2))
    assert lane.state.waiting_ms == 100_000  # a producer's clock may be behind, but the queue was empty


def test_a_backlog_of_hours_is_remembered_from_its_beginning() -> None:
    age = QueueAge()
    for look in range(1000):
        age.record(Depth(10 + look, 1), taken=look // 100, at_ms=look)
    assert age.since_ms(9) == 0
    age.record(Depth(2000, 1), taken=900, at_ms=2000)
    assert age.since_ms(900) in range(9, 2001)


REDIS = TablesState(url="redis://h", connected=True)
AWAY = replace(REDIS, connected=False, error="refused", unshared=3)


@pytest.mark.parametrize(
    ("tables", "status", "text"),
    [
        (REDIS, "healthy", "state is shared in redis://h"),
        (AWAY, "degraded", "redis://h is away, 3 codes were sent without shared state: refused"),
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


def test_several_workers_without_redis_are_healthy_and_reported_with_consequence_and_fix() -> None:
    several = replace(BROKER, lanes=(replace(LANES[0], consumers=2), *LANES[1:]))
    state = replace(GOOD, broker=several, tables=TablesState())
    note = unshared_state(state) or ""
    assert note == (
        "2 consumers on q.jobs and no REDIS_URL: each worker knows only its own jobs. "
        "A job that is redelivered to another worker may be sent twice; limits and newest codes count per worker. "
        "Set REDIS_URL to the same value for all workers."
    )
    assert worst(checks(state, NONE, NOW)) == "healthy"
    for well in (
        replace(state, broker=BROKER),
        replace(state, broker=replace(BROKER, lanes=())),
        # several consumers of another lane, or an answer that is still missing
        replace(state, broker=replace(BROKER, lanes=(LANES[0], replace(LANES[1], consumers=2)))),
        replace(state, broker=replace(BROKER, lanes=(gone(LANES[0]),))),
        replace(state, broker=None),
        replace(state, tables=None),
        replace(state, tables=REDIS),
        replace(state, tables=AWAY),
        WorkerState("http_only", None, ()),
    ):
        assert unshared_state(well) is None


@pytest.mark.parametrize(
    ("died", "sent", "status"),
    [(4, 0, "healthy"), (5, 0, "degraded"), (5, 44, "degraded"), (5, 45, "healthy"), (50, 60, "degraded")],
)
def test_codes_that_die_instead_of_going_out_are_trouble(died: int, sent: int, status: Status) -> None:
    found = checks(GOOD, Stats(0, died_last_minute=died, sent_last_minute=sent), NOW)
    assert worst(found) == status
    (endings,) = [it for it in found if it.name == "endings"]
    where = ": otp-stream dead list, or the page /dead, shows why" if status == "degraded" else ""
    assert endings == Check("endings", status, f"{died} jobs failed in the last minute, {sent} were sent{where}")


def test_without_worker_nothing_can_be_wrong() -> None:
    assert worst(checks(WorkerState("http_only", None, ()), NONE, NOW)) == "healthy"
