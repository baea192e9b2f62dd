"""Metrics, statistics, reminders of the monitor, and errors in telemetry."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, get_args

import pytest
from deliveries import Deliveries
from prometheus_client.parser import text_string_to_metric_families

from otp_stream import __version__
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
from otp_stream.core.decision import ENDINGS, Ack, Dead, Retry
from otp_stream.core.job import Job, Lane
from otp_stream.core.messaging import Publication, published_to
from otp_stream.core.otp_job import OtpJob
from otp_stream.core.outcome import Outcome
from otp_stream.core.retention import SweepState
from otp_stream.core.state import BrokerState, CredentialsState, LaneState, RelayState, WorkerState
from otp_stream.core.tables_state import TablesState
from otp_stream.telemetry.messaging_metrics import Server
from otp_stream.telemetry.metrics import Metrics
from otp_stream.telemetry.monitor import Reminder
from otp_stream.telemetry.observer import Observer
from otp_stream.telemetry.stats import StatsRecorder
from otp_stream.telemetry.tracing import NoTracer
from otp_stream.telemetry_errors import ERRORS, SafeSpan, observe


def rendered(tables: TablesState) -> list[str]:
    """Return the samples that Prometheus reads."""
    metrics = Metrics()
    metrics.expose(lambda: WorkerState("consuming", None, (), tables), lambda: 0)
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
    metrics.expose(lambda: WorkerState("consuming", None, relays), lambda: 0)
    found = metrics.render("text/plain")[0].decode().splitlines()
    for line in (
        'otp_relay_switches_total{relay="a:25",step="rcpt"} 4.0',
        'otp_relay_switches_total{relay="b:25",step="connect"} 0.0',
        'otp_relay_first_tries_ratio{relay="a:25"} 0.1',
        'otp_relay_first_tries_ratio{relay="b:25"} 1.0',
    ):
        assert line in found


def test_the_ages_of_waiting_jobs_and_the_ends_of_credentials_are_exposed() -> None:
    lanes = (
        LaneState("jobs", "q", 200, depth=3, waiting_ms=4_000, oldest_unacked_ms=9_500),
        LaneState("high", "q.high", 20, depth=0, waiting_ms=99_000),  # the clock was set back
    )
    relays = (
        RelayState("a:25", credentials=CredentialsState(1_800_000_000.0, 420.5, 2)),
        RelayState("b:25", credentials=CredentialsState(token_valid_s=0.0)),
        RelayState("c:25"),
    )
    metrics = Metrics()
    metrics.expose(lambda: WorkerState("consuming", BrokerState("amqp://", lanes=lanes), relays), lambda: 10_000)
    found = metrics.render("text/plain")[0].decode().splitlines()
    for line in (
        'otp_queue_oldest_seconds{queue="q"} 6.0',
        'otp_queue_oldest_seconds{queue="q.high"} 0.0',
        'otp_jobs_unacked_oldest_seconds{lane="jobs"} 0.5',
        'otp_jobs_unacked_oldest_seconds{lane="high"} 0.0',
        'otp_relay_certificate_expiry_timestamp_seconds{relay="a:25"} 1.8e+09',
        'otp_relay_token_valid_seconds{relay="a:25"} 420.5',
        'otp_relay_token_valid_seconds{relay="b:25"} 0.0',
        'otp_relay_token_failures{relay="a:25"} 2.0',
    ):
        assert line in found
    assert not any(line.startswith(("otp_relay_cert", "otp_relay_token")) and 'relay="c:25"' in line for line in found)


def test_the_time_of_the_last_complete_sweep_is_exposed_once_there_is_one() -> None:
    for last_ms, line in ((None, ""), (1_500, "otp_dead_letter_sweep_timestamp_seconds 1.5")):
        state = WorkerState("consuming", None, (), sweeps=SweepState(last_ms=last_ms))
        metrics = Metrics()
        metrics.expose(lambda state=state: state, lambda: 0)
        found = metrics.render("text/plain")[0].decode().splitlines()
        assert [it for it in found if it.startswith("otp_dead_letter_sweep_")] == [line] * bool(line)


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


def exposed(observer: Observer, *lanes: LaneState) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the samples of the metrics by convention, as Prometheus reads them."""
    observer.metrics.expose(lambda: WorkerState("consuming", BrokerState("amqp://", lanes=lanes), ()), lambda: 0)
    body, _ = observer.metrics.render("text/plain")
    families = text_string_to_metric_families(body.decode())
    samples = [it for family in families for it in family.samples if it.name.startswith("messaging_")]
    return {(it.name, frozenset(it.labels.items())): it.value for it in samples}


