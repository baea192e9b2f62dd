"""Chooses the relay of each mail: the first one in order of preference that takes mail and is not slow."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import monotonic

from otp_stream.core.state import RelayState

from .availability import Availability
from .pending_send import PendingSend
from .send_queue import SendQueue, Tenants
from .slowness import Slowness

_PROBE_S = 60.0
"""A slow relay gets a first try at least this often: a person may wait two seconds for nothing."""
_PROBE_ALL_SLOW_S = 1.0
"""The same, while every relay is slow."""
_NONE: frozenset[str] = frozenset()
_BEHIND_TICKS = 10
"""After so many ticks with waiting mails there is a backlog, and a faster relay is too slow for all of them."""


class RelayChoice:
    """Decides which of several relays may send a mail first, and where a mail goes that leaves a slow relay.

    `common` has the mails for any relay; `own` returns how many wait for one relay alone. If every relay is slow, mails
    stay where they are. A mail changes its relay once for each other relay at most.
    """

    def __init__(self, relays: Sequence[Availability], common: SendQueue, own: Callable[[Availability], int]) -> None:
        self._relays = [(it, it.slowness) for it in relays if it.slowness is not None]
        self._common = common
        self._own = own
        self._waiting_ticks = 0
        """For how many ticks mails have been waiting while a relay is slow."""
        self._backlog_ticks = 0

    @property
    def has_backlog(self) -> bool:
        """Whether mails have been waiting for a connection for a second without a break."""
        return self._backlog_ticks >= _BEHIND_TICKS

    def tenants(self, relay: Availability) -> frozenset[str] | None:
        """Return whose mails a relay may take, of those that any relay may send: `None` if of all tenants.

        A relay may take those of the tenants that are suspended at every relay before it.
        """
        allowed: frozenset[str] | None = None
        for before, its in self._relays:
            if before is relay:
                every_s = self._probed_every_s(relay, its) if allowed is None else None
                return allowed if every_s is None or its.detector.may_try(monotonic(), every_s) else _NONE
            if before.takes_mail and not its.detector.is_outlier and not its.clogged:
                suspended = before.senders.suspended
                allowed = suspended if allowed is None else allowed & suspended
                if not allowed:
                    return _NONE
        return _NONE

    def waits(self) -> bool:
        """Return whether a mail waits for a connection, and not only for the end of its tenant's suspension."""
        if not self._common:
            return False
        suspended = self._relays[0][0].senders.suspended
        for relay, _ in self._relays[1:]:
            suspended &= relay.senders.suspended
        return not suspended or any(self._common.count(Tenants(suspended, others=True)))

    def count(self, relay: Availability) -> tuple[int, int]:
        """Return how many such mails a relay may take now: urgent ones, and others."""
        if not self._common:
            return 0, 0
        allowed, suspended = self.tenants(relay), relay.senders.suspended
        if allowed is not None:
            return self._common.count(Tenants(allowed - suspended))
        urgent, others = self._common.count(Tenants(suspended, others=True) if suspended else None)
        if relay.slowness is not None and self._probed_every_s(relay, relay.slowness) is not None:
            # a probe needs no more than one new connection
            urgent, others = min(urgent, 1), min(others, 1 - min(urgent, 1))
        return urgent, others

    def take(self, relay: Availability, pending: PendingSend) -> Availability | None:
        """Record that a relay takes such a mail. Returns another relay if this one is slow for the recipient's domain.

        That one must send the mail.
        """
        for other, its in self._relays:
            if other is relay:
                if its.domains and (faster := self._divert(relay, its, pending)) is not None:
                    return faster
                if its.detector.is_outlier:
                    its.detector.tried(monotonic())
            elif its.detector.is_outlier:
                its.detector.passed_over()
        return None

    def emptied(self) -> None:
        """Record that no such mail waits."""
        self._waiting_ticks = self._backlog_ticks = 0

    def faster_for(self, relay: Availability, pending: PendingSend) -> Availability | None:
        """Return where a mail goes that waits too long at a relay, or `None` if it has to stay."""
        decided = pending.written or pending.refusal is not None
        if decided or pending.uncertain or pending.switches >= len(self._relays) - 1:
            return None
        return self._faster(relay, pending)

    def tick(self) -> None:
        """Check whether a faster relay is too slow for all mails, and whether mails wait for a slow connection."""
        is_waiting = self.waits()
        self._backlog_ticks = self._backlog_ticks + 1 if is_waiting else 0
        waits = is_waiting and any(its.detector.is_outlier for _, its in self._relays)
        self._waiting_ticks = self._waiting_ticks + 1 if waits else 0
        for relay, its in self._relays:
            waits = relay.stalled and its.only_connects(relay.owed)
            if waits and not its.waited_for_connection and self._faster(relay) is not None:
                for pending in self._common:
                    pending.switched_from = relay.name
                    its.switches["connect"] += 1
            its.waited_for_connection = waits
            its.waiting_ticks = its.waiting_ticks + 1 if self._own(relay) else 0

    def describe(self, relay: Availability, state: RelayState) -> RelayState:
        """Return the state of a relay with how slow it is."""
        if relay.slowness is None:
            return state
        relay.slowness.check(monotonic())
        detector = relay.slowness.detector
        return replace(
            state,
            slow=detector.is_outlier,
            slow_sends=detector.slow_sends,
            last_sends=detector.sends,
            first_tries=detector.share if self._faster(relay) else 1.0,
            slow_domains=relay.slowness.slow_domains,
            switches=dict(relay.slowness.switches),
        )

    def _probed_every_s(self, relay: Availability, slowness: Slowness) -> float | None:
        """Return how often a slow relay gets a first try at least, or `None` if it gets all of them."""
        if not slowness.detector.is_outlier or relay.breaker.state != "closed":
            return None  # a circuit breaker that is half-open lets one mail pass
        if self._faster(relay) is not None:
            return None if self._waiting_ticks >= _BEHIND_TICKS else _PROBE_S
        first = next(it for it, _ in self._relays if it is relay or it.takes_mail)
        return None if first is relay else _PROBE_ALL_SLOW_S

    def _divert(self, relay: Availability, slowness: Slowness, pending: PendingSend) -> Availability | None:
        detector = slowness.domains.get(pending.domain)
        if detector is None or not detector.is_outlier or (faster := self._faster(relay, pending)) is None:
            return None
        now = monotonic()
        if detector.may_try(now, _PROBE_S):
            detector.tried(now)
            return None
        detector.passed_over()
        return faster

    def _faster(self, relay: Availability, pending: PendingSend | None = None) -> Availability | None:
        """Return the first other relay that takes mail at once and is not slow: this mail, if one is given."""
        for other, its in self._relays:
            if other is relay or not other.takes_mail or its.detector.is_outlier:
                continue
            if its.waiting_ticks >= _BEHIND_TICKS or self._own(other) >= other.room:
                continue
            if pending is not None and pending.mail.tenant in other.senders.suspended:
                continue
            of_domain = its.domains.get(pending.domain) if pending is not None else None
            if of_domain is None or not of_domain.is_outlier:
                return other
        return None
