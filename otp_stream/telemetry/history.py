"""The last 15 minutes of this worker for the dashboard: totals of 5-second steps, and single jobs."""

from collections import deque
from dataclasses import dataclass, field

from otp_stream.core.decision import GOOD, REASONS
from otp_stream.core.state import Recent, Step

STEP_MS = 5_000
STEPS = 180
_RECENT_GOOD, _RECENT_BAD = 10, 20
"""How many single jobs are kept."""


@dataclass(slots=True)
class _StepCounts:
    number: int
    """Steps since 1970."""
    sent: int = 0
    retried: int = 0
    dead: int = 0
    took: dict[int, int] = field(default_factory=dict[int, int])
    """Mails by duration in milliseconds, rounded to 1/64, so that a step stays small."""

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
    """Steps and recent jobs; times are milliseconds since 1970."""

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
        """Return every step up to now, the oldest first; a step without a job is zero."""
        last = self._at(now_ms)
        known = {step.at_ms: step for step in (*self._past, last.step())}
        moments = range((last.number - STEPS + 1) * STEP_MS, last.number * STEP_MS + 1, STEP_MS)
        return tuple(known.get(at_ms) or Step(at_ms) for at_ms in moments)

    def recent(self) -> list[Recent]:
        """Return how recent jobs ended, the newest first."""
        return sorted((*self._good, *self._bad), key=lambda it: it.at_ms, reverse=True)

    def _at(self, at_ms: int) -> _StepCounts:
        number = at_ms // STEP_MS
        if number < self._now.number - 1:  # the clock was set back: drop the steps that are in the future now
            self._now = _StepCounts(number)
            while self._past and self._past[-1].at_ms >= number * STEP_MS:
                self._past.pop()
        elif number > self._now.number:
            self._past.append(self._now.step())  # computed once: it does not change any more
            self._now = _StepCounts(number)
        return self._now
