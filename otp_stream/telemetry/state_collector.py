"""The metrics that are computed from the worker's state at each scrape."""

import platform
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from otp_stream import __version__
from otp_stream.core.admission import ANSWERS
from otp_stream.core.decision import Final
from otp_stream.core.retention import SweepState
from otp_stream.core.sendable_jobs import sendable_jobs
from otp_stream.core.state import (
    SWITCH_STEPS,
    BrokerState,
    CircuitBreakerState,
    LaneState,
    Phase,
    RelayState,
    TenantState,
    WorkerState,
)
from otp_stream.core.tables_state import TablesState
from otp_stream.telemetry_errors import ERRORS

from .log_pipe import DROPPED
from .messaging_metrics import MessagingMetrics

# derived from the unions, so that every value has a series
_SETTLED_HOW = (
    *(kind.__name__.lower() for kind in get_args(Final)),
    "moved",
    "renewed",
    "requeued",
    "returned",
    "taken_back",
)
_CIRCUIT_BREAKER_STATES: tuple[str, ...] = get_args(CircuitBreakerState)
_PHASES: tuple[str, ...] = get_args(Phase)
_VERSIONS = {"version": __version__, "python": platform.python_version(), "faststream": version("faststream")}
_ALL_TENANTS = "tenants"
"""The label of the queues of all tenants together."""


class StateCollector(Collector):
    """Computes metrics from the worker's state at each scrape."""

    def __init__(
        self, state: Callable[[], WorkerState], now_ms: Callable[[], int], messaging: MessagingMetrics
    ) -> None:
        self._state = state
        self._now_ms = now_ms
        self._messaging = messaging

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that the state is not read at registration."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the current state."""
        state = self._state()
        yield _one_of("phase", "What the worker is doing.", state.phase, *_PHASES)
        yield _total("telemetry_errors", "Exceptions in telemetry. No job is affected.", ERRORS.count)
        yield _total("log_lines_dropped", "Log lines dropped because standard output was not read.", DROPPED.count)
        sendable = sendable_jobs(state, self._now_ms())
        if sendable is not None:
            yield _gauge("jobs_sendable", "Jobs ready in RabbitMQ that another worker could send now.", sendable)
        yield _build_info()
        if state.broker is not None:
            lanes = [*state.broker.lanes, *_all_tenants(state.broker)]
            yield self._messaging.consumed(lanes)
            yield from _broker(state.broker, lanes, self._now_ms())
        if state.relays:
            # those of tenants have names that begin with a tenant's; several tenants may share them
            of_tenants = {relay.name: relay for it in state.tenants for relay in it.relays}
            yield from _relays((*state.relays, *of_tenants.values()))
        if state.tenants:
            yield from _tenants(state.tenants)
        if state.tables is not None:
            yield from _tables(state.tables)
        if state.sweeps is not None:
            yield from _sweeps(state.sweeps)


def _build_info() -> Metric:
    family = GaugeMetricFamily("otp_build_info", "The versions that run; always 1.", labels=list(_VERSIONS))
    family.add_metric([*_VERSIONS.values()], 1)
    return family


def _broker(broker: BrokerState, lanes: Sequence[LaneState], now_ms: int) -> Iterator[Metric]:
    yield _gauge("broker_connected", "Whether RabbitMQ is connected.", broker.connected)
    yield _gauge("broker_blocked", "Whether RabbitMQ refuses publishes.", broker.blocked)
    yield _by("prefetch_count", "Unacked jobs allowed at this worker.", "lane", {it.lane: it.prefetch for it in lanes})
    yield _by("jobs_unacked", "Unacked jobs at this worker.", "lane", {it.lane: it.unacked for it in lanes})
    yield from _ledger(lanes)
    yield _by("queue_ready", "Jobs ready, as RabbitMQ reports.", "queue", {it.queue: it.depth for it in lanes})
    yield _by("queue_consumers", "Consumers, as RabbitMQ reports.", "queue", {it.queue: it.consumers for it in lanes})
    yield from _ages(broker, now_ms)
    unverified = sum(it.unverified for it in lanes)
    yield _total("unverified_retries", "Retries without a valid signature, processed as new jobs.", unverified)
    yield _total("events_dropped", "Events that could not be published.", broker.events_dropped)
    if broker.dead is not None:
        yield _gauge("dead_letters", "Dead letters, as RabbitMQ reports.", broker.dead)
    if broker.waiting is not None:
        yield _gauge("retries_waiting", "Jobs in the wait queues, as RabbitMQ reports.", broker.waiting)


