"""Warnings about what producers send: clocks that differ, and optional fields that are not as documented."""

from collections.abc import Callable

import structlog

from otp_stream.core.job import CLOCK_TOLERANCE_MS, Job

from .metrics import Metrics

_LATE_MS = 60_000
_INTERVAL_MS = 60_000

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class ProducerWarnings:
    """Counts the jobs with a problem, and logs each kind at most once a minute: all jobs of a producer may have it."""

    def __init__(self, metrics: Metrics, now_ms: Callable[[], int]) -> None:
        self._metrics, self._now_ms = metrics, now_ms
        self._warned_ms: dict[str, int] = {}

    def check(self, job: Job) -> None:
        """Check a job at its first delivery."""
        if job.lane == "due":
            return
        if job.request.timestamp is not None:
            self._check_clock(job)
        if job.request.lenient:
            self._count_lenience(job)

    def _check_clock(self, job: Job) -> None:
        late_ms = job.first_seen_ms - job.made_ms
        self._metrics.arrive_s.observe(late_ms / 1000)
        if job.clock_ahead_ms > CLOCK_TOLERANCE_MS:
            self._metrics.clock_ahead.inc()
            self._warn(
                "a producer's clock is ahead of ours: timestamps count only up to arrival",
                job_id=job.id,
                ahead_ms=job.clock_ahead_ms,
            )
        elif late_ms > _LATE_MS:
            self._warn(
                "jobs arrive late: a backlog, or a producer's clock is behind ours", job_id=job.id, late_ms=late_ms
            )

    def _count_lenience(self, job: Job) -> None:
        for field, what in job.request.lenient:
            self._metrics.lenient[field].inc()
            self._warn(
                f"a producer's optional field is not as documented: {field}",
                job_id=job.id,
                field=field,
                what=what if what in {"coerced", "ignored"} else f"in {what} instead of milliseconds, read as such",
            )

    def _warn(self, event: str, **fields: str | int) -> None:
        now_ms = self._now_ms()
        if now_ms - self._warned_ms.get(event, 0) >= _INTERVAL_MS:
            self._warned_ms[event] = now_ms
            _log.warning(event, **fields)
