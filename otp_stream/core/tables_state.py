"""The state of the tables, of the clock and of the workers that share them. It contains no secret."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Fail = Literal["open", "closed"]
"""What to do while Redis is disconnected: send with this worker's own state, or wait."""


@dataclass(frozen=True, slots=True)
class ClockState:
    """This machine's clock, compared with that of Redis."""

    ahead_ms: int | None = None
    """How far it is ahead; `None` if that is unknown."""
    corrected: bool = False
    """Whether the time of Redis is used instead, because the clocks of most other hosts agree with it."""


@dataclass(frozen=True, slots=True)
class TablesState:
    """The tables as seen by this worker. Keys are hashed."""

    url: str | None = None
    """The URL of Redis, masked; `None` if the state is in this worker's memory only."""
    connected: bool | None = None
    """Whether Redis is connected; `None` without Redis."""
    error: str | None = None
    since_ms: int = 0
    """When `connected` last changed (milliseconds since 1970)."""
    fail: Fail = "open"
    """What happens while Redis is disconnected: codes are sent, or jobs wait."""
    workers: int | None = None
    """Workers that share the state, as Redis reports."""
    claims: int = 0
    """Jobs that this worker has claimed."""
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])
    """Entries in this worker's memory, by table."""
    evicted: int = 0
    """Entries that this worker's limited memory evicted before their TTL. Redis still has them."""
    answers: Mapping[str, int] = field(default_factory=dict[str, int])
    """Admission checks since start, by result."""
    unshared: int = 0
    """Jobs sent while Redis was disconnected, which another worker may have sent as well."""
    reused: int = 0
    """Jobs whose `jobId` was used before with another recipient or code."""
    pending: int = 0
    """Sent records that are not in Redis yet."""
    clock: ClockState = ClockState()
    throttled: Mapping[str, int] = field(default_factory=dict[str, int])
    """The limits that were exceeded most often, by limit and hashed key."""


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """The last report of a worker that shares the tables."""

    name: str
    """`host:pid`."""
    version: str
    phase: str
    circuit_breaker: str
    """That of its first relay."""
    held: int
    sent_last_minute: int
    silent_ms: int = 0
    """Time since the report."""
    clock_ahead_ms: int | None = None
    """How far its machine's clock is ahead of that of Redis."""
