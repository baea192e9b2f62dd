"""Decides from the outcomes of mails whether a relay takes mail, and whose. Single recipients that fail are ignored."""

import math
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import NamedTuple

from otp_stream.core.masking import scrub
from otp_stream.core.outcome import Accepted, Outcome, Route, TimedOut, Unavailable, Uncertain, at_recipient

from .circuit_breaker import CircuitBreaker
from .failed_recipients import FailedRecipients
from .pending_send import PendingSend
from .protocol import RelayUnavailableError, TlsFloodError
from .sender_limits import ThrottledSenders, may_limit_sender
from .senders import Senders
from .slowness import Slowness

STALLED_S = 10.0
"""A relay that has mail and does not reply for this long is skipped, if there is another one."""


class Verdict(NamedTuple):
    """The consequences of one mail's outcome."""

    outcome: Outcome
    """The outcome for the caller of `send`."""
    changed: bool = False
    """Whether the circuit breaker has changed."""
    renew: bool = False
    """Whether open connections must take no more mail, because the relay may accept it only on a new one."""
    slows: bool = True
    """Whether the relay gets less mail if it throttles: not because of a domain whose mail had failed before."""
    sender_changed: bool = False
    """Whether mails of the tenant were suspended, or are accepted again."""


class Availability:
    """Whether the relay called `name` takes mail: its circuit breaker, whether it replies, and whose mail fails there.

    `shared`: whether tenants with different senders use it, so that the refusal of a sender suspends one tenant only,
    and so does a limit on its mails. `sender` is the address of mails that name none. Times are milliseconds since
    1970.
    """

    def __init__(
        self,
        name: str,
        now_ms: int,
        fraction: Callable[[], float],
        slowness: Slowness | None = None,
        *,
        shared: bool = False,
        sender: str = "",
        scheme: str = "smtp",
    ) -> None:
        self.name = name
        self._route = Route(name, scheme=scheme)
        self.slowness = slowness
        """How slow it is; `None` if there is no other relay, which could be faster."""
        self.room = math.inf
        """How many mails may wait for it alone: those that its rate allows within a second."""
        self.breaker = CircuitBreaker(now_ms, fraction)
        self.recipients = FailedRecipients()
        self.senders = Senders(fraction)
        self._shared = self._has_several_senders = shared
        self._sender = sender
        self._throttled = ThrottledSenders()
        self._probe: PendingSend | None = None
        """The latest probe of the relay; `None` if it had no reply in time."""
        self._probe_at = 0.0
        """When it started, by the monotonic clock, in seconds."""
        self.owed = 0
        """How many mails and new connections wait for replies."""
        self._replied_at = 0.0

    def use_senders(self, senders: Collection[str | None]) -> None:
        """Note the addresses that mails are sent from, as `SmtpRelay.use_senders` does."""
        self._has_several_senders = self._shared and len({it or self._sender for it in senders}) > 1

    @property
    def takes_mail(self) -> bool:
        """Whether it takes any mail now."""
        return self.breaker.state == "closed" and not self.stalled

    @property
    def takes_all_mail(self) -> bool:
        """Whether its circuit breaker is closed, and no tenant suspended."""
        return self.breaker.state == "closed" and not self.senders.suspended

    @property
    def stalled(self) -> bool:
        """Whether the relay owes a reply and has not replied for `STALLED_S`, or for longer than is usual there."""
        return self.owed > 0 and monotonic() - self._replied_at > self._patience_s

    def owes(self, change: int) -> None:
        """Count the mails that wait for replies; `connecting` counts the new connections."""
        if not self.owed:
            self._replied_at = monotonic()
        self.owed += change

    def replied(self) -> None:
        """Note that the relay has replied, or closed a connection."""
        self._replied_at = monotonic()

    @contextmanager
    def connecting(self) -> Generator[None]:
        """Record that a connection is being opened, for which a reply is owed. It is ready if nothing is raised."""
        attempt, ready = object(), False
        self.owes(1)
        if self.slowness is not None:
            self.slowness.connecting(attempt, monotonic())
        try:
            yield
            ready = True
            self.replied()
        finally:
            # also after a cancellation: otherwise a reply would be owed for ever, and the relay would count as stalled
            self.owes(-1)
            if self.slowness is not None:
                self.slowness.connected(attempt, monotonic(), ready=ready)

    def resumed(self) -> None:
        """Ignore the time before: the process was suspended."""
        self._replied_at = monotonic()
        if self.slowness is not None:
            self.slowness.resumed(self._replied_at)

    def judge(self, pending: PendingSend, outcome: Outcome, now_ms: int) -> Verdict:
        """Take the outcome of a mail into account."""
        pending.route = self._route
        # another probe may have closed the circuit breaker before this one ended
        pending.probe = pending.probe and self.breaker.state != "closed"
        if self.slowness is not None and not isinstance(outcome, Unavailable | Uncertain):
            self.slowness.mail_ended(pending, monotonic())
        if self._shared and isinstance(outcome, Unavailable) and self._is_about_sender(pending, outcome, now_ms):
            return self._sender_refused(pending, outcome, now_ms)
        verdict = self._of_relay(pending, outcome, now_ms)
        if self.senders and self.senders.mail_ended(pending, outcome, now_ms):
            return verdict._replace(sender_changed=True)
        return verdict

    def _of_relay(self, pending: PendingSend, outcome: Outcome, now_ms: int) -> Verdict:
        recipient = pending.mail.recipient
        match outcome:
            case Unavailable() if self._is_at_fault(pending, outcome):
                # the relay takes all other mail, which one address or domain must not delay
                return Verdict(at_recipient(outcome))
            case Unavailable():
                return self._refused(pending, outcome, now_ms)
            case Uncertain() if pending.probe:
                return self._refused(pending, outcome, now_ms)
            case _:
                if isinstance(outcome, Accepted):
                    self.recipients.accepted(recipient, now_ms)
                if not (pending.probe and self.breaker.close(now_ms)):
                    return Verdict(outcome)
                self.recipients.closed_breaker(recipient, now_ms)
                return Verdict(outcome, changed=True)

    def _refused(self, pending: PendingSend, outcome: Unavailable | Uncertain, now_ms: int) -> Verdict:
        """Open the circuit breaker. The connection of an uncertain probe was lost, perhaps because of its recipient.

        If no other mail was waiting, the probe times out: its job waits in the broker, so that another one can be the
        next probe. With `PREFETCH_COUNT=1`, one recipient would otherwise stop all mail.
        """
        recipient = pending.mail.recipient
        reply = outcome.reply if isinstance(outcome, Unavailable) else None
        at_mail = reply is not None and reply.stage == "mail"
        slows = at_mail or not self.recipients.has_failed(recipient)
        alone = pending.probe and reply is not None and not at_mail and self.recipients.all_failed
        may_be_down = self.recipients.failed(recipient, now_ms) or at_mail or pending.probe
        if not (may_be_down and self._open(pending, outcome, now_ms)):
            return Verdict(outcome)
        self.recipients.opened_breaker(recipient, now_ms, at_mail=at_mail)
        # the relay refuses all mail without ending the session
        renew = pending.probe or (reply is not None and reply.code != 421 and self.breaker.reason == "unreachable")
        return Verdict(TimedOut(briefly=True) if alone else outcome, changed=True, renew=renew, slows=slows)

    def half_open(self, now_ms: int, *, requested: bool = False, waiting: Sequence[PendingSend] = ()) -> bool:
        """Let the next job pass as the probe whose pause is over: of the relay, and of each suspended tenant.

        With mails in `waiting` for domains that have not failed, the pause may be shorter. Returns whether the circuit
        breaker has changed.
        """
        if self.senders:
            self.senders.half_open(now_ms, requested=requested, waiting=waiting)
        early_ms = self.recipients.early_ms(waiting, self.breaker.since_ms)
        return self.breaker.half_open(now_ms, requested=requested, early_ms=early_ms)

    def next_probe_ms(self) -> int:
        """Return the earliest time of a requested probe: of a tenant, while the relay itself takes mail."""
        of_tenant = self.senders.next_probe_ms() if self.breaker.state == "closed" else None
        return self.breaker.next_probe_ms(requested=True) if of_tenant is None else of_tenant

    def retry_login(self, now_ms: int) -> None:
        """Let the next probes pass at once, if the relay may take mail because the login is another one now."""
        self.breaker.retry_login(now_ms)
        self.senders.retry(now_ms)

    def started(self, pending: PendingSend) -> None:
        """Record that a mail is on its connection."""
        self.breaker.probing = pending.probe
        if pending.probe:
            self._probe, self._probe_at = pending, monotonic()
        if self.senders.due and pending.mail.tenant in self.senders.due:
            self.senders.probe_started(pending)

    def replace_slow_probe(self, now_ms: int) -> None:
        """Let another mail be the probe, too, if there is no reply: perhaps the server of the recipient is slow."""
        if self.senders:
            self.senders.replace_slow_probes(STALLED_S, now_ms)
        if self._probe is None or not self.breaker.probing or monotonic() - self._probe_at <= STALLED_S:
            return
        self.recipients.failed(self._probe.mail.recipient, now_ms)
        self._probe, self.breaker.probing = None, False

    def probe_withdrawn(self, pending: PendingSend) -> None:
        """Make the next job the probe, if this one was the probe and ended without an outcome."""
        if self._probe is pending:  # not one that was replaced: its successor is still in flight
            self._probe, self.breaker.probing = None, False
        pending.probe = False
        self.senders.probe_withdrawn(pending)

    def probe_too_slow(self, now_ms: int) -> bool:
        """Open the circuit breaker, because the probe got no reply in time. Returns whether it has changed."""
        return self.breaker.open("unreachable", "no reply in time", now_ms, probe=True)

    def connection_lost(self, error: RelayUnavailableError, now_ms: int) -> bool:
        """Open the circuit breaker if the relay sends TLS without data, perhaps on an idle connection.

        Returns whether it has changed.
        """
        return isinstance(error, TlsFloodError) and self.breaker.open(error.reason, scrub(str(error)), now_ms)

    def _is_about_sender(self, pending: PendingSend, outcome: Unavailable, now_ms: int) -> bool:
        """Return whether the relay refuses, or throttles, the sender of a mail, and may take the mail of others."""
        reply = outcome.reply
        if reply is None or outcome.reason != "throttled":
            return reply is not None and outcome.reason == "sender_refused"
        sender = pending.mail.sender or self._sender
        throttles_all = self.breaker.state != "closed" and self.breaker.reason == "throttled"
        if throttles_all or not (self._has_several_senders and may_limit_sender(reply, sender)):
            return False
        return not self._throttled.are_several(sender, now_ms)

    def _sender_refused(self, pending: PendingSend, outcome: Unavailable, now_ms: int) -> Verdict:
        """Suspend the tenant of a mail. The relay itself replies, and may take all other mail."""
        changed = pending.probe and self.breaker.close(now_ms)
        if changed:
            self.recipients.forget_opener()
        if self.senders.is_at_fault(pending, outcome):
            return Verdict(at_recipient(outcome), changed)
        error = scrub(outcome.error, *pending.mail.secrets)
        at_mail = outcome.reply is not None and outcome.reply.stage == "mail"
        suspended = self.senders.refused(pending, error, now_ms, at_mail=at_mail, reason=outcome.reason)
        return Verdict(outcome, changed, sender_changed=suspended)

    @property
    def _patience_s(self) -> float:
        return STALLED_S if self.slowness is None else min(self.slowness.patience_s(self.owed), STALLED_S)

    def _open(self, pending: PendingSend, outcome: Unavailable | Uncertain, now_ms: int) -> bool:
        reason = outcome.reason if isinstance(outcome, Unavailable) else "unreachable"
        # the circuit breaker's error is shown where the secrets of this mail are not known
        error = scrub(outcome.error, *pending.mail.secrets)
        return self.breaker.open(reason, error, now_ms, probe=pending.probe)

    def _is_at_fault(self, pending: PendingSend, outcome: Unavailable) -> bool:
        # MAIL names no recipient, and a probe may get the reply that every mail would get
        at_mail = outcome.reply is not None and outcome.reply.stage == "mail"
        return self.recipients.is_at_fault(pending.mail.recipient) and not at_mail and not pending.probe
