"""The state of each part of the worker, for health, metrics, monitor and page. It contains no secret."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .decision import GOOD
from .job import Lane
from .outcome import UnavailableReason
from .retention import SweepState
from .stats import TenantStats
from .tables_state import TablesState

CircuitBreakerState = Literal["closed", "half_open", "open"]
"""Whether jobs may go to the relay: all of them, one as a probe, or none."""

SWITCH_STEPS = ("connect", "mail", "rcpt", "data")
"""The steps at which a mail may leave a slow relay for a faster one."""

Phase = Literal["http_only", "starting", "consuming", "stopping"]
"""What the worker is doing. `http_only` is WORKER=false; `starting` waits for the broker."""


@dataclass(frozen=True, slots=True)
class CredentialsState:
    """What the logins at a relay depend on, and when it ends."""

    certificate_ends_s: float | None = None
    """When the relay's certificate expires (seconds since 1970), at the last connection; `None` without TLS."""
    token_valid_s: float | None = None
    """How long the access token is still valid (seconds); `None` if logins need none."""
    token_failures: int = 0
    """Consecutive failures to renew the access token."""


@dataclass(frozen=True, slots=True)
class RelayState:
    """The mail relay as this worker sees it; times are milliseconds since 1970."""

    name: str
    """`host:port`, or `group/host:port`."""
    circuit_breaker: CircuitBreakerState = "closed"
    since_ms: int = 0
    """When the circuit breaker took this state."""
    reason: UnavailableReason | None = None
    """Why the circuit breaker is not closed."""
    error: str | None = None
    """The text of the last failure, kept while the circuit breaker is not closed."""
    probe_ms: int | None = None
    """When the next probe is due."""
    probing: bool = False
    """Whether a probe is in flight."""
    size: int = 0
    """Connections allowed."""
    connections: int = 0
    """Connections open now."""
    sending: int = 0
    """Mails being sent now."""
    saturated: bool = False
    """Whether all connections for ordinary jobs are in use."""
    waiting: int = 0
    """Jobs in the send queue. Jobs for any relay count for the first one."""
    stalled: bool = False
    """Whether mails are being sent and the relay has not replied for a while."""
    connects: int = 0
    """Connections opened since start."""
    replies: Mapping[str, int] = field(default_factory=dict[str, int])
    """Final replies by code, such as `{"250": 1032, "451": 3}`."""
    rate: float | None = None
    """Mails per second allowed now; `None` if there is no limit."""
    slowed: bool = False
    """Whether the rate is reduced after a throttle."""
    slow: bool = False
    """Whether many of its last mails were slow, compared with what is usual there."""
    slow_sends: int = 0
    """How many of its last mails were slow."""
    last_sends: int = 0
    """How many mails that is of, at most 50; 0 if there is no other relay."""
    first_tries: float = 1.0
    """The share of first tries that it gets. A slow relay gets all of them while no other one is faster."""
    slow_domains: tuple[str, ...] = ()
    """Recipients' domains whose mail is slow there, while other mail is not."""
    switches: Mapping[str, int] = field(default_factory=dict[str, int])
    """Mails that left it for a faster relay, by the step that was slow (`SWITCH_STEPS`)."""
    suspended: Mapping[str, str] = field(default_factory=dict[str, str])
    """Why it refuses or limits the sender of a tenant, for each tenant suspended there; its other mail is sent."""
    credentials: CredentialsState = CredentialsState()


@dataclass(frozen=True, slots=True)
class LaneState:
    """One lane, as this worker and RabbitMQ report it."""

    lane: Lane
    queue: str
    prefetch: int
    """Prefetch count: unacked jobs allowed."""
    unacked: int = 0
    """Unacked jobs now."""
    received: int = 0
    """Deliveries since start."""
    unverified: int = 0
    """Of them, retries without a valid signature."""
    ended: Mapping[str, int] = field(default_factory=dict[str, int])
    """Deliveries that are no longer unacked, by how they ended. With `unacked`, they add up to `received`."""
    depth: int | None = None
    """Jobs ready in the queue, as RabbitMQ reports; `None` before the first report."""
    consumers: int | None = None
    """Consumers on the queue, as RabbitMQ reports."""
    empty_ms: int | None = None
    """When RabbitMQ last reported the queue as empty (milliseconds since 1970): no job in it has waited longer."""
    waiting_ms: int | None = None
    """Since when a job has been waiting in the queue (milliseconds since 1970); `None` if none is known to wait."""
    waited_ms: int | None = None
    """Age of the last received job, from its `timestamp`."""
    received_ms: int | None = None
    """When that job was received (milliseconds since 1970)."""
    oldest_unacked_ms: int | None = None
    """When the oldest unacked job was received (milliseconds since 1970)."""
    template: str | None = None
    """The pattern of the queue's name, if there are many such queues."""


