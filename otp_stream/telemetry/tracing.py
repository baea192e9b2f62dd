"""One trace from the producer to the settlement, across retries. Costs nothing if tracing is not configured."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from otp_stream.core.http_request import HttpRequest
from otp_stream.core.job import Job
from otp_stream.core.messaging import Publication, ReceivedMessage
from otp_stream.core.outcome import Outcome

from .messaging_metrics import Server
from .opened import opened

_NO_SPAN = nullcontext()


class Tracer(Protocol):
    """Creates the spans of jobs and messages. `annotate`, `failed` and `traceparent` are about the current span."""

    def job_span(self, job: Job, message: ReceivedMessage) -> AbstractContextManager[object]:
        """Return the span of a job, in the producer's trace."""
        ...

    def unread_span(self, message: ReceivedMessage) -> AbstractContextManager[object]:
        """Return the span of a message from which no job was read, in the producer's trace."""
        ...

    def send_span(self) -> AbstractContextManager[object]:
        """Return the span of one send, a child of the job's span."""
        ...

    def send_ended(self, outcome: Outcome) -> None:
        """Record the outcome of a send in its span, which is the current one."""
        ...

    def publish_span(self, publication: Publication) -> AbstractContextManager[object]:
        """Return the span of a publish, and write its trace context to the headers."""
        ...

    def request_span(self, request: HttpRequest) -> AbstractContextManager[object]:
        """Return the span of a request that may publish jobs, in the client's trace."""
        ...

    def request_ended(self, status: int) -> None:
        """Record the status of the response in the span of the request, if that is the current one."""
        ...

    def annotate(self, **attributes: str | int) -> None:
        """Set attributes, with the prefix `otp.`."""
        ...

    def failed(self, error_type: str, description: str) -> None:
        """Record an error: `error_type` is one of few words, `description` contains no secret."""
        ...

    def traceparent(self) -> str | None:
        """Return the trace context (W3C), or `None` if the span is not sampled."""
        ...

    def close(self) -> None:
        """Export the remaining spans, for at most a few seconds."""
        ...


class NoTracer:
    """The tracer if tracing is off. A producer's trace context is kept unchanged."""

    def job_span(self, job: Job, message: ReceivedMessage) -> AbstractContextManager[object]:  # noqa: ARG002, D102
        return _NO_SPAN

    def unread_span(self, message: ReceivedMessage) -> AbstractContextManager[object]:  # noqa: ARG002, D102
        return _NO_SPAN

    def send_span(self) -> AbstractContextManager[object]:  # noqa: D102
        return _NO_SPAN

    def send_ended(self, outcome: Outcome) -> None:
        """Do nothing."""

    def publish_span(self, publication: Publication) -> AbstractContextManager[object]:  # noqa: ARG002, D102
        return _NO_SPAN

    def request_span(self, request: HttpRequest) -> AbstractContextManager[object]:  # noqa: ARG002, D102
        return _NO_SPAN

    def request_ended(self, status: int) -> None:
        """Do nothing."""

    def annotate(self, **attributes: str | int) -> None:
        """Do nothing."""

    def failed(self, error_type: str, description: str) -> None:
        """Do nothing."""

    def traceparent(self) -> str | None:
        """Return nothing."""

    def close(self) -> None:
        """Do nothing."""


def open_tracer(resource: Mapping[str, str], server: Server | None) -> Tracer:
    """Return the tracer that the standard `OTEL_*` variables configure. Errors in them are logged, not raised."""

    def open_() -> Tracer:
        from .otel_tracer import OtelTracer  # noqa: PLC0415 - slow to import, and used only if tracing is on

        return OtelTracer.open(resource, server)

    return opened("traces", open_) or NoTracer()
