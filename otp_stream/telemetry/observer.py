"""Records events of jobs as log lines, metrics, spans and statistics."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, assert_never

import structlog

from otp_stream import clock
from otp_stream.core.decision import Ack, Dead, Final, Park, Retry
from otp_stream.core.http_request import HttpRequest
from otp_stream.core.job import Job, Lane
from otp_stream.core.masking import mask_recipient
from otp_stream.core.messaging import Publication, ReceivedMessage
from otp_stream.core.outcome import Accepted, Outcome
from otp_stream.core.stats import Recent, Stats, Step, TenantStats
from otp_stream.telemetry_errors import SafeSpan

from .logs import close_log_export
from .messaging_metrics import Server
from .metrics import Metrics
from .opened import opened
from .processing import CURRENT_PROCESSING, Processing
from .producer_warnings import ProducerWarnings
from .relay_log import RelayLog
from .resource import resource_attributes
from .stats import History, StatsRecorder
from .tenant_stats import TenantRecorder
from .tracing import NoTracer, Tracer, open_tracer

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)
_LABELLED_ATTEMPTS = 10
"""Higher attempt numbers share one series, because greylisting causes many attempts."""


class Observer:
    """Logs, counts and traces jobs, with `by_tenant` for each tenant too.

    `environment` and `server`, which is RabbitMQ, are shown with traces. `now_ms` is the clock (ms since 1970).
    """

    def __init__(
        self,
        *,
        by_tenant: bool = False,
        environment: str = "development",
        server: Server | None = None,
        now_ms: Callable[[], int] = clock.now_ms,
    ) -> None:
        self.metrics = Metrics(server)
        self._resource = resource_attributes(environment)
        self._server = server
        self._tenants = TenantRecorder() if by_tenant else None
        self._tracer: Tracer = NoTracer()
        self._traces = False
        self._metrics_export: _MetricsExport | None = None
        self._now_ms = now_ms
        self._stats = StatsRecorder(now_ms())
        self._history = History()
        self.relays = RelayLog(self._stats, now_ms)
        self._producers = ProducerWarnings(self.metrics, now_ms)
        self._logs_jobs = True
        """Whether the log level includes a line for each job, which is expensive to build."""

    async def open(self) -> None:
        """Start the exports of spans and metrics that `OTEL_*` variables configure."""
        self._logs_jobs = bool(_log.is_enabled_for(logging.INFO))
        self._tracer = open_tracer(self._resource, self._server)
        self._traces = not isinstance(self._tracer, NoTracer)
        self._metrics_export = opened("metrics", self._open_metrics_export)

    @property
    def exports_metrics(self) -> bool:
        """Whether metrics are exported by OTLP."""
        return self._metrics_export is not None

    async def export_metrics(self) -> None:
        """Export metrics by OTLP at intervals, until cancelled."""
        if self._metrics_export is not None:
            await self._metrics_export.run()

    def _open_metrics_export(self) -> "_MetricsExport":
        from .otlp_metrics import MetricsExport  # noqa: PLC0415 - slow to import, and used only if metrics are exported

        return MetricsExport.open(self.metrics.registry.collect, self._resource)

    def job_span(self, job: Job, message: ReceivedMessage) -> AbstractContextManager[object]:
        """Record that a job has arrived, and return the span of its processing."""
        self._stats.received += 1
        self.metrics.received[job.lane].inc()
        self._producers.check(job)
        if self._logs_jobs:
            _log.info(
                "job started",
                job_id=job.id,
                lane=job.lane,
                priority=job.request.priority,
                attempt=job.attempts_made + 1,
                template=job.request.shown_template,
                recipient=mask_recipient(job.request.email, job.request.otp),
            )
        if job.replay is not None and not job.attempts_made:
            _log.info("job is replayed", job_id=job.id, by=job.replay.by, fresh_expiry=job.replay.fresh)
        span = SafeSpan(lambda: self._tracer.job_span(job, message)) if self._traces else None
        return Processing(message.queue, self.metrics.messaging, span)

    def unread_span(self, message: ReceivedMessage) -> AbstractContextManager[object]:
        """Return the span of a message from which no job is read, in the producer's trace."""
        span = SafeSpan(lambda: self._tracer.unread_span(message)) if self._traces else None
        return Processing(message.queue, self.metrics.messaging, span)

    def send_span(self) -> AbstractContextManager[object]:
        """Return the span of one send, whose duration is also a metric."""
        return _TimedSpan(self.metrics, self._tracer.send_span())

    def send_ended(self, outcome: Outcome) -> None:
        """Record the outcome of a send in its span."""
        self._tracer.send_ended(outcome)

    def attempt_ended(self, job: Job, outcome: Outcome) -> None:
        """Record the outcome of an attempt to send."""
        kind = type(outcome).__name__.lower()
        self.metrics.attempts[kind].inc()
        self._tracer.annotate(outcome=kind)
        match outcome:
            case Accepted():
                now_ms = self._now_ms()
                took_ms = max(now_ms - job.requested_ms, 0)
                self.metrics.accept_s.observe(took_ms / 1000)
                self._stats.mail_accepted(took_ms, now_ms)
                self._history.mail_accepted(took_ms, now_ms)
                if self._tenants is not None:
                    self._tenants.mail_accepted(job.tenant, took_ms)
            case _:
                _log.debug("attempt ended", job_id=job.id, outcome=kind, detail=_detail(outcome))

    def job_settled(self, job: Job, settlement: Final) -> None:
        """Record how a job was settled, after the broker has confirmed it."""
        now_ms = self._now_ms()
        match settlement:
            case Ack(ending, route):
                self._job_ended(ending, job)
                self._add_recent(job, ending, job.attempts_made + 1, now_ms)
                if self._logs_jobs:
                    took_ms = now_ms - job.made_ms
                    fields: dict[str, Any] = {"attempt": job.attempts_made + 1, "since_timestamp_ms": took_ms}
                    if route is not None and route.switched_from is not None:
                        fields |= {"relay": route.relay, "switched_from": route.switched_from}
                    _log.info(f"job {ending}", job_id=job.id, **fields)
            case Retry(delay_ms, attempt, error):
                self._stats.retried += 1
                self._stats.failed(error, now_ms)
                self._add_recent(job, "retry", attempt, now_ms, error)
                self.metrics.retries.labels(str(attempt) if attempt <= _LABELLED_ATTEMPTS else "more").inc()
                self._tracer.annotate(settlement="retry", delay_ms=delay_ms)
                _log.warning("job will be retried", job_id=job.id, attempt=attempt, delay_ms=delay_ms, error=error)
            case Park(delay_ms):
                self.metrics.parked.inc()
                self._tracer.annotate(settlement="park", delay_ms=delay_ms)
                _log.info("job waits in the broker", job_id=job.id, delay_ms=delay_ms)
            case Dead():
                self._dead_lettered(job.id, settlement, job)
                self._add_recent(job, settlement.reason, settlement.attempt, now_ms, settlement.error)
            case _:
                assert_never(settlement)

    def settlement_failed(self, job: Job, settlement: Final) -> None:
        """Record that a job could not be settled, so that the broker redelivers it."""
        self.metrics.unsettled.inc()
        wanted = type(settlement).__name__.lower()
        self._failed("not_settled", "the broker redelivers it")
        self._tracer.annotate(settlement="none")
        _log.warning("job could not be settled, the broker redelivers it", job_id=job.id, wanted=wanted)

    def message_refused(self, lane: Lane, job_id: str, settlement: Dead) -> None:
        """Record a message that could not be read as a job."""
        self._stats.received += 1
        self.metrics.received[lane].inc()
        self._dead_lettered(job_id, settlement)
        ended = (settlement.reason, settlement.attempt, None, settlement.error)
        self._history.add(Recent(self._now_ms(), job_id, lane, "", "", *ended))

    def publish_span(self, publication: Publication) -> AbstractContextManager[object]:
        """Return the span of a publish, and write its trace context to the headers."""
        return self._tracer.publish_span(publication)

    def traceparent(self) -> str | None:
        """Return the trace context of the current job; `None` if it is not traced."""
        return self._tracer.traceparent()

    def published(self, publication: Publication, took_s: float, error: BaseException | None) -> None:
        """Count a publish."""
        self.metrics.messaging.published(publication, took_s, error)

    def request_span(self, request: HttpRequest) -> AbstractContextManager[object]:
        """Return the span of a request that may publish jobs, in the client's trace."""
        return self._tracer.request_span(request)

    def request_ended(self, request: HttpRequest, status: int, took_s: float) -> None:
        """Record the response to a request, in its span if that is the current one."""
        self.metrics.http.request_ended(request, status, took_s)
        self._tracer.request_ended(status)

    def stats(self) -> Stats:
        """Return the statistics since start."""
        return self._stats.snapshot(self._now_ms())

    def tenants(self) -> Mapping[str, TenantStats]:
        """Return the statistics of each tenant that has had a job; empty without tenants."""
        return self._tenants.snapshot() if self._tenants is not None else {}

    def history(self) -> tuple[Step, ...]:
        """Return the last 15 minutes in steps, the oldest first."""
        return self._history.steps(self._now_ms())

    def recent(self) -> list[Recent]:
        """Return how recent jobs ended, the newest first."""
        return self._history.recent()

    def clear_recent(self) -> None:
        """Drop the recent jobs."""
        self._history.clear_recent()

    def close(self) -> None:
        """Export the remaining spans, metrics and log lines, for at most a few seconds."""
        closing = [self._tracer.close, close_log_export]
        if self._metrics_export is not None:
            closing.append(self._metrics_export.close)
        threads = [threading.Thread(target=close, daemon=True) for close in closing]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _failed(self, error_type: str, description: str) -> None:
        if (processing := CURRENT_PROCESSING.get()) is not None:
            processing.error_type = error_type
        self._tracer.failed(error_type, description)

    def _job_ended(self, ending: str, job: Job | None = None) -> None:
        self.metrics.ended[ending].inc()
        if self._tenants is not None and job is not None:
            self._tenants.job_ended(job.tenant, ending)
        self._stats.job_ended(ending, self._now_ms())
        self._tracer.annotate(settlement=ending)

    def _dead_lettered(self, job_id: str, dead: Dead, job: Job | None = None) -> None:
        self._job_ended(dead.reason, job)
        self._stats.failed(f"{dead.reason}: {dead.error}", self._now_ms())
        self._failed(dead.reason, dead.error)
        _log.error("job is dead-lettered", job_id=job_id, reason=dead.reason, error=dead.error, attempt=dead.attempt)

    def _add_recent(self, job: Job, what: str, attempt: int, now_ms: int, error: str = "") -> None:
        took_ms = max(now_ms - job.requested_ms, 0)
        template = job.request.shown_template
        recipient = mask_recipient(job.request.email, job.request.otp)
        self._history.add(Recent(now_ms, job.id, job.lane, recipient, template, what, attempt, took_ms, error))


class _MetricsExport(Protocol):
    async def run(self) -> None: ...
    def close(self) -> None: ...


class _TimedSpan:
    """A span whose duration is also a metric."""

    __slots__ = ("_metrics", "_since", "_span")

    def __init__(self, metrics: Metrics, span: AbstractContextManager[object]) -> None:
        self._metrics = metrics
        self._span = span

    def __enter__(self) -> None:
        self._since = time.perf_counter()
        self._span.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._metrics.send_s.observe(time.perf_counter() - self._since)
        return self._span.__exit__(kind, error, trace)


def _detail(outcome: Outcome) -> str | None:
    return str(getattr(outcome, "reply", None) or getattr(outcome, "error", None) or "") or None
