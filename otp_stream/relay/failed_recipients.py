"""Recipients and domains whose mail a relay refuses as if it took no mail, and which mail is sent instead.

A relay may pass on the reply of the recipient's server, whose owner chooses the words, and has any number of addresses.
So a mail that fails at RCPT or later shows less than a failure that no recipient can cause. The rules:

1. Such a failure opens the circuit breaker. The next probe is a mail for a domain that has not failed, if one waits: it
   is sent a tenth of a second later for each domain that has, instead of after the pause.
2. If that mail is accepted, this was a false alarm. After two of them within an hour, a failure only makes the mail for
   its domain wait. Only if mails for three domains fail within five seconds, the breaker opens.
3. If mail for the same recipient or domain opens the breaker twice, and none for it is accepted, it alone is at fault:
   its attempts count, and neither it nor other mail waits. If mails for three domains fail, none is at fault.
4. While no other mail waits, mails for domains that have failed leave the worker for a moment, without an attempt.
5. After a failure that no recipient can cause, the probe is sent after the pause.
"""

from collections import Counter, deque
from collections.abc import Iterable
from typing import NamedTuple

from .pending_send import PendingSend

_TWICE = 2
_SEVERAL = 3
"""If mails for so many domains fail, the relay fails."""
_RECENT_MS = 5_000
_LONGEST_WAIT_MS = 30_000
_HOUR_MS = 3_600_000
_EARLY_MS = 100
_LEAVE_AFTER_MS = 10_000
_REMEMBERED = 1_000
_REGISTRIES = frozenset(("ac", "co", "com", "edu", "go", "gob", "gov", "ltd", "me", "mil", "ne", "net", "or", "org"))
"""Second-level domains of countries under which others register theirs."""


class _Failure(NamedTuple):
    at_ms: int
    wait_ms: int = _RECENT_MS
    """How long mail for the domain waits, after false alarms."""


