"""What the parts report of themselves: facts for health, metrics, the monitor and the page. Never a secret."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from .job import Lane
from .outcome import Trouble

Gate = Literal["open", "half_open", "closed"]
"""Whether jobs may go to the relay: all of them, one as a probe, or none."""

Phase = Literal["http_only", "starting", "consuming", "stopping"]
"""What the worker is doing. `http_only` is WORKER=false; `starting` waits for the broker."""


Fail = Literal["open", "closed"]
"""While Redis is away: send on what this worker alone knows, or wait."""


@dataclass(frozen=True, slots=True)
class RelayState:
    """The mail relay as this worker sees it; times are milliseconds since 1970."""

    name: str
    """`host:port`."""
    gate: Gate = "open"
    since_ms: int = 0
    """When the gate took this state."""
    trouble: Trouble | None = None
    """Why the gate is not open."""
    error: str | None = None
    """The last trouble's text, kept while the gate is not open."""
    probe_ms: int | None = None
    """When the next probe goes out."""
    probing: bool = False
    """Whether a probe is on its way."""
    size: int = 0
    """Connections allowed."""
    connections: int = 0
    """Connections open now."""
    sending: int = 0
    """Mails on the wire now."""
    waiting: int = 0
    """Jobs that wait for a turn; those that wait for whichever relay takes them are told with the first."""
    stalled: bool = False
    """Whether it has work and has given no answer for a while."""
    connects: int = 0
    """Connections opened since start."""
    replies: Mapping[str, int] = field(default_factory=dict[str, int])
    """Final replies by code, such as `{"250": 1032, "451": 3}`."""
    rate: float | None = None
    """Mails per second that may go there now; `None` where nothing limits them."""
    slowed: bool = False
    """Whether that is less than usual, after a throttle."""


@dataclass(frozen=True, slots=True)
class LaneState:
    """One lane as seen from both sides."""

    lane: Lane
    queue: str
    window: int
    """Jobs that this worker may hold unsettled."""
    held: int = 0
    """Jobs that it holds unsettled now."""
    received: int = 0
    """Deliveries since start."""
    unverified: int = 0
    """Of them, retries whose headers no key of ours signed."""
    let_go: Mapping[str, int] = field(default_factory=dict[str, int])
    """Deliveries that are no longer held, by how they were settled: `received` is their sum and what is held."""
    depth: int | None = None
    """Jobs ready in the queue, by the broker's word; `None` when it was not asked yet."""
    consumers: int | None = None
    """Consumers on the queue, by the broker's word."""
    empty_ms: int | None = None
    """When the broker last said that it was empty (milliseconds since 1970); nothing in it waits longer."""
    waiting_ms: int | None = None
    """Since when something waits in it (milliseconds since 1970); `None` where nothing is known to wait."""
    waited_ms: int | None = None
    """How old the last job was that came in here, by its `timestamp`."""
    came_ms: int | None = None
    """When that one came (milliseconds since 1970)."""
    oldest_held_ms: int | None = None
    """When the oldest of the jobs in hand came in (milliseconds since 1970)."""


@dataclass(frozen=True, slots=True)
class WaitState:
    """One wait queue."""

    queue: str
    delay_ms: int
    """How long a job stays in it."""
    depth: int | None = None
    """By the broker's word; `None` when it was not asked yet, or the queue is away."""
    empty_ms: int | None = None
    """When the broker last said that it was empty (milliseconds since 1970)."""


@dataclass(frozen=True, slots=True)
class BrokerState:
    """RabbitMQ as this worker sees it; times are milliseconds since 1970."""

    url: str
    """Masked."""
    connected: bool = False
    since_ms: int = 0
    """When `connected` took its value."""
    error: str | None = None
    """What it waits for, or the last trouble."""
    refused: bool = False
    """Whether it answers and refuses the login or the virtual host; `error` then continues "RabbitMQ …"."""
    blocked: bool = False
    """Whether the broker refuses publishes for want of memory or disk."""
    looked_ms: int | None = None
    """When the broker was last asked for depths and consumers, with an answer."""
    lanes: tuple[LaneState, ...] = ()
    dead: int | None = None
    """Dead letters, by the broker's word."""
    waits: tuple[WaitState, ...] = ()
    """The wait queues, the shortest first."""
    events_dropped: int = 0
    """Events that could not be published; no job depends on them."""

    @property
    def waiting(self) -> int | None:
        """Jobs in the wait queues, by the broker's word; `None` when it was not asked yet."""
        return sum(it.depth or 0 for it in self.waits) if self.waits else None


@dataclass(frozen=True, slots=True)
class TablesState:
    """Keyed state as this worker sees it; keys are hashed."""

    url: str | None = None
    """Of Redis, masked; `None` where state is in this worker's memory alone."""
    connected: bool | None = None
    """Whether Redis answers."""
    error: str | None = None
    since_ms: int = 0
    """When `connected` took its value (milliseconds since 1970)."""
    fail: Fail = "open"
    """What happens while Redis is away: codes go out, or jobs wait."""
    workers: int | None = None
    """Workers that share the state, by Redis's word."""
    claims: int = 0
    """Jobs that this worker is at."""
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])
    """Entries in this worker's memory, by table."""
    evicted: int = 0
    """Entries that this worker's memory dropped before their time, because it is bounded; Redis still has them."""
    asked: Mapping[str, int] = field(default_factory=dict[str, int])
    """Questions since start, by what was answered."""
    unshared: int = 0
    """Jobs that went on while Redis was away: another worker may have sent them, too."""
    reused: int = 0
    """Jobs whose `jobId` was used before with another recipient or code."""
    owed: int = 0
    """Marks of sent jobs that Redis does not have yet."""
    throttled: Mapping[str, int] = field(default_factory=dict[str, int])
    """What was over a limit most often, by limit and hashed key."""


@dataclass(frozen=True, slots=True)
class WorkerSeen:
    """A worker that shares our state, as it told of itself."""

    name: str
    """`host:pid`."""
    version: str
    phase: str
    gate: str
    """Of its first relay."""
    held: int
    sent_last_minute: int
    silent_ms: int = 0
    """How long ago it was last heard of."""


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
    """What a worker did within a few seconds; times are milliseconds."""

    at_ms: int
    """When it began, since 1970."""
    sent: int = 0
    retried: int = 0
    dead: int = 0
    p50_ms: int | None = None
    """Of the mails accepted in it, half took no longer, from `timestamp` to acceptance."""
    p95_ms: int | None = None
    p99_ms: int | None = None


class Recent(NamedTuple):
    """What became of one job lately; a tuple, for one is made for each job."""

    at_ms: int
    job_id: str
    lane: Lane
    recipient: str
    """Masked; empty where the message was no job."""
    template: str
    what: str
    """How it ended, or `retry`."""
    attempt: int
    took_ms: int | None = None
    """From `timestamp` to this."""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Stats:
    """What this worker has done since it started; times are milliseconds since 1970."""

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
    """Without those that were over a limit: that is what limits are for."""
    p50_ms: int | None = None
    """Median time from `timestamp` to acceptance, over the last mails of the last minute."""
    p99_ms: int | None = None
