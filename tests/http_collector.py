"""A collector of OpenTelemetry in threads, whose statuses and delays a test chooses."""

import gzip
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector(ThreadingHTTPServer):
    """Answers with the statuses that it was given, then with 200; `delay_s` before each answer."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses: list[int] = []
        self.delay_s = 0.0
        self.taken: list[ExportTraceServiceRequest] = []
        self.taken_metrics: list[ExportMetricsServiceRequest] = []
        self.taken_logs: list[ExportLogsServiceRequest] = []
        self.headers: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    @property
    def spans(self) -> list[Any]:
        return [s for it in self.taken for one in it.resource_spans for scope in one.scope_spans for s in scope.spans]

    @property
    def metrics(self) -> dict[str, Any]:
        """The last state of each metric, by its name."""
        scopes = [it for one in self.taken_metrics for of in one.resource_metrics for it in of.scope_metrics]
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    @property
    def logs(self) -> list[Any]:
        """The log records, the oldest first."""
        scopes = [it for one in self.taken_logs for of in one.resource_logs for it in of.scope_logs]
        return [record for scope in scopes for record in scope.log_records]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        body = self.rfile.read(int(self.headers["content-length"]))
        time.sleep(self.server.delay_s)
        # first, so that a test that waits for a status or for contents finds them
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        try:
            status = self.server.statuses.pop(0)
        except IndexError:
            status = 200
        if status == 200:
            body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
            match self.path:
                case "/v1/metrics":
                    self.server.taken_metrics.append(ExportMetricsServiceRequest.FromString(body))
                case "/v1/logs":
                    self.server.taken_logs.append(ExportLogsServiceRequest.FromString(body))
                case _:
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
