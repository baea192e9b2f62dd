"""Decides from the outcomes of mails whether a relay takes mail. Single recipients whose mail fails are ignored."""

import math
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from otp_stream.core.masking import scrub
from otp_stream.core.outcome import Accepted, Outcome, Route, Unavailable, Uncertain, at_recipient

from .circuit_breaker import CircuitBreaker
from .send_queue import PendingSend
from .slowness import Slowness

_OFFENCES = 2
_REMEMBERED = 1_000
_MAX_SKIPPED = 100
STALLED_S = 10.0
"""A relay that has mail and does not reply for this long is skipped, if there is another one."""


class FailedRecipients:
    """Recipients whose mail a relay refuses in a way that looks as if it took no mail at all."""

    def __init__(self) -> None:
        self.failed: set[str] = set()
        """Recipients whose mail failed since the circuit breaker opened: the next probe is for another recipient."""
        self.offences: Counter[str] = Counter()
        """How often a recipient's mail opened the breaker and another's closed it, since a mail to it was accepted."""
        self._opener: str | None = None
        """The recipient whose mail opened the circuit breaker."""

    def is_at_fault(self, recipient: str) -> bool:
        """Return whether only this recipient's mail fails."""
        return self.offences[recipient] >= _OFFENCES

    def opened_breaker(self, recipient: str) -> None:
        """Record whose mail opened the circuit breaker."""
        self._opener = recipient

    def closed_breaker(self, recipient: str) -> None:
        """Blame the recipient whose mail opened the circuit breaker, if the probe was for another one."""
        opener, self._opener = self._opener, None
        if opener is not None and opener != recipient:
            self.offences[opener] += 1
        if len(self.offences) > _REMEMBERED:
            self.offences.clear()

    def forget_failed(self, *, breaker_is_closed: bool) -> None:
        """Clear the failed recipients when mail flows, or when there are too many."""
        if breaker_is_closed or len(self.failed) > _REMEMBERED:
            self.failed.clear()

    def choose_probe(
        self,
        first: PendingSend,
        take_next: Callable[[], PendingSend | None],
        push_back: Callable[[PendingSend], None],
    ) -> PendingSend:
        """Return the next job for a recipient whose mail has not failed, or `first` if there is none."""
        skipped = [first]
        found: PendingSend | None = None
        while found is None and len(skipped) < _MAX_SKIPPED and (other := take_next()):
            if other.mail.recipient in self.failed:
                skipped.append(other)
            else:
                found = other
        if found is None:
            self.failed.clear()  # all have failed, so try each of them again
            found = skipped.pop(0)
        for other in skipped:
            push_back(other)
        return found


class Verdict(NamedTuple):
    """The consequences of one mail's outcome."""

    outcome: Outcome
    """The outcome for the caller of `send`."""
    changed: bool = False
    """Whether the circuit breaker has changed."""
    renew: bool = False
    """Whether open connections must take no more mail, because the relay may accept it only on a new one."""


class Availability:
    """Whether the relay called `name` takes mail: its circuit breaker, whether it replies, and whose mail fails there.

    Times are milliseconds since 1970.
    """

    def __init__(self, name: str, now_ms: int, fraction: Callable[[], float], slowness: Slowness | None = None) -> None:
        self.name = name
        self._route = Route(name)
        self.slowness = slowness
        """How slow it is; `None` if there is no other relay, which could be faster."""
        self.room = math.inf
        """How many mails may wait for it alone: those that its rate allows within a second."""
        self.breaker = CircuitBreaker(now_ms, fraction)
        self.recipients = FailedRecipients()
        self.owed = 0
        """How many mails and new connections wait for replies."""
        self._replied_at = 0.0

    @property
    def takes_mail(self) -> bool:
        """Whether it takes any mail now."""
        return self.breaker.state == "closed" and not self.stalled

    @property
    def stalled(self) -> bool:
        """Whether the relay owes a reply and has not replied for `STALLED_S`, or for longer than is usual there."""
        return self.owed > 0 and monotonic() - self._replied_at > self._patience_s

    def owes(self, change: int) -> None:
        """Count the mails and the new connections that wait for replies."""
        if not self.owed:
            self._replied_at = monotonic()
        self.owed += change

    def replied(self) -> None:
        """Note that the relay has replied, or closed a connection."""
        self._replied_at = monotonic()

    def connecting(self) -> object:
        """Record that a connection, for which a reply is owed, is being opened. Returns what identifies it."""
        attempt = object()
        if self.slowness is not None:
            self.slowness.connecting(attempt, monotonic())
        return attempt

    def connected(self, attempt: object, *, ready: bool) -> None:
        """Record that a connection is `ready`, or could not be opened."""
        self.owes(-1)
        if ready:
            self.replied()
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
        if self.slowness is not None and not isinstance(outcome, Unavailable | Uncertain):
            self.slowness.mail_ended(pending, monotonic())
        recipient = pending.mail.recipient
        match outcome:
            case Unavailable() if self._is_at_fault(pending, outcome):
                # the relay takes all other mail, which one address must not delay
                return Verdict(at_recipient(outcome))
            case Unavailable(reason, error):
                self.recipients.failed.add(recipient)
                if not self._open(pending, outcome, error, now_ms):
                    return Verdict(outcome)
                self.recipients.opened_breaker(recipient)
                # the relay refuses all mail without ending the session
                reply = outcome.reply
                renew = pending.probe or (reason == "unreachable" and reply is not None and reply.code != 421)
                return Verdict(outcome, changed=True, renew=renew)
            case Uncertain(error) if pending.probe:
                return Verdict(outcome, self._open(pending, outcome, error, now_ms))
            case _:
                if self.recipients.offences and isinstance(outcome, Accepted):
                    del self.recipients.offences[recipient]
                if not (pending.probe and self.breaker.close(now_ms)):
                    return Verdict(outcome)
                self.recipients.closed_breaker(recipient)
                return Verdict(outcome, changed=True)

    def probe_withdrawn(self, pending: PendingSend) -> None:
        """Make the next job the probe, if this one was the probe and ended without an outcome."""
        self.breaker.probing = self.breaker.probing and not pending.probe
        pending.probe = False

    def probe_too_slow(self, now_ms: int) -> bool:
        """Open the circuit breaker, because the probe got no reply in time. Returns whether it has changed."""
        return self.breaker.open("unreachable", "no reply in time", now_ms, probe=True)

    @property
    def _patience_s(self) -> float:
        return STALLED_S if self.slowness is None else min(self.slowness.patience_s(self.owed), STALLED_S)

    def _open(self, pending: PendingSend, outcome: Unavailable | Uncertain, error: str, now_ms: int) -> bool:
        reason = outcome.reason if isinstance(outcome, Unavailable) else "unreachable"
        # the circuit breaker's error is shown where the secrets of this mail are not known
        return self.breaker.open(reason, scrub(error, *pending.mail.secrets), now_ms, probe=pending.probe)

    def _is_at_fault(self, pending: PendingSend, outcome: Unavailable) -> bool:
        # MAIL names no recipient, and a probe may get the reply that every mail would get
        at_mail = outcome.reply is not None and outcome.reply.stage == "mail"
        return self.recipients.is_at_fault(pending.mail.recipient) and not at_mail and not pending.probe
