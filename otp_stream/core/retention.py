"""How long dead letters and their codes are kept."""

import re
from dataclasses import dataclass

from .admission import UNITS_MS

_LONGEST_MS = 366 * UNITS_MS["d"]
_FOR_EVER = {"off", "0"}
_NUMBER = re.compile("[1-9][0-9]{0,9}")


@dataclass(frozen=True, slots=True)
class Retention:
    """The rules for dead letters. Times are milliseconds."""

    keep_ms: int | None = 7 * UNITS_MS["d"]
    """How long a dead letter is kept; `None`: until an operator deletes it."""
    limit: int | None = None
    """Maximum number of dead letters; `None`: no maximum."""
    keeps_codes: bool = False
    """Whether a code stays in its dead letter after it has expired."""

    @property
    def enabled(self) -> bool:
        """Whether any rule changes or deletes dead letters."""
        return self.keep_ms is not None or self.limit is not None or not self.keeps_codes

    def left_ms(self, died_ms: int, now_ms: int) -> int | None:
        """Return for how long a dead letter is still kept, 0 if it is too old; `None`: no limit.

        A time in the future counts as now: it comes from a clock that is ahead, or is forged.
        """
        return None if self.keep_ms is None else max(min(died_ms, now_ms) + self.keep_ms - now_ms, 0)


def read_period(text: str) -> int | None:
    """Parse `7d` to milliseconds, and `off` to `None`. Raises `ValueError` with the fix."""
    if text.lower() in _FOR_EVER:
        return None
    number, unit = text[:-1], text[-1:]
    if unit not in UNITS_MS or not _NUMBER.fullmatch(number):
        raise ValueError("must look like 7d or 12h (s, m, h or d), or be off")
    period_ms = int(number) * UNITS_MS[unit]
    if period_ms > _LONGEST_MS:
        raise ValueError("must be at most 366d, or off")
    return period_ms


@dataclass(frozen=True, slots=True)
class SweepState:
    """What the sweeps of this worker have done since its start. Only one worker of a deployment sweeps at a time."""

    erased: int = 0
    """Codes that were removed from dead letters."""
    too_old: int = 0
    """Dead letters that were deleted because of their age."""
    too_many: int = 0
    """Dead letters that were deleted because of their number."""
    complete: int = 0
    """Sweeps that have read the whole queue."""
    interrupted: int = 0
    """Sweeps that ended early, because an operator's command wanted to read the queue, or time was up."""
    failed: int = 0
    """Sweeps that ended with an error."""
    last_ms: int | None = None
    """When the last complete sweep ended (milliseconds since 1970)."""
