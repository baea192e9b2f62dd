"""What was done with dead letters, and which of them an operator has confirmed."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

from .reader import StoredDeadLetter

Action = Literal["kept", "replayed", "dropped", "expired", "erased"]
"""What was done with a dead letter. It was selected for a replay, but its code has `expired`, or was `erased`."""
Choose = Callable[[StoredDeadLetter], Awaitable[Action]]


@dataclass(slots=True)
class Summary:
    """Numbers of dead letters by what was done with them."""

    read: int = 0
    replayed: int = 0
    expired: int = 0
    """Selected, but not replayed, because their codes have expired. Includes `erased`."""
    erased: int = 0
    """Those of `expired` that have no code any more."""
    dropped: int = 0
    not_read: int = 0
    """Left in the queue for another pass."""
    selection: set[int] = field(default_factory=set[int], repr=False)
    """What a dry run would have replayed or dropped."""

    def add(self, action: Action) -> None:
        """Count a dead letter."""
        self.read += 1
        self.expired += action in {"expired", "erased"}
        self.erased += action == "erased"
        self.replayed += action == "replayed"
        self.dropped += action == "dropped"


def among(confirmed: Summary, choose: Choose) -> Choose:
    """Return `choose` for those that a dry run has selected. Of equal ones, it takes no more than there were."""
    left = confirmed.replayed + confirmed.dropped

    async def chooseamong(it: StoredDeadLetter) -> Action:
        nonlocal left
        if not left or identity(it) not in confirmed.selection:
            return "kept"
        action = await choose(it)
        left -= action in {"replayed", "dropped"}
        return action

    return chooseamong


def identity(it: StoredDeadLetter) -> int:
    """Return what stays the same when a sweep erases the code, and differs when the job dies again."""
    died_ms = it.dead_letter.died_ms
    content = it.message.body if died_ms is None else None
    return hash((it.dead_letter.job_id, it.dead_letter.reason, died_ms, content))
