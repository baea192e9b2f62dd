"""One trace from the producer to the settlement, across retries. Nothing configured costs nothing."""

from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol

import structlog

from otp_stream.core.job import Job

_NOTHING = nullcontext()


class Traced(Protocol):
    """A span that has not ended, as log lines name it."""

    @property
    def trace(self) -> str:
        """Its trace's id, in hexadecimal."""
        ...

    @property
    def span(self) -> str:
        """Its own."""
        ...


CURRENT: ContextVar[Traced | None] = ContextVar("span", default=None)
"""The span in which this task is; none where nobody asked for tracing."""


class Tracer(Protocol):
    """What a job's way asks of tracing."""

    def job(self, job: Job, carrier: Mapping[str, str]) -> AbstractContextManager[object]:
        """Span the job's stay here, as part of the producer's trace."""
        ...

    def step(self, name: str) -> AbstractContextManager[object]:
        """Span one step of it."""
        ...

    def note(self, *, failed: bool = False, **attributes: str | int) -> None:
        """Write attributes onto the current span."""
        ...

    def inject(self, headers: MutableMapping[str, Any]) -> None:
        """Put the current trace context into headers."""
        ...

    def close(self) -> None:
        """Hand over what was not handed over yet; takes seconds at most."""
        ...


class NoTracer:
    """Tracing that nobody asked for. A producer's trace context travels on untouched."""

    def job(self, job: Job, carrier: Mapping[str, str]) -> AbstractContextManager[object]:  # noqa: ARG002, D102
        return _NOTHING

    def step(self, name: str) -> AbstractContextManager[object]:  # noqa: ARG002, D102
        return _NOTHING

    def note(self, *, failed: bool = False, **attributes: str | int) -> None:
        """Do nothing."""

    def inject(self, headers: MutableMapping[str, Any]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def open_tracer(environ: Mapping[str, str]) -> Tracer:
    """Return the tracer that the standard `OTEL_*` variables ask for."""
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if disabled or exporter == "none" or not (exporter or endpoint):
        return NoTracer()
    if exporter not in {"", "otlp"}:
        structlog.get_logger(__name__).warning("no tracing: OTLP is the one exporter", exporter=exporter)
        return NoTracer()
    from .otel import OtelTracer  # noqa: PLC0415 - a tenth of a second and 15 MiB, for those who want it only

    return OtelTracer.open(environ)
