"""What a replay or a deletion of dead letters did."""

from dataclasses import dataclass
from typing import Literal

Action = Literal["kept", "replayed", "dropped", "expired"]
"""What happens to a dead letter: `expired` is one that was selected for a replay, but whose code has expired."""


@dataclass(slots=True)
class Summary:
    """Dead letters by what happened to them."""

    read: int = 0
    replayed: int = 0
    expired: int = 0
    """Selected, but not replayed."""
    dropped: int = 0
    not_read: int = 0
    """Behind the ones that were read, left for another pass."""

    def add(self, action: Action) -> None:
        """Count a dead letter."""
        self.read += 1
        self.expired += action == "expired"
        self.replayed += action == "replayed"
        self.dropped += action == "dropped"
