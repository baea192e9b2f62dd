"""Metrics and log lines by OTLP: their names, and that a collector that fails affects nothing else."""

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NoReturn

import pytest
import structlog
from deliveries import Deliveries
from http_collector import Collector, collector
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, SummaryMetricFamily
from semantic_conventions import SCHEMA_URL, attributes, faults, metric_faults

from otp_stream.checks.tls import collectors
from otp_stream.core.decision import Ack
from otp_stream.core.job import Job
from otp_stream.core.messaging import Publication, published_to
from otp_stream.core.otp_job import OtpJob
from otp_stream.core.state import BrokerState, LaneState, WorkerState
from otp_stream.telemetry import configure_logs, exporters, logs, otlp_metrics, resource_attributes
from otp_stream.telemetry import observer as observer_module
from otp_stream.telemetry import opened as opened_module
from otp_stream.telemetry.current_span import CURRENT_SPAN
from otp_stream.telemetry.logs import close_log_export
from otp_stream.telemetry.messaging_metrics import Server
from otp_stream.telemetry.observer import Observer
from otp_stream.telemetry.otlp_metrics import converted

__all__ = ["collector"]  # a fixture
NOWHERE = "http://127.0.0.1:9"
JOB = Job.from_request(
    OtpJob(email="user@example.com", otp="7391540826"),
    job_id="j-1", lane="jobs", first_seen_ms=1, attempts_made=0, default_expiry_minutes=15,
)  # fmt: skip


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Set variables, and close what they open at the end."""
    monkeypatch.setattr(exporters, "CLOSE_S", 1.0)
    for module in (exporters, observer_module, opened_module):
        # a logger that is used after `configure_logs` keeps its output, also in later tests
        monkeypatch.setattr(module, "_log", structlog.get_logger())

    def change(endpoint: str, **environ: str) -> None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        for name, value in environ.items():
            monkeypatch.setenv(name, value)

    yield change
    close_log_export()
    structlog.reset_defaults()


async def opened() -> Observer:
    """Return an observer whose metrics are exported."""
    observer = Observer(server=Server("mq.example", 5672), environment="test", now_ms=lambda: 1_000)
    lanes = (LaneState("jobs", "jobs", 200, received=7),)
    observer.metrics.expose(lambda: WorkerState("consuming", BrokerState("amqp://", lanes=lanes), ()), lambda: 0)
    await observer.open()
    return observer


def process(observer: Observer) -> None:
    with observer.job_span(JOB, Deliveries().message()):
        observer.job_settled(JOB, Ack("sent"))
    observer.published(Publication(published_to("otp.retry", "1000"), "1000"), 0.02, TimeoutError())


async def test_every_metric_is_exported_by_a_name_of_the_conventions_or_ours(
    collector: Collector, environ: Callable[..., None]
) -> None:
    environ(collector.url, OTEL_METRICS_EXPORTER="otlp", OTEL_METRIC_EXPORT_INTERVAL="50")
    observer = await opened()
    process(observer)
    running = asyncio.create_task(observer.export_metrics())
    async with asyncio.timeout(20):
        while "otp.jobs" not in collector.metrics:  # noqa: ASYNC110 - a plain field of the collector's thread
            await asyncio.sleep(0.01)
    running.cancel()
    process(observer)
    await asyncio.to_thread(observer.close)
    metrics = collector.metrics
    assert list(metric_faults(metrics.values())) == []
    resource = collector.taken_metrics[0].resource_metrics[0]
    assert list(faults(resource.resource)) == []
    assert resource.scope_metrics[0].schema_url == SCHEMA_URL
    assert {"process.cpu.time", "process.memory.usage", "cpython.gc.collections", "otp.build_info"} <= metrics.keys()
    (processed,) = metrics["messaging.process.duration"].histogram.data_points
    assert processed.count == sum(processed.bucket_counts) == 2
    assert attributes(processed)["server.port"] == 5672
    (sent,) = metrics["messaging.client.sent.messages"].sum.data_points
    assert (sent.as_double, attributes(sent)["error.type"]) == (2, "TimeoutError")
    (consumed,) = metrics["messaging.client.consumed.messages"].sum.data_points
    assert consumed.as_double == 7
    jobs = {attributes(it)["otp.outcome"]: it.as_double for it in metrics["otp.jobs"].sum.data_points}
    assert (jobs["sent"], jobs["expired"]) == (2, 0)


def test_each_kind_of_metric_is_converted() -> None:
    counter = CounterMetricFamily("otp_events_dropped", "Events.", value=3)
    gauge = GaugeMetricFamily("otp_relay_first_tries_ratio", "Share.", labels=["relay"])
    gauge.add_metric(["a:25"], 0.5)
    buckets = [("0.1", 1.0), ("1.0", 3.0), ("+Inf", 4.0)]
    histogram = HistogramMetricFamily("otp_send_seconds", "Send.", buckets=buckets, sum_value=9.5)
    summary = SummaryMetricFamily("otp_tenant_time_to_accept_seconds", "Time.", count_value=2, sum_value=5)
    foreign = GaugeMetricFamily("python_info", "Not ours.", value=1)
    empty = CounterMetricFamily("otp_nothing", "No series.", labels=["a"])
    found = {it.name: it for it in converted([counter, gauge, histogram, summary, foreign, empty], 1, 2)}
    assert [(it.name, it.unit) for it in found.values()] == [
        ("otp.events_dropped", ""), ("otp.relay_first_tries", "1"),
        ("otp.send", "s"), ("otp.tenant_time_to_accept", "s"),
    ]  # fmt: skip
    (share,) = found["otp.relay_first_tries"].data.data_points
    assert (share.value, share.attributes) == (0.5, {"otp.relay": "a:25"})
    (send,) = found["otp.send"].data.data_points
    assert (send.bucket_counts, send.explicit_bounds, send.count, send.sum) == ([1, 2, 1], [0.1, 1.0], 4, 9.5)
    (took,) = found["otp.tenant_time_to_accept"].data.data_points
    assert (took.bucket_counts, took.explicit_bounds, took.count, took.sum) == ([2], [], 2, 5)


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf", "nan"])
async def test_an_interval_that_is_invalid_is_the_default(
    environ: Callable[..., None], value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    environ(NOWHERE, OTEL_METRICS_EXPORTER="otlp", OTEL_METRIC_EXPORT_INTERVAL=value)
    assert otlp_metrics._interval_s() == 60
    assert "OTEL_METRIC_EXPORT_INTERVAL" in capsys.readouterr().out


@pytest.mark.parametrize("variables", [
    {}, {"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"},
    {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_LOGS_EXPORTER": "console"},
    {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_LOGS_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"},
])  # fmt: skip
async def test_metrics_and_logs_are_exported_only_on_request(
    environ: Callable[..., None], variables: dict[str, str]
) -> None:
    environ(NOWHERE, OTEL_TRACES_EXPORTER="none", **variables)
    configure_logs(level="info", format="json", resource=resource_attributes("test"))
    observer = await opened()
    assert not observer.exports_metrics
    assert logs._exports == []
    await observer.export_metrics()
    observer.close()


@pytest.mark.parametrize("error", [ValueError("s3cret"), ModuleNotFoundError(name="opentelemetry.exporter")])
async def test_an_export_that_cannot_be_opened_is_logged_and_the_worker_starts(
    environ: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail() -> NoReturn:
        raise error

    monkeypatch.setattr(otlp_metrics, "open_metric_exporter", fail)
    environ(NOWHERE, OTEL_TRACES_EXPORTER="none", OTEL_METRICS_EXPORTER="otlp")
    observer = await opened()
    assert not observer.exports_metrics
    output = capsys.readouterr().out
    assert "metrics are not exported" in output
    assert "s3cret" not in output


async def test_a_collector_that_fails_costs_one_line_for_each_signal_and_a_second_at_the_end(
    collector: Collector, environ: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    environ(
        collector.url, OTEL_METRICS_EXPORTER="otlp", OTEL_LOGS_EXPORTER="otlp", OTEL_METRIC_EXPORT_INTERVAL="10",
        OTEL_BLRP_SCHEDULE_DELAY="10",
    )  # fmt: skip
    collector.statuses = [400] * 1_000
    configure_logs(level="info", format="json", resource=resource_attributes("test"))
    observer = await opened()
    running = asyncio.create_task(observer.export_metrics())
    output = ""
    async with asyncio.timeout(20):
        while not all(f"{it} are lost" in output for it in ("metrics", "log records")):
            structlog.get_logger().info("a line")
            process(observer)
            output += capsys.readouterr().out
            await asyncio.sleep(0.02)
    collector.delay_s = 20
    process(observer)
    await asyncio.sleep(0.05)
    running.cancel()
    began = time.monotonic()
    await asyncio.to_thread(observer.close)
    assert time.monotonic() - began < 8
    output += capsys.readouterr().out
    for it in ("metrics", "log records"):
        assert output.count(f"{it} are lost") == 1


async def test_a_slow_collector_of_metrics_has_one_export_at_a_time(
    collector: Collector, environ: Callable[..., None]
) -> None:
    environ(collector.url, OTEL_METRICS_EXPORTER="otlp", OTEL_METRIC_EXPORT_INTERVAL="1")
    collector.delay_s = 0.5
    observer = await opened()
    running = asyncio.create_task(observer.export_metrics())
    for _ in range(20):
        await asyncio.sleep(0.02)
        assert sum(it.name == "metrics" for it in threading.enumerate()) <= 1
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    observer.close()


def test_log_lines_are_exported_with_their_span_and_by_names_of_the_conventions_or_ours(
    collector: Collector, environ: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    environ(collector.url, OTEL_LOGS_EXPORTER="otlp")
    configure_logs(level="info", format="json", resource=resource_attributes("test"))
    span = TracerProvider().get_tracer("t").start_span("s")
    token = CURRENT_SPAN.set(span)
    structlog.get_logger().warning("job will be retried", job_id="j-1", attempt=2, error="451 later", none=None)
    CURRENT_SPAN.reset(token)
    structlog.get_logger().info(
        "careless", request=OtpJob(email="user@example.com", otp="7391540826"), parts={"a": [JOB]}
    )
    structlog.get_logger().debug("not at this level")
    try:
        int("here")
    except ValueError:
        logs.logging.getLogger("foreign").exception("failed")
    close_log_export()
    structlog.get_logger().info("later")
    first, second, third = collector.logs
    assert [it for record in collector.logs for it in faults(record)] == []
    assert (first.body.string_value, first.severity_text, first.severity_number) == (
        "job will be retried",
        "warning",
        13,
    )
    assert first.trace_id.hex() == f"{span.get_span_context().trace_id:032x}"
    assert attributes(first) == {"otp.job.id": "j-1", "otp.attempt": 2, "otp.error": "451 later"}
    assert "7391540826" not in str(second)  # its times may have the digits of a shorter one
    assert "user@" not in str(second)
    assert "ValueError" in attributes(third)["exception.stacktrace"]
    assert attributes(third)["otp.logger"] == "foreign"
    assert collector.taken_logs[0].resource_logs[0].scope_logs[0].schema_url == SCHEMA_URL
    assert "later" in capsys.readouterr().out


def test_a_full_queue_of_log_lines_drops_the_oldest_and_reports_how_many(
    collector: Collector, environ: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    environ(
        collector.url, OTEL_LOGS_EXPORTER="otlp", OTEL_BLRP_MAX_QUEUE_SIZE="10", OTEL_BLRP_MAX_EXPORT_BATCH_SIZE="10",
        OTEL_BLRP_SCHEDULE_DELAY="60000",
    )  # fmt: skip
    collector.delay_s = 0.3
    configure_logs(level="info", format="json", resource=resource_attributes("test"))
    began = time.monotonic()
    for number in range(500):
        structlog.get_logger().info("a line", number=number)
    assert time.monotonic() - began < 5
    deadline = time.monotonic() + 20
    output = ""
    while "the collector is too slow" not in output:
        assert time.monotonic() < deadline
        structlog.get_logger().info("another line")
        output += capsys.readouterr().out
        threading.Event().wait(0.01)


def test_grpc_is_for_traces_only(environ: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    environ(NOWHERE, OTEL_LOGS_EXPORTER="otlp", OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    configure_logs(level="info", format="json", resource=resource_attributes("test"))
    assert "log records go by http/protobuf" in capsys.readouterr().out


def test_a_line_that_cannot_be_exported_is_written_nevertheless(
    environ: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def add(self, event: Any) -> None:
            raise KeyError("739154")

        def close(self) -> None: ...

    configure_logs(level="info", format="json", resource=resource_attributes("test"))
    logs._exports.append(Broken())
    structlog.get_logger().info("written")
    lines = [json.loads(it) for it in capsys.readouterr().out.splitlines()]
    assert "written" in [it["event"] for it in lines]
    assert "739154" not in str(lines)


def test_a_process_that_is_forked_has_an_id_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    own = resource_attributes("test")["service.instance.id"]
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert resource_attributes("test")["service.instance.id"] != own


def test_check_knows_every_collector_that_is_used() -> None:
    common, own = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://l"}
    for environ, expected in (
        ({}, []),
        (common, ["http://c"]),
        (common | {"OTEL_METRICS_EXPORTER": "otlp"} | own, ["http://c", "http://l"]),
        (common | {"OTEL_TRACES_EXPORTER": "none"}, []),
        (common | {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "otlp"}, ["http://c"]),
        (common | own | {"OTEL_SDK_DISABLED": "true"}, []),
    ):
        assert collectors(environ) == expected
