"""What the broker package reports to telemetry."""

from contextlib import AbstractContextManager
from time import perf_counter
from typing import Protocol

from otp_stream.core.decision import Dead
from otp_stream.core.job import Job, Lane
from otp_stream.core.messaging import Publication, ReceivedMessage
from otp_stream.telemetry_errors import SafeSpan, observe


class BrokerTelemetry(Protocol):
    """Logs, counts and traces messages. Its exceptions are counted by the callers and change nothing."""

    def message_refused(self, lane: Lane, job_id: str, settlement: Dead) -> None:
        """Record a message that was dead-lettered before a job was read from it, after that is confirmed."""
        ...

    def job_settled(self, job: Job, settlement: Dead) -> None:
        """Record a job that was dead-lettered because of a bug, after that is confirmed."""
        ...

    def unread_span(self, message: ReceivedMessage) -> AbstractContextManager[object]:
        """Return the span of a message from which no job is read, in the producer's trace."""
        ...

    def publish_span(self, publication: Publication) -> AbstractContextManager[object]:
        """Return the span of a publish, and write its trace context to the headers.

        Without a current job, the headers keep the producer's context.
        """
        ...

    def traceparent(self) -> str | None:
        """Return the trace context of the current job (W3C); `None` if it is not traced."""
        ...

    def published(self, publication: Publication, took_s: float, error: BaseException | None) -> None:
        """Count a publish."""
        ...


class Publishing:
    """One publish: its span, then its metrics. Neither can fail it."""

    __slots__ = ("_publication", "_since", "_span", "_telemetry")

    def __init__(self, telemetry: BrokerTelemetry, publication: Publication) -> None:
        self._telemetry, self._publication = telemetry, publication
        self._span = SafeSpan(lambda: telemetry.publish_span(publication))

    def __enter__(self) -> None:
        self._since = perf_counter()
        self._span.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._span.__exit__(kind, error, None)
        observe(self._telemetry.published, self._publication, perf_counter() - self._since, error)
