"""One trace from the producer to the settlement, across retries, as an OpenTelemetry collector receives it."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from api import TOKEN, call, post
from api import job as http_job
from collector import Collector
from conftest import Stage
from semantic_conventions import REGISTRY, SCHEMA_URL, attributes, faults, metric_faults, span_faults
from worker import CODE, job

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with Collector() as collector:
        yield collector


def named(spans: list[Any], name: str, stage: Stage | None = None) -> list[Any]:
    """Return the spans of a name, the oldest first. `jobs` stands for the queue of a stage, `otp` for its prefix."""
    if stage is not None:
        operation, destination = name.split()
        to = destination.replace("otp", stage.rabbit.prefix, 1)
        if destination.startswith("jobs"):
            to = destination.replace("jobs", stage.rabbit.queue, 1)
        name = f"{operation} {to}"
    return sorted((span for span in spans if span.name == name), key=lambda span: span.start_time_unix_nano)


async def test_a_retried_job_is_one_trace_from_the_producer_on(stage: Stage, collector: Collector) -> None:
    stage.relay.then("rcpt", "451 4.3.0 later")
    await stage.run(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_BSP_SCHEDULE_DELAY="100",
        BASE_DELAY_MS="100",
    )
    await stage.rabbit.publish(job(jobId="j-1"), headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    await collector.until(lambda: len(named(collector.spans, "publish otp.events", stage)) == 2, "two events")
    spans = await collector.wait(7)
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    (first,), (second,) = (
        named(spans, "process jobs", stage),
        named(spans, "process otp.retry.due", stage),
    )
    (retry,) = named(spans, "publish otp.retry", stage)
    assert first.parent_span_id.hex() == PARENT
    assert retry.parent_span_id == first.span_id
    assert second.parent_span_id == retry.span_id
    assert [span.links[0].span_id for span in (first, second)] == [first.parent_span_id, second.parent_span_id]
    events = named(spans, "publish otp.events", stage)
    assert {span.parent_span_id for span in events} == {first.span_id, second.span_id}
    assert [span.parent_span_id for span in named(spans, "send")] == [first.span_id, second.span_id]
    assert (attributes(first)["otp.attempt"], attributes(second)["otp.attempt"]) == (1, 2)
    assert (attributes(first)["otp.outcome"], attributes(second)["otp.outcome"]) == ("deferred", "accepted")
    assert attributes(second)["otp.settlement"] == "sent"
    assert collector.services == {"otp-stream"}
    assert CODE.encode() not in collector.raw
    assert b"user@" not in collector.raw


async def test_a_job_without_a_trace_starts_one_and_a_dead_letter_carries_it(
    stage: Stage, collector: Collector
) -> None:
    stage.relay.always("rcpt", "550 5.1.1 no")
    worker = await stage.run(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{collector.url}/v1/traces", OTEL_SERVICE_NAME="codes")
    await stage.rabbit.publish(job())
    (dead,) = await stage.rabbit.dead()
    await worker.stop()  # exports the remaining spans
    spans = await collector.wait(4)
    (process,), (publish,) = (
        named(spans, "process jobs", stage),
        named(spans, "publish otp.dead", stage),
    )
    _, trace_id, span_id, _ = str(dead.headers["traceparent"]).split("-")
    assert (trace_id, span_id) == (process.trace_id.hex(), publish.span_id.hex())
    assert (process.status.code, attributes(process)["error.type"]) == (2, "rejected")
    (send,) = named(spans, "send")
    assert (send.status.code, attributes(send)["error.type"]) == (2, "550")
    assert collector.services == {"codes"}


async def test_every_name_that_is_exported_is_one_of_the_semantic_conventions_or_ours(
    stage: Stage, collector: Collector
) -> None:
    stage.relay.then("rcpt", "451 4.3.0 later")
    worker = await stage.run(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_METRICS_EXPORTER="otlp",
        OTEL_LOGS_EXPORTER="otlp",
        BASE_DELAY_MS="100",
    )
    await stage.rabbit.publish(job(jobId="j-1"), message_id="m-1", correlation_id="c-1")
    await stage.relay.wait_accepted(1)
    stage.relay.always("rcpt", "550 5.1.1 no")
    await stage.rabbit.publish(job(jobId="j-2"), message_id=f"for-{CODE}", correlation_id="user@example.com")
    await stage.rabbit.publish(b"no job", message_id="m-3")
    await stage.rabbit.dead(2)
    await worker.stop()
    spans = collector.spans
    assert list(span_faults(spans)) == []
    assert [it for resource in collector.resources for it in faults(resource)] == []
    assert list(metric_faults(collector.metrics.values())) == []
    assert [it for record in collector.logs for it in faults(record)] == []
    assert {it for it in REGISTRY["metrics"] if it.startswith("messaging.")} <= collector.metrics.keys()
    assert {"job started", "job sent", "job will be retried", "job is dead-lettered"} <= {
        it.body.string_value for it in collector.logs
    }
    logged = [it for it in collector.logs if attributes(it).get("otp.job.id") == "j-1"]
    assert {it.trace_id for it in logged if it.trace_id} == {
        it.trace_id for it in named(spans, "process jobs", stage)[:1]
    }
    assert len({attributes(it)["service.instance.id"] for it in collector.resources}) == 1
    described = attributes(collector.resources[0])
    assert described["service.instance.id"]
    assert (described["deployment.environment.name"], described["telemetry.sdk.language"]) == ("staging", "python")
    assert collector.schemas == {SCHEMA_URL}
    processed = {attributes(it).get("otp.job.id"): attributes(it) for it in named(spans, "process jobs", stage)}
    first, second, unread = processed["j-1"], processed["j-2"], processed[None]
    assert (first["messaging.message.id"], first["messaging.message.conversation_id"]) == ("m-1", "c-1")
    assert not {"messaging.message.id", "messaging.message.conversation_id"} & (second.keys() | unread.keys())
    assert (second["error.type"], unread["error.type"]) == ("rejected", "malformed")
    assert first["server.address"] == "127.0.0.1"
    accepted = attributes(named(spans, "send")[1])
    assert (accepted["url.scheme"], accepted["server.port"]) == ("smtp", stage.relay.port)
    queue, prefix = stage.rabbit.queue, stage.rabbit.prefix
    assert {span.name for span in spans} == {
        f"process {queue}", f"process {prefix}.retry.due", "send", f"publish {prefix}.retry", f"publish {prefix}.dead",
        f"publish {prefix}.events",
    }  # fmt: skip
    assert CODE.encode() not in collector.raw
    assert b"user@" not in collector.raw


async def test_a_request_is_in_the_trace_of_its_client_and_of_its_job(stage: Stage, collector: Collector) -> None:
    worker = await stage.run(
        INTAKE_TOKEN=TOKEN,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_METRICS_EXPORTER="otlp",
        OTEL_BSP_SCHEDULE_DELAY="100",
    )
    sent = await post(worker, http_job(priority="high"), traceparent=f"00-{TRACE}-{PARENT}-01")
    assert (await call(worker, "GET", f"/v1/jobs/{sent.job_id}")).status == 200
    assert (await post(worker, http_job(otp=4))).status == 422
    assert (await call(worker, "BREW", f"/v1/{CODE}")).status == 404
    await stage.relay.wait_accepted(1)
    await collector.until(lambda: named(collector.spans, "process jobs.high", stage), "the job's span")
    await worker.stop()
    spans = collector.spans
    assert list(span_faults(spans)) == []
    request, refused = named(spans, "POST /v1/jobs")
    (publish,) = named(spans, "publish jobs.high", stage)
    (process,) = named(spans, "process jobs.high", stage)
    assert [it.parent_span_id.hex() for it in (request, publish, process)] == [
        PARENT, request.span_id.hex(), publish.span_id.hex(),
    ]  # fmt: skip
    assert {it.trace_id.hex() for it in (request, publish, process)} == {TRACE}
    assert attributes(refused)["http.response.status_code"] == 422
    assert not refused.status.code
    assert CODE.encode() not in collector.raw
    assert list(metric_faults(collector.metrics.values())) == []
    counts = {
        (found["http.request.method"], found.get("http.route"), found["http.response.status_code"]): point.count
        for point in collector.metrics["http.server.request.duration"].histogram.data_points
        for found in [attributes(point)]
    }
    assert counts == {
        ("POST", "/v1/jobs", 202): 1, ("POST", "/v1/jobs", 422): 1,
        ("GET", "/v1/jobs/{jobId}", 200): 1, ("_OTHER", None, 404): 1,
    }  # fmt: skip


async def test_a_code_or_address_in_the_trace_state_of_a_request_is_in_no_span_and_no_message(
    stage: Stage, collector: Collector
) -> None:
    worker = await stage.run(
        INTAKE_TOKEN=TOKEN, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="100"
    )
    traceparent = f"00-{TRACE}-{PARENT}-01"
    harmless = await post(worker, http_job(), traceparent=traceparent, tracestate="vendor=1")
    await post(worker, http_job(jobId="j-2"), traceparent=traceparent, tracestate=f"a={CODE},b=user@example.com")
    await post(worker, http_job(), token="wrong", traceparent=traceparent, tracestate=f"a={CODE}")
    await collector.until(lambda: len(named(collector.spans, "process jobs", stage)) == 2, "the spans of two jobs")
    await worker.stop()
    states = {attributes(it)["otp.job.id"]: it.trace_state for it in named(collector.spans, "process jobs", stage)}
    assert states == {harmless.job_id: "vendor=1", "j-2": ""}
    assert {it.trace_state for it in named(collector.spans, "POST /v1/jobs")} == {""}
    assert CODE.encode() not in collector.raw
    assert b"user@example.com" not in collector.raw


async def test_a_collector_that_never_answers_delays_neither_a_code_nor_the_end_of_the_worker(stage: Stage) -> None:
    async def never(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    server = await asyncio.start_server(never, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    worker = await stage.run(
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}",
        OTEL_METRICS_EXPORTER="otlp",
        OTEL_LOGS_EXPORTER="otlp",
        OTEL_METRIC_EXPORT_INTERVAL="100",
        OTEL_EXPORTER_OTLP_TIMEOUT="60",
    )
    await stage.rabbit.publish(*(job(jobId=f"j-{number}") for number in range(50)))
    await stage.relay.wait_accepted(50)
    began = time.monotonic()
    await worker.stop()
    assert time.monotonic() - began < 30  # five seconds for all exports together, of which each has a limit of 60
    server.close()


async def test_nothing_of_opentelemetry_is_imported_unless_tracing_is_configured(stage: Stage) -> None:
    lazy = ("opentelemetry.sdk", "opentelemetry.exporter", "grpc")
    check = f"import otp_stream.app, sys; print([name for name in sys.modules if name.startswith({lazy})])"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", check, stdout=asyncio.subprocess.PIPE, cwd=stage.folder
    )
    out, _ = await process.communicate()
    assert out.decode().strip() == "[]"
    await stage.run()
    traced = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    stage.relay.always("rcpt", "550 5.1.1 no")
    await stage.rabbit.publish(job(), headers=traced)
    (dead,) = await stage.rabbit.dead()
    assert dead.headers["traceparent"] == traced["traceparent"]  # unchanged
