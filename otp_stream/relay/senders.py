"""The tenants whose sender a relay refuses or throttles, while it takes the mail of others."""

from collections.abc import Callable, Sequence
from time import monotonic

from otp_stream.core.outcome import Accepted, Outcome, Unavailable, UnavailableReason, Uncertain
from otp_stream.core.state import CircuitBreakerState

from .circuit_breaker import CircuitBreaker
from .failed_recipients import FailedRecipients
from .pending_send import PendingSend

_NONE: frozenset[str] = frozenset()
_RECHECK_MS = 1_000
"""Pause between probes that are refused for domains whose mail often fails, after false alarms."""
_LIMITED_MS, _REFUSED_MS = 10_000, 60_000
"""Longest pause between probes: a limit ends by itself, a refusal by an operator."""


class _Sender:
    """What is known about one tenant: a circuit breaker over its mails, and the recipients that fail."""

    def __init__(self, now_ms: int, fraction: Callable[[], float]) -> None:
        self.breaker = CircuitBreaker(now_ms, fraction)
        self.recipients = FailedRecipients()
        self.probe: PendingSend | None = None
        """The mail that is the probe, while it is on a connection."""
        self.probe_at = 0.0
        """When it started, by the monotonic clock, in seconds."""
        self.slow_probes: list[PendingSend] = []
        """Earlier probes without a reply so far."""


