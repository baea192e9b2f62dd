"""One trace from the producer to the settlement, across retries. Costs nothing if tracing is not configured."""

import os
from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import structlog

from otp_stream.core.job import Job

_NO_SPAN = nullcontext()
_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Tracer(Protocol):
    """Creates the spans of a job."""

    def job_span(self, job: Job, trace_context: Mapping[str, str]) -> AbstractContextManager[object]:
        """Return the span of a job, in the producer's trace."""
        ...

    def send_span(self) -> AbstractContextManager[object]:
        """Return the span of one send, a child of the job's span."""
        ...

    def annotate(self, *, failed: bool = False, **attributes: str | int) -> None:
        """Set attributes of the current span."""
        ...

    def inject(self, headers: MutableMapping[str, Any]) -> None:
        """Write the current trace context to message headers."""
        ...

    def close(self) -> None:
        """Export the remaining spans, for at most a few seconds."""
        ...


class NoTracer:
    """The tracer if tracing is off. A producer's trace context is kept unchanged."""

    def job_span(self, job: Job, trace_context: Mapping[str, str]) -> AbstractContextManager[object]:  # noqa: ARG002, D102
        return _NO_SPAN

    def send_span(self) -> AbstractContextManager[object]:  # noqa: D102
        return _NO_SPAN

    def annotate(self, *, failed: bool = False, **attributes: str | int) -> None:
        """Do nothing."""

    def inject(self, headers: MutableMapping[str, Any]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def open_tracer() -> Tracer:
    """Return the tracer that the standard `OTEL_*` variables configure. Errors in them are logged, not raised."""
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or exporter == "none" or not (exporter or endpoint):
        return NoTracer()
    if exporter not in {"", "otlp"}:
        _log.warning("tracing is off: OTLP is the only exporter", exporter=exporter)
        return NoTracer()
    try:
        from .otel_tracer import OtelTracer  # noqa: PLC0415 - slow to import, and used only if tracing is on

        return OtelTracer.open()
    except ImportError as error:
        fix = "Run pip install 'otp-stream[otel]'"
        _log.error("tracing is off: OpenTelemetry is not installed", missing=error.name, fix=fix)
    except Exception as error:  # noqa: BLE001 - tracing must not keep the worker from starting
        # the text of an error may quote a secret
        _log.error("tracing is off: a value of the OTEL_* variables is invalid", error=type(error).__name__)
    return NoTracer()
