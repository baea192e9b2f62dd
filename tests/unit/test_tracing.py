"""Tracing with the SDK: which spans a job makes, and that a collector that fails affects nothing else."""

import builtins
import gzip
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
import requests
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from otp_stream.core.job import Job
from otp_stream.core.otp_job import OtpJob
from otp_stream.telemetry import otel_tracer, span_exporter
from otp_stream.telemetry.current_span import CURRENT_SPAN
from otp_stream.telemetry.otel_tracer import OtelTracer
from otp_stream.telemetry.span_exporter import open_exporter
from otp_stream.telemetry.tracing import NoTracer, Tracer, open_tracer

JOB = Job.from_request(
    OtpJob(email="user@example.com", otp="739154"),
    job_id="j-1", lane="jobs", first_seen_ms=1, attempts_made=1, default_expiry_minutes=15,
)  # fmt: skip
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"
NOWHERE = "http://127.0.0.1:9"


class Collector(ThreadingHTTPServer):
    """Answers with the statuses that it was given, then with 200; `delay_s` before each answer."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses: list[int] = []
        self.delay_s = 0.0
        self.taken: list[ExportTraceServiceRequest] = []
        self.headers: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    @property
    def spans(self) -> list[Any]:
        return [s for it in self.taken for one in it.resource_spans for scope in one.scope_spans for s in scope.spans]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        body = self.rfile.read(int(self.headers["content-length"]))
        time.sleep(self.server.delay_s)
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        if status == 200:
            body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
            self.server.taken.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(status)
        self.end_headers()

    def log_request(self, *_: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


Opened = Callable[..., Tracer]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """Open tracers with these variables; close them at the end."""
    tracers: list[Tracer] = []
    exporters: list[Any] = []
    monkeypatch.setattr(otel_tracer, "open_exporter", lambda: exporters.append(open_exporter()) or exporters[-1])

    def tracer(endpoint: str, **environ: str) -> Tracer:
        for name, value in {"ENDPOINT": endpoint, **environ}.items():
            monkeypatch.setenv(name if name.startswith("OTEL") else f"OTEL_EXPORTER_OTLP_{name}", value)
        tracers.append(open_tracer())
        return tracers[-1]

    yield tracer
    for it in tracers:
        it.close()
    for it in exporters:
        # otherwise a thread retries for up to 30 s during other tests, and Hypothesis sees that it calls `random`
        it.shutdown()


def process(tracer: Tracer, count: int = 1, headers: dict[str, str] | None = None) -> None:
    """Make the spans of jobs as the worker does."""
    for _ in range(count):
        with tracer.job_span(JOB, headers or {}):
            with tracer.send_span():
                pass
            tracer.annotate(outcome="accepted", settlement="sent")


def wait(condition: Callable[[], object], within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def attributes(it: Any) -> dict[str, Any]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in it.attributes}


def test_a_job_is_two_spans_with_its_attributes(collector: Collector, opened: Opened) -> None:
    tracer = opened(
        collector.url, HEADERS="api-key=a%20b, x=1", COMPRESSION="gzip", OTEL_RESOURCE_ATTRIBUTES="team=codes"
    )
    process(tracer)
    tracer.close()
    send, job = collector.spans
    assert (job.name, job.kind, send.name, send.kind) == ("process", 5, "send", 3)
    assert send.parent_span_id == job.span_id
    assert send.trace_id == job.trace_id
    assert attributes(job) == {
        "messaging.system": "rabbitmq", "messaging.operation.type": "process", "messaging.message.id": "j-1",
        "otp.lane": "jobs", "otp.attempt": 2, "otp.template": "otp", "otp.outcome": "accepted",
        "otp.settlement": "sent",
    }  # fmt: skip
    (resource,) = collector.taken[0].resource_spans
    described = attributes(resource.resource)
    assert (described["service.name"], described["team"]) == ("otp-stream", "codes")
    assert resource.scope_spans[0].scope.name == "otp-stream"
    assert (collector.headers[0]["api-key"], collector.headers[0]["x"]) == ("a b", "1")


@pytest.mark.parametrize(("name", "value"), [
    ("OTEL_SERVICE_NAME", "codes"), ("OTEL_RESOURCE_ATTRIBUTES", "service.name=codes"),
])  # fmt: skip
def test_the_service_has_the_name_that_was_set(collector: Collector, opened: Opened, name: str, value: str) -> None:
    tracer = opened(collector.url, **{name: value})
    process(tracer)
    tracer.close()
    assert attributes(collector.taken[0].resource_spans[0].resource)["service.name"] == "codes"


class GrpcCollector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.headers: dict[str, Any] = {}

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the name in the .proto file
        self.requests.append(request)
        self.headers = {it.key: it.value for it in context.invocation_metadata()}
        return ExportTraceServiceResponse()


def test_spans_reach_a_collector_by_grpc(opened: Opened) -> None:
    collector = GrpcCollector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    tracer = opened(f"http://127.0.0.1:{port}", PROTOCOL="grpc", HEADERS="api-key=a", COMPRESSION="gzip")
    process(tracer)
    tracer.close()
    server.stop(None).wait()
    (request,) = collector.requests
    assert [span.name for span in request.resource_spans[0].scope_spans[0].spans] == ["send", "process"]
    assert collector.headers["api-key"] == "a"


def test_spans_are_exported_again_after_a_busy_collector(collector: Collector, opened: Opened) -> None:
    collector.statuses = [503]
    process(opened(collector.url, OTEL_BSP_SCHEDULE_DELAY="20"))
    wait(lambda: len(collector.spans) == 2)


def test_lost_spans_are_logged_once_with_the_fix_and_the_next_ones_are_exported(
    collector: Collector, opened: Opened, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(span_exporter, "_RECOVERED_S", 0)
    collector.statuses = [401] * 3
    tracer = opened(collector.url, OTEL_BSP_SCHEDULE_DELAY="20")
    for left in (2, 1, 0):
        process(tracer)
        wait(lambda left=left: len(collector.statuses) == left)
    process(tracer)
    tracer.close()
    assert len(collector.spans) == 2
    output = capsys.readouterr().out
    assert output.count("spans are lost") == 1
    assert "401 Unauthorized" in output
    assert "OTEL_EXPORTER_OTLP_HEADERS" in output
    assert output.count("spans are exported again") == 1
    assert "lost=6" in output


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_without_a_collector_jobs_never_wait_and_one_line_is_logged(
    opened: Opened, protocol: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(otel_tracer, "_CLOSE_S", 0.5)
    tracer = opened(NOWHERE, PROTOCOL=protocol, OTEL_BSP_MAX_QUEUE_SIZE="100", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="10",
                    TIMEOUT="3")  # fmt: skip
    began = time.monotonic()
    process(tracer, 1_000)
    assert time.monotonic() - began < 5
    output = ""
    while "spans are lost" not in output:
        output += capsys.readouterr().out
        assert time.monotonic() - began < 20
        threading.Event().wait(0.02)
    tracer.close()
    output += capsys.readouterr().out
    assert output.count("spans are lost") == 1
    assert ("ConnectionError" if protocol == "http/protobuf" else "UNAVAILABLE") in output
    assert caplog.text == ""


def test_a_slow_collector_is_logged_and_delays_the_end_for_a_few_seconds_only(
    collector: Collector, opened: Opened, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otel_tracer, "_CLOSE_S", 0.5)
    collector.delay_s = 0.3
    tracer = opened(collector.url, OTEL_BSP_MAX_QUEUE_SIZE="10", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="10")
    process(tracer, 100)
    wait(lambda: "the collector is too slow" in capsys.readouterr().out)
    collector.delay_s = 8
    process(tracer, 10)
    began = time.monotonic()
    tracer.close()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "broken",
    [
        {"CERTIFICATE": "/nowhere/ca.pem", "ENDPOINT": "https://127.0.0.1:9"},
        {"HEADERS": "x-key=%E2%82%AC"},
        {"HEADERS": "x-key=%E2%82%AC", "PROTOCOL": "grpc", "ENDPOINT": NOWHERE},
    ],
)
def test_a_setting_that_fails_each_export_is_logged_once(
    collector: Collector, opened: Opened, broken: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    tracer = opened(**{"endpoint": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "10", "TIMEOUT": "1"} | broken)
    process(tracer)
    output = ""
    for _ in range(3):
        process(tracer)
        threading.Event().wait(0.05)
    while "spans are lost" not in output:
        threading.Event().wait(0.02)
        output += capsys.readouterr().out
    tracer.close()
    output += capsys.readouterr().out
    assert output.count("spans are lost") == 1


@pytest.mark.parametrize(("name", "value"), [
    *(("OTEL_BSP_SCHEDULE_DELAY", value) for value in ("0", "-1", "inf", "nan", "soon")),
    ("OTEL_BSP_MAX_QUEUE_SIZE", "0"), ("OTEL_BSP_MAX_QUEUE_SIZE", "many"), ("TIMEOUT", "x"),
])  # fmt: skip
def test_a_number_that_is_invalid_neither_spins_nor_keeps_spans_from_being_exported(
    collector: Collector, opened: Opened, name: str, value: str
) -> None:
    tracer = opened(collector.url, **{name: value})
    spent = time.process_time()
    threading.Event().wait(0.2)
    assert time.process_time() - spent < 0.15
    process(tracer)
    tracer.close()
    assert len(collector.spans) == 2


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_collectors_password_is_never_logged(
    opened: Opened, protocol: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    tracer = opened(
        NOWHERE, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="http://user:s3cret@127.0.0.1:9/v1/traces?key=k3y",
        PROTOCOL=protocol, TIMEOUT="1",
    )  # fmt: skip
    process(tracer)
    tracer.close()
    output = capsys.readouterr().out + caplog.text
    assert "http://127.0.0.1:9/" in output
    assert "s3cret" not in output
    assert "k3y" not in output


def test_a_password_that_splits_the_url_is_not_logged() -> None:
    assert span_exporter.masked("http://otp:Se@cret#x@host/") == "http://***"


def test_the_certificate_that_was_set_counts(
    collector: Collector, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/ssl/certs/ca-certificates.crt")
    used: list[Any] = []
    monkeypatch.setattr(requests.adapters.HTTPAdapter, "cert_verify", lambda *given: used.append(given[3]))
    tracer = opened(collector.url, CERTIFICATE="/the/right/ca.pem")
    process(tracer)
    tracer.close()
    assert used == ["/the/right/ca.pem"]


@pytest.mark.parametrize("environ", [
    {"OTEL_TRACES_EXPORTER": "console"}, {"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"},
    {"COMPRESSION": "zip", "PROTOCOL": "grpc"},
])  # fmt: skip
def test_tracing_is_off_where_it_is_disabled_or_cannot_be_set_up(opened: Opened, environ: dict[str, str]) -> None:
    assert isinstance(opened(NOWHERE, **environ), NoTracer)


def test_a_missing_package_is_named_with_the_fix(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("opentelemetry.exporter.otlp.proto.grpc"):
            raise ModuleNotFoundError(name=name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert isinstance(opened(NOWHERE, PROTOCOL="grpc"), NoTracer)
    assert "pip install 'otp-stream[otel]'" in capsys.readouterr().out


@pytest.mark.parametrize(("sampler", "parent", "count"), [
    ("", {}, 2), ("", {"traceparent": f"{PARENT}-01"}, 2), ("", {"traceparent": f"{PARENT}-00"}, 0),
    ("always_off", {}, 0), ("parentbased_always_off", {"traceparent": f"{PARENT}-01"}, 2),
    ("", {"traceparent": "x"}, 2),
])  # fmt: skip
def test_the_sampler_decides_which_jobs_are_traced(
    collector: Collector, opened: Opened, sampler: str, parent: dict[str, str], count: int
) -> None:
    tracer = opened(collector.url, **({"OTEL_TRACES_SAMPLER": sampler} if sampler else {}))
    assert isinstance(tracer, OtelTracer)
    headers: dict[str, str] = {}
    with tracer.job_span(JOB, {**parent, "tracestate": "vendor=1"}):
        with tracer.send_span():
            pass
        tracer.inject(headers)
        current = CURRENT_SPAN.get()
        assert current is not None
        ids = current.get_span_context()
        assert headers["traceparent"][3:52] == f"{ids.trace_id:032x}-{ids.span_id:016x}"
    assert CURRENT_SPAN.get() is None
    tracer.close()
    assert len(collector.spans) == count
    # the lowest bit is "sampled"; the SDK also sets the bit for random ids
    assert int(headers["traceparent"][-2:], 16) & 1 == bool(count)
    if parent.get("traceparent", "").startswith(PARENT):
        assert f"{ids.trace_id:032x}" == PARENT[3:35]
        assert all(span.trace_state == "vendor=1" for span in collector.spans)


def test_an_exception_leaves_no_text_in_a_span(collector: Collector, opened: Opened) -> None:
    tracer = opened(collector.url)
    with pytest.raises(ValueError, match="739154"), tracer.job_span(JOB, {}), tracer.send_span():
        raise ValueError("739154 to user@example.com")
    with tracer.job_span(JOB, {}):
        tracer.annotate(failed=True, error="550 5.1.1 no")
    tracer.close()
    raw = b"".join(it.SerializeToString() for it in collector.taken)
    assert b"739154" not in raw
    assert b"user@" not in raw
    assert [span.status.code for span in collector.spans] == [0, 0, 2]


def test_the_filters_of_the_sdks_loggers_belong_to_the_last_tracer(opened: Opened) -> None:
    for _ in range(2):
        opened(NOWHERE)
    assert len(logging.getLogger("opentelemetry.sdk._shared_internal").filters) == 1