def _ages(broker: BrokerState, now_ms: int) -> Iterator[Metric]:
    """Yield how long jobs have been waiting, 0 if none is."""

    def age_s(since_ms: int | None) -> float:
        return max(now_ms - since_ms, 0) / 1000 if since_ms is not None else 0.0

    waiting = {it.queue: age_s(it.waiting_ms) for it in broker.lanes}
    unacked = {it.lane: age_s(it.oldest_unacked_ms) for it in broker.lanes}
    yield _by("queue_oldest_seconds", "How long a job is known to wait in the queue.", "queue", waiting)
    yield _by("jobs_unacked_oldest_seconds", "Since the oldest unacked job was received.", "lane", unacked)


def _all_tenants(broker: BrokerState) -> Iterator[LaneState]:
    """Yield one lane with the totals of all tenants, because a series for each tenant could be thousands."""
    lanes = [it.lane for it in broker.tenants.values()]
    if not lanes:
        return
    ended: Counts[str] = Counts()
    for lane in lanes:
        ended.update(lane.ended)
    yield LaneState(
        "tenant",
        _ALL_TENANTS,
        sum(it.prefetch for it in lanes),
        sum(it.unacked for it in lanes),
        sum(it.received for it in lanes),
        sum(it.unverified for it in lanes),
        ended,
        sum(it.depth or 0 for it in lanes),
        sum(it.consumers or 0 for it in lanes),
        template=lanes[0].template,
    )


def _ledger(lanes: Iterable[LaneState]) -> Iterator[Metric]:
    """Yield the balance of deliveries: received = settled + unacked."""
    received = CounterMetricFamily("otp_ledger_received", "Deliveries, by lane.", labels=["lane"])
    settled = CounterMetricFamily(
        "otp_ledger_settled", "Deliveries that are no longer unacked, by how they ended.", labels=["lane", "how"]
    )
    for lane in lanes:
        received.add_metric([lane.lane], lane.received)
        for how in _SETTLED_HOW:
            settled.add_metric([lane.lane, how], lane.ended.get(how, 0))
    yield received
    yield settled
    yield _by("ledger_unacked", "Unacked deliveries, by lane.", "lane", {it.lane: it.unacked for it in lanes})


def _relays(relays: tuple[RelayState, ...]) -> Iterator[Metric]:
    breakers = GaugeMetricFamily(
        "otp_circuit_breaker_state", "The circuit breaker of a relay. 1 for its state.", labels=["relay", "state"]
    )
    connects = CounterMetricFamily("otp_relay_connects", "Connections opened.", labels=["relay"])
    replies = CounterMetricFamily("otp_relay_replies", "Final replies, by code.", labels=["relay", "code"])
    switches = CounterMetricFamily(
        "otp_relay_switches", "Mails that left a slow relay for a faster one, by slow step.", labels=["relay", "step"]
    )
    for relay in relays:
        for state in _CIRCUIT_BREAKER_STATES:
            breakers.add_metric([relay.name, state], relay.circuit_breaker == state)
        connects.add_metric([relay.name], relay.connects)
        for code, count in relay.replies.items():
            replies.add_metric([relay.name, code], count)
        for step in SWITCH_STEPS:
            switches.add_metric([relay.name, step], relay.switches.get(step, 0))
    yield breakers
    yield connects
    yield replies
    yield switches
    tries = {it.name: it.first_tries for it in relays}
    yield _by("relay_first_tries_ratio", "Share of first tries. Below 1, the relay is slow.", "relay", tries)
    yield _by("relay_connections", "Open connections.", "relay", {it.name: it.connections for it in relays})
    yield _by("relay_connections_limit", "Connections allowed.", "relay", {it.name: it.size for it in relays})
    yield _by("relay_sends_in_flight", "Mails being sent.", "relay", {it.name: it.sending for it in relays})
    yield _by("relay_rate_limit", "Mails per second allowed now.", "relay", {it.name: it.rate for it in relays})
    yield from _credentials(relays)
    yield _gauge("relay_sends_pending", "Jobs in the send queues.", sum(it.waiting for it in relays))


def _credentials(relays: tuple[RelayState, ...]) -> Iterator[Metric]:
    found = {it.name: it.credentials for it in relays}
    ends = {name: it.certificate_ends_s for name, it in found.items()}
    yield _by("relay_certificate_expiry_timestamp_seconds", "When the relay's certificate expires.", "relay", ends)
    tokens = {name: it for name, it in found.items() if it.token_valid_s is not None}
    valid = {name: it.token_valid_s for name, it in tokens.items()}
    yield _by("relay_token_valid_seconds", "How long the access token is still valid.", "relay", valid)
    failures = {name: it.token_failures for name, it in tokens.items()}
    yield _by("relay_token_failures", "Consecutive failures to renew the access token.", "relay", failures)


