"""How slow one relay is, for all mail and for single domains. Pure: `now` is monotonic seconds."""

import math
from collections import Counter

from .outlier import OutlierDetector
from .pending_send import PendingSend
from .step_times import StepTimes

_MAX_DOMAINS = 200
"""Domains with slow mail that are remembered. The one that became slow first is forgotten first."""


class Slowness:
    """Records the times of a relay's steps, and decides what is slow.

    A relay may be slow for one domain alone, because it calls that domain's server before it replies: the mail to a
    slow domain says nothing about the relay.
    """

    def __init__(self) -> None:
        self.times = StepTimes()
        self.detector = OutlierDetector()
        self.domains: dict[str, OutlierDetector] = {}
        """Domains with slow mail; most of them are not slow."""
        self.switches: Counter[str] = Counter()
        """Mails that left the relay, by the step that was slow."""
        self.clogged = False
        """Whether most connections are busy for longer than usual, and no other one may be opened."""
        self.waiting_ticks = 0
        """For how many ticks mails have been waiting for this relay alone."""
        self.waited_for_connection = False
        """Whether jobs waited for a connection at the last check."""
        self._connecting: dict[object, tuple[float, bool]] = {}
        """The start of each attempt to connect, and whether it was recorded as slow."""
        self._resumed_at = -math.inf
        self._reported = False, False

    @property
    def slow_domains(self) -> tuple[str, ...]:
        """Domains whose mail is slow here, while other mail is not."""
        return tuple(domain for domain, detector in self.domains.items() if detector.is_outlier)

    def has_changed(self) -> bool:
        """Return whether the relay, or its first domain, has become slow or fast again since the last call."""
        is_slow = self.detector.is_outlier
        before, self._reported = self._reported, (is_slow, not is_slow and bool(self.slow_domains))
        return self._reported != before

    def only_connects(self, owed: int) -> bool:
        """Return whether the relay owes `owed` replies to new connections alone."""
        return owed <= len(self._connecting)

    def patience_s(self, owed: int) -> float:
        """Return how long no reply may arrive while the relay owes `owed`."""
        return (self.times.connect if self.only_connects(owed) else self.times.content).patience_s

    def is_overdue(self, pending: PendingSend, now: float) -> bool:
        """Return whether a mail waits too long for the reply to its envelope, or to its content."""
        step = self.times.content if pending.written else self.times.envelope
        return now - max(pending.step_at, self._resumed_at) > step.patience_s

    def is_unusual(self, pending: PendingSend, now: float) -> bool:
        """Return whether a mail waits longer than 95 % of all mails for the reply to its envelope or content."""
        step = self.times.content if pending.written else self.times.envelope
        return now - max(pending.step_at, self._resumed_at) > step.usual_s

    def mail_is_slow(self, pending: PendingSend, now: float) -> None:
        """Record a mail that is still on its connection as slow, once."""
        if not pending.slow:
            pending.slow = True
            self._record(pending, now, slow=True)

    def mail_ended(self, pending: PendingSend, now: float) -> None:
        """Record a mail that the relay has replied to."""
        if pending.step_at - pending.envelope_s < self._resumed_at:
            return  # the process was suspended, so the times are not the relay's
        envelope_s, content_s = pending.envelope_s, 0.0
        if pending.written:
            content_s = now - pending.step_at
            self.times.content.add(content_s, now)
            if envelope_s:
                self.times.envelope.add(envelope_s, now)
        else:
            envelope_s = now - pending.step_at  # refused
        if not pending.slow:
            slow = content_s > self.times.content.patience_s or envelope_s > self.times.envelope.patience_s
            self._record(pending, now, slow=slow)

    def connecting(self, attempt: object, now: float) -> None:
        """Record the start of an attempt to connect."""
        self._connecting[attempt] = now, False

    def connected(self, attempt: object, now: float, *, ready: bool) -> None:
        """Record the end of an attempt to connect, and whether there is a connection."""
        since, slow = self._connecting.pop(attempt)
        if ready and since >= self._resumed_at:
            self.times.connect.add(now - since, now)
            if not slow and now - since > self.times.connect.patience_s:
                self.detector.record(now, slow=True)

    def check(self, now: float) -> None:
        """Record attempts to connect that take too long, and forget what is long ago."""
        for attempt, (since, slow) in self._connecting.items():
            if not slow and now - max(since, self._resumed_at) > self.times.connect.patience_s:
                self._connecting[attempt] = since, True
                self.detector.record(now, slow=True)
        self.detector.expire(now)
        for domain in [domain for domain, detector in self.domains.items() if detector.expire(now)]:
            del self.domains[domain]

    def resumed(self, now: float) -> None:
        """Ignore the time before: the process was suspended."""
        self._resumed_at = now

    def _record(self, pending: PendingSend, now: float, *, slow: bool) -> None:
        if slow or self.domains:
            domain = pending.domain
            detector = self.domains.get(domain)
            if detector is None and slow:
                if len(self.domains) >= _MAX_DOMAINS:
                    del self.domains[next(iter(self.domains))]
                detector = self.domains[domain] = OutlierDetector(10, least=3, tolerated=0.5)
            if detector is not None:
                detector.record(now, slow=slow)
                if detector.is_outlier:
                    return
                if not detector.slow_sends:
                    del self.domains[domain]
        self.detector.record(now, slow=slow)
