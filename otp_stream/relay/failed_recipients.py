"""Recipients whose mail fails where other mail is taken: one address must not hold up all of them. Pure."""

from collections import Counter
from collections.abc import Callable

from .send_queue import PendingSend

_OFFENCES = 2
_REMEMBERED = 1_000
_MOST_PASSED = 100


class FailedRecipients:
    """What one relay's refusals show about single recipients."""

    def __init__(self) -> None:
        self.failed: set[str] = set()
        """Recipients whose mail failed since the circuit breaker opened: the next probe is for another recipient."""
        self.offences: Counter[str] = Counter()
        """How often a recipient's mail opened the circuit breaker and another's closed it, since one was accepted."""
        self._opener: str | None = None
        """The recipient whose mail opened the circuit breaker."""

    def is_at_fault(self, recipient: str) -> bool:
        """Return whether it was this recipient's mail alone that failed."""
        return self.offences[recipient] >= _OFFENCES

    def opened_breaker(self, recipient: str) -> None:
        """Remember whose mail opened the circuit breaker."""
        self._opener = recipient

    def closed_breaker(self, recipient: str) -> None:
        """Blame the recipient whose mail opened the circuit breaker, if the probe was for another one."""
        opener, self._opener = self._opener, None
        if opener is not None and opener != recipient:
            self.offences[opener] += 1
        if len(self.offences) > _REMEMBERED:
            self.offences.clear()

    def forget_failed(self, *, breaker_is_closed: bool) -> None:
        """Start again when mail flows, or when there are too many to remember."""
        if breaker_is_closed or len(self.failed) > _REMEMBERED:
            self.failed.clear()

    def choose_probe(
        self,
        first: PendingSend,
        take_next: Callable[[], PendingSend | None],
        push_back: Callable[[PendingSend], None],
    ) -> PendingSend:
        """Return the next job for a recipient whose mail has not failed, or `first` if there is none."""
        passed = [first]
        found: PendingSend | None = None
        while found is None and len(passed) < _MOST_PASSED and (other := take_next()):
            if other.mail.recipient in self.failed:
                passed.append(other)
            else:
                found = other
        if found is None:
            self.failed.clear()  # all have failed: try them one after the other again
            found = passed.pop(0)
        for other in passed:
            push_back(other)
        return found
