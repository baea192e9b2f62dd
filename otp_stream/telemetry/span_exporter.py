"""Exporters of spans. If the collector does not accept spans, that is logged once, with the fix."""

import logging
import os
import re
import time
from collections.abc import Sequence
from enum import Enum
from http import HTTPStatus
from typing import Any

import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from otp_stream.urls import without_secrets

_PHRASES = frozenset(status.phrase for status in HTTPStatus)
_RECOVERED_S = 60.0
_FIX = (
    "Check that the collector runs, that OTEL_EXPORTER_OTLP_ENDPOINT is its address, that OTEL_EXPORTER_OTLP_PROTOCOL "
    "is grpc (usually port 4317) or http/protobuf (4318), and what it requires in OTEL_EXPORTER_OTLP_HEADERS."
)

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def open_exporter() -> SpanExporter:
    """Return the exporter that the `OTEL_EXPORTER_OTLP_*` variables configure. Raises `ImportError`."""
    protocol = _setting("PROTOCOL") or "http/protobuf"
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - optional

        return LoggedExporter(OTLPSpanExporter(), _setting("ENDPOINT") or "http://localhost:4317")
    if protocol != "http/protobuf":
        _log.warning("OTEL_EXPORTER_OTLP_PROTOCOL is neither grpc nor http/protobuf: http/protobuf is used")
    return LoggedExporter(_http_exporter(), _setting("ENDPOINT") or "http://localhost:4318")


def _setting(name: str) -> str:
    traces, all_signals = (os.environ.get(f"OTEL_EXPORTER_OTLP_{it}", "") for it in (f"TRACES_{name}", name))
    return traces.strip() or all_signals.strip()


def _http_exporter() -> SpanExporter:
    import requests  # noqa: PLC0415 - only this exporter needs it
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - optional

    class Session(requests.Session):
        def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
            # requests prefers REQUESTS_CA_BUNDLE to a session's certificate, so it must come with the request
            return super().merge_environment_settings(
                url, proxies, stream, self.verify if verify is None else verify, cert
            )

    return OTLPSpanExporter(session=Session())


def masked(endpoint: str) -> str:
    """Return an endpoint without user and password."""
    return re.sub("//[^/]*@", "//", without_secrets(endpoint))


class LoggedExporter(SpanExporter):
    """Logs once that spans are lost, instead of the SDK's line for each batch.

    The SDK's lines also quote URLs and replies, which may contain a password.
    """

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter = exporter
        self._collector = masked(endpoint)
        self._error = ""
        self._overflow = 0
        """Spans dropped since the last batch because the queue was full."""
        self._lost = 0
        self._lost_at_s = 0.0
        # each logger needs the filter, because it does not apply to child loggers
        for module in {it.__module__ for it in type(exporter).__mro__}:
            if module.startswith("opentelemetry.exporter"):
                logging.getLogger(module).filters[:] = [self._exporter_line]
        logging.getLogger("opentelemetry.sdk._shared_internal").filters[:] = [self._queue_line]

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export spans, in the SDK's thread."""
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # noqa: BLE001 - for example, a header that cannot be sent
            self._error, result = type(error).__name__, SpanExportResult.FAILURE
        lost, self._overflow = self._overflow, 0
        if result is SpanExportResult.SUCCESS:
            self._log(lost, "the collector is too slow", time.monotonic())
        else:
            self._log(lost + len(spans), self._error or "no reply in time", time.monotonic())
        return result

    def shutdown(self) -> None:
        """Close the connection and end a retry."""
        self._exporter.shutdown()

    def _log(self, lost: int, error: str, now_s: float) -> None:
        if lost:
            if not self._lost:
                _log.warning("spans are lost, jobs are not affected", collector=self._collector, error=error, fix=_FIX)
            self._lost += lost
            self._lost_at_s = now_s
        elif self._lost and now_s - self._lost_at_s >= _RECOVERED_S:
            _log.info("spans are exported again", collector=self._collector, lost=self._lost)
            self._lost, self._error = 0, ""

    def _exporter_line(self, record: logging.LogRecord) -> bool:
        """Drop a line of the exporter, but keep the arguments that are safe to log."""
        arguments = record.args if isinstance(record.args, tuple) else ()
        self._error = " ".join(filter(None, map(_safe, arguments))) or self._error
        return False

    def _queue_line(self, record: logging.LogRecord) -> bool:
        """Drop a line of the queue, but count the dropped span."""
        self._overflow += "dropping" in record.msg
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
