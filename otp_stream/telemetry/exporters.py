"""Exporters by OTLP. If the collector does not accept what they export, that is logged once, with the fix."""

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum
from http import HTTPStatus
from typing import Any

import structlog
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otp_stream.bounded_http import bound
from otp_stream.otlp import Signal, setting
from otp_stream.tls import tls_failure
from otp_stream.urls import without_secrets

CLOSE_S = 5.0
_PHRASES = frozenset(status.phrase for status in HTTPStatus)
_RECOVERED_S = 60.0
_MAX_RESPONSE, _RESPONSE_S = 65_536, 10.0
"""Bytes and seconds. A response says how much was refused, and why."""
_PROTOCOL = {
    "traces": "that OTEL_EXPORTER_OTLP_PROTOCOL is grpc (usually port 4317) or http/protobuf (4318)",
    "metrics": "that it takes metrics by http/protobuf (usually port 4318)",
    "logs": "that it takes logs by http/protobuf (usually port 4318)",
}
_NAMES = {"traces": "spans", "metrics": "metrics", "logs": "log records"}
_QUEUED = {"traces": "Span", "logs": "Log"}
"""How the SDK calls them when its queue is full."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def open_span_exporter() -> SpanExporter:
    """Return the exporter that the `OTEL_EXPORTER_OTLP_*` variables configure. Raises `ImportError`."""
    if _protocol("traces") == "grpc":
        # gRPC would start threads in the child processes of templates, where its sockets are closed, and abort
        os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - optional

        return LoggedSpanExporter("traces", OTLPSpanExporter(), "http://localhost:4317")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - optional
        OTLPSpanExporter as HttpExporter,
    )

    return LoggedSpanExporter("traces", HttpExporter(session=_session()))


def open_metric_exporter() -> "LoggedMetricExporter":
    """Return the exporter of metrics. Raises `ImportError`."""
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415 - optional

    _protocol("metrics")
    return LoggedMetricExporter("metrics", OTLPMetricExporter(session=_session()))


def open_log_exporter() -> LogRecordExporter:
    """Return the exporter of log records. Raises `ImportError`."""
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter  # noqa: PLC0415 - optional

    _protocol("logs")
    return LoggedLogExporter("logs", OTLPLogExporter(session=_session()))


def _protocol(signal: Signal) -> str:
    protocol = setting(signal, "PROTOCOL") or "http/protobuf"
    supported = {"http/protobuf", "grpc"} if signal == "traces" else {"http/protobuf"}
    if protocol in supported:
        return protocol
    _log.warning(f"{_NAMES[signal]} go by http/protobuf, not by OTEL_EXPORTER_OTLP_PROTOCOL", protocol=protocol)
    return "http/protobuf"


def _session() -> Any:
    import requests  # noqa: PLC0415 - only the exporters by HTTP need it

    class Session(requests.Session):
        def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
            # requests prefers REQUESTS_CA_BUNDLE to a session's certificate, so it must come with the request
            return super().merge_environment_settings(
                url, proxies, stream, self.verify if verify is None else verify, cert
            )

    return bound(Session(), _MAX_RESPONSE, _RESPONSE_S)


def close_in_time(close: Callable[[], object]) -> None:
    """Close an exporter, for at most a few seconds."""
    # in a thread, which does not delay the end of the process, because the SDK waits for up to 30 s
    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    closing.join(CLOSE_S)


def masked(endpoint: str) -> str:
    """Return an endpoint without user and password."""
    return re.sub("//[^/]*@", "//", without_secrets(endpoint))


class _Logged:
    """Logs once that data is lost, instead of the SDK's line for each batch.

    The SDK's lines also quote URLs and replies, which may contain a password.
    """

    def __init__(self, signal: Signal, exporter: Any, default: str = "http://localhost:4318") -> None:
        self._exporter = exporter
        self._signal: Signal = signal
        self._collector = masked(setting(signal, "ENDPOINT") or default)
        self._error = ""
        self._overflow = 0
        """Spans or log records dropped since the last batch because the queue was full."""
        self._lost = 0
        self._lost_at_s = 0.0
        # each logger needs the filter, because it does not apply to child loggers
        for module in {it.__module__ for it in type(exporter).__mro__}:
            if module.startswith("opentelemetry.exporter"):
                logging.getLogger(module).filters[:] = [self._exporter_line]
        _OVERFLOWS[_QUEUED.get(signal, "")] = self._count_overflow
        logging.getLogger("opentelemetry.sdk._shared_internal").filters[:] = [_queue_line]

    def _export(self, batch: Any, count: int) -> bool:
        try:
            accepted = self._exporter.export(batch).name == "SUCCESS"
        except Exception as error:  # noqa: BLE001 - for example, a header that cannot be sent
            self._error, accepted = type(error).__name__, False
        lost, self._overflow = self._overflow, 0
        if accepted:
            self._log(lost, "the collector is too slow", time.monotonic())
        else:
            self._log(lost + count, self._error or "no reply in time", time.monotonic())
        return accepted

    def shutdown(self, *_: Any, **__: Any) -> None:
        """Close the connection and end a retry."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: float = 0) -> bool:  # noqa: ARG002 - the SDK's interface
        """Do nothing: nothing is queued here."""
        return True

    def _log(self, lost: int, error: str, now_s: float) -> None:
        name, collector = _NAMES[self._signal], self._collector
        if lost:
            if not self._lost:
                fix = (
                    "Check that the collector runs, that OTEL_EXPORTER_OTLP_ENDPOINT is its address, "
                    f"{_PROTOCOL[self._signal]}, and what it requires in OTEL_EXPORTER_OTLP_HEADERS."
                )
                _log.warning(f"{name} are lost, jobs are not affected", collector=collector, error=error, fix=fix)
            self._lost += lost
            self._lost_at_s = now_s
        elif self._lost and now_s - self._lost_at_s >= _RECOVERED_S:
            _log.info(f"{name} are exported again", collector=collector, lost=self._lost)
            self._lost, self._error = 0, ""

    def _exporter_line(self, record: logging.LogRecord) -> bool:
        """Drop a line of the exporter, but keep the arguments that are safe to log."""
        arguments = record.args if isinstance(record.args, tuple) else ()
        text = " ".join(map(str, arguments))
        if found := tls_failure(text, authority="OTEL_EXPORTER_OTLP_CERTIFICATE", host="the host of the endpoint"):
            self._error = f"it {found.why}; {found.fix}"
            return False
        self._error = " ".join(filter(None, map(_safe, arguments))) or self._error
        return False

    def _count_overflow(self) -> None:
        self._overflow += 1


