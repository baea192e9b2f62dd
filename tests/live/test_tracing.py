"""One trace from the producer to the settlement, across retries, as an OpenTelemetry collector receives it."""

import asyncio
import gzip
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from conftest import Stage
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from rabbitmq import until
from worker import CODE, job

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@dataclass
class Collector:
    """An OTLP endpoint over HTTP."""

    port: int = 0
    spans: list[Any] = field(default_factory=list)
    services: set[str] = field(default_factory=set)
    raw: bytes = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            assert line.startswith(b"POST /v1/traces")
            headers: dict[str, str] = {}
            while (row := (await reader.readline()).decode().strip()) != "":
                name, _, value = row.partition(":")
                headers[name.lower()] = value.strip()
            body = await reader.readexactly(int(headers["content-length"]))
            self.take(gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    def take(self, body: bytes) -> None:
        self.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services |= {it.value.string_value for it in resource.resource.attributes if it.key == "service.name"}
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    async def wait(self, count: int) -> list[Any]:
        async def there() -> bool:
            return len(self.spans) >= count

        await until(there, f"{count} spans, {[span.name for span in self.spans]}")
        return self.spans


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    collector = Collector()
    server = await asyncio.start_server(collector.serve, "127.0.0.1", 0)
    collector.port = server.sockets[0].getsockname()[1]
    yield collector
    server.close()


def named(spans: list[Any], name: str) -> list[Any]:
    return sorted((span for span in spans if span.name == name), key=lambda span: span.start_time_unix_nano)


def attributes(span: Any) -> dict[str, Any]:
    def value(it: Any) -> Any:
        return it.string_value or it.int_value

    return {it.key: value(it.value) for it in span.attributes}


async def test_a_retried_job_is_one_trace_from_the_producer_on(stage: Stage, collector: Collector) -> None:
    stage.relay.then("rcpt", "451 4.3.0 later")
    await stage.run(
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.port}",
        OTEL_BSP_SCHEDULE_DELAY="100",
        BASE_DELAY_MS="100",
    )
    await stage.rabbit.publish(job(jobId="j-1"), headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    spans = await collector.wait(4)
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    first, second = named(spans, "process")
    assert first.parent_span_id.hex() == PARENT
    assert second.parent_span_id == first.span_id
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
    worker = await stage.run(
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"http://127.0.0.1:{collector.port}/v1/traces", OTEL_SERVICE_NAME="codes"
    )
    await stage.rabbit.publish(job())
    (dead,) = await stage.rabbit.dead()
    await worker.stop()  # exports the remaining spans
    spans = await collector.wait(2)
    (process,) = named(spans, "process")
    assert str(dead.headers["traceparent"]).split("-")[1] == process.trace_id.hex()
    assert process.status.code == 2
    assert collector.services == {"codes"}


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