class Senders:
    """Suspends tenants: none of their mails is sent through the relay, but one as a probe after each pause.

    A recipient or domain whose mails alone are refused suspends its tenant twice at most. Times are milliseconds since
    1970.
    """

    def __init__(self, fraction: Callable[[], float]) -> None:
        self._fraction = fraction
        self._known: dict[str, _Sender] = {}
        self.suspended = _NONE
        """Tenants whose mails are not sent, including those whose probe is due or in flight."""
        self.due = _NONE
        """Of them, those whose next mail is the probe."""

    def __bool__(self) -> bool:
        return bool(self._known)

    @property
    def probing(self) -> bool:
        """Whether a probe is on a connection."""
        return any(sender.probe is not None for sender in self._known.values())

    @property
    def state(self) -> CircuitBreakerState:
        """The worst state of a tenant: `open` if one waits for the end of its pause."""
        states = {sender.breaker.state for sender in self._known.values()}
        return "open" if "open" in states else "half_open" if "half_open" in states else "closed"

    def errors(self) -> dict[str, str]:
        """Return why each suspended tenant is suspended."""
        return {name: self._known[name].breaker.error or "" for name in sorted(self.suspended)}

    def is_at_fault(self, pending: PendingSend, outcome: Unavailable) -> bool:
        """Return whether only the recipient's mail is refused, and not all mail of the tenant."""
        sender = self._known.get(pending.mail.tenant)
        at_mail = outcome.reply is not None and outcome.reply.stage == "mail"
        if sender is None or sender.probe is pending or at_mail:
            return False
        return sender.recipients.is_at_fault(pending.mail.recipient)

    def refused(
        self,
        pending: PendingSend,
        error: str,
        now_ms: int,
        *,
        at_mail: bool,
        reason: UnavailableReason = "sender_refused",
    ) -> bool:
        """Suspend the tenant of a mail, which was refused at MAIL or later. Returns whether it has changed."""
        tenant = pending.mail.tenant
        sender = self._known.get(tenant)
        if sender is None:
            sender = self._known[tenant] = _Sender(now_ms, self._fraction)
        was_probe = sender.probe is pending
        recipients = sender.recipients
        may_be_sender = recipients.failed(pending.mail.recipient, now_ms) or at_mail
        longest_ms = _LIMITED_MS if reason == "throttled" else _REFUSED_MS
        if not sender.breaker.open(reason, error, now_ms, probe=was_probe, longest_ms=longest_ms):
            return False
        if not may_be_sender:
            # the next mail decides, which is for another domain if one waits
            sender.breaker.retry(now_ms + _RECHECK_MS * was_probe)
        sender.probe = None
        recipients.opened_breaker(pending.mail.recipient, now_ms, at_mail=at_mail)
        self._refresh()
        return True

    def mail_ended(self, pending: PendingSend, outcome: Outcome, now_ms: int) -> bool:
        """Take another outcome of a mail into account. Returns whether its tenant is no longer suspended."""
        sender = self._known.get(pending.mail.tenant)
        if sender is None:
            return False
        recipients = sender.recipients
        if isinstance(outcome, Accepted):
            recipients.accepted(pending.mail.recipient, now_ms)
        if isinstance(outcome, Unavailable | Uncertain):
            self.probe_withdrawn(pending)
            return False
        was_probe = sender.probe is pending or pending in sender.slow_probes
        closed = was_probe and sender.breaker.close(now_ms)
        if closed:
            sender.probe = None
            sender.slow_probes.clear()
            recipients.closed_breaker(pending.mail.recipient, now_ms)
            self._refresh()
        if sender.breaker.state == "closed" and not recipients.has_opened_breaker:
            del self._known[pending.mail.tenant]
        return closed

    def probe_started(self, pending: PendingSend) -> None:
        """Record that a mail of a tenant in `due` is on a connection."""
        sender = self._known[pending.mail.tenant]
        sender.probe, sender.breaker.probing = pending, True
        sender.probe_at = monotonic()
        self._refresh()

    def replace_slow_probes(self, patience_s: float, now_ms: int) -> None:
        """Let another mail be the probe of a tenant, too, if its probe has had no reply for `patience_s`."""
        for sender in self._known.values():
            if sender.probe is not None and monotonic() - sender.probe_at > patience_s:
                sender.recipients.failed(sender.probe.mail.recipient, now_ms)
                sender.slow_probes.append(sender.probe)
                sender.probe, sender.breaker.probing = None, False
                self._refresh()

    def probe_withdrawn(self, pending: PendingSend) -> None:
        """Make the tenant's next job the probe, if this one was the probe and ended without an outcome."""
        sender = self._known.get(pending.mail.tenant)
        if sender is not None and sender.probe is pending:
            sender.probe, sender.breaker.probing = None, False
            self._refresh()

    def failed(self, pending: PendingSend) -> FailedRecipients | None:
        """Return the recipients of the tenant whose mail failed, if this mail is for one of them."""
        recipients = self._known[pending.mail.tenant].recipients
        return recipients if recipients.has_failed(pending.mail.recipient) else None

    def half_open(self, now_ms: int, *, requested: bool = False, waiting: Sequence[PendingSend] = ()) -> None:
        """Let each tenant's next mail pass as the probe, if the pause is over.

        A `requested` one may pass earlier, and one of the mails in `waiting` whose domain has not failed.
        """
        changed = False
        for name, sender in self._known.items():
            early_ms = sender.recipients.early_ms(
                (it for it in waiting if it.mail.tenant == name), sender.breaker.since_ms
            )
            changed |= sender.breaker.half_open(now_ms, requested=requested, early_ms=early_ms)
        if changed:
            self._refresh()

    def next_probe_ms(self) -> int | None:
        """Return the earliest time of the next requested probe, `None` if no tenant waits for one."""
        waiting = [it.breaker for it in self._known.values() if it.breaker.state == "open"]
        return min((it.next_probe_ms(requested=True) for it in waiting), default=None)

    def retry(self, now_ms: int) -> None:
        """Let the next probes pass at once, because the relay has another login now."""
        for sender in self._known.values():
            sender.breaker.retry(now_ms)

    def _refresh(self) -> None:
        breakers = [(name, sender.breaker) for name, sender in self._known.items()]
        self.suspended = frozenset(name for name, breaker in breakers if breaker.state != "closed")
        self.due = frozenset(name for name, it in breakers if it.state == "half_open" and not it.probing)