@dataclass(frozen=True, slots=True)
class TenantLaneState:
    """The queue of one tenant, as this worker and RabbitMQ report it."""

    lane: LaneState
    moved: int = 0
    """Jobs that this worker has moved to the queue since start."""
    consuming: bool = False
    """Whether this worker consumes from it."""
    removed: bool = False
    """Whether the tenant is no longer configured. Its queue is consumed while it has jobs."""


@dataclass(frozen=True, slots=True)
class WaitState:
    """One wait queue."""

    queue: str
    delay_ms: int
    """How long a job stays in it."""
    depth: int | None = None
    """Jobs in it, as RabbitMQ reports; `None` before the first report, or if the queue is not available."""
    empty_ms: int | None = None
    """When RabbitMQ last reported it as empty (milliseconds since 1970)."""


@dataclass(frozen=True, slots=True)
class BrokerState:
    """RabbitMQ as seen by this worker; times are milliseconds since 1970."""

    url: str
    """Masked."""
    connected: bool = False
    since_ms: int = 0
    """When `connected` last changed."""
    error: str | None = None
    """What the worker waits for, or the last error."""
    refused: bool = False
    """Whether RabbitMQ refuses the login or the virtual host; `error` then continues the sentence "RabbitMQ …"."""
    blocked: bool = False
    """Whether the broker refuses publishes because it is low on memory or disk space."""
    reported_ms: int | None = None
    """When the broker last reported depths and consumers."""
    lanes: tuple[LaneState, ...] = ()
    tenants: Mapping[str, TenantLaneState] = field(default_factory=dict[str, TenantLaneState])
    """The tenants' queues, by tenant; empty without tenants. The default tenant's name is empty."""
    kept: Mapping[str, int] = field(default_factory=dict[str, int])
    """Unacked jobs in the lanes, by tenant. Those in the tenants' own queues are not included."""
    dead: int | None = None
    """Dead letters, as RabbitMQ reports."""
    waits: tuple[WaitState, ...] = ()
    """The wait queues, the shortest first."""
    events_dropped: int = 0
    """Events that could not be published. No job waits for them."""

    @property
    def unacked(self) -> int:
        """Unacked jobs at this worker, in all lanes."""
        return sum(it.unacked for it in self.all_lanes)

    @property
    def queued(self) -> int:
        """Jobs ready in the queues of all lanes, as RabbitMQ reports."""
        return sum(it.depth or 0 for it in self.all_lanes)

    @property
    def all_lanes(self) -> tuple[LaneState, ...]:
        """The lanes, and those of the tenants."""
        return (*self.lanes, *(it.lane for it in self.tenants.values()))

    @property
    def waiting(self) -> int | None:
        """Jobs in the wait queues, as RabbitMQ reports; `None` before the first report."""
        return sum(it.depth or 0 for it in self.waits) if self.waits else None


@dataclass(frozen=True, slots=True)
class TenantState:
    """One tenant as this worker sees it."""

    name: str
    """As in `TENANTS_FILE`; `default` for jobs without a tenant."""
    stats: TenantStats = field(default_factory=TenantStats)
    relays: tuple[RelayState, ...] = ()
    """Its relays, if they are not those of the default tenant and have been used."""
    refused: str | None = None
    """Why a relay refuses its sender, while other tenants' mail is accepted there."""
    unacked: int = 0
    """Unacked jobs in this worker."""
    moved: int = 0
    """Jobs moved to its own queue since start, because it had too many in this worker."""
    depth: int | None = None
    """Jobs ready in its own queue, as RabbitMQ reported last."""

    @property
    def failed(self) -> int:
        """Dead letters since start."""
        return sum(count for how, count in self.stats.endings.items() if how not in GOOD)

    @property
    def trouble(self) -> str | None:
        """Why its mail waits, or `None`."""
        if self.refused is not None:
            return f"the relay refuses its sender: {self.refused}"
        if self.relays and all(it.circuit_breaker != "closed" for it in self.relays):
            return "; ".join(f"{it.name}: {it.reason}: {it.error}" for it in self.relays)
        if self.relays and all(it.stalled for it in self.relays):
            return f"{self.relays[0].name} does not answer"
        return None


@dataclass(frozen=True, slots=True)
class WorkerState:
    """The whole worker at one moment."""

    phase: Phase
    broker: BrokerState | None
    """`None` when nothing is consumed."""
    relays: tuple[RelayState, ...]
    """In order of preference; empty when nothing is sent. With tenants, those of the default tenant."""
    tables: TablesState | None = None
    """`None` when nothing is consumed."""
    tenants: tuple[TenantState, ...] = ()
    """The tenants that have had jobs; empty without `TENANTS_FILE`."""
    sweeps: SweepState | None = None
    """`None` when nothing is consumed, and when dead letters are kept for ever with their codes."""
