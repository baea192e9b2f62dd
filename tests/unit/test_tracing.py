"""Tracing with the SDK: which spans a job makes, and that a collector that fails affects nothing else."""

import builtins
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import requests
from deliveries import BODY, Deliveries
from http_collector import Collector, collector
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from semantic_conventions import attributes, faults, span_faults

from otp_stream.core.http_request import HttpRequest
from otp_stream.core.job import Job
from otp_stream.core.messaging import Destination, Publication, published_to
from otp_stream.core.otp_job import OtpJob
from otp_stream.core.outcome import (
    Accepted,
    Crashed,
    Deferred,
    Outcome,
    RecipientUnavailable,
    Rejected,
    Reply,
    Route,
    TimedOut,
    Unavailable,
    Uncertain,
)
from otp_stream.telemetry import exporters, otel_tracer
from otp_stream.telemetry.current_span import CURRENT_SPAN
from otp_stream.telemetry.exporters import open_span_exporter
from otp_stream.telemetry.messaging_metrics import Server
from otp_stream.telemetry.otel_tracer import OtelTracer
from otp_stream.telemetry.resource import resource_attributes
from otp_stream.telemetry.tracing import NoTracer, Tracer, open_tracer

MESSAGE = Deliveries().message()
JOB = Job.from_request(
    OtpJob(email="user@example.com", otp="739154"),
    job_id="j-1", lane="jobs", first_seen_ms=1, attempts_made=1, default_expiry_minutes=15,
)  # fmt: skip
SERVER = Server("mq.example", 5672)
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"
NOWHERE = "http://127.0.0.1:9"


__all__ = ["collector"]  # a fixture
Opened = Callable[..., Tracer]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """Open tracers with these variables; close them at the end."""
    tracers: list[Tracer] = []
    opened_exporters: list[Any] = []
    monkeypatch.setattr(
        otel_tracer, "open_span_exporter", lambda: opened_exporters.append(open_span_exporter()) or opened_exporters[-1]
    )

    def tracer(endpoint: str, **environ: str) -> Tracer:
        for name, value in {"ENDPOINT": endpoint, **environ}.items():
            monkeypatch.setenv(name if name.startswith("OTEL") else f"OTEL_EXPORTER_OTLP_{name}", value)
        tracers.append(open_tracer(resource_attributes("test"), SERVER))
        return tracers[-1]

    yield tracer
    for it in tracers:
        it.close()
    for it in opened_exporters:
        # otherwise a thread retries for up to 30 s during other tests, and Hypothesis sees that it calls `random`
        it.shutdown()


def process(tracer: Tracer, count: int = 1, headers: dict[str, str] | None = None) -> None:
    """Make the spans of jobs as the worker does."""
    for _ in range(count):
        with tracer.job_span(JOB, Deliveries().message(headers=headers)):
            with tracer.send_span():
                pass
            tracer.annotate(outcome="accepted", settlement="sent")


