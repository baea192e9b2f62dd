"""Takes the next mail for one relay: as its circuit breaker, its rate and the suspended tenants allow."""

from collections.abc import Callable
from functools import partial
from time import monotonic

from .availability import Availability
from .pending_send import PendingSend
from .rate import Rate
from .rate_limiter import RateLimiter
from .waiting_sends import WaitingSends


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

    def _take(self, *, urgent_only: bool) -> PendingSend | None:
        pending = self._waiting.take(self._relay, urgent_only=urgent_only)
        if pending is None:
            return None
        recipients, push = self._relay.recipients, self._waiting.push
        take_next = partial(self._waiting.take, self._relay, urgent_only=urgent_only)
        if self._relay.breaker.state == "half_open":
            return recipients.choose_probe(pending, take_next, push)
        return recipients.choose_next(pending, take_next, push, self._now_ms())

    def _take_probe_of_tenant(self, *, urgent_only: bool) -> PendingSend | None:
        senders = self._relay.senders
        pending = self._waiting.take(self._relay, urgent_only=urgent_only, probes_of=senders.due)
        if pending is not None and (recipients := senders.failed(pending)) is not None:
            tenant = frozenset((pending.mail.tenant,))
            take_next = partial(self._waiting.take, self._relay, urgent_only=urgent_only, probes_of=tenant)
            pending = recipients.choose_probe(pending, take_next, self._waiting.push)
        return pending
