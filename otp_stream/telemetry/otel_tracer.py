"""Tracing with OpenTelemetry. Imported only where tracing is configured, because the SDK is slow to import.

The SDK reads the settings, samples, and parses the producer's trace context. The spans are plain values, because the
SDK's own cost more than the job.
"""

import random
import time
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

import structlog
from opentelemetry import propagate, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, Sampler

from otp_stream import __version__
from otp_stream.core.job import Job

from .current_span import CURRENT_SPAN
from .otlp import Span, SpanExporter, Value, encode_span

_INTERNAL, _CLIENT, _CONSUMER = 1, 3, 5
_CLOSE_S = 5.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Export = Callable[[list[bytes]], object]
"""Takes a job's finished and encoded spans."""


class OtelTracer:
    """Makes the spans of jobs; names follow OpenTelemetry's semantic conventions for messaging."""

    def __init__(self, sampler: Sampler, export: Export, close: Callable[[], object]) -> None:
        self._sampler = sampler
        self._export = export
        self._close = close

    @classmethod
    def open(cls, environ: Mapping[str, str]) -> Self:
        """Return a tracer as the `OTEL_*` variables configure it, and start its exporter."""
        protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        if protocol not in {None, "", "http/protobuf"}:
            _log.warning("traces are sent as http/protobuf, usually port 4318: the only protocol", protocol=protocol)
        named = "OTEL_SERVICE_NAME" in environ or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        resource = Resource.create({"service.version": __version__} | ({} if named else {"service.name": "otp-stream"}))
        attributes = {name: str(value) for name, value in resource.attributes.items()}
        exporter = SpanExporter(environ, attributes, ("otp-stream", __version__))
        # the provider makes its sampler from OTEL_TRACES_SAMPLER
        return cls(TracerProvider(shutdown_on_exit=False).sampler, exporter.put, lambda: exporter.close(_CLOSE_S))

    def job_span(self, job: Job, trace_context: Mapping[str, str]) -> AbstractContextManager[object]:
        """Return the span of the whole job, as part of the producer's trace."""
        context = propagate.extract(trace_context) if trace_context else None
        parent = (
            trace.get_current_span(context).get_span_context() if context is not None else trace.INVALID_SPAN_CONTEXT
        )
        trace_id = parent.trace_id if parent.is_valid else random.getrandbits(128) | 1
        attributes: dict[str, Value] = {
            "messaging.system": "rabbitmq",
            "messaging.operation.type": "process",
            "messaging.message.id": job.id,
            "otp.lane": job.lane,
            "otp.attempt": job.attempts_made + 1,
            "otp.template": job.request.shown_template,
        }
        sampled = self._sampler.should_sample(context, trace_id, "process", trace.SpanKind.CONSUMER, attributes)
        export = self._export if sampled.decision is Decision.RECORD_AND_SAMPLE else None
        trace_ = _Trace(trace_id.to_bytes(16, "big"), parent.trace_state.to_header(), export)
        parent_id = parent.span_id.to_bytes(8, "big") if parent.is_valid else b""
        return _OpenSpan(trace_, "process", _CONSUMER, parent_id, attributes)

    def step_span(self, name: str) -> AbstractContextManager[object]:
        """Return the span of one step, within the job's."""
        parent = CURRENT_SPAN.get()
        assert isinstance(parent, _OpenSpan)  # noqa: S101 - for the type checker: a step is always within a job
        return _OpenSpan(parent.trace, name, _CLIENT if name == "send" else _INTERNAL, parent.id, {}, parent)

    def annotate(self, *, failed: bool = False, **attributes: str | int) -> None:
        """Set attributes of the current span."""
        span = CURRENT_SPAN.get()
        if isinstance(span, _OpenSpan):
            for name, value in attributes.items():
                span.attributes[f"otp.{name}"] = value
            span.failed = span.failed or failed

    def inject(self, headers: MutableMapping[str, Any]) -> None:
        """Write the current `traceparent` to message headers; the producer's `tracestate` is passed on unchanged."""
        span = CURRENT_SPAN.get()
        if isinstance(span, _OpenSpan):
            headers["traceparent"] = f"00-{span.trace_id}-{span.span_id}-{'01' if span.trace.export else '00'}"

    def close(self) -> None:
        """Export the remaining spans; takes a few seconds at most."""
        self._close()


class _Trace:
    """One job's spans."""

    __slots__ = ("ended", "export", "id", "state")

    def __init__(self, trace_id: bytes, state: str, export: Export | None) -> None:
        self.id = trace_id
        self.state = state
        self.export = export
        """`None` where the job is not sampled."""
        self.ended: list[bytes] = []


class _OpenSpan:
    """A span that has not ended."""

    __slots__ = ("_kind", "_name", "_parent", "_parent_id", "_started_ns", "attributes", "failed", "id", "trace")

    def __init__(
        self,
        trace_: _Trace,
        name: str,
        kind: int,
        parent_id: bytes,
        attributes: dict[str, Value],
        parent: "_OpenSpan | None" = None,
    ) -> None:
        self.trace, self._name, self._kind, self._parent_id = trace_, name, kind, parent_id
        self.attributes = attributes
        self._parent = parent
        self.failed = False
        self.id = random.randbytes(8)  # noqa: S311 - an id must be unique, not hard to guess

    @property
    def trace_id(self) -> str:
        """In hexadecimal, as in log lines."""
        return self.trace.id.hex()

    @property
    def span_id(self) -> str:
        """In hexadecimal, as in log lines."""
        return self.id.hex()

    def __enter__(self) -> None:
        self._started_ns = time.time_ns()
        CURRENT_SPAN.set(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        parent, trace = self._parent, self.trace
        CURRENT_SPAN.set(parent)
        if trace.export is None:
            return
        remote = parent is None and bool(self._parent_id)
        span = Span(
            trace.id, self.id, self._parent_id, remote, trace.state, 1, self._name, self._kind,
            self._started_ns, time.time_ns(), self.attributes, self.failed,
        )  # fmt: skip
        trace.ended.append(encode_span(span))
        if parent is None:
            trace.export(trace.ended)