class FailedRecipients:
    """The recipients whose mail fails at one relay, and their domains, which begin with `@`.

    Times are milliseconds since 1970.
    """

    def __init__(self) -> None:
        self._failed: dict[str, _Failure] = {}
        """The latest failure of each, if no mail was accepted after it. The last one is the latest of all."""
        self._opener: str | None = None
        """The recipient whose mail opened the circuit breaker last, until it closes."""
        self._opened_ms = 0
        """When it opened first."""
        self._early_from_ms: int | None = None
        """When it opened last, if a recipient's server may be the cause."""
        self._blame: Counter[str] = Counter()
        """How often mail for them opened the breaker, and mail for others closed it."""
        self._false_alarms: deque[int] = deque(maxlen=_TWICE)
        """When mail for one domain had opened the breaker, and mail for another one closed it."""
        self.all_failed = False
        """Whether the latest probe is for a recipient whose mail has failed, because no other mail waited."""

    @property
    def has_opened_breaker(self) -> bool:
        """Whether mail for any recipient has opened the circuit breaker, and mail for another one closed it."""
        return bool(self._blame or self._false_alarms)

    @property
    def any_failed(self) -> bool:
        """Whether any mail failed, and none for the same recipient or domain was accepted after that."""
        return bool(self._failed)

    def has_failed(self, recipient: str) -> bool:
        """Return whether mail to this recipient's domain failed: the next probe is for another one."""
        return _domain(recipient) in self._failed

    def is_at_fault(self, recipient: str) -> bool:
        """Return whether only the mail to this recipient, or to its domain, fails."""
        return bool(self._blame) and max(self._blame[recipient], self._blame[_domain(recipient)]) >= _TWICE

    def failed(self, recipient: str, now_ms: int) -> bool:
        """Record a mail that failed. Returns whether the relay may be the cause, not the recipient's server alone."""
        for key in (recipient, _domain(recipient)):
            before = self._failed.pop(key, _Failure(now_ms))
            again = self._opener is None and now_ms - before.at_ms >= before.wait_ms
            wait_ms = min(2 * before.wait_ms, _LONGEST_WAIT_MS) if again else before.wait_ms
            self._failed[key] = _Failure(now_ms, wait_ms)
        self._forget_old(now_ms)
        if not self._is_doubtful(now_ms):
            return True
        if self._failed_domains(now_ms - _RECENT_MS + 1) < _SEVERAL:
            return False
        self._blame.clear()
        return True

    def accepted(self, recipient: str, now_ms: int) -> None:
        """Record that a mail was accepted, so that neither the recipient nor its domain is at fault.

        They are forgotten later, so that a domain cannot fail more often because it accepts mail in between.
        """
        if self._failed or self._blame:
            for key in (recipient, _domain(recipient)):
                self._blame.pop(key, None)
                failure = self._failed.get(key)
                if failure is not None and now_ms - failure.at_ms >= failure.wait_ms:
                    del self._failed[key]

    def opened_breaker(self, recipient: str, now_ms: int, *, at_mail: bool) -> None:
        """Record whose mail opened the circuit breaker; `at_mail`: by the reply to MAIL, which names no recipient."""
        if self._opener is None:
            self._opened_ms = now_ms
        self._opener = recipient
        self._early_from_ms = None if at_mail else now_ms

    def closed_breaker(self, recipient: str, now_ms: int) -> None:
        """Blame the recipient whose mail opened the circuit breaker, and its domain, if the probe was for another."""
        opener, self._opener = self._opener, None
        closers = {recipient, _domain(recipient)}
        for key in closers:
            self._failed.pop(key, None)
        if opener is None:
            return
        self._blame.update({opener, _domain(opener)} - closers)
        if _domain(opener) not in closers:
            self._false_alarms.append(now_ms)
        if len(self._blame) > _REMEMBERED:
            self._blame.clear()

    def forget_opener(self) -> None:
        """Blame no one for the open circuit breaker."""
        self._opener = None

    def choose_probe(self, jobs: Iterable[PendingSend]) -> PendingSend | None:
        """Return the first job for a domain that has not failed, or whose failure is the longest ago."""
        found = min(jobs, key=self._failed_ms, default=None)
        self.all_failed = found is not None and found.mail.recipient in self._failed
        return found

    def choose_next(self, jobs: Iterable[PendingSend], now_ms: int) -> PendingSend | None:
        """Return the first job that does not wait, while the circuit breaker is closed."""
        return next((job for job in jobs if not self.waits(job.mail.recipient, now_ms)), None)

    def waits(self, recipient: str, now_ms: int) -> bool:
        """Return whether mail to this recipient waits although the circuit breaker is closed."""
        if not self._is_doubtful(now_ms) or self.is_at_fault(recipient):
            return False
        failure = self._failed.get(_domain(recipient))
        return failure is not None and now_ms - failure.at_ms < failure.wait_ms

    def early_ms(self, waiting: Iterable[PendingSend], opened_ms: int) -> int | None:
        """Return how long the probe waits if one of these mails is for a domain that has not failed, else `None`.

        `opened_ms`: when the circuit breaker opened last.
        """
        if opened_ms != self._early_from_ms or all(self.has_failed(it.mail.recipient) for it in waiting):
            return None
        return _EARLY_MS * self._failed_domains(self._opened_ms)

    def may_leave(self, waiting: Iterable[PendingSend], now_ms: int, *, is_open: bool) -> bool:
        """Return whether all of these mails are for domains that have failed, and have waited for long enough."""
        if not is_open:
            return all(self.waits(it.mail.recipient, now_ms) for it in waiting)
        is_early = now_ms - self._opened_ms < _LEAVE_AFTER_MS and self._failed_domains() < _SEVERAL
        if self._opener is None or (is_early and not self._is_doubtful(now_ms)):
            return False
        return all(self.has_failed(it.mail.recipient) for it in waiting)

    def _failed_ms(self, job: PendingSend) -> tuple[int, int]:
        never, recipient = _Failure(-1), job.mail.recipient
        return self._failed.get(_domain(recipient), never).at_ms, self._failed.get(recipient, never).at_ms

    def _failed_domains(self, since_ms: int = 0) -> int:
        """Return how many domains have failed since then."""
        return sum(key.startswith("@") and it.at_ms >= since_ms for key, it in self._failed.items())

    def _forget_old(self, now_ms: int) -> None:
        old = [key for key, it in self._failed.items() if now_ms - it.at_ms > _HOUR_MS]
        for key in old or list(self._failed)[:-_REMEMBERED]:
            del self._failed[key]

    def _is_doubtful(self, now_ms: int) -> bool:
        alarms = self._false_alarms
        return len(alarms) == _TWICE and now_ms - alarms[0] < _HOUR_MS


def _domain(recipient: str) -> str:
    """Return the domain that someone has registered, after an `@`, which no whole address begins with.

    Its owner has any number of subdomains. This is an estimate: it only matters for mail that a relay refuses.
    """
    labels = recipient.rpartition("@")[2].lower().split(".")
    of_registry = len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in _REGISTRIES
    return f"@{'.'.join(labels[-3 if of_registry else -2 :])}"
