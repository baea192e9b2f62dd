"""Tracing by OpenTelemetry's SDK, for whoever configured it: `tracing` imports this only then."""

from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, Self

import structlog
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

from otp_stream import __version__
from otp_stream.core.job import Job

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class OtelTracer:
    """Spans by OpenTelemetry's SDK; names follow its semantic conventions for messaging."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("otp-stream", __version__)

    @classmethod
    def open(cls, exporter: str, environ: Mapping[str, str]) -> Self:
        """Make the one that the environment asks for; the SDK reads most of it by itself."""
        return cls(_provider(exporter, environ))

    def job(self, job: Job, carrier: Mapping[str, str]) -> AbstractContextManager[object]:
        """Span the job's stay here, as part of the producer's trace."""
        return self._tracer.start_as_current_span(
            "process",
            context=propagate.extract(carrier),
            kind=trace.SpanKind.CONSUMER,
            attributes={
                "messaging.system": "rabbitmq",
                "messaging.operation.type": "process",
                "messaging.message.id": job.id,
                "otp.lane": job.lane,
                "otp.attempt": job.attempts_made + 1,
                "otp.template": job.ask.metadata.template,
            },
            record_exception=False,  # its text may hold the code
            set_status_on_exception=False,
        )

    def step(self, name: str) -> AbstractContextManager[object]:
        """Span one step of it."""
        kind = trace.SpanKind.CLIENT if name == "send" else trace.SpanKind.INTERNAL
        return self._tracer.start_as_current_span(
            name, kind=kind, record_exception=False, set_status_on_exception=False
        )

    def note(self, *, failed: bool = False, **attributes: str | int) -> None:
        """Write attributes onto the current span."""
        span = trace.get_current_span()
        span.set_attributes({f"otp.{name}": value for name, value in attributes.items()})
        if failed:
            span.set_status(trace.StatusCode.ERROR)

    def inject(self, headers: MutableMapping[str, Any]) -> None:
        """Put the current trace context into headers."""
        propagate.inject(headers)

    def close(self) -> None:
        """Hand over what was not handed over yet; takes seconds at most."""
        self._provider.shutdown()


def _provider(exporter: str, environ: Mapping[str, str]) -> TracerProvider:
    named = "OTEL_SERVICE_NAME" in environ or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create({"service.version": __version__} | ({} if named else {"service.name": "otp-stream"}))
    provider = TracerProvider(resource=resource)  # the sampler is taken from OTEL_TRACES_SAMPLER
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if exporter == "console":
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
        return provider
    if exporter != "otlp" or protocol not in {None, "", "http/protobuf"}:
        _log.warning(
            "tracing by OTLP over http/protobuf, usually port 4318: nothing else is built in",
            exporter=exporter,
            protocol=protocol,
        )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