def _tenants(tenants: tuple[TenantState, ...]) -> Iterator[Metric]:
    ended = CounterMetricFamily("otp_tenant_jobs", "Jobs of a tenant that ended, by how.", labels=["tenant", "outcome"])
    took = SummaryMetricFamily(
        "otp_tenant_time_to_accept_seconds", "From a tenant's timestamps to the relay's 250.", labels=["tenant"]
    )
    for it in tenants:
        for ending, count in it.stats.endings.items():
            ended.add_metric([it.name, ending], count)
        took.add_metric([it.name], it.stats.accepted, it.stats.took_ms / 1000)
    yield ended
    yield took
    yield _by("tenant_jobs_unacked", "Unacked jobs of a tenant.", "tenant", {it.name: it.unacked for it in tenants})
    yield _by("tenant_queue_ready", "Jobs in a tenant's own queue.", "tenant", {it.name: it.depth for it in tenants})
    waits = {it.name: it.trouble is not None for it in tenants}
    yield _by("tenant_mail_waits", "Whether a tenant's relay takes none of its mail.", "tenant", waits)


def _tables(tables: TablesState) -> Iterator[Metric]:
    if tables.connected is not None:
        yield _gauge("redis_connected", "Whether Redis is connected: state is shared.", tables.connected)
        yield _gauge("sent_records_pending", "Sent records that are not in Redis yet.", tables.pending)
        if tables.clock.ahead_ms is not None:
            text = "By how much this machine's clock is ahead of that of Redis."
            yield _gauge("redis_clock_difference_seconds", text, tables.clock.ahead_ms / 1000)
        if tables.workers is not None:
            yield _gauge("tables_workers", "Workers that share the state, as Redis reports.", tables.workers)
    admissions = CounterMetricFamily("otp_admissions", "Admission checks of jobs, by result.", labels=["result"])
    for result in ANSWERS:
        admissions.add_metric([result], tables.answers.get(result, 0))
    yield admissions
    for name, text, count in (
        ("possible_duplicates", "Jobs sent without shared state: another worker may have sent them.", tables.unshared),
        ("job_ids_reused", "Jobs whose jobId was used before with another recipient or code.", tables.reused),
        ("tables_evicted", "Entries evicted from this worker's memory before their TTL.", tables.evicted),
    ):
        yield _total(name, text, count)
    yield _gauge("claims", "Jobs claimed by this worker.", tables.claims)
    yield _by("table_entries", "Entries in this worker's memory.", "table", dict(tables.sizes))


def _sweeps(sweeps: SweepState) -> Iterator[Metric]:
    results = CounterMetricFamily("otp_dead_letter_sweeps", "Sweeps of the dead letters, by result.", labels=["result"])
    for result, count in (
        ("complete", sweeps.complete), ("interrupted", sweeps.interrupted), ("failed", sweeps.failed),
    ):  # fmt: skip
        results.add_metric([result], count)
    yield results
    text = "Dead letters deleted by sweeps, by reason."
    deleted = CounterMetricFamily("otp_dead_letters_deleted", text, labels=["reason"])
    deleted.add_metric(["age"], sweeps.too_old)
    deleted.add_metric(["number"], sweeps.too_many)
    yield deleted
    yield _total("dead_letter_codes_erased", "Expired codes erased from dead letters by sweeps.", sweeps.erased)
    if sweeps.last_ms is not None:
        yield _gauge(
            "dead_letter_sweep_timestamp_seconds", "When the last complete sweep ended.", sweeps.last_ms / 1000
        )


def _total(name: str, text: str, count: float) -> Metric:
    family = CounterMetricFamily(f"otp_{name}", text)
    family.add_metric([], count)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(f"otp_{name}", text)
    family.add_metric([], value)
    return family


def _by(name: str, text: str, label: str, values: Mapping[str, float | None]) -> Metric:
    family = GaugeMetricFamily(f"otp_{name}", text, labels=[label])
    for key, value in values.items():
        if value is not None:
            family.add_metric([key], value)
    return family


def _one_of(name: str, text: str, current: str, *states: str) -> Metric:
    family = GaugeMetricFamily(f"otp_{name}", f"{text} 1 for the current state.", labels=["state"])
    for state in states:
        family.add_metric([state], state == current)
    return family
