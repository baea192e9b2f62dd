"""The recipients whose mail a relay refuses as if it took no mail, and how to find a job for another one."""

from collections import Counter
from collections.abc import Callable

from .pending_send import PendingSend

_OFFENCES = 2
_REMEMBERED = 1_000
_MAX_SKIPPED = 100


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

    def forget_opener(self) -> None:
        """Blame no one for the open circuit breaker."""
        self._opener = None

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
