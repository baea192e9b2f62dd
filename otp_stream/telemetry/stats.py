"""The statistics of this process for health, the monitor and the dashboard."""

from collections import Counter, deque
from dataclasses import dataclass, field

from otp_stream.core.decision import REASONS
from otp_stream.core.state import Stats

_MINUTE_MS = 60_000
_RECENT = 1000
_INTENDED = {"throttled"}
"""Reasons that are no failure: the operator has set the limits."""


@dataclass(slots=True)
class _LastMinute:
    """A count over the last 60 seconds, in steps of one second."""

    seconds: deque[tuple[int, int]] = field(default_factory=deque[tuple[int, int]])

    def add(self, at_ms: int) -> None:
        second = at_ms // 1000
        if self.seconds and self.seconds[-1][0] == second:
            second, count = self.seconds.pop()
            self.seconds.append((second, count + 1))
        else:
            self.seconds.append((second, 1))
            self._evict(at_ms)

    def count(self, now_ms: int) -> int:
        self._evict(now_ms)
        return sum(count for _, count in self.seconds)

    def _evict(self, now_ms: int) -> None:
        while self.seconds and self.seconds[0][0] * 1000 <= now_ms - _MINUTE_MS:
            self.seconds.popleft()


@dataclass(slots=True)
class StatsRecorder:
    """Counts since the start of this process; times are milliseconds since 1970."""

    started_ms: int
    received: int = 0
    endings: Counter[str] = field(default_factory=Counter[str])
    retried: int = 0
    last_processed_ms: int | None = None
    last_error: str | None = None
    last_error_ms: int | None = None
    _took_ms: deque[tuple[int, int]] = field(default_factory=lambda: deque[tuple[int, int]](maxlen=_RECENT))
    """(when, how long) of the last accepted mails."""
    _accepted: _LastMinute = field(default_factory=_LastMinute)
    _died: _LastMinute = field(default_factory=_LastMinute)

    def job_ended(self, how: str, at_ms: int) -> None:
        """Count a job by how it ended, such as `sent` or `expired`."""
        self.endings[how] += 1
        self.last_processed_ms = at_ms
        if how in REASONS and how not in _INTENDED:
            self._died.add(at_ms)

    def mail_accepted(self, took_ms: int, at_ms: int) -> None:
        """Count a mail that the relay accepted."""
        self._took_ms.append((at_ms, took_ms))
        self._accepted.add(at_ms)

    def failed(self, error: str, at_ms: int) -> None:
        """Remember the last error."""
        self.last_error, self.last_error_ms = error, at_ms

    def snapshot(self, now_ms: int) -> Stats:
        """Return the current statistics."""
        took = sorted(took_ms for at_ms, took_ms in self._took_ms if at_ms > now_ms - _MINUTE_MS)
        return Stats(
            started_ms=self.started_ms,
            received=self.received,
            endings=dict(self.endings),
            retried=self.retried,
            last_processed_ms=self.last_processed_ms,
            last_error=self.last_error,
            last_error_ms=self.last_error_ms,
            sent_last_minute=self._accepted.count(now_ms),
            died_last_minute=self._died.count(now_ms),
            p50_ms=took[len(took) // 2] if took else None,
            p99_ms=took[min(len(took) * 99 // 100, len(took) - 1)] if took else None,
        )
