"""The state of each part of the worker for health, metrics, the monitor and the page. Contains no secret."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from .job import Lane
from .outcome import UnavailableReason

CircuitBreakerState = Literal["closed", "half_open", "open"]
"""Whether jobs may go to the relay: all of them, one as a probe, or none."""

Phase = Literal["http_only", "starting", "consuming", "stopping"]
"""What the worker is doing. `http_only` is WORKER=false; `starting` waits for the broker."""


Fail = Literal["open", "closed"]
"""While Redis is disconnected: send with this worker's own state, or wait."""


@dataclass(frozen=True, slots=True)
class RelayState:
    """The mail relay as this worker sees it; times are milliseconds since 1970."""

    name: str
    """`host:port`."""
    circuit_breaker: CircuitBreakerState = "closed"
    since_ms: int = 0
    """When the circuit breaker took this state."""
    reason: UnavailableReason | None = None
    """Why the circuit breaker is not closed."""
    error: str | None = None
    """The text of the last failure, kept while the circuit breaker is not closed."""
    probe_ms: int | None = None
    """When the next probe goes out."""
    probing: bool = False
    """Whether a probe is on its way."""
    size: int = 0
    """Connections allowed."""
    connections: int = 0
    """Connections open now."""
    sending: int = 0
    """Mails being sent now."""
    waiting: int = 0
    """Jobs in the send queue; those that any relay may take count with the first relay."""
    stalled: bool = False
    """Whether mails are being sent and no reply has come for a while."""
    connects: int = 0
    """Connections opened since start."""
    replies: Mapping[str, int] = field(default_factory=dict[str, int])
    """Final replies by code, such as `{"250": 1032, "451": 3}`."""
    rate: float | None = None
    """Mails per second allowed now; `None` if there is no limit."""
    slowed: bool = False
    """Whether the rate is reduced after a throttle."""


@dataclass(frozen=True, slots=True)
class LaneState:
    """One lane, as this worker and RabbitMQ see it."""

    lane: Lane
    queue: str
    prefetch: int
    """Prefetch count: unacked jobs allowed."""
    unacked: int = 0
    """Unacked jobs now."""
    received: int = 0
    """Deliveries since start."""
    unverified: int = 0
    """Of them, retries whose headers have no valid signature."""
    let_go: Mapping[str, int] = field(default_factory=dict[str, int])
    """Deliveries that are no longer unacked, by how they ended: `received` is their sum plus `unacked`."""
    depth: int | None = None
    """Jobs ready in the queue, as RabbitMQ reports; `None` before the first report."""
    consumers: int | None = None
    """Consumers on the queue, as RabbitMQ reports."""
    empty_ms: int | None = None
    """When RabbitMQ last reported it as empty (milliseconds since 1970); no job in it has waited longer."""
    waiting_ms: int | None = None
    """Since when a job has been waiting in it (milliseconds since 1970); `None` if none is known to wait."""
    waited_ms: int | None = None
    """Age of the last job received here, from its `timestamp`."""
    came_ms: int | None = None
    """When that job was received (milliseconds since 1970)."""
    oldest_unacked_ms: int | None = None
    """When the oldest unacked job was received (milliseconds since 1970)."""


@dataclass(frozen=True, slots=True)
class WaitState:
    """One wait queue."""

    queue: str
    delay_ms: int
    """How long a job stays in it."""
    depth: int | None = None
    """As RabbitMQ reports; `None` before the first report, or if the queue is not available."""
    empty_ms: int | None = None
    """When RabbitMQ last reported it as empty (milliseconds since 1970)."""


@dataclass(frozen=True, slots=True)
class BrokerState:
    """RabbitMQ as this worker sees it; times are milliseconds since 1970."""

    url: str
    """Masked."""
    connected: bool = False
    since_ms: int = 0
    """When `connected` last changed."""
    error: str | None = None
    """What it waits for, or the last error."""
    refused: bool = False
    """Whether it responds, but refuses the login or the virtual host; `error` then continues "RabbitMQ …"."""
    blocked: bool = False
    """Whether the broker refuses publishes because it is low on memory or disk space."""
    looked_ms: int | None = None
    """When the broker last reported depths and consumers."""
    lanes: tuple[LaneState, ...] = ()
    dead: int | None = None
    """Dead letters, as RabbitMQ reports."""
    waits: tuple[WaitState, ...] = ()
    """The wait queues, the shortest first."""
    events_dropped: int = 0
    """Events that could not be published. No job depends on them."""

    @property
    def waiting(self) -> int | None:
        """Jobs in the wait queues, as RabbitMQ reports; `None` before the first report."""
        return sum(it.depth or 0 for it in self.waits) if self.waits else None


@dataclass(frozen=True, slots=True)
class TablesState:
    """Keyed state as this worker sees it; keys are hashed."""

    url: str | None = None
    """Of Redis, masked; `None` if the state is in this worker's memory only."""
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
    """Entries evicted from this worker's bounded memory before their TTL; Redis still has them."""
    answers: Mapping[str, int] = field(default_factory=dict[str, int])
    """Admission checks since start, by result."""
    unshared: int = 0
    """Jobs sent while Redis was disconnected: another worker may have sent them, too."""
    reused: int = 0
    """Jobs whose `jobId` was used before with another recipient or code."""
    pending: int = 0
    """Sent records that are not in Redis yet."""
    throttled: Mapping[str, int] = field(default_factory=dict[str, int])
    """What was over a limit most often, by limit and hashed key."""


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """A worker that shares our state, as it has reported itself."""

    name: str
    """`host:pid`."""
    version: str
    phase: str
    circuit_breaker: str
    """Of its first relay."""
    held: int
    sent_last_minute: int
    silent_ms: int = 0
    """How long ago it last reported."""


@dataclass(frozen=True, slots=True)
class WorkerState:
    """The whole worker at one moment."""

    phase: Phase
    broker: BrokerState | None
    """`None` when nothing is consumed."""
    relays: tuple[RelayState, ...]
    """In the order in which they are used; empty when nothing is sent."""
    tables: TablesState | None = None
    """`None` when nothing is consumed."""


@dataclass(frozen=True, slots=True)
class Step:
    """The totals of a few seconds; times are milliseconds."""

    at_ms: int
    """Start of the step, since 1970."""
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
    """From `timestamp` to this."""
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
    """Without throttled jobs: those are intended."""
    p50_ms: int | None = None
    """Median time from `timestamp` to acceptance, over the last mails of the last minute."""
    p99_ms: int | None = None
