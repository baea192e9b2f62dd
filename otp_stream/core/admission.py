"""The facts that the tables report about a job before an attempt. `decision` draws the conclusions."""

from dataclasses import dataclass
from typing import Literal, Protocol, assert_never, get_args

LimitName = Literal["recipient", "domain", "tenant", "total"]
"""What a limit counts by."""
UNITS_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000}


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `count` jobs with the same key in any `period_ms`, such as five to one recipient in ten minutes."""

    name: LimitName
    count: int
    period_ms: int

    def __str__(self) -> str:
        return f"{self.count}/{span(self.period_ms)}"


def span(period_ms: int) -> str:
    """Format 600000 as `10m`, in the largest unit that divides it."""
    return next((f"{period_ms // ms}{unit}" for unit, ms in UNITS_MS.items() if not period_ms % ms), f"{period_ms}ms")


def read_limits(name: LimitName, text: str) -> tuple[Limit, ...]:
    """Parse `5/10m`, or several limits as in `5/10m,20/1d`. Raises `ValueError` with the fix."""
    found: list[Limit] = []
    for part in text.split(","):
        count, slash, period = part.strip().partition("/")
        number, unit = period[:-1] or "1", period[-1:]
        plain = count.isascii() and count.isdigit() and number.isascii() and number.isdigit()
        if not slash or not plain or unit not in UNITS_MS or not int(count) or not int(number):
            raise ValueError("must look like 5/10m (five in any ten minutes; s, m, h or d), or 5/10m,20/1d")
        if int(number) * UNITS_MS[unit] > UNITS_MS["d"] * 31:
            raise ValueError("has a period of more than 31 days")
        found.append(Limit(name, int(count), int(number) * UNITS_MS[unit]))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class SentBefore:
    """The relay has accepted a mail for this job."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """A newer job with another code has arrived for the same recipient and purpose."""


@dataclass(frozen=True, slots=True)
class Throttled:
    """The job would exceed a limit; it would not at `allowed_ms` (milliseconds since 1970)."""

    limit: Limit
    allowed_ms: int


@dataclass(frozen=True, slots=True)
class Unknown:
    """No answer before the job's deadline: the tables are unavailable, or another worker has claimed the job."""


Refusal = SentBefore | Superseded | Throttled | Unknown
"""Why a job may not be attempted."""


def answer_name(refusal: Refusal | None) -> str:
    """Return the name under which an admission check is counted; `None` means that the job was admitted."""
    match refusal:
        case None:
            return "admitted"
        case SentBefore():
            return "duplicate"
        case Superseded():
            return "superseded"
        case Throttled(limit):
            return f"throttled_{limit.name}"
        case Unknown():
            return "unknown"
        case _:
            assert_never(refusal)


ANSWERS = (
    "admitted", "duplicate", "superseded", *(f"throttled_{name}" for name in get_args(LimitName)), "unknown", "busy",
)  # fmt: skip
"""Every name under which admission checks are counted; `busy`: another worker has claimed the job."""


class Claim(Protocol):
    """This worker's exclusive right to send a job."""

    def holds(self) -> bool:
        """Return whether the claim is still valid, without a request to Redis."""
        ...

    async def renew(self, deadline_ms: int) -> Refusal | None:
        """Claim the job again after the claim was lost. Returns `None` on success."""
        ...

    def mark_sent(self) -> None:
        """Record that the job was sent, and end the claim."""
        ...

    def release(self) -> None:
        """End the claim of a job that was not sent."""
        ...
