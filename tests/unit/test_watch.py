"""What the metrics say of the tables, and when the monitor says what goes on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

import pytest

from otp_stream.core.admission import (
    ANSWERS,
    Limit,
    LimitName,
    SentBefore,
    Superseded,
    Throttled,
    Unknown,
    answer_name,
)
from otp_stream.core.decision import ENDINGS, Retry
from otp_stream.core.job import Lane, OtpJob, carry
from otp_stream.core.outcome import Outcome
from otp_stream.core.state import TablesState, WorkerState
from otp_stream.telemetry_errors import ERRORS, Observed, observe
from otp_stream.watch.metrics import Metrics
from otp_stream.watch.monitor import Reminder
from otp_stream.watch.tally import Tally
from otp_stream.watch.watch import Watch


def rendered(tables: TablesState) -> list[str]:
    """Return the lines that Prometheus reads of the tables."""
    metrics = Metrics()
    metrics.expose(lambda: WorkerState("consuming", None, (), tables))
    body, _ = metrics.render("text/plain")
    return [line for line in body.decode().splitlines() if not line.startswith("#")]


def test_shared_tables_are_what_prometheus_reads() -> None:
    lines = rendered(
        TablesState(
            url="redis://h",
            connected=True,
            workers=3,
            claims=7,
            sizes={"sent": 12, "recipient 5/10m": 4},
            evicted=2,
            asked={"admitted": 9, "throttled_recipient": 1},
            unshared=5,
            owed=6,
            throttled={"recipient abc": 1},
        )
    )
    for line in (
        "otp_redis_connected 1.0",
        "otp_tables_owed 6.0",
        "otp_tables_workers 3.0",
        'otp_tables_asked_total{answer="admitted"} 9.0',
        'otp_tables_asked_total{answer="throttled_recipient"} 1.0',
        'otp_tables_asked_total{answer="duplicate"} 0.0',
        "otp_possible_duplicates_total 5.0",
        "otp_tables_evicted_total 2.0",
        "otp_claims 7.0",
        'otp_table_entries{table="sent"} 12.0',
        'otp_table_entries{table="recipient 5/10m"} 4.0',
    ):
        assert line in lines
    assert "abc" not in "\n".join(lines)  # one series for each key would be without bound


def names(*unions: object) -> list[str]:
    return [kind.__name__.lower() for union in unions for kind in get_args(union)]


def test_every_outcome_settlement_and_answer_has_a_name_in_the_metrics() -> None:
    metrics = Metrics()
    for met in names(Outcome):
        metrics.met.add(met)
    for ending in ENDINGS:
        metrics.ended.add(ending)
    for lane in get_args(Lane):
        metrics.received.add(lane)
    limits = [Throttled(Limit(name, 1, 1000), 0) for name in get_args(LimitName)]
    for objection in (None, SentBefore(), Superseded(), Unknown(), *limits):
        assert answer_name(objection) in ANSWERS
    lines = rendered(TablesState())
    assert {f'otp_tables_asked_total{{answer="{name}"}} 0.0' for name in ANSWERS} <= set(lines)


def test_an_error_in_telemetry_is_counted_and_reaches_nobody() -> None:
    def fail(*_: object) -> None:
        raise KeyError("123456")

    before = ERRORS.count
    observe(fail, "anything")
    with Observed(fail):
        pass
    assert ERRORS.count == before + 2
    assert f"otp_telemetry_errors_total {before + 2:.1f}" in rendered(TablesState())


def test_a_span_that_fails_at_its_end_does_not_hide_what_its_body_raised() -> None:
    @contextmanager
    def span() -> Iterator[None]:
        try:
            yield
        finally:
            raise KeyError

    with pytest.raises(ValueError, match="of the body"), Observed(span):
        raise ValueError("of the body")


def test_tables_in_memory_say_nothing_of_redis() -> None:
    lines = rendered(TablesState(claims=1))
    assert "otp_claims 1.0" in lines
    assert not any(line.startswith(("otp_redis_connected", "otp_tables_owed", "otp_tables_workers")) for line in lines)
    assert "otp_redis_connected 0.0" in rendered(TablesState(url="redis://h", connected=False))


def test_a_producers_count_of_attempts_makes_no_endless_number_of_series() -> None:
    watch = Watch(now_ms=lambda: 1_000)
    ask = OtpJob(email="user@example.com", otp="123456")
    job = carry(ask, job_id="j", lane="due", first_seen_ms=1, attempts_made=0, default_expiry_minutes=15)
    for attempt in range(1, 1_001):
        watch.settled(job, Retry(900, attempt, "451 later"))
    body, _ = watch.metrics.render("text/plain")
    series = [line for line in body.decode().splitlines() if line.startswith("otp_retries_total{")]
    assert len(series) == 11
    assert 'otp_retries_total{attempt="more"} 990.0' in series


def test_what_is_seen_twice_is_said_once_and_again_after_an_hour() -> None:
    reminder = Reminder()
    said = [at_s for at_s in range(0, 7300, 10) if reminder.due("it goes on", float(at_s))]
    assert said == [10, 3610, 7210]


def test_what_passes_is_not_said_and_what_comes_back_is() -> None:
    reminder = Reminder()
    seen = [True, False, True, True, True, False, True, True]
    said = [reminder.due("it goes on" if it else None, float(at_s)) for at_s, it in enumerate(seen)]
    assert said == [False, False, False, True, False, False, False, True]


def test_what_went_out_and_what_died_is_known_for_a_minute() -> None:
    tally = Tally(0)
    for at_ms in (1000, 1500, 30_000):
        tally.accept(5, at_ms)
        tally.end("sent", at_ms)
        tally.end("rejected", at_ms)
        tally.end("throttled", at_ms)  # as somebody has asked for
    assert [(it.sent_last_minute, it.died_last_minute) for it in map(tally.look, (30_000, 61_000, 90_000))] == [
        (3, 3), (1, 1), (0, 0)
    ]  # fmt: skip
    assert tally.look(90_000).endings == {"sent": 3, "rejected": 3, "throttled": 3}
