"""Statistics of the worker, for health, metrics, monitor and page. They contain no secret."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .job import Lane


@dataclass(frozen=True, slots=True)
class Step:
    """The totals of a few seconds; times are milliseconds."""

    at_ms: int
    """Start of the step, milliseconds since 1970."""
    sent: int = 0
    retried: int = 0
    dead: int = 0
    p50_ms: int | None = None
    """Median time from `timestamp` to acceptance, of the mails accepted in this step."""
    p95_ms: int | None = None
    p99_ms: int | None = None


class Recent(NamedTuple):
    """How a recent job ended. A tuple, because one is made for each job."""

    at_ms: int
    job_id: str
    lane: Lane
    recipient: str
    """Masked; empty for a malformed message."""
    template: str
    what: str
    """How it ended, or `retry`."""
    attempt: int
    took_ms: int | None = None
    """Time from `timestamp` to the end."""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Stats:
    """Statistics since the start of this worker; times are milliseconds since 1970."""

    started_ms: int
    received: int = 0
    endings: Mapping[str, int] = field(default_factory=dict[str, int])
    """Jobs by how they ended."""
    retried: int = 0
    last_processed_ms: int | None = None
    last_error: str | None = None
    last_error_ms: int | None = None
    sent_last_minute: int = 0
    died_last_minute: int = 0
    """Without throttled jobs, which are intended."""
    p50_ms: int | None = None
    """Median time from `timestamp` to acceptance, of the latest mails of the last minute."""
    p99_ms: int | None = None


@dataclass(frozen=True, slots=True)
class TenantStats:
    """Statistics of one tenant since the start of this worker; times are milliseconds."""

    endings: Mapping[str, int] = field(default_factory=dict[str, int])
    """Jobs by how they ended."""
    accepted: int = 0
    """Mails that a relay accepted."""
    took_ms: int = 0
    """The sum of their times from `timestamp` to acceptance."""
    p50_ms: int | None = None
    """Median of these times, of the latest hundred mails."""
    p95_ms: int | None = None
