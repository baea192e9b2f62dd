"""A collector of OpenTelemetry that keeps everything it receives."""

import asyncio
import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from rabbitmq import until


@dataclass
class Collector:
    """An OTLP endpoint over HTTP."""

    port: int = 0
    spans: list[Any] = field(default_factory=list)
    logs: list[Any] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    """The last state of each metric, by its name."""
    resources: list[Any] = field(default_factory=list)
    schemas: set[str] = field(default_factory=set)
    raw: bytes = b""

    _server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def services(self) -> set[str]:
        return {it.value.string_value for one in self.resources for it in one.attributes if it.key == "service.name"}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            take = {
                b"/v1/traces": self.take_spans, b"/v1/metrics": self.take_metrics, b"/v1/logs": self.take_logs,
            }[line.split()[1]]  # fmt: skip
            headers: dict[str, str] = {}
            while (row := (await reader.readline()).decode().strip()) != "":
                name, _, value = row.partition(":")
                headers[name.lower()] = value.strip()
            body = await reader.readexactly(int(headers["content-length"]))
            body = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
            self.raw += body
            take(body)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    def take_spans(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(resource.resource)
            for scope in resource.scope_spans:
                self.schemas.add(scope.schema_url)
                self.spans += scope.spans

    def take_metrics(self, body: bytes) -> None:
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            self.resources.append(resource.resource)
            for scope in resource.scope_metrics:
                self.schemas.add(scope.schema_url)
                self.metrics |= {it.name: it for it in scope.metrics}

    def take_logs(self, body: bytes) -> None:
        for resource in ExportLogsServiceRequest.FromString(body).resource_logs:
            self.resources.append(resource.resource)
            for scope in resource.scope_logs:
                self.schemas.add(scope.schema_url)
                self.logs += scope.log_records

    async def wait(self, count: int) -> list[Any]:
        await self.until(lambda: len(self.spans) >= count, f"{count} spans")
        return self.spans

    async def until(self, condition: Callable[[], object], what: str) -> None:
        async def there() -> bool:
            return bool(condition())

        await until(there, f"{what}; spans: {[span.name for span in self.spans]}")
