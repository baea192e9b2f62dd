"""Spans by hand are the spans that the SDK would write, and a collector that fails costs nothing but spans."""

import gzip
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace.status import Status, StatusCode

from otp_stream.core.job import Job
from otp_stream.core.otp_job import OtpJob
from otp_stream.telemetry.current_span import CURRENT_SPAN
from otp_stream.telemetry.otel_tracer import OtelTracer
from otp_stream.telemetry.otlp import Span, SpanExporter, encode_span
from otp_stream.telemetry.tracing import NoTracer, open_tracer

ids = st.integers(1, (1 << 64) - 1)
values = st.one_of(st.text(max_size=300), st.integers(-(1 << 63), (1 << 63) - 1))


def by_the_sdk(span: Span) -> Any:
    def context(span_id: bytes, *, remote: bool) -> trace.SpanContext:
        state = trace.TraceState.from_header([span.state]) if span.state else None
        return trace.SpanContext(
            int.from_bytes(span.trace_id, "big"), int.from_bytes(span_id, "big"), remote, trace.TraceFlags(1), state
        )

    known = ReadableSpan(
        name=span.name,
        context=context(span.span_id, remote=False),
        parent=context(span.parent_id, remote=span.parent_is_remote) if span.parent_id else None,
        resource=Resource({}),
        attributes=span.attributes,
        kind=trace.SpanKind(span.kind - 1),
        instrumentation_scope=InstrumentationScope("s"),
        status=Status(StatusCode.ERROR if span.failed else StatusCode.UNSET),
        start_time=span.started_ns,
        end_time=span.ended_ns,
    )
    return encode_spans([known]).resource_spans[0].scope_spans[0].spans[0]


@given(
    ids, ids, st.none() | ids, st.booleans(), st.text(min_size=1, max_size=200),
    st.dictionaries(st.text("abc.", min_size=1, max_size=140), values, max_size=4), st.booleans(), st.integers(1, 5),
)  # fmt: skip
def test_a_span_is_written_as_the_sdk_writes_it(
    trace_id: int, span_id: int, parent: int | None, remote: bool, name: str, attributes: dict[str, Any],  # noqa: FBT001
    failed: bool, kind: int,  # noqa: FBT001
) -> None:  # fmt: skip
    state = "vendor=1" if trace_id % 2 else ""
    span = Span(
        trace_id.to_bytes(16, "big"), span_id.to_bytes(8, "big"), parent.to_bytes(8, "big") if parent else b"",
        bool(parent and remote),
        state, 1, name, kind, 1_700_000_000_000_000_000, 1_700_000_000_000_000_001, attributes, failed,
    )  # fmt: skip
    (ours,) = ScopeSpans.FromString(encode_span(span)).spans
    theirs = by_the_sdk(span)
    theirs.flags |= 1  # it was sampled; the SDK leaves that unsaid
    ours.status.SetInParent()  # the SDK writes an empty status
    assert ours == theirs