def test_messages_are_counted_and_timed_by_the_semantic_conventions() -> None:
    observer = Observer(now_ms=lambda: 1_000, server=Server("mq.example", 5672))
    common = {("messaging_system", "rabbitmq"), ("server_address", "mq.example"), ("server_port", "5672")}
    request = OtpJob(email="user@example.com", otp="123456")
    job = Job.from_request(
        request, job_id="j", lane="jobs", first_seen_ms=1, attempts_made=0, default_expiry_minutes=15
    )
    message = Deliveries().message()
    for settlement in (Ack("sent"), Ack("sent"), Dead("rejected", "550 no", 1)):
        with observer.job_span(job, message):
            observer.job_settled(job, settlement)
    with observer.job_span(job, message):
        observer.settlement_failed(job, Ack("sent"))
    with pytest.raises(KeyError), observer.job_span(job, message):
        raise KeyError
    with observer.unread_span(message):
        observer.message_refused("jobs", "j", Dead("malformed", "no", 0))
    observer.published(Publication(published_to("otp.retry", "1000"), "1000"), 0.02, None)
    observer.published(Publication(published_to("otp.events", ""), parents=(None,) * 5), 0.001, ConnectionError())
    tenant = "otp.tenant.{tenant}"
    found = exposed(
        observer,
        LaneState("jobs", "jobs", 200, received=7),
        LaneState("tenant", "tenants", 9, received=2, template=tenant),
    )
    process = {*common, ("messaging_operation_name", "process"), ("messaging_destination_name", "jobs")}
    for error, count in (
        (None, 2), ("rejected", 1), ("not_settled", 1), ("KeyError", 1), ("malformed", 1),
    ):  # fmt: skip
        labels = process | ({("error_type", error)} if error else set())
        assert found["messaging_process_duration_seconds_count", frozenset(labels)] == count
        assert found["messaging_process_duration_seconds_bucket", frozenset(labels | {("le", "10.0")})] == count
    publish = {*common, ("messaging_operation_name", "publish")}
    retry = publish | {("messaging_destination_template", "otp.retry")}
    event = publish | {("messaging_destination_template", "otp.events"), ("error_type", "ConnectionError")}
    assert found["messaging_client_sent_messages_total", frozenset(retry)] == 1
    assert found["messaging_client_sent_messages_total", frozenset(event)] == 5
    timed = retry | {("messaging_operation_type", "send")}
    assert found["messaging_client_operation_duration_seconds_sum", frozenset(timed)] == 0.02
    assert found["messaging_client_operation_duration_seconds_bucket", frozenset(timed | {("le", "0.01")})] == 0
    consume = {*common, ("messaging_operation_name", "consume")}
    for label, queue, count in (("name", "jobs", 7), ("template", tenant, 2)):
        labels = consume | {(f"messaging_destination_{label}", queue)}
        assert found["messaging_client_consumed_messages_total", frozenset(labels)] == count


def test_a_span_that_cannot_be_created_costs_no_metric() -> None:
    class Broken(NoTracer):
        def job_span(self, *_: object) -> NoReturn:
            raise RuntimeError

    observer = Observer(now_ms=lambda: 1_000)
    observer._tracer, observer._traces = Broken(), True
    request = OtpJob(email="user@example.com", otp="123456")
    job = Job.from_request(
        request, job_id="j", lane="jobs", first_seen_ms=1, attempts_made=0, default_expiry_minutes=15
    )
    before = ERRORS.count
    with observer.job_span(job, Deliveries().message()):
        pass
    assert ERRORS.count == before + 1
    counts = [
        value for (name, _), value in exposed(observer).items() if name == "messaging_process_duration_seconds_count"
    ]
    assert counts == [1]


def test_the_versions_that_run_are_exposed() -> None:
    (line,) = [it for it in rendered(TablesState()) if it.startswith("otp_build_info")]
    assert f'version="{__version__}"' in line
    assert f'python="{platform.python_version()}"' in line
    assert 'faststream="0.' in line
    assert line.endswith(" 1.0")
