"""Tracing as OpenTelemetry wants it, for whoever configured it: `tracing` imports this only then.

The SDK reads the settings, decides what is sampled and understands what producers send. A job's spans are kept as the
few values that they consist of.
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

from .otlp import Outlet, Span, Value, written
from .tracing import CURRENT

_INTERNAL, _CLIENT, _CONSUMER = 1, 3, 5
_CLOSE_S = 5.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Put = Callable[[list[bytes]], object]
"""Takes a job's finished spans."""


class OtelTracer:
    """A job's spans; names follow OpenTelemetry's semantic conventions for messaging."""

    def __init__(self, sampler: Sampler, put: Put, close: Callable[[], object]) -> None:
        self._sampler = sampler
        self._put = put
        self._close = close

    @classmethod
    def open(cls, environ: Mapping[str, str]) -> Self:
        """Make the one that the environment asks for."""
        protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        if protocol not in {None, "", "http/protobuf"}:
            _log.warning("tracing by http/protobuf, usually port 4318: nothing else is built in", protocol=protocol)
        named = "OTEL_SERVICE_NAME" in environ or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        resource = Resource.create({"service.version": __version__} | ({} if named else {"service.name": "otp-stream"}))
        who = {name: str(value) for name, value in resource.attributes.items()}
        outlet = Outlet(environ, who, ("otp-stream", __version__))
        # the sampler is taken from OTEL_TRACES_SAMPLER
        return cls(TracerProvider(shutdown_on_exit=False).sampler, outlet.put, lambda: outlet.close(_CLOSE_S))

    def job(self, job: Job, carrier: Mapping[str, str]) -> AbstractContextManager[object]:
        """Span the job's stay here, as part of the producer's trace."""
        context = propagate.extract(carrier) if carrier else None
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
            "otp.template": job.ask.shown_template,
        }
        sampled = self._sampler.should_sample(context, trace_id, "process", trace.SpanKind.CONSUMER, attributes)
        taken = sampled.decision is Decision.RECORD_AND_SAMPLE
        way = _Way(trace_id.to_bytes(16, "big"), parent.trace_state.to_header(), self._put if taken else None)
        parent_id = parent.span_id.to_bytes(8, "big") if parent.is_valid else b""
        return _Open(way, "process", _CONSUMER, parent_id, attributes)

    def step(self, name: str) -> AbstractContextManager[object]:
        """Span one step of it."""
        around = CURRENT.get()
        assert isinstance(around, _Open)  # noqa: S101 - told to the type checker only: a step is a job's
        return _Open(around.way, name, _CLIENT if name == "send" else _INTERNAL, around.id, {}, around)

    def note(self, *, failed: bool = False, **attributes: str | int) -> None:
        """Write attributes onto the current span."""
        span = CURRENT.get()
        if isinstance(span, _Open):
            for name, value in attributes.items():
                span.attributes[f"otp.{name}"] = value
            span.failed = span.failed or failed

    def inject(self, headers: MutableMapping[str, Any]) -> None:
        """Put the current trace context into headers; the producer's `tracestate` is carried on as it came."""
        span = CURRENT.get()
        if isinstance(span, _Open):
            headers["traceparent"] = f"00-{span.trace}-{span.span}-{'01' if span.way.put else '00'}"

    def close(self) -> None:
        """Hand over what was not handed over yet; takes seconds at most."""
        self._close()


class _Way:
    """One job's trace."""

    __slots__ = ("ended", "id", "put", "state")

    def __init__(self, trace_id: bytes, state: str, put: Put | None) -> None:
        self.id = trace_id
        self.state = state
        self.put = put
        """Whoever takes the spans; nobody, where the job is not sampled."""
        self.ended: list[bytes] = []


class _Open:
    """A span that has not ended."""

    __slots__ = ("_around", "_kind", "_name", "_parent_id", "_started_ns", "attributes", "failed", "id", "way")

    def __init__(
        self,
        way: _Way,
        name: str,
        kind: int,
        parent_id: bytes,
        attributes: dict[str, Value],
        around: "_Open | None" = None,
    ) -> None:
        self.way, self._name, self._kind, self._parent_id = way, name, kind, parent_id
        self.attributes = attributes
        self._around = around
        self.failed = False
        self.id = random.randbytes(8)  # noqa: S311 - an id must be unlikely to come twice, not hard to guess

    @property
    def trace(self) -> str:
        """The trace's id, as log lines have it."""
        return self.way.id.hex()

    @property
    def span(self) -> str:
        """The span's."""
        return self.id.hex()

    def __enter__(self) -> None:
        self._started_ns = time.time_ns()
        CURRENT.set(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        around, way = self._around, self.way
        CURRENT.set(around)
        if way.put is None:
            return
        remote = around is None and bool(self._parent_id)
        span = Span(
            way.id, self.id, self._parent_id, remote, way.state, 1, self._name, self._kind,
            self._started_ns, time.time_ns(), self.attributes, self.failed,
        )  # fmt: skip
        way.ended.append(written(span))
        if around is None:
            way.put(way.ended)