class Collector(HTTPServer):
    """Answers with the statuses that it was given, then with 200."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses: list[int] = []
        self.taken: list[ExportTraceServiceRequest] = []
        self.headers: list[dict[str, str]] = []

    @property
    def spans(self) -> list[Any]:
        return [s for it in self.taken for one in it.resource_spans for scope in one.scope_spans for s in scope.spans]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        body = self.rfile.read(int(self.headers["content-length"]))
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
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def settings(collector: Collector, **more: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}/", **more}


def exporter(environ: dict[str, str]) -> SpanExporter:
    return SpanExporter(environ, {"service.name": "codes"}, ("otp-stream", "1"))


def a_span(number: int = 1) -> bytes:
    return encode_span(
        Span(bytes(15) + b"\x01", number.to_bytes(8, "big"), b"", False, "", 1, "send", 3, 1, 2, {}, False)
    )


def test_spans_reach_the_collector_with_what_was_set(collector: Collector) -> None:
    more = {"OTEL_EXPORTER_OTLP_HEADERS": "api-key=a%20b, x=1", "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}
    it = exporter(settings(collector, **more))
    it.put([a_span(number) for number in range(1, 6_001)])
    it.close(10)
    assert len({span.span_id for span in collector.spans}) == 6_000
    assert len(collector.taken) == 2
    (one,) = collector.taken[0].resource_spans
    assert [(item.key, item.value.string_value) for item in one.resource.attributes] == [("service.name", "codes")]
    assert (one.scope_spans[0].scope.name, one.scope_spans[0].scope.version) == ("otp-stream", "1")
    assert collector.headers[0]["api-key"] == "a b"
    assert collector.headers[0]["x"] == "1"


def test_a_collector_that_is_busy_is_asked_again(collector: Collector) -> None:
    collector.statuses = [503]
    it = exporter(settings(collector, OTEL_BSP_SCHEDULE_DELAY="20"))
    it.put([a_span()])
    deadline = threading.Event()
    while not collector.spans and not deadline.wait(0.02):
        pass
    it.close(5)
    assert len(collector.spans) == 1


def test_what_a_collector_refuses_is_dropped_and_the_rest_goes_on(collector: Collector) -> None:
    collector.statuses = [400]
    it = exporter(settings(collector, OTEL_BSP_SCHEDULE_DELAY="20"))
    it.put([a_span(1)])
    while collector.statuses:
        threading.Event().wait(0.01)
    it.put([a_span(2)])
    it.close(5)
    assert [span.span_id for span in collector.spans] == [(2).to_bytes(8, "big")]


def test_without_a_collector_spans_are_dropped_and_nobody_waits() -> None:
    it = exporter({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_MAX_QUEUE_SIZE": "10"})
    for number in range(1, 100):
        it.put([a_span(number)] * 10)
    it.close(5)


@pytest.mark.parametrize(
    "broken",
    [
        {"OTEL_EXPORTER_OTLP_CERTIFICATE": "/nowhere/ca.pem", "OTEL_EXPORTER_OTLP_ENDPOINT": "https://127.0.0.1:9"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "x-key=%E2%82%AC"},
    ],
)
def test_a_setting_that_fails_each_post_leaves_the_thread_alive(collector: Collector, broken: dict[str, str]) -> None:
    it = exporter(settings(collector, OTEL_BSP_SCHEDULE_DELAY="10") | broken)
    deadline = time.monotonic() + 10
    for _ in range(3):
        # what is put later is taken only by a thread that has outlived the post before
        it.put([a_span()])
        while it._spans:
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
    assert it.alive
    it.close(5)
    assert not it.alive


@pytest.mark.parametrize("delay", ["0", "-1", "inf", "nan"])
def test_a_delay_that_is_none_neither_spins_nor_ends_the_thread(collector: Collector, delay: str) -> None:
    it = exporter(settings(collector, OTEL_BSP_SCHEDULE_DELAY=delay))
    spent = time.process_time()
    threading.Event().wait(0.3)
    assert time.process_time() - spent < 0.2
    assert it.alive
    it.put([a_span()])
    it.close(5)
    assert len(collector.spans) == 1


def test_a_busy_collector_is_given_time_however_much_comes(collector: Collector) -> None:
    collector.statuses = [503] * 1_000
    it = exporter(settings(collector, OTEL_BSP_SCHEDULE_DELAY="10"))
    for _ in range(40):
        it.put([a_span()] * 500)
        threading.Event().wait(0.02)
    assert len(collector.headers) <= 2
    it.close(5)


def test_a_collectors_password_is_told_to_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    it = exporter({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://user:s3cret@127.0.0.1:9/v1/traces?key=k3y"})
    it.put([a_span()])
    it.close(5)
    output = capsys.readouterr().out
    assert "http://127.0.0.1:9/" in output
    assert "s3cret" not in output
    assert "k3y" not in output


def test_the_certificate_that_was_set_counts(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/ssl/certs/ca-certificates.crt")
    used: list[Any] = []
    monkeypatch.setattr(requests.adapters.HTTPAdapter, "cert_verify", lambda *given: used.append(given[3]))
    it = exporter(settings(collector, OTEL_EXPORTER_OTLP_CERTIFICATE="/the/right/ca.pem"))
    it.put([a_span()])
    it.close(5)
    assert used == ["/the/right/ca.pem"]


def test_another_exporter_than_otlp_means_no_tracing(collector: Collector) -> None:
    assert isinstance(open_tracer(settings(collector, OTEL_TRACES_EXPORTER="console")), NoTracer)


def test_what_is_no_number_does_not_keep_the_worker_from_starting(collector: Collector) -> None:
    it = exporter(settings(collector, OTEL_BSP_SCHEDULE_DELAY="soon", OTEL_EXPORTER_OTLP_TIMEOUT="x"))
    it.put([a_span()])
    it.close(5)
    assert len(collector.spans) == 1


JOB = Job.from_request(
    OtpJob(email="user@example.com", otp="123456"),
    job_id="j-1", lane="jobs", first_seen_ms=1, attempts_made=1, default_expiry_minutes=15,
)  # fmt: skip
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"


@pytest.mark.parametrize(("sampler", "parent", "count"), [
    ("", {}, 2), ("", {"traceparent": f"{PARENT}-01"}, 2), ("", {"traceparent": f"{PARENT}-00"}, 0),
    ("always_off", {}, 0), ("parentbased_always_off", {"traceparent": f"{PARENT}-01"}, 2),
    ("", {"traceparent": "x"}, 2),
])  # fmt: skip
def test_the_sampler_decides_which_jobs_are_traced(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, sampler: str, parent: dict[str, str], count: int
) -> None:
    if sampler:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    tracer = open_tracer(settings(collector))
    assert isinstance(tracer, OtelTracer)
    headers: dict[str, str] = {}
    with tracer.job_span(JOB, {**parent, "tracestate": "vendor=1"}), tracer.step_span("settle"):
        tracer.inject(headers)
        current = CURRENT_SPAN.get()
        assert current is not None
        assert headers["traceparent"][3:52] == f"{current.trace_id}-{current.span_id}"
    assert CURRENT_SPAN.get() is None
    tracer.close()
    assert len(collector.spans) == count
    assert headers["traceparent"].endswith("-01" if count else "-00")
    if parent.get("traceparent", "").startswith(PARENT):
        assert current.trace_id == PARENT[3:35]
        assert all(span.trace_state == "vendor=1" for span in collector.spans)
