"""Tracing with OpenTelemetry's SDK. Imported only if tracing is configured, because importing the SDK is slow."""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from types import TracebackType
from typing import Any, Self, cast

import structlog
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    format_span_id,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otp_stream import __version__
from otp_stream.core.http_request import HttpRequest
from otp_stream.core.job import Job
from otp_stream.core.messaging import SCHEMA_URL, Destination, Publication, ReceivedMessage
from otp_stream.core.outcome import Outcome

from .current_span import CURRENT_SPAN
from .exporters import close_in_time, open_span_exporter
from .messaging_metrics import Server
from .span_attributes import at_creation, destination_of, of_job, of_outcome, of_publish, of_request, of_unread

_QUEUE_SIZE = 65_536
"""Spans queued for the collector. The SDK's default, 2,048, is enough for half a second."""
_MAX_LINKS = 32
"""Of a packet of events. One takes as long as a tenth of a span."""
_EMPTY = Context()
_NO_SPAN = nullcontext()
_W3C = TraceContextTextMapPropagator()

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class OtelTracer:
    """Creates two spans for each job, `process` and `send`, and one for each publish or packet of events.

    One span takes as long as a fifth of a job. No exceptions are recorded, because their text may contain a code.
    """

    def __init__(self, provider: TracerProvider, server: Server | None = None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("otp-stream", __version__, SCHEMA_URL)
        self._server = server

    @classmethod
    def open(cls, resource: Mapping[str, str], server: Server | None) -> Self:
        """Return the tracer that the `OTEL_*` variables configure, and start its exporter."""
        provider = TracerProvider(resource=Resource.create(dict(resource)), shutdown_on_exit=False)
        provider.add_span_processor(_batches(open_span_exporter()))
        return cls(provider, server)

    def job_span(self, job: Job, message: ReceivedMessage) -> AbstractContextManager[object]:
        """Return the span of a job, in the producer's trace."""
        to, routing_key = destination_of(job, message)
        span = self._process_span(message, to)
        if span.is_recording():
            span.set_attributes(of_job(job, message, routing_key))
        return _Current(span, None)

    def unread_span(self, message: ReceivedMessage) -> AbstractContextManager[object]:
        """Return the span of a message from which no job was read, in the producer's trace."""
        queue = message.queue
        span = self._process_span(message, queue)
        span.set_attributes(of_unread(message, queue.name if message.routing_key == queue.name else ""))
        return _Current(span, None)

    def send_span(self) -> AbstractContextManager[object]:
        """Return the span of one send, a child of the job's span. The other steps are the time before and after it."""
        job = _recording()
        if job is None:
            return _NO_SPAN
        return _Current(self._tracer.start_span("send", set_span_in_context(job, _EMPTY), SpanKind.CLIENT), job)

    def send_ended(self, outcome: Outcome) -> None:
        """Record relay, reply and error of a send."""
        if (span := _recording()) is not None:
            attributes, error_type = of_outcome(outcome)
            if error_type is not None:
                attributes["error.type"] = error_type
                span.set_status(StatusCode.ERROR)
            span.set_attributes(attributes)

    def publish_span(self, publication: Publication) -> AbstractContextManager[object]:
        """Return the span of a publish, and write its trace context to the headers, beside the producer's `tracestate`.

        The span of several messages links to their jobs, whose context they carry. A message outside of a job keeps
        its context.
        """
        if len(publication.parents) > 1:
            return self._batch_span(publication)
        traceparent = next(iter(publication.parents))
        current = NonRecordingSpan(_context(traceparent)) if traceparent is not None else CURRENT_SPAN.get()
        if not isinstance(current, Span) or not current.get_span_context().is_valid:
            return _NO_SPAN
        if not current.get_span_context().trace_flags.sampled:
            _inject(publication, current)
            return _NO_SPAN
        span = self._publish_span(publication, SpanKind.PRODUCER, set_span_in_context(current, _EMPTY), current)
        _inject(publication, span)
        return _Current(span, CURRENT_SPAN.get())

    def request_span(self, request: HttpRequest) -> AbstractContextManager[object]:
        """Return the span of a request that may publish jobs, in the client's trace."""
        parent = _W3C.extract({"traceparent": request.traceparent}, _EMPTY) if request.traceparent else _EMPTY
        name = f"{request.method} {request.route}"
        return _Current(self._tracer.start_span(name, parent, SpanKind.SERVER, of_request(request)), None)

    def request_ended(self, status: int) -> None:
        """Record the status of the response in the span of the request, if that is the current one."""
        if (span := _recording()) is not None:
            span.set_attribute("http.response.status_code", status)
            if status >= 500:
                span.set_attribute("error.type", str(status))
                span.set_status(StatusCode.ERROR)

    def annotate(self, **attributes: str | int) -> None:
        """Set attributes of the current span."""
        if (span := _recording()) is not None:
            span.set_attributes({f"otp.{name}": value for name, value in attributes.items()})

    def failed(self, error_type: str, description: str) -> None:
        """Record an error of the current span."""
        if (span := _recording()) is not None:
            span.set_attribute("error.type", error_type)
            span.set_status(StatusCode.ERROR, description)

    def traceparent(self) -> str | None:
        """Return the context of the current span, if it is sampled."""
        span = _recording()
        return _traceparent(span) if span is not None else None

    def close(self) -> None:
        """Export the remaining spans, for at most a few seconds."""
        close_in_time(self._provider.shutdown)

    def _process_span(self, message: ReceivedMessage, to: Destination) -> Span:
        carrier = message.carrier()
        parent = _W3C.extract(carrier, _EMPTY) if carrier else _EMPTY
        # a retry is in the producer's trace only as a child; the link is how the conventions relate both
        links = [Link(sender)] if carrier and (sender := get_current_span(parent).get_span_context()).is_valid else None
        attributes = at_creation(to, "process", "process", self._server)
        return self._tracer.start_span(f"process {to.kind}", parent, SpanKind.CONSUMER, attributes, links)

    def _batch_span(self, publication: Publication) -> AbstractContextManager[object]:
        contexts = (_context(it) for it in publication.parents if it is not None)
        links = [Link(it) for it in islice((it for it in contexts if it.trace_flags.sampled), _MAX_LINKS)]
        if not links:
            return _NO_SPAN
        # by the conventions not PRODUCER, because the messages carry the contexts of other spans
        return _Current(self._publish_span(publication, SpanKind.CLIENT, _EMPTY, None, links), None)

    def _publish_span(
        self,
        publication: Publication,
        kind: SpanKind,
        parent: Context,
        job: Span | None,
        links: Sequence[Link] = (),
    ) -> Span:
        to = publication.destination
        attributes = at_creation(to, "publish", "send", self._server)
        span = self._tracer.start_span(f"publish {to.kind}", parent, kind, attributes, links)
        span.set_attributes(of_publish(publication, cast("Mapping[str, Any]", getattr(job, "attributes", None) or {})))
        return span


class _Current:
    """Makes a span the current one, and ends it. Of an exception, only its type is recorded."""

    __slots__ = ("_parent", "_span")

    def __init__(self, span: Span, parent: object) -> None:
        self._span, self._parent = span, cast("Span | None", parent)

    def __enter__(self) -> None:
        CURRENT_SPAN.set(self._span)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        CURRENT_SPAN.set(self._parent)
        if kind is not None:
            self._span.set_attribute("error.type", kind.__name__)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def _recording() -> Span | None:
    span = cast("Span | None", CURRENT_SPAN.get())  # only this module sets it
    return span if span is not None and span.is_recording() else None


def _context(traceparent: str) -> SpanContext:
    """Return the context that `_traceparent` has written."""
    _, trace_id, span_id, flags = traceparent.split("-")
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))


def _traceparent(span: Span) -> str:
    context = span.get_span_context()
    return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-{context.trace_flags:02x}"


def _inject(publication: Publication, span: Span) -> None:
    if publication.headers is not None:
        publication.headers["traceparent"] = _traceparent(span)


def _batches(exporter: SpanExporter) -> BatchSpanProcessor:
    """Return the processor that the `OTEL_BSP_*` variables configure."""
    try:
        return BatchSpanProcessor(exporter, None if "OTEL_BSP_MAX_QUEUE_SIZE" in os.environ else _QUEUE_SIZE)
    except ValueError as error:
        _log.warning("an OTEL_BSP_ variable is out of range: the defaults are used", error=str(error))
        return BatchSpanProcessor(exporter, _QUEUE_SIZE, 5_000, 512)
