"""The metrics for Prometheus. Counters are updated on events, gauges are computed for each scrape."""

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from otp_stream.core.admission import ANSWERS
from otp_stream.core.decision import ENDINGS, Final
from otp_stream.core.job import Lane
from otp_stream.core.lenient import LENIENT_FIELDS
from otp_stream.core.outcome import Outcome
from otp_stream.core.state import (
    SWITCH_STEPS,
    BrokerState,
    CircuitBreakerState,
    LaneState,
    Phase,
    RelayState,
    TablesState,
    TenantState,
    WorkerState,
)
from otp_stream.telemetry_errors import ERRORS

from .log_pipe import DROPPED

# a code should arrive within a second, and most expire after 15 minutes
_AGE_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_SEND_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# derived from the unions, so that every value has a series
_LANES: tuple[str, ...] = get_args(Lane)
_SETTLED_HOW = (
    *(kind.__name__.lower() for kind in get_args(Final)),
    "moved",
    "renewed",
    "requeued",
    "returned",
    "taken_back",
)
ALL_TENANTS = "tenants"
"""The label of the queues of all tenants together."""
_OUTCOMES = tuple(kind.__name__.lower() for kind in get_args(Outcome))
_CIRCUIT_BREAKER_STATES: tuple[str, ...] = get_args(CircuitBreakerState)
_PHASES: tuple[str, ...] = get_args(Phase)

disable_created_metrics()


class DurationHistogram(Collector):
    """A histogram of durations in seconds, for the event loop's thread only.

    `bounds` are the upper bounds of its buckets, in ascending order.
    """

    def __init__(self, name: str, text: str, bounds: tuple[float, ...]) -> None:
        self._name, self._text, self._bounds = name, text, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum_s = 0.0

    def observe(self, took_s: float) -> None:
        """Add one duration."""
        self._counts[bisect_left(self._bounds, took_s)] += 1
        self._sum_s += took_s

    def collect(self) -> Iterator[Metric]:
        """Yield the cumulative buckets."""
        ends = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        buckets = [(end, float(count)) for end, count in zip(ends, accumulate(self._counts), strict=True)]
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum_s)


class Metrics:
    """All metrics of one worker, in a separate registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.received = self._labelled_counter("received", "Jobs and malformed messages received.", "lane", _LANES)
        self.ended = self._labelled_counter(
            "jobs", "Jobs that ended, by how: each job is counted once.", "outcome", ENDINGS
        )
        self.attempts = self._labelled_counter("attempts", "Attempts to send, by outcome.", "outcome", _OUTCOMES)
        self.retries = self._counter("retries", "Retries scheduled, by the attempt that failed.", "attempt")
        self.parked = self._counter(
            "parked", "Jobs moved to the broker after waiting long behind an open circuit breaker."
        )
        self.unsettled = self._counter("unsettled", "Settlements that failed: the broker redelivers the job.")
        self.clock_ahead = self._counter("clock_ahead", "Jobs whose timestamp was in the future, beyond tolerance.")
        self.lenient = self._labelled_counter(
            "lenient",
            "Optional fields that did not match the documentation and were coerced or ignored.",
            "field",
            LENIENT_FIELDS,
        )
        self.accept_s = self._histogram("time_to_accept", "From the job's timestamp to the relay's 250.", _AGE_S)
        self.arrive_s = self._histogram("time_to_arrive", "From the job's timestamp to its first delivery.", _AGE_S)
        self.send_s = self._histogram("send", "From entering the send queue to the relay's reply.", _SEND_S)
        self.redis_s = self._histogram("redis_call", "From a call of the shared tables to Redis's reply.", _SEND_S)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"otp_{name}", text, labels, registry=self.registry)

    def _labelled_counter(self, name: str, text: str, label: str, values: Iterable[str]) -> Mapping[str, Counter]:
        counter = self._counter(name, text, label)
        return {value: counter.labels(value) for value in values}

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...]) -> DurationHistogram:
        histogram = DurationHistogram(f"otp_{name}_seconds", text, bounds)
        self.registry.register(histogram)
        return histogram

    def expose(self, state: Callable[[], WorkerState]) -> None:
        """Add the metrics that are computed from the worker's state at each scrape."""
        self.registry.register(_StateCollector(state))

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the exposition and its content type, in the format that the `Accept` header requests."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class _StateCollector(Collector):
    def __init__(self, state: Callable[[], WorkerState]) -> None:
        self._state = state

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        state = self._state()
        yield _one_of("phase", "What the worker is doing.", state.phase, *_PHASES)
        yield _total("telemetry_errors", "Exceptions in telemetry. No job is affected.", ERRORS.count)
        yield _total("log_lines_dropped", "Log lines dropped because standard output was not read.", DROPPED.count)
        if state.broker is not None:
            yield from _broker(state.broker)
        if state.relays:
            # those of tenants have names that begin with a tenant's; several tenants may share them
            of_tenants = {relay.name: relay for it in state.tenants for relay in it.relays}
            yield from _relays((*state.relays, *of_tenants.values()))
        if state.tenants:
            yield from _tenants(state.tenants)
        if state.tables is not None:
            yield from _tables(state.tables)


def _broker(broker: BrokerState) -> Iterator[Metric]:
    yield _gauge("broker_connected", "Whether RabbitMQ is connected.", broker.connected)
    yield _gauge("broker_blocked", "Whether RabbitMQ refuses publishes.", broker.blocked)
    lanes = [*broker.lanes, *_all_tenants(broker)]
    yield _by("prefetch_count", "Unacked jobs allowed at this worker.", "lane", {it.lane: it.prefetch for it in lanes})
    yield _by("jobs_unacked", "Unacked jobs at this worker.", "lane", {it.lane: it.unacked for it in lanes})
    yield from _ledger(lanes)
    yield _by("queue_ready", "Jobs ready, as RabbitMQ reports.", "queue", {it.queue: it.depth for it in lanes})
    yield _by("queue_consumers", "Consumers, as RabbitMQ reports.", "queue", {it.queue: it.consumers for it in lanes})
    unverified = sum(it.unverified for it in lanes)
    yield _total("unverified_retries", "Retries without a valid signature, processed as new jobs.", unverified)
    yield _total("events_dropped", "Events that could not be published.", broker.events_dropped)
    if broker.dead is not None:
        yield _gauge("dead_letters", "Dead letters, as RabbitMQ reports.", broker.dead)
    if broker.waiting is not None:
        yield _gauge("retries_waiting", "Jobs in the wait queues, as RabbitMQ reports.", broker.waiting)


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
        ALL_TENANTS,
        sum(it.prefetch for it in lanes),
        sum(it.unacked for it in lanes),
        sum(it.received for it in lanes),
        sum(it.unverified for it in lanes),
        ended,
        sum(it.depth or 0 for it in lanes),
        sum(it.consumers or 0 for it in lanes),
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
    yield _gauge("relay_sends_pending", "Jobs in the send queues.", sum(it.waiting for it in relays))


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
