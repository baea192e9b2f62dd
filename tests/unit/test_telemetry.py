"""Metrics, statistics, reminders of the monitor, and errors in telemetry."""

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
from otp_stream.core.job import Job, Lane
from otp_stream.core.otp_job import OtpJob
from otp_stream.core.outcome import Outcome
from otp_stream.core.state import RelayState, TablesState, WorkerState
from otp_stream.telemetry.metrics import Metrics
from otp_stream.telemetry.monitor import Reminder
from otp_stream.telemetry.observer import Observer
from otp_stream.telemetry.stats import StatsRecorder
from otp_stream.telemetry_errors import ERRORS, SafeSpan, observe


def rendered(tables: TablesState) -> list[str]:
    """Return the samples that Prometheus reads."""
    metrics = Metrics()
    metrics.expose(lambda: WorkerState("consuming", None, (), tables))
    body, _ = metrics.render("text/plain")
    return [line for line in body.decode().splitlines() if not line.startswith("#")]


def test_the_state_of_shared_tables_is_exposed() -> None:
    lines = rendered(
        TablesState(
            url="redis://h",
            connected=True,
            workers=3,
            claims=7,
            sizes={"sent": 12, "recipient 5/10m": 4},
            evicted=2,
            answers={"admitted": 9, "throttled_recipient": 1},
            unshared=5,
            pending=6,
            throttled={"recipient abc": 1},
        )
    )
    for line in (
        "otp_redis_connected 1.0",
        "otp_sent_records_pending 6.0",
        "otp_tables_workers 3.0",
        'otp_admissions_total{result="admitted"} 9.0',
        'otp_admissions_total{result="throttled_recipient"} 1.0',
        'otp_admissions_total{result="duplicate"} 0.0',
        "otp_possible_duplicates_total 5.0",
        "otp_tables_evicted_total 2.0",
        "otp_claims 7.0",
        'otp_table_entries{table="sent"} 12.0',
        'otp_table_entries{table="recipient 5/10m"} 4.0',
    ):
        assert line in lines
    assert "abc" not in "\n".join(lines)  # one series for each key would be an unlimited number


def test_the_switches_of_relays_are_exposed() -> None:
    relays = RelayState("a:25", switches={"rcpt": 4}, slow=True, first_tries=0.1), RelayState("b:25")
    metrics = Metrics()
    metrics.expose(lambda: WorkerState("consuming", None, relays))
    found = metrics.render("text/plain")[0].decode().splitlines()
    for line in (
        'otp_relay_switches_total{relay="a:25",step="rcpt"} 4.0',
        'otp_relay_switches_total{relay="b:25",step="connect"} 0.0',
        'otp_relay_first_tries_ratio{relay="a:25"} 0.1',
        'otp_relay_first_tries_ratio{relay="b:25"} 1.0',
    ):
        assert line in found


def names(*unions: object) -> list[str]:
    return [kind.__name__.lower() for union in unions for kind in get_args(union)]


def test_every_outcome_ending_lane_and_admission_result_has_a_series() -> None:
    metrics = Metrics()
    for outcome in names(Outcome):
        metrics.attempts[outcome].inc()
    for ending in ENDINGS:
        metrics.ended[ending].inc()
    for lane in get_args(Lane):
        metrics.received[lane].inc()
    limits = [Throttled(Limit(name, 1, 1000), 0) for name in get_args(LimitName)]
    for refusal in (None, SentBefore(), Superseded(), Unknown(), *limits):
        assert answer_name(refusal) in ANSWERS
    lines = rendered(TablesState())
    assert {f'otp_admissions_total{{result="{name}"}} 0.0' for name in ANSWERS} <= set(lines)


def test_an_error_in_telemetry_is_counted_and_not_raised() -> None:
    def fail(*_: object) -> None:
        raise KeyError("123456")

    before = ERRORS.count
    observe(fail, "anything")
    with SafeSpan(fail):
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

    with pytest.raises(ValueError, match="of the body"), SafeSpan(span):
        raise ValueError("of the body")


def test_tables_in_memory_have_no_metrics_of_redis() -> None:
    lines = rendered(TablesState(claims=1))
    assert "otp_claims 1.0" in lines
    assert not any(
        line.startswith(("otp_redis_connected", "otp_sent_records_pending", "otp_tables_workers")) for line in lines
    )
    assert "otp_redis_connected 0.0" in rendered(TablesState(url="redis://h", connected=False))


def test_the_number_of_series_of_attempts_is_limited() -> None:
    observer = Observer(now_ms=lambda: 1_000)
    request = OtpJob(email="user@example.com", otp="123456")
    job = Job.from_request(request, job_id="j", lane="due", first_seen_ms=1, attempts_made=0, default_expiry_minutes=15)
    for attempt in range(1, 1_001):
        observer.job_settled(job, Retry(900, attempt, "451 later"))
    body, _ = observer.metrics.render("text/plain")
    series = [line for line in body.decode().splitlines() if line.startswith("otp_retries_total{")]
    assert len(series) == 11
    assert 'otp_retries_total{attempt="more"} 990.0' in series


def test_a_lasting_condition_is_logged_when_seen_twice_and_then_hourly() -> None:
    reminder = Reminder()
    logged = [at_s for at_s in range(0, 7300, 10) if reminder.due("a note", float(at_s))]
    assert logged == [10, 3610, 7210]


def test_a_temporary_condition_is_not_logged_and_one_that_returns_is() -> None:
    reminder = Reminder()
    seen = [True, False, True, True, True, False, True, True]
    logged = [reminder.due("a note" if it else None, float(at_s)) for at_s, it in enumerate(seen)]
    assert logged == [False, False, False, True, False, False, False, True]


def test_sent_and_failed_jobs_count_for_a_minute() -> None:
    stats = StatsRecorder(0)
    for at_ms in (1000, 1500, 30_000):
        stats.mail_accepted(5, at_ms)
        stats.job_ended("sent", at_ms)
        stats.job_ended("rejected", at_ms)
        stats.job_ended("throttled", at_ms)  # intended, no failure
    assert [(it.sent_last_minute, it.died_last_minute) for it in map(stats.snapshot, (30_000, 61_000, 90_000))] == [
        (3, 3), (1, 1), (0, 0)
    ]  # fmt: skip
    assert stats.snapshot(90_000).endings == {"sent": 3, "rejected": 3, "throttled": 3}
