"""Exports log lines by OTLP, in addition to standard output. Imported only if that is configured."""

import json
import os
import time
from collections.abc import Mapping
from typing import Any, Self

import structlog
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import Span, set_span_in_context

from otp_stream import __version__
from otp_stream.core.messaging import SCHEMA_URL

from .current_span import CURRENT_SPAN
from .exporters import close_in_time, open_log_exporter
from .field_names import otel_attributes

_QUEUE_SIZE = 16_384
"""Lines queued for the collector, about ten seconds at full load with two lines for each job."""
_SEVERITIES = {
    "debug": SeverityNumber.DEBUG,
    "info": SeverityNumber.INFO,
    "warning": SeverityNumber.WARN,
    "error": SeverityNumber.ERROR,
    "critical": SeverityNumber.FATAL,
}
_EMPTY = Context()

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class LogExport:
    """Queues log lines for the collector; a full queue drops the oldest. `_Logged` reports how many."""

    def __init__(self, exporter: LogRecordExporter, resource: Mapping[str, str]) -> None:
        self._provider = LoggerProvider(Resource.create(dict(resource)), shutdown_on_exit=False)
        self._provider.add_log_record_processor(_batches(exporter))
        self._logger = self._provider.get_logger("otp-stream", __version__, SCHEMA_URL)

    @classmethod
    def open(cls, resource: Mapping[str, str]) -> Self:
        """Return the export that the `OTEL_*` variables configure. Raises `ImportError`."""
        return cls(open_log_exporter(), resource)

    def add(self, event: Mapping[str, Any]) -> None:
        """Queue the fields of a line; never blocks."""
        span = CURRENT_SPAN.get()
        level = str(event.get("level", "info"))
        self._logger.emit(
            LogRecord(
                timestamp=time.time_ns(),
                context=set_span_in_context(span, _EMPTY) if isinstance(span, Span) else _EMPTY,
                severity_number=_SEVERITIES.get(level, SeverityNumber.UNSPECIFIED),
                severity_text=level,
                body=str(event.get("event")),
                attributes={name: _value(it) for name, it in otel_attributes(event).items() if it is not None},
            )
        )

    def close(self) -> None:
        """Export the remaining lines, for at most a few seconds."""
        close_in_time(self._provider.shutdown)


def _value(value: Any) -> str | int | float | bool:
    # other values are converted by `str`, because only that hides codes
    return value if isinstance(value, str | int | float) else json.dumps(value, default=str)


def _batches(exporter: LogRecordExporter) -> BatchLogRecordProcessor:
    """Return the processor that the `OTEL_BLRP_*` variables configure."""
    size = None if "OTEL_BLRP_MAX_QUEUE_SIZE" in os.environ else _QUEUE_SIZE
    try:
        return BatchLogRecordProcessor(exporter, max_queue_size=size)
    except ValueError as error:
        _log.warning("an OTEL_BLRP_ variable is out of range: the defaults are used", error=str(error))
        return BatchLogRecordProcessor(exporter, 1_000, 512, max_queue_size=_QUEUE_SIZE)
