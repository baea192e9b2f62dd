"""What happens to a job, told once to everyone who listens: the log, the metrics, the trace and the figures."""

import logging
import time
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, assert_never

import structlog

from otp_stream.core.decision import Ack, Dead, Final, Park, Retry
from otp_stream.core.job import CLOCK_TOLERANCE_MS, Job, Lane
from otp_stream.core.masking import mask_address
from otp_stream.core.outcome import Accepted, Outcome
from otp_stream.core.state import Recent, RelayState, Stats, Step

from .history import History
from .metrics import Metrics
from .tally import Tally
from .tracing import NoTracer, Tracer, open_tracer

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)
_LATE_MS = 60_000
_SELDOM_MS = 60_000
_ATTEMPTS_SHOWN = 10
"""Attempts that have a series of their own: greylisting makes many."""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Watch:
    """Spans, metrics and log lines of a job's way; `now_ms` is the clock (milliseconds since 1970)."""

    def __init__(self, *, now_ms: Callable[[], int] = _now_ms) -> None:
        self.metrics = Metrics()
        self._tracer: Tracer = NoTracer()
        self._now_ms = now_ms
        self._tally = Tally(now_ms())
        self._history = History()
        self._told_ms: dict[str, int] = {}
        self._talks = True
        """Whether anybody reads a line for each job: to put one together costs more than to drop it."""

    async def open(self, environ: Mapping[str, str]) -> None:
        """Start tracing, if `OTEL_*` variables ask for it: it connects, so nobody does it at import."""
        self._talks = bool(_log.is_enabled_for(logging.INFO))
        self._tracer = open_tracer(environ)

    def job(self, job: Job, carrier: Mapping[str, str]) -> AbstractContextManager[object]:
        """Span the whole of a job's stay here."""
        self._tally.received += 1
        self.metrics.received.add(job.lane)
        if job.lane != "due" and job.ask.timestamp is not None:
            self._check_clock(job)
        if job.ask.lenient and job.lane != "due":
            self._count_lenience(job)
        if self._talks:
            _log.info(
                "job started",
                job_id=job.id,
                lane=job.lane,
                priority=job.ask.priority,
                attempt=job.attempts_made + 1,
                template=job.ask.shown_template,
                recipient=mask_address(job.ask.email),
            )
        if job.replay is not None and not job.attempts_made:
            _log.info("job is replayed", job_id=job.id, by=job.replay.by, fresh_expiry=job.replay.fresh)
        return self._tracer.job(job, carrier)

    def step(self, name: str) -> AbstractContextManager[object]:
        """Span one step of it."""
        span = self._tracer.step(name)
        return _Timed(self.metrics, span) if name == "send" else span

    def met(self, job: Job, outcome: Outcome) -> None:
        """Tell what an attempt met."""
        kind = type(outcome).__name__.lower()
        self.metrics.met.add(kind)
        self._tracer.note(met=kind)
        match outcome:
            case Accepted():
                now_ms = self._now_ms()
                took_ms = max(now_ms - job.asked_ms, 0)
                self.metrics.accept_s.observe(took_ms / 1000)
                self._tally.accept(took_ms, now_ms)
                self._history.accept(took_ms, now_ms)
            case _:
                _log.debug("attempt met", job_id=job.id, met=kind, what=_what(outcome))

    def settled(self, job: Job, settlement: Final) -> None:
        """Tell how it ended, once that stands at the broker."""
        now_ms = self._now_ms()
        match settlement:
            case Ack(ending):
                self._end(ending)
                self._note(job, ending, job.attempts_made + 1, now_ms)
                if self._talks:
                    took_ms = now_ms - job.made_ms
                    _log.info(f"job {ending}", job_id=job.id, attempt=job.attempts_made + 1, since_timestamp_ms=took_ms)
            case Retry(delay_ms, attempt, error):
                self._tally.retried += 1
                self._tally.fail(error, now_ms)
                self._note(job, "retry", attempt, now_ms, error)
                self.metrics.retries.labels(str(attempt) if attempt <= _ATTEMPTS_SHOWN else "more").inc()
                self._tracer.note(settlement="retry", delay_ms=delay_ms)
                _log.warning("job is tried again", job_id=job.id, attempt=attempt, delay_ms=delay_ms, error=error)
            case Park(delay_ms):
                self.metrics.parked.inc()
                self._tracer.note(settlement="park", delay_ms=delay_ms)
                _log.info("job waits in the broker", job_id=job.id, delay_ms=delay_ms)
            case Dead():
                self._die(job.id, settlement)
                self._note(job, settlement.reason, settlement.attempt, now_ms, settlement.error)
            case _:
                assert_never(settlement)

    def unsettled(self, job: Job, settlement: Final) -> None:
        """Tell that it could not be settled and comes again."""
        self.metrics.unsettled.inc()
        wanted = type(settlement).__name__.lower()
        self._tracer.note(failed=True, settlement="none")
        _log.warning("job could not be settled and comes again", job_id=job.id, wanted=wanted)

    def refused(self, lane: Lane, job_id: str, settlement: Dead) -> None:
        """Tell of a message that was no job."""
        self._tally.received += 1
        self.metrics.received.add(lane)
        self._die(job_id, settlement)
        told = (settlement.reason, settlement.attempt, None, settlement.error)
        self._history.note(Recent(self._now_ms(), job_id, lane, "", "", *told))

    def gate(self, relay: RelayState) -> None:
        """Tell of a gate that changed."""
        told = {"relay": relay.name, "trouble": relay.trouble, "error": relay.error, "waiting": relay.waiting}
        match relay.gate:
            case "open":
                _log.info("relay takes mail again: gate open", relay=relay.name, waiting=relay.waiting)
            case "half_open":
                _log.info("relay is probed: gate half open", **told)
            case "closed":
                self._tally.fail(f"{relay.trouble}: {relay.error}", self._now_ms())
                pause_ms = max((relay.probe_ms or 0) - self._now_ms(), 0)
                _log.warning("relay takes no mail: gate closed, jobs wait", **told, probe_in_ms=pause_ms)

    def rate(self, relay: RelayState) -> None:
        """Tell of a relay that is slowed down, or has its full rate again."""
        told = {"relay": relay.name, "per_second": None if relay.rate is None else round(relay.rate, 1)}
        if relay.slowed:
            _log.warning("relay throttles: slowed down", **told)
        else:
            _log.info("relay gets mail at the full rate again", **told)

    def inject(self, headers: MutableMapping[str, Any]) -> None:
        """Put the current trace context into headers."""
        self._tracer.inject(headers)

    def stats(self) -> Stats:
        """Return the figures at this moment."""
        return self._tally.look(self._now_ms())

    def history(self) -> tuple[Step, ...]:
        """Return the last quarter of an hour, the oldest step first."""
        return self._history.steps(self._now_ms())

    def recent(self) -> list[Recent]:
        """Return what became of jobs lately, the newest first."""
        return self._history.recent()

    def close(self) -> None:
        """Hand the last spans over; takes seconds at most."""
        self._tracer.close()

    def _end(self, ending: str) -> None:
        self.metrics.ended.add(ending)
        self._tally.end(ending, self._now_ms())
        self._tracer.note(settlement=ending)

    def _die(self, job_id: str, dead: Dead) -> None:
        self._end(dead.reason)
        self._tally.fail(f"{dead.reason}: {dead.error}", self._now_ms())
        self._tracer.note(failed=True, error=dead.error)
        _log.error("job is dead", job_id=job_id, reason=dead.reason, error=dead.error, attempt=dead.attempt)

    def _note(self, job: Job, what: str, attempt: int, now_ms: int, error: str = "") -> None:
        took_ms = max(now_ms - job.asked_ms, 0)
        template = job.ask.shown_template
        recipient = mask_address(job.ask.email)
        self._history.note(Recent(now_ms, job.id, job.lane, recipient, template, what, attempt, took_ms, error))

    def _check_clock(self, job: Job) -> None:
        late_ms = job.first_seen_ms - job.made_ms
        self.metrics.arrive_s.observe(late_ms / 1000)
        if job.clock_ahead_ms > CLOCK_TOLERANCE_MS:
            self.metrics.clock_ahead.inc()
            self._tell_seldom(
                "a producer's clock is ahead of ours: timestamps count only up to arrival",
                job_id=job.id,
                ahead_ms=job.clock_ahead_ms,
            )
        elif late_ms > _LATE_MS:
            self._tell_seldom(
                "jobs arrive late: a backlog, or a producer's clock is behind ours", job_id=job.id, late_ms=late_ms
            )

    def _count_lenience(self, job: Job) -> None:
        for field, what in job.ask.lenient:
            self.metrics.lenient.add(field)
            self._tell_seldom(
                f"a producer's optional field is not as documented: {field}",
                job_id=job.id,
                field=field,
                what=what if what in {"coerced", "ignored"} else f"in {what} instead of milliseconds, read as such",
            )

    def _tell_seldom(self, event: str, **fields: str | int) -> None:
        # every job of that producer has it: once a minute is enough
        now_ms = self._now_ms()
        if now_ms - self._told_ms.get(event, 0) >= _SELDOM_MS:
            self._told_ms[event] = now_ms
            _log.warning(event, **fields)


class _Timed:
    """A span whose time is also a metric."""

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


def _what(outcome: Outcome) -> str | None:
    return str(getattr(outcome, "reply", None) or getattr(outcome, "error", None) or "") or None
