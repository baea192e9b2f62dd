"""The statistics of this process for health and monitor, and its last 15 minutes for the dashboard."""

from collections import Counter, deque
from dataclasses import dataclass, field

from otp_stream.core.decision import GOOD, REASONS
from otp_stream.core.stats import Recent, Stats, Step

_MINUTE_MS = 60_000
_RECENT = 1000
_INTENDED = {"throttled"}
"""Reasons that are not failures, because the operator has set the limits."""
STEP_MS = 5_000
STEPS = 180
_RECENT_GOOD, _RECENT_BAD = 10, 20
"""Number of successful and of failed jobs that are kept for display."""


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
    """(time, duration) of the latest accepted mails."""
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
        """Record the last error."""
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


@dataclass(slots=True)
class _StepCounts:
    number: int
    """Steps since 1970."""
    sent: int = 0
    retried: int = 0
    dead: int = 0
    took: dict[int, int] = field(default_factory=dict[int, int])
    """Mails by duration in milliseconds, rounded to 1/64 to limit the number of entries."""

    def step(self) -> Step:
        return Step(self.number * STEP_MS, self.sent, self.retried, self.dead, *self._percentiles())

    def _percentiles(self) -> list[int | None]:
        total, took = sum(self.took.values()), sorted(self.took.items())
        found: list[int | None] = []
        for percent in (50, 95, 99):
            left = total * percent // 100
            for took_ms, count in took:
                left -= count
                if left < 0:
                    found.append(took_ms)
                    break
            else:
                found.append(None)
        return found


class History:
    """The last steps and recent jobs. Times are milliseconds since 1970."""

    def __init__(self) -> None:
        self._past: deque[Step] = deque(maxlen=STEPS)
        self._now = _StepCounts(0)
        self._good: deque[Recent] = deque(maxlen=_RECENT_GOOD)
        self._bad: deque[Recent] = deque(maxlen=_RECENT_BAD)

    def mail_accepted(self, took_ms: int, at_ms: int) -> None:
        """Count a mail that the relay accepted."""
        took = self._at(at_ms).took
        shift = max(took_ms.bit_length() - 6, 0)
        rounded = (took_ms >> shift << shift) + (1 << shift >> 1)
        took[rounded] = took.get(rounded, 0) + 1

    def add(self, recent: Recent) -> None:
        """Count a job, and keep it as a recent one. Fewer successes than failures are kept."""
        step = self._at(recent.at_ms)
        if recent.what in GOOD:
            self._good.append(recent)
            step.sent += recent.what == "sent"
        else:
            self._bad.append(recent)
            step.retried += recent.what == "retry"
            step.dead += recent.what in REASONS

    def steps(self, now_ms: int) -> tuple[Step, ...]:
        """Return the steps up to now, the oldest first. A step without jobs is zero."""
        last = self._at(now_ms)
        known = {step.at_ms: step for step in (*self._past, last.step())}
        moments = range((last.number - STEPS + 1) * STEP_MS, last.number * STEP_MS + 1, STEP_MS)
        return tuple(known.get(at_ms) or Step(at_ms) for at_ms in moments)

    def recent(self) -> list[Recent]:
        """Return how recent jobs ended, the newest first."""
        return sorted((*self._good, *self._bad), key=lambda it: it.at_ms, reverse=True)

    def clear_recent(self) -> None:
        """Drop the recent jobs; the counts stay."""
        self._good.clear()
        self._bad.clear()

    def _at(self, at_ms: int) -> _StepCounts:
        number = at_ms // STEP_MS
        if number < self._now.number - 1:  # the clock was set back, so later steps are dropped
            self._now = _StepCounts(number)
            while self._past and self._past[-1].at_ms >= number * STEP_MS:
                self._past.pop()
        elif number > self._now.number:
            self._past.append(self._now.step())  # computed once, because a past step does not change
            self._now = _StepCounts(number)
        return self._now
