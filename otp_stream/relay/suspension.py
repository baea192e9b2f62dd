"""Detects that the process was suspended, so that the broker may have given its jobs to other workers."""

from time import monotonic

_SUSPENDED_S = 1.0
"""A tick that is this late means that the process was suspended."""
_RESUME_TICKS = 4
"""For how many ticks after that no mail is sent, so that a lost connection to the broker is noticed first. Counted, not
timed: on a machine that is short of processors, time passes without a read from the network."""


class Suspension:
    """Watches that ticks come in time. Between `stop` and the next `start`, there are none."""

    def __init__(self) -> None:
        self._ticked_at: float | None = None
        self._resume_ticks = 0

    @property
    def is_recent(self) -> bool:
        """Whether the process was suspended a moment ago, and must send nothing yet."""
        return self._resume_ticks > 0 or self._is_late()

    def start(self) -> None:
        """Expect the next tick in time from now on."""
        self._ticked_at = monotonic()

    def tick(self) -> None:
        """Check whether this tick is in time, and expect no other one."""
        if self._is_late():
            self._resume_ticks = _RESUME_TICKS
        elif self._resume_ticks:
            self._resume_ticks -= 1
        self._ticked_at = None

    def _is_late(self) -> bool:
        return self._ticked_at is not None and monotonic() - self._ticked_at > _SUSPENDED_S
