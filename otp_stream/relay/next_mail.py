"""Takes the next mail for one relay: as its circuit breaker, its rate and the suspended tenants allow."""

from collections.abc import Callable, Iterator
from functools import partial
from time import monotonic

from otp_stream.core.outcome import TimedOut

from .availability import Availability
from .pending_send import PendingSend
from .rate import Rate
from .rate_limiter import RateLimiter
from .waiting_sends import WaitingSends

_MAX_SKIPPED = 1_000
_LEAVE_AT_ONCE = 2
"""How many mails leave the worker in a tenth of a second, so that the broker gets no more of them than it can take."""


class NextMail:
    """Decides which mail is sent next, and which is a probe."""

    def __init__(
        self,
        relay: Availability,
        waiting: WaitingSends,
        rate: Rate,
        limiter: RateLimiter,
        now_ms: Callable[[], int],
    ) -> None:
        self._relay = relay
        self._waiting = waiting
        self._rate = rate
        self._limiter = limiter
        self._now_ms = now_ms

    def take(self, *, urgent_only: bool, behind: bool) -> PendingSend | None:
        """Take the next mail, if one may be sent now; `behind`: behind another one on its connection."""
        breaker, limited = self._relay.breaker, self._rate.limited
        if not breaker.passable or (limited and not self._limiter.slots()):
            return None
        pending: PendingSend | None = None
        if self._relay.senders.due and not behind and breaker.state == "closed":
            pending = self._take_probe_of_tenant(urgent_only=urgent_only)
        if pending is None:
            pending = self._take(urgent_only=urgent_only)
        if pending is None and breaker.state == "half_open":
            # there is no better probe of the relay
            pending = self._take_probe_of_tenant(urgent_only=urgent_only)
        if limited and pending is not None:
            self._rate.use(monotonic())
        return pending

    def release_failed(self) -> None:
        """Let mails for domains that have failed leave the worker for a moment, if no other mail waits."""
        relay, waiting = self._relay, self._waiting
        is_open = relay.breaker.state != "closed"
        if not relay.recipients.any_failed or (is_open and waiting.is_taken_by_others(relay)):
            return
        jobs = waiting.waiting_for(relay)
        if relay.recipients.may_leave(jobs, self._now_ms(), is_open=is_open):
            for job in jobs[:_LEAVE_AT_ONCE]:
                waiting.remove(job)
                job.resolve(TimedOut(briefly=True))

    def _take(self, *, urgent_only: bool) -> PendingSend | None:
        take = partial(self._waiting.take, self._relay, urgent_only=urgent_only)
        recipients = self._relay.recipients
        if not recipients.any_failed:
            return take()
        if self._relay.breaker.state == "half_open":
            return self._choose(take, recipients.choose_probe)
        return self._choose(take, partial(recipients.choose_next, now_ms=self._now_ms()))

    def _take_probe_of_tenant(self, *, urgent_only: bool) -> PendingSend | None:
        senders = self._relay.senders
        pending = self._waiting.take(self._relay, urgent_only=urgent_only, probes_of=senders.due)
        if pending is not None and (recipients := senders.failed(pending)) is not None:
            tenant = frozenset((pending.mail.tenant,))
            self._waiting.push(pending)
            take = partial(self._waiting.take, self._relay, urgent_only=urgent_only, probes_of=tenant)
            pending = self._choose(take, recipients.choose_probe)
        return pending

    def _choose(
        self, take: Callable[[], PendingSend | None], choose: Callable[[Iterator[PendingSend]], PendingSend | None]
    ) -> PendingSend | None:
        """Return the job that `choose` finds among those that wait. All others wait again."""
        taken: list[PendingSend] = []

        def jobs() -> Iterator[PendingSend]:
            while len(taken) < _MAX_SKIPPED and (job := take()):
                taken.append(job)
                yield job

        found = choose(jobs())
        for job in taken:
            if job is not found:
                self._waiting.push(job)
        return found
