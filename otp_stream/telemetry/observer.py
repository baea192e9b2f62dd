"""Records events of jobs as log lines, metrics, spans and statistics."""

import logging
import time
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, assert_never

import structlog

from otp_stream import clock
from otp_stream.core.decision import Ack, Dead, Final, Park, Retry
from otp_stream.core.job import CLOCK_TOLERANCE_MS, Job, Lane
from otp_stream.core.masking import mask_address
from otp_stream.core.outcome import Accepted, Outcome
from otp_stream.core.state import RelayState
from otp_stream.core.stats import Recent, Stats, Step, TenantStats

from .metrics import Metrics
from .stats import History, StatsRecorder
from .tenant_stats import TenantRecorder
from .tracing import NoTracer, Tracer, open_tracer

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)
_LATE_MS = 60_000
_PRODUCER_WARNING_INTERVAL_MS = 60_000
_NAMED_DOMAINS = 5
_LABELLED_ATTEMPTS = 10
"""Higher attempt numbers share one series, because greylisting causes many attempts."""


class Observer:
    """Logs, counts and traces jobs, with `by_tenant` for each tenant too.

    `now_ms` is the clock (milliseconds since 1970).
    """

    def __init__(self, *, by_tenant: bool = False, now_ms: Callable[[], int] = clock.now_ms) -> None:
        self.metrics = Metrics()
        self._tenants = TenantRecorder() if by_tenant else None
        self._tracer: Tracer = NoTracer()
        self._now_ms = now_ms
        self._stats = StatsRecorder(now_ms())
        self._history = History()
        self._warned_ms: dict[str, int] = {}
        self._logs_jobs = True
        """Whether the log level includes a line for each job, which is expensive to build."""

    async def open(self) -> None:
        """Start tracing if `OTEL_*` variables configure it, which connects to the collector."""
        self._logs_jobs = bool(_log.is_enabled_for(logging.INFO))
        self._tracer = open_tracer()

    def job_span(self, job: Job, trace_context: Mapping[str, str]) -> AbstractContextManager[object]:
        """Record that a job has arrived, and return the span of its processing."""
        self._stats.received += 1
        self.metrics.received[job.lane].inc()
        if job.lane != "due" and job.request.timestamp is not None:
            self._check_clock(job)
        if job.request.lenient and job.lane != "due":
            self._count_lenience(job)
        if self._logs_jobs:
            _log.info(
                "job started",
                job_id=job.id,
                lane=job.lane,
                priority=job.request.priority,
                attempt=job.attempts_made + 1,
                template=job.request.shown_template,
                recipient=mask_address(job.request.email),
            )
        if job.replay is not None and not job.attempts_made:
            _log.info("job is replayed", job_id=job.id, by=job.replay.by, fresh_expiry=job.replay.fresh)
        return self._tracer.job_span(job, trace_context)

    def send_span(self) -> AbstractContextManager[object]:
        """Return the span of one send, whose duration is also a metric."""
        return _TimedSpan(self.metrics, self._tracer.send_span())

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
        self._tracer.annotate(failed=True, settlement="none")
        _log.warning("job could not be settled, the broker redelivers it", job_id=job.id, wanted=wanted)

    def message_refused(self, lane: Lane, job_id: str, settlement: Dead) -> None:
        """Record a message that could not be read as a job."""
        self._stats.received += 1
        self.metrics.received[lane].inc()
        self._dead_lettered(job_id, settlement)
        ended = (settlement.reason, settlement.attempt, None, settlement.error)
        self._history.add(Recent(self._now_ms(), job_id, lane, "", "", *ended))

    def circuit_breaker_changed(self, relay: RelayState) -> None:
        """Log the new state of a relay's circuit breaker."""
        fields = {"relay": relay.name, "reason": relay.reason, "error": relay.error, "waiting": relay.waiting}
        match relay.circuit_breaker:
            case "closed":
                _log.info("relay takes mail again: circuit breaker closed", relay=relay.name, waiting=relay.waiting)
            case "half_open":
                _log.info("relay is probed: circuit breaker half-open", **fields)
            case "open":
                self._stats.failed(f"{relay.reason}: {relay.error}", self._now_ms())
                pause_ms = max((relay.probe_ms or 0) - self._now_ms(), 0)
                _log.warning("relay takes no mail: circuit breaker open, jobs wait", **fields, probe_in_ms=pause_ms)

    def rate_changed(self, relay: RelayState) -> None:
        """Log that a relay is slowed down, or that it receives mail at the full rate again."""
        fields = {"relay": relay.name, "per_second": None if relay.rate is None else round(relay.rate, 1)}
        if relay.slowed:
            _log.warning("relay throttles: slowed down", **fields)
        else:
            _log.info("relay gets mail at the full rate again", **fields)

    def sender_changed(self, relay: RelayState, tenant: str, error: str | None) -> None:
        """Log that a relay refuses the sender of a tenant, or that it accepts it again."""
        name = tenant or "default"
        if error is None:
            _log.info("relay accepts the tenant's sender again", relay=relay.name, tenant=name)
        else:
            self._stats.failed(f"sender_refused, tenant {name}: {error}", self._now_ms())
            _log.warning("relay refuses the tenant's sender: its jobs wait", relay=relay.name, tenant=name, error=error)

    def slowness_changed(self, relay: RelayState) -> None:
        """Log that a relay has become slow, for all mail or for some domains, or that it is fast again."""
        fields = {"relay": relay.name, "slow": relay.slow_sends, "of_last": relay.last_sends}
        if relay.slow:
            _log.warning("relay is slow: most mails go to a faster one first", **fields)
        elif relay.slow_domains:
            domains = ", ".join(relay.slow_domains[:_NAMED_DOMAINS])
            _log.warning("relay is slow for some domains", **fields, domains=domains, count=len(relay.slow_domains))
        else:
            _log.info("relay is not slow any more", **fields)

    def inject(self, headers: MutableMapping[str, Any]) -> None:
        """Write the current trace context to message headers."""
        self._tracer.inject(headers)

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

    def close(self) -> None:
        """Export the remaining spans, for at most a few seconds."""
        self._tracer.close()

    def _job_ended(self, ending: str, job: Job | None = None) -> None:
        self.metrics.ended[ending].inc()
        if self._tenants is not None and job is not None:
            self._tenants.job_ended(job.tenant, ending)
        self._stats.job_ended(ending, self._now_ms())
        self._tracer.annotate(settlement=ending)

    def _dead_lettered(self, job_id: str, dead: Dead, job: Job | None = None) -> None:
        self._job_ended(dead.reason, job)
        self._stats.failed(f"{dead.reason}: {dead.error}", self._now_ms())
        self._tracer.annotate(failed=True, error=dead.error)
        _log.error("job is dead-lettered", job_id=job_id, reason=dead.reason, error=dead.error, attempt=dead.attempt)

    def _add_recent(self, job: Job, what: str, attempt: int, now_ms: int, error: str = "") -> None:
        took_ms = max(now_ms - job.requested_ms, 0)
        template = job.request.shown_template
        recipient = mask_address(job.request.email)
        self._history.add(Recent(now_ms, job.id, job.lane, recipient, template, what, attempt, took_ms, error))

    def _check_clock(self, job: Job) -> None:
        late_ms = job.first_seen_ms - job.made_ms
        self.metrics.arrive_s.observe(late_ms / 1000)
        if job.clock_ahead_ms > CLOCK_TOLERANCE_MS:
            self.metrics.clock_ahead.inc()
            self._warn_of_producer(
                "a producer's clock is ahead of ours: timestamps count only up to arrival",
                job_id=job.id,
                ahead_ms=job.clock_ahead_ms,
            )
        elif late_ms > _LATE_MS:
            self._warn_of_producer(
                "jobs arrive late: a backlog, or a producer's clock is behind ours", job_id=job.id, late_ms=late_ms
            )

    def _count_lenience(self, job: Job) -> None:
        for field, what in job.request.lenient:
            self.metrics.lenient[field].inc()
            self._warn_of_producer(
                f"a producer's optional field is not as documented: {field}",
                job_id=job.id,
                field=field,
                what=what if what in {"coerced", "ignored"} else f"in {what} instead of milliseconds, read as such",
            )

    def _warn_of_producer(self, event: str, **fields: str | int) -> None:
        # once a minute, because every job of the producer is affected
        now_ms = self._now_ms()
        if now_ms - self._warned_ms.get(event, 0) >= _PRODUCER_WARNING_INTERVAL_MS:
            self._warned_ms[event] = now_ms
            _log.warning(event, **fields)


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