def wait(condition: Callable[[], object], within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def test_a_job_is_two_spans_with_its_attributes(collector: Collector, opened: Opened) -> None:
    tracer = opened(
        collector.url, HEADERS="api-key=a%20b, x=1", COMPRESSION="gzip", OTEL_RESOURCE_ATTRIBUTES="team=codes"
    )
    process(tracer)
    tracer.close()
    send, job = collector.spans
    assert (job.name, job.kind, send.name, send.kind) == ("process jobs", 5, "send", 3)
    assert send.parent_span_id == job.span_id
    assert send.trace_id == job.trace_id
    assert attributes(job) == {
        "messaging.system": "rabbitmq", "messaging.operation.name": "process", "messaging.operation.type": "process",
        "messaging.destination.name": "jobs", "messaging.rabbitmq.destination.routing_key": "jobs",
        "messaging.rabbitmq.message.delivery_tag": 1, "messaging.message.body.size": len(BODY),
        "server.address": "mq.example", "server.port": 5672, "otp.job.id": "j-1",
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
    assert [span.name for span in request.resource_spans[0].scope_spans[0].spans] == ["send", "process jobs"]
    assert collector.headers["api-key"] == "a"


def test_spans_are_exported_again_after_a_busy_collector(collector: Collector, opened: Opened) -> None:
    collector.statuses = [503]
    process(opened(collector.url, OTEL_BSP_SCHEDULE_DELAY="20"))
    wait(lambda: len(collector.spans) == 2)


def test_lost_spans_are_logged_once_with_the_fix_and_the_next_ones_are_exported(
    collector: Collector, opened: Opened, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporters, "_RECOVERED_S", 0)
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
    monkeypatch.setattr(exporters, "CLOSE_S", 0.5)
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
    monkeypatch.setattr(exporters, "CLOSE_S", 0.5)
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
    assert exporters.masked("http://otp:Se@cret#x@host/") == "http://***"


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
    with tracer.job_span(JOB, Deliveries().message(headers={**parent, "tracestate": "vendor=1"})):
        with tracer.send_span():
            pass
        current = CURRENT_SPAN.get()
        assert current is not None
        ids = current.get_span_context()
        headers: dict[str, Any] = {}
        with tracer.publish_span(Publication(published_to("", "otp.dead"), headers=headers)):
            pass
        assert headers["traceparent"][3:35] == f"{ids.trace_id:032x}"
        assert tracer.traceparent() == (
            f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{ids.trace_flags:02x}" if count else None
        )
    assert CURRENT_SPAN.get() is None
    tracer.close()
    assert len(collector.spans) == (count + 1 if count else 0)
    # the lowest bit is "sampled"; the SDK also sets the bit for random ids
    assert int(headers["traceparent"][-2:], 16) & 1 == bool(count)
    if parent.get("traceparent", "").startswith(PARENT):
        assert f"{ids.trace_id:032x}" == PARENT[3:35]
        assert all(span.trace_state == "vendor=1" for span in collector.spans)


def test_an_exception_leaves_no_text_in_a_span(collector: Collector, opened: Opened) -> None:
    tracer = opened(collector.url)
    with pytest.raises(ValueError, match="739154"), tracer.job_span(JOB, MESSAGE), tracer.send_span():
        raise ValueError("739154 to user@example.com")
    with tracer.job_span(JOB, MESSAGE):
        tracer.failed("rejected", "550 5.1.1 no")
    tracer.close()
    raw = b"".join(it.SerializeToString() for it in collector.taken)
    assert b"739154" not in raw
    assert b"user@" not in raw
    assert [span.status.code for span in collector.spans] == [2, 2, 2]
    assert [span.status.message for span in collector.spans] == ["", "", "550 5.1.1 no"]
    assert [attributes(span)["error.type"] for span in collector.spans] == ["ValueError", "ValueError", "rejected"]


def test_the_filters_of_the_sdks_loggers_belong_to_the_last_tracer(opened: Opened) -> None:
    for _ in range(2):
        opened(NOWHERE)
    assert len(logging.getLogger("opentelemetry.sdk._shared_internal").filters) == 1


def traced(collector: Collector, name: str) -> dict[str, Any]:
    (span,) = [it for it in collector.spans if it.name == name]
    return attributes(span)


def test_a_publish_is_a_span_of_the_job_whose_context_the_message_carries(collector: Collector, opened: Opened) -> None:
    tracer = opened(collector.url)
    headers: dict[str, Any] = {}
    with tracer.job_span(JOB, Deliveries().message(message_id="m-1", correlation_id="c-1")):
        job = tracer.traceparent()
        with tracer.publish_span(Publication(published_to("otp.retry", "1000"), "1000", 5, headers)):
            pass
        assert tracer.traceparent() == job
        with pytest.raises(TimeoutError), tracer.publish_span(Publication(published_to("", "otp.dead"), "otp.dead")):
            raise TimeoutError
    tracer.close()
    assert list(span_faults(collector.spans)) == []
    (retry,) = [it for it in collector.spans if it.name == "publish otp.retry"]
    assert headers["traceparent"][36:52] == retry.span_id.hex()
    found = attributes(retry)
    assert (found["messaging.destination.name"], found["messaging.destination.template"]) == (
        "otp.retry:1000", "otp.retry",
    )  # fmt: skip
    assert (found["messaging.rabbitmq.destination.routing_key"], found["messaging.message.body.size"]) == ("1000", 5)
    assert (found["messaging.message.id"], found["messaging.message.conversation_id"]) == ("m-1", "c-1")
    assert found["otp.job.id"] == "j-1"
    assert traced(collector, "publish otp.dead")["error.type"] == "TimeoutError"


def test_a_publish_outside_of_a_job_keeps_the_producers_context(collector: Collector, opened: Opened) -> None:
    tracer = opened(collector.url)
    headers: dict[str, Any] = {"traceparent": f"{PARENT}-01"}
    with tracer.publish_span(Publication(published_to("", "jobs"), "jobs", 5, headers)):
        assert tracer.traceparent() is None
    tracer.close()
    assert headers == {"traceparent": f"{PARENT}-01"}
    assert collector.spans == []


@pytest.mark.parametrize("parents", [(f"{PARENT}-00",), (f"{PARENT}-00", f"{PARENT}-00"), (None, None)])
def test_a_publish_of_jobs_that_are_not_sampled_is_no_span(
    collector: Collector, opened: Opened, parents: tuple[str | None, ...]
) -> None:
    tracer = opened(collector.url)
    headers: dict[str, Any] = {}
    with tracer.publish_span(Publication(published_to("otp.events", ""), headers=headers, parents=parents)):
        pass
    tracer.close()
    assert collector.spans == []
    assert headers == ({"traceparent": f"{PARENT}-00"} if len(parents) == 1 else {})


def test_a_packet_of_events_is_one_span_that_links_to_its_jobs(collector: Collector, opened: Opened) -> None:
    tracer = opened(collector.url)
    parents = f"{PARENT}-01", None, f"{PARENT}-00", "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    with tracer.publish_span(Publication(published_to("otp.events", ""), parents=parents)):
        pass
    tracer.close()
    (span,) = collector.spans
    assert list(span_faults(collector.spans)) == []
    assert [it.span_id.hex() for it in span.links] == [PARENT[36:], "b" * 16]
    assert attributes(span)["messaging.batch.message_count"] == 4


@pytest.mark.parametrize(("given", "name", "span"), [
    ({"exchange": "otp.jobs"}, "otp.jobs:jobs", "process jobs"),
    ({"exchange": "theirs", "routing_key": "user.17"}, "theirs:user.17:jobs", "process jobs"),
    ({"exchange": "theirs", "routing_key": "otp.user@example.com"}, "theirs:jobs", "process jobs"),
    ({"exchange": "739154", "routing_key": "739154"}, "jobs", "process jobs"),
    ({"queue": Destination("otp.tenant.shop", "otp.tenant.{tenant}"), "routing_key": "otp.tenant.shop"},
     "otp.tenant.shop", "process otp.tenant.{tenant}"),
])  # fmt: skip
def test_the_destination_shows_no_secret_and_the_name_of_the_span_is_one_of_few(
    collector: Collector, opened: Opened, given: dict[str, Any], name: str, span: str
) -> None:
    tracer = opened(collector.url)
    message: Any = SimpleNamespace(
        **{"lane": "jobs", "queue": Destination("jobs"), "exchange": "", "routing_key": "jobs", "delivery_tag": None,
           "message_id": "for-user@example.com", "correlation_id": "739154", "body_size": 1, "carrier": dict} | given,
    )  # fmt: skip
    with tracer.job_span(JOB, message):
        pass
    with tracer.unread_span(message):
        pass
    tracer.close()
    job, unread = collector.spans
    assert list(span_faults(collector.spans)) == []
    assert (job.name, unread.name) == (span, span)
    assert attributes(job)["messaging.destination.name"] == name
    assert attributes(unread)["messaging.destination.name"] == message.queue.name
    raw = b"".join(it.SerializeToString() for it in collector.taken)
    assert b"739154" not in raw
    assert b"user@" not in raw


REFUSED = Reply(550, "5.1.1", "no", "rcpt")
VIA = Route("eu/[2001:db8::1]:465", scheme="smtps")


@pytest.mark.parametrize(("outcome", "error_type"), [
    (Accepted(Reply(250, "2.0.0", "ok", "body"), VIA), None),
    (Deferred(Reply(451, None, "later", "rcpt"), VIA), "451"),
    (Rejected(REFUSED, VIA), "550"),
    (RecipientUnavailable("no", REFUSED, VIA), "550"),
    (RecipientUnavailable("no", None, VIA), "recipient_unavailable"),
    (Uncertain("lost", "r", VIA), "uncertain"),
    (Unavailable("unreachable", "refused"), "unreachable"),
    (TimedOut(), "timed_out"),
    (Crashed("bug"), "crashed"),
])  # fmt: skip
def test_a_send_shows_relay_reply_and_a_short_error(
    collector: Collector, opened: Opened, outcome: Outcome, error_type: str | None
) -> None:
    tracer = opened(collector.url)
    tracer.send_ended(outcome)  # without a span, nothing
    with tracer.job_span(JOB, MESSAGE), tracer.send_span():
        tracer.send_ended(outcome)
    tracer.close()
    assert list(span_faults(collector.spans)) == []
    found = traced(collector, "send")
    assert found.get("error.type") == error_type
    if getattr(outcome, "route", None) is not None:
        assert (found["url.scheme"], found["server.address"], found["server.port"]) == ("smtps", "2001:db8::1", 465)
    if getattr(outcome, "reply", None) is REFUSED:
        assert (found["otp.smtp.reply_code"], found["otp.smtp.enhanced_code"]) == (550, "5.1.1")


def test_the_resource_describes_the_process_and_the_variables_replace_it(
    collector: Collector, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    for more in ({}, {"OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=pod-1,deployment.environment.name=production"}):
        tracer = opened(collector.url, **more)
        process(tracer)
        tracer.close()
    first, second = (attributes(it.resource_spans[0].resource) for it in collector.taken)
    assert [it for request in collector.taken for it in faults(request.resource_spans[0].resource)] == []
    assert first["deployment.environment.name"] == "test"
    assert (second["service.instance.id"], second["deployment.environment.name"]) == ("pod-1", "production")
    monkeypatch.delenv("OTEL_RESOURCE_ATTRIBUTES")
    assert first["service.instance.id"] == resource_attributes("test")["service.instance.id"]


def test_a_request_that_fails_is_an_error_of_its_span(opened: Opened, collector: Collector) -> None:
    tracer = opened(collector.url)
    for status in (503, 429):
        with tracer.request_span(HttpRequest("POST", "/v1/jobs", "http")):
            tracer.request_ended(status)
    tracer.close()
    failed, refused = collector.spans
    assert list(span_faults(collector.spans)) == []
    assert (failed.status.code, attributes(failed)["error.type"]) == (2, "503")
    assert refused.status.code == 0
