"""Recipients and domains whose mail a relay refuses as if it took no mail, and how to find a job for another one."""

from collections import Counter, deque
from collections.abc import Callable

from .pending_send import PendingSend

_OFFENCES = 2
_REMEMBERED = 1_000
_MAX_SKIPPED = 1_000
_FALSE_ALARMS = 2
_DOUBTED_MS = 3_600_000
"""After so many false alarms in this time, a mail that is refused is no reason to let others wait."""
_SIGNS = 3
_PENALTY = 100
"""How many accepted mails to a domain outweigh one that was refused as if the relay took no mail."""
_DOMAINS = 3
"""If mails for so many domains are refused that are not blamed, or that get most of the mail, the relay throttles."""
_COUNTED_MS = 300_000
"""For how long mails are counted for that."""
_RECHECK_MS = 1_000
"""Pause between probes that prove nothing, because they are for recipients whose mail is known to fail."""
_REGISTRIES = frozenset(("ac", "co", "com", "edu", "go", "gob", "gov", "ltd", "me", "mil", "ne", "net", "or", "org"))
"""Second-level domains of countries under which others register theirs."""


class FailedRecipients:
    """Recipients, and their domains, whose mail a relay refuses in a way that looks as if it took no mail at all.

    A relay may pass on the reply of the recipient's server, whose owner chooses its words, and has any number of
    addresses, subdomains included. Times are milliseconds since 1970.
    """

    def __init__(self) -> None:
        self._failed: set[str] = set()
        """Recipients whose mail failed since the circuit breaker opened, and their domains after an `@`."""
        self._offences: Counter[str] = Counter()
        """How often mail to a recipient, or to a domain, opened the breaker and mail to another one closed it."""
        self._opener: str | None = None
        """The recipient whose mail opened the circuit breaker."""
        self._false_alarms: deque[int] = deque(maxlen=_FALSE_ALARMS)
        """When mail to one domain had opened the circuit breaker, and mail to another one closed it."""
        self._scores: Counter[str] = Counter()
        """How many mails each domain accepted, less `_PENALTY` for each failure, but not below `-2 * _PENALTY`."""
        self._taken: Counter[str] = Counter()
        """How many mails were accepted for each domain since `_counted_from`, which is after false alarms."""
        self._refused: dict[str, bool] = {}
        """Domains whose mail was refused in the same time, and whether they were blamed each time."""
        self._counted_from = 0
        self.all_failed = False
        """Whether the mail of each waiting job had failed when the latest probe was chosen."""
        self._signs = 0
        """How many more probes for domains that are not blamed were refused than accepted, since the false alarms."""

    @property
    def has_offences(self) -> bool:
        """Whether any recipient has opened the circuit breaker that another one closed."""
        return bool(self._offences or self._false_alarms)

    def is_at_fault(self, recipient: str) -> bool:
        """Return whether only the mail to this recipient, or to its domain, fails."""
        domain = _domain(recipient)
        of_domain = self._offences[domain] if self._scores[domain] < 0 else 0
        return max(self._offences[recipient], of_domain) >= _OFFENCES

    def has_failed(self, recipient: str) -> bool:
        """Return whether mail to this recipient, or to its domain, failed: the next probe is for another one."""
        return recipient in self._failed or _domain(recipient) in self._failed

    def add_failed(self, recipient: str) -> None:
        """Record a recipient whose mail failed."""
        domain = _domain(recipient)
        if domain not in self._failed:
            self._add_score(domain, max(-_PENALTY, -2 * _PENALTY - self._scores[domain]))
        self._failed |= {recipient, domain}

    def accepted(self, recipient: str) -> None:
        """Record that a mail was accepted, so that the recipient is not at fault; its domain may still be."""
        domain = _domain(recipient)
        self._add_score(domain, 1)
        if self._false_alarms:
            self._taken[domain] += 1
            if len(self._taken) > _REMEMBERED:
                self._forget_counts()
        if self._offences:
            del self._offences[recipient]
            self._offences -= Counter((domain,))

    def is_sign_of_outage(self, recipient: str, now_ms: int, *, probe: bool) -> bool:
        """Return whether the refusal of this mail shows that the relay fails: always, but after false alarms."""
        if not self._is_doubtful(now_ms):
            return True
        domain = _domain(recipient)
        blamed = bool(self._offences[recipient] or self._offences[domain] or self._scores[domain] < 0)
        if self._shows_throttling(domain, now_ms, blamed=blamed):
            return True
        return probe and not (blamed or self.has_failed(recipient))

    def pause_ms(self, now_ms: int, *, sign: bool, probe: bool) -> int | None:
        """Return the pause before the next probe, or `None` for that of an outage.

        After false alarms there is none: probes for other domains decide at once. If several of them are refused, this
        is an outage.
        """
        if not self._is_doubtful(now_ms):
            return None
        if not sign:
            return _RECHECK_MS if probe else 0
        self._signs += 1
        if self._signs < _SIGNS:
            return 0
        self._false_alarms.clear()
        self._signs = 0
        return None

    def _shows_throttling(self, domain: str, now_ms: int, *, blamed: bool) -> bool:
        """Return whether this refusal shows that the relay refuses mail for most domains. This ends the doubts."""
        if now_ms - self._counted_from > _COUNTED_MS or len(self._refused) > _REMEMBERED:
            self._counted_from = now_ms
            self._forget_counts()
        self._refused[domain] = self._refused.get(domain, True) and blamed
        taken = sum(self._taken[name] for name in self._refused)
        of_most = len(self._refused) >= _DOMAINS and taken >= max(_PENALTY, self._taken.total() / 2)
        if not of_most and list(self._refused.values()).count(False) < _DOMAINS:
            return False
        for name in self._refused:
            # they were blamed for what the relay does
            self._scores[name] = max(self._scores[name], 0)
        self._offences.clear()
        self._false_alarms.clear()
        self._forget_counts()
        return True

    def _forget_counts(self) -> None:
        self._taken.clear()
        self._refused.clear()

    def opened_breaker(self, recipient: str) -> None:
        """Record whose mail opened the circuit breaker."""
        self._opener = recipient

    def closed_breaker(self, recipient: str, now_ms: int) -> None:
        """Blame the recipient whose mail opened the circuit breaker, and its domain, if the probe was for another."""
        opener, self._opener = self._opener, None
        self._signs = max(self._signs - 1, 0)
        if opener is None:
            return
        domain = _domain(recipient)
        self._offences.update({opener, _domain(opener)} - {recipient, domain})
        if _domain(opener) != domain:
            self._false_alarms.append(now_ms)
        if len(self._offences) > _REMEMBERED:
            self._offences.clear()

    def forget_opener(self) -> None:
        """Blame no one for the open circuit breaker."""
        self._opener = None

    def forget_failed(self, *, breaker_is_closed: bool) -> None:
        """Clear the failed recipients when mail flows, or when there are too many."""
        if breaker_is_closed or len(self._failed) > _REMEMBERED:
            self._failed.clear()

    def choose_probe(
        self,
        first: PendingSend,
        take_next: Callable[[], PendingSend | None],
        push_back: Callable[[PendingSend], None],
    ) -> PendingSend:
        """Return the job whose mail shows best whether the relay takes mail.

        Jobs for domains whose mail has not failed come first, then those for such recipients. Among these, it is the
        first one for the domain with the highest score.
        """
        jobs = [first]
        while len(jobs) < _MAX_SKIPPED and (other := take_next()):
            jobs.append(other)
        found = max(jobs, key=self._rank)
        self.all_failed = found.mail.recipient in self._failed
        if self.all_failed:
            self._failed.clear()  # so try each of them again
            found = first
        _push_others(jobs, found, push_back)
        return found

    def choose_next(
        self,
        first: PendingSend,
        take_next: Callable[[], PendingSend | None],
        push_back: Callable[[PendingSend], None],
        now_ms: int,
    ) -> PendingSend:
        """Return the next job. After false alarms, those for domains whose mail often fails come last.

        Otherwise each of them would open the circuit breaker before the next mail for another domain is sent.
        """
        if not self._is_doubtful(now_ms):
            return first
        jobs, found = [first], first
        while self._often_fails(found) and len(jobs) < _MAX_SKIPPED and (other := take_next()):
            jobs.append(other)
            found = other
        found = first if self._often_fails(found) else found
        _push_others(jobs, found, push_back)
        return found

    def _often_fails(self, job: PendingSend) -> bool:
        return self._scores[_domain(job.mail.recipient)] < 0

    def _rank(self, job: PendingSend) -> tuple[bool, bool, int]:
        recipient = job.mail.recipient
        return not self.has_failed(recipient), recipient not in self._failed, self._scores[_domain(recipient)]

    def _add_score(self, domain: str, change: int) -> None:
        self._scores[domain] += change
        if len(self._scores) > _REMEMBERED:
            # the scores of domains with few mails are forgotten first
            self._scores = Counter({name: int(score / 2) for name, score in self._scores.items() if abs(score) > 1})

    def _is_doubtful(self, now_ms: int) -> bool:
        alarms = self._false_alarms
        return len(alarms) == _FALSE_ALARMS and now_ms - alarms[0] < _DOUBTED_MS


def _push_others(jobs: list[PendingSend], found: PendingSend, push_back: Callable[[PendingSend], None]) -> None:
    for job in jobs:
        if job is not found:
            push_back(job)


def _domain(recipient: str) -> str:
    """Return the domain that someone has registered, after an `@`, which no whole address begins with.

    Its owner has any number of subdomains. This is an estimate: it only matters for mail that a relay refuses.
    """
    labels = recipient.rpartition("@")[2].lower().split(".")
    of_registry = len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in _REGISTRIES
    return f"@{'.'.join(labels[-3 if of_registry else -2 :])}"
