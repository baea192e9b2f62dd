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
        """How often a recipient's mail has closed the gate and another's has opened it, since one was accepted."""
        self._closer: str | None = None
        """The recipient whose mail closed the gate."""

    def is_at_fault(self, recipient: str) -> bool:
        """Return whether it was this recipient's mail alone that failed."""
        return self.offences[recipient] >= _OFFENCES

    def closed_gate(self, recipient: str) -> None:
        """Remember whose mail closed the gate."""
        self._closer = recipient

    def opened_gate(self, recipient: str) -> None:
        """Blame the recipient whose mail closed the gate, if the probe was for another one."""
        closer, self._closer = self._closer, None
        if closer is not None and closer != recipient:
            self.offences[closer] += 1
        if len(self.offences) > _REMEMBERED:
            self.offences.clear()

    def forget_failed(self, *, gate_is_open: bool) -> None:
        """Start again when mail flows, or when there are too many to remember."""
        if gate_is_open or len(self.failed) > _REMEMBERED:
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
