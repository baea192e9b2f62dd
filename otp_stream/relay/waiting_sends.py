"""The mails that wait for a connection to any of the relays. Synchronous, without I/O."""

from collections.abc import Callable, Sequence

from otp_stream.core.outcome import TimedOut

from .availability import Availability
from .pending_send import PendingSend
from .relay_choice import RelayChoice
from .send_queue import SendQueue, Tenants
from .suspension import Suspension


class WaitingSends:
    """One queue for all relays, and one for each relay of the mails that it may have already.

    `relays` are in order of preference: a relay takes from the common queue only while none before it takes mail, or
    while those are slow. `now_ms` is the clock for deadlines, in milliseconds since 1970.
    """

    def __init__(self, relays: Sequence[Availability], suspension: Suspension, now_ms: Callable[[], int]) -> None:
        self._common = SendQueue()
        self._own = {relay: SendQueue() for relay in relays}
        self.choice = RelayChoice(relays, self._common, self.own) if len(relays) > 1 else None
        """Which relay sends a mail, if there are several."""
        self._suspension = suspension
        self._now_ms = now_ms
        self.closed = False
        """Whether sending has ended."""
        self.handed_over = False
        """Whether another `SmtpRelay` sends what was waiting."""

    def __len__(self) -> int:
        return sum(map(len, self._all()))

    @property
    def common(self) -> int:
        """Number of mails that wait for any relay."""
        return len(self._common)

    def own(self, relay: Availability) -> int:
        """Return the number of mails that wait for this relay only."""
        return len(self._own[relay])

    def push(self, pending: PendingSend) -> None:
        """Queue a mail for all relays or the preferred one. Ends the call if sending has ended, or its caller.

        A mail that is no longer wanted times out at once: it may come from a connection, after the last `recheck`.
        """
        if self.closed or pending.result.done():
            self._end(pending)
            return
        if not pending.wanted():
            pending.resolve(TimedOut())
            return
        for relay, queue in self._own.items():
            if pending.prefer == relay.name and relay.breaker.state != "open" and not relay.stalled:
                if pending.mail.tenant in relay.senders.suspended:
                    break
                queue.push(pending)
                return
        self._common.push(pending)

    def count(self, relay: Availability) -> tuple[int, int]:
        """Return how many mails this relay may take now: urgent ones, and others."""
        suspended = relay.senders.suspended
        tenants = Tenants(suspended, others=True) if suspended else None
        urgent, others = self._common.count(tenants) if self.choice is None else self.choice.count(relay)
        own = self._own[relay].count(tenants)
        probes = self.count_probes(relay) if suspended else (0, 0)
        return own[0] + urgent + probes[0], own[1] + others + probes[1]

    def count_probes(self, relay: Availability) -> tuple[int, int]:
        """Return how many probes of suspended tenants wait, one for each tenant: urgent mails, and others."""
        urgent = others = 0
        for tenant in relay.senders.due:
            counts = [queue.count(only) for queue, only in self._sources(relay, frozenset((tenant,)))]
            is_urgent = any(it[0] for it in counts)
            urgent += is_urgent
            others += not is_urgent and any(it[1] for it in counts)
        return urgent, others

    def take(
        self, relay: Availability, *, urgent_only: bool, probes_of: frozenset[str] | None = None
    ) -> PendingSend | None:
        """Take the next mail for this relay. Resolves those as `TimedOut` that may no longer be sent.

        None of a suspended tenant is taken, but with `probes_of` only mails of these tenants. A call that was cancelled
        a moment ago is still in the queue.
        """
        if self._suspension.is_recent:
            return None
        for queue, tenants in self._sources(relay, probes_of):
            while pending := queue.take(urgent_only=urgent_only, tenants=tenants):
                if pending.result.done() or self._now_ms() >= pending.deadline_ms or not pending.wanted():
                    pending.resolve(TimedOut())
                elif queue is self._common and self.choice and (faster := self.choice.take(relay, pending)):
                    pending.prefer = faster.name
                    self.push(pending)
                else:
                    return pending
        if self.choice is not None and not self.choice.waits():
            self.choice.emptied()
        return None

    def waiting_for(self, relay: Availability) -> list[PendingSend]:
        """Return the mails that this relay may take, in no order."""
        sources = self._sources(relay, None)
        return [it for queue, tenants in sources for it in queue if tenants is None or it.mail.tenant in tenants]

    def held_back(self, relay: Availability) -> list[PendingSend]:
        """Return the mails that wait, in no order, if this relay does not take those of all tenants."""
        return [] if relay.takes_all_mail else [*self._own[relay], *self._common]

    def remove(self, pending: PendingSend) -> None:
        """Remove a mail, if it still waits."""
        if pending.queue is not None:
            pending.queue.remove(pending)

    def is_taken_by_others(self, relay: Availability) -> bool:
        """Return whether another relay takes mail."""
        return any(other.takes_mail for other in self._own if other is not relay)

    def release(self, relay: Availability) -> None:
        """Let every relay take the mails that wait for this one."""
        self._release(relay, None)

    def release_suspended(self, relay: Availability) -> None:
        """The same, of the suspended tenants alone."""
        self._release(relay, Tenants(relay.senders.suspended))

    def time_out(self) -> None:
        """Time out the mails whose deadline has passed."""
        now_ms = self._now_ms()
        for queue in self._all():
            for pending in queue.pop_timed_out(now_ms):
                pending.resolve(TimedOut())

    def recheck(self) -> None:
        """Time out the mails that are no longer wanted."""
        for queue in self._all():
            for pending in queue.pop_unwanted():
                pending.resolve(TimedOut())

    def close(self, *, hand_over: bool = False) -> None:
        """Cancel the waiting calls, and those that are pushed from now on.

        `hand_over`: raise `RelayRetiredError` in them instead.
        """
        self.handed_over = self.handed_over or (hand_over and not self.closed)
        self.closed = True
        for queue in self._all():
            while pending := queue.take():
                self._end(pending)

    def _end(self, pending: PendingSend) -> None:
        if self.handed_over:
            pending.hand_over()
        else:
            pending.result.cancel()

    def _release(self, relay: Availability, tenants: Tenants | None) -> None:
        queue = self._own[relay]
        while pending := queue.take(tenants=tenants):
            self._common.push(pending)

    def _sources(self, relay: Availability, only: frozenset[str] | None) -> list[tuple[SendQueue, Tenants | None]]:
        """Return the queues that this relay may take from, and whose mails: of the tenants in `only`, if given."""
        suspended = relay.senders.suspended
        own = Tenants(suspended, others=True) if suspended else None
        own = own if only is None else Tenants(only)
        allowed = None if self.choice is None else self.choice.tenants(relay)
        if allowed is None:
            return [(self._own[relay], own), (self._common, own)]
        common = allowed - suspended if only is None else allowed & only
        if not common:
            return [(self._own[relay], own)]
        return [(self._own[relay], own), (self._common, Tenants(common))]

    def _all(self) -> list[SendQueue]:
        return [self._common, *self._own.values()]