class LoggedSpanExporter(_Logged, SpanExporter):
    """Exports spans, in the SDK's thread."""

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        """Export a batch."""
        return SpanExportResult.SUCCESS if self._export(spans, len(spans)) else SpanExportResult.FAILURE


class LoggedLogExporter(_Logged, LogRecordExporter):
    """Exports log records, in the SDK's thread."""

    def export(self, batch: Sequence[Any]) -> LogRecordExportResult:
        """Export a batch."""
        return LogRecordExportResult.SUCCESS if self._export(batch, len(batch)) else LogRecordExportResult.FAILURE


class LoggedMetricExporter(_Logged, MetricExporter):
    """Exports metrics. What is lost are states of metrics; the next one contains them."""

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any) -> MetricExportResult:  # noqa: ARG002
        """Export the state of all metrics."""
        return MetricExportResult.SUCCESS if self._export(metrics_data, 1) else MetricExportResult.FAILURE


_OVERFLOWS: dict[str, Callable[[], None]] = {}


def _queue_line(record: logging.LogRecord) -> bool:
    """Drop a line of a queue of the SDK, but count what the queue has dropped."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    count = _OVERFLOWS.get(str(arguments[0])) if arguments else None
    if count is not None and "dropping" in record.msg:
        count()
    return False


def _safe(argument: object) -> str:
    """Return an argument of a log line if it cannot contain a secret. Texts of exceptions and of gRPC can."""
    match argument:
        case Exception():
            return type(argument).__name__
        case Enum():  # gRPC's status codes
            return argument.name
        case int():
            return str(argument)
        case str() if argument in _PHRASES:
            return argument
        case _:
            return ""
