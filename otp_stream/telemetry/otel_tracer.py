"""Tracing with OpenTelemetry's SDK. Imported only if tracing is configured, because importing the SDK is slow."""

import os
import threading
from collections.abc import Generator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self

import structlog
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, StatusCode, format_span_id, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otp_stream import __version__
from otp_stream.core.job import Job

from .current_span import CURRENT_SPAN
from .span_exporter import open_exporter

_CLOSE_S = 5.0
_QUEUE_SIZE = 65_536
"""Spans queued for the collector. The SDK's default, 2,048, is enough for half a second."""
_EMPTY = Context()
_NO_SPAN = nullcontext()
_W3C = TraceContextTextMapPropagator()

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class OtelTracer:
    """Creates only two spans for each job, `process` and `send`: one span takes as long as a fifth of a job.

    Names follow OpenTelemetry's semantic conventions for messaging. No exceptions are recorded, because their text may
    contain a code.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("otp-stream", __version__)

    @classmethod
    def open(cls) -> Self:
        """Return the tracer that the `OTEL_*` variables configure, and start its exporter."""
        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        resource = Resource.create({"service.version": __version__} | ({} if named else {"service.name": "otp-stream"}))
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(_batches(open_exporter()))
        return cls(provider)

    def job_span(self, job: Job, trace_context: Mapping[str, str]) -> AbstractContextManager[object]:
        """Return the span of a job, in the producer's trace."""
        attributes = {
            "messaging.system": "rabbitmq",
            "messaging.operation.type": "process",
            "messaging.message.id": job.id,
            "otp.lane": job.lane,
            "otp.attempt": job.attempts_made + 1,
            "otp.template": job.request.shown_template,
        }
        parent = _W3C.extract(trace_context, _EMPTY) if trace_context else _EMPTY
        return _current(self._tracer.start_span("process", parent, SpanKind.CONSUMER, attributes), None)

    def send_span(self) -> AbstractContextManager[object]:
        """Return the span of one send, a child of the job's span. The other steps are the time before and after it."""
        job = CURRENT_SPAN.get()
        if not isinstance(job, Span) or not job.is_recording():
            return _NO_SPAN
        return _current(self._tracer.start_span("send", set_span_in_context(job, _EMPTY), SpanKind.CLIENT), job)

    def annotate(self, *, failed: bool = False, **attributes: str | int) -> None:
        """Set attributes of the current span."""
        span = CURRENT_SPAN.get()
        if isinstance(span, Span) and span.is_recording():
            span.set_attributes({f"otp.{name}": value for name, value in attributes.items()})
            if failed:
                span.set_status(StatusCode.ERROR)

    def inject(self, headers: MutableMapping[str, Any]) -> None:
        """Write the current `traceparent` to message headers. The producer's `tracestate` is kept unchanged."""
        if span := CURRENT_SPAN.get():
            context = span.get_span_context()
            ids = f"{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}"
            headers["traceparent"] = f"00-{ids}-{context.trace_flags:02x}"

    def close(self) -> None:
        """Export the remaining spans, for at most a few seconds."""
        # in a thread, which does not delay the end of the process, because the SDK waits for up to 30 s
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_S)


@contextmanager
def _current(span: Span, parent: Span | None) -> Generator[None]:
    CURRENT_SPAN.set(span)
    try:
        yield
    finally:
        CURRENT_SPAN.set(parent)
        span.end()


def _batches(exporter: SpanExporter) -> BatchSpanProcessor:
    """Return the processor that the `OTEL_BSP_*` variables configure."""
    try:
        return BatchSpanProcessor(exporter, None if "OTEL_BSP_MAX_QUEUE_SIZE" in os.environ else _QUEUE_SIZE)
    except ValueError as error:
        _log.warning("an OTEL_BSP_ variable is out of range: the defaults are used", error=str(error))
        return BatchSpanProcessor(exporter, _QUEUE_SIZE, 5_000, 512)
