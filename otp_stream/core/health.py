"""Health checks: the only place that decides whether codes are going out, for /health, /readyz, monitor and page."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .job import CLOCK_TOLERANCE_MS
from .state import BrokerState, LaneState, RelayState, TenantState, WorkerState
from .stats import Stats
from .tables_state import ClockState, TablesState
from .times import in_words

STALE_MS = 15_000
"""Maximum age of the broker's figures. If they are older, the broker counts as unresponsive."""
_MIN_DEAD = 5
"""Fewer dead letters a minute are ignored, whatever their share."""
_DEAD_SHARE = 10
"""One job in this many may be dead-lettered: people mistype their addresses."""
_NAMED_DOMAINS = 3
_NAMED_TENANTS = 3
LATE_MS = 10_000
"""A code that waits longer than this is late, whatever the reason. It should arrive within a second."""

Status = Literal["healthy", "degraded", "unhealthy"]


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check; with `degraded`, codes are still sent."""

    name: Literal["phase", "broker", "relay", "tenants", "tables", "clock", "endings", "pace"]
    status: Status
    text: str


def checks(state: WorkerState, stats: Stats, now_ms: int) -> tuple[Check, ...]:
    """Run every check that applies."""
    return tuple(_checks(state, stats, now_ms))


def worst(found: tuple[Check, ...]) -> Status:
    """Return the worst status, `healthy` if there is no check."""
    statuses = {check.status for check in found}
    return "unhealthy" if "unhealthy" in statuses else "degraded" if "degraded" in statuses else "healthy"


def slow_text(relay: RelayState) -> str | None:
    """Return why a relay is left for a faster one, and what it still gets, or `None` if it is not slow."""
    if relay.slow:
        percent = round(100 * relay.slow_sends / max(relay.last_sends, 1))
        tries = "no other relay is faster"
        if relay.first_tries < 1:
            tries = f"it gets {100 * relay.first_tries:.2g} % of first tries"
        return f"{percent} % of the last {relay.last_sends} mails were slow; {tries}"
    if relay.slow_domains:
        others = len(relay.slow_domains) - _NAMED_DOMAINS
        named = ", ".join(relay.slow_domains[:_NAMED_DOMAINS]) + (f" and {others} more" if others > 0 else "")
        return f"mail to {named} is slow; a faster relay gets most of it first"
    return None


def unshared_state(state: WorkerState) -> str | None:
    """Return the consequences and the fix if several workers consume the jobs without shared state, else `None`."""
    if state.broker is None or state.tables is None or state.tables.url is not None:
        return None
    jobs = next((lane for lane in state.broker.lanes if lane.lane == "jobs"), None)
    if jobs is None or (jobs.consumers or 0) < 2:
        return None
    return (
        f"{jobs.consumers} consumers on {jobs.queue} and no REDIS_URL: each worker knows only its own jobs. "
        "A job that is redelivered to another worker may be sent twice; limits and newest codes count per worker. "
        "Set REDIS_URL to the same value for all workers."
    )


def _checks(state: WorkerState, stats: Stats, now_ms: int) -> Iterator[Check]:
    yield _phase(state)
    if state.broker is not None:
        yield _broker(state.broker, now_ms)
    if state.relays:
        yield _relay(state.relays)
    if state.tenants:
        yield _tenants(state.tenants)
    if state.tables is not None and state.tables.connected is not None:
        yield _tables(state.tables)
        yield from _clock(state.tables.clock)
    if state.phase == "consuming":
        yield _endings(stats)
    # while all circuit breakers are open, codes are late as well, but the relay's check reports that
    flows = any(relay.circuit_breaker == "closed" for relay in state.relays)
    if state.broker is not None and state.broker.connected and state.phase == "consuming" and flows:
        yield _pace(state.broker.lanes, now_ms)


def _phase(state: WorkerState) -> Check:
    match state.phase:
        case "http_only":
            return Check("phase", "healthy", "WORKER=false: serving HTTP only, consuming nothing")
        case "starting":
            return Check("phase", "unhealthy", "starting: waiting for RabbitMQ")
        case "stopping":
            return Check("phase", "unhealthy", "stopping")
        case "consuming":
            away = state.broker is not None and not state.broker.connected
            return Check("phase", "healthy", "consuming resumes when RabbitMQ is back" if away else "consuming")


def _broker(broker: BrokerState, now_ms: int) -> Check:
    if not broker.connected and broker.refused:
        return Check("broker", "unhealthy", f"{broker.url} {broker.error}")
    if not broker.connected:
        return Check("broker", "unhealthy", f"{broker.url} is away: {broker.error or 'connecting'}")
    if broker.reported_ms is None or now_ms - broker.reported_ms > STALE_MS:
        return Check("broker", "unhealthy", f"{broker.url} does not answer: {broker.error or 'not asked yet'}")
    without = [lane.queue for lane in broker.lanes if lane.depth is not None and not lane.consumers]
    if without:
        return Check("broker", "unhealthy", f"the broker sees no consumer on {', '.join(without)}")
    away = {lane.lane: lane.queue for lane in broker.lanes if lane.depth is None}
    if away:
        # its node is down, or the queue is about to be declared again; no other worker can consume it either
        status = "unhealthy" if "jobs" in away else "degraded"
        return Check("broker", status, f"not available at the broker: {', '.join(away.values())}")
    if broker.blocked:
        return Check("broker", "degraded", f"{broker.url} refuses publishes: it is low on memory or disk space")
    if broker.error:
        return Check("broker", "degraded", f"{broker.url}: {broker.error}")
    return Check("broker", "healthy", f"{broker.url} delivers to us")


def _relay(relays: tuple[RelayState, ...]) -> Check:
    text = "; ".join(map(_breaker, relays))
    breakers = [relay.circuit_breaker for relay in relays]
    if "closed" in breakers:
        # a fallback that was never used is closed as well, so the first relay decides
        first = relays[0]
        healthy = breakers[0] == "closed" and not (first.stalled or first.slow or first.slow_domains)
        return Check("relay", "healthy" if healthy else "degraded", text)
    return Check("relay", "degraded" if "half_open" in breakers else "unhealthy", text)


def _tenants(tenants: tuple[TenantState, ...]) -> Check:
    waiting = [f"{it.name} ({it.trouble})" for it in tenants if it.trouble]
    if not waiting:
        return Check("tenants", "healthy", "no tenant waits for its own relay, and no relay refuses a sender")
    others = len(waiting) - _NAMED_TENANTS
    named = "; ".join(waiting[:_NAMED_TENANTS]) + (f" and {others} more" if others > 0 else "")
    return Check("tenants", "degraded", f"the mail of these tenants waits: {named}")


def _tables(tables: TablesState) -> Check:
    if tables.connected:
        return Check("tables", "healthy", f"state is shared in {tables.url}")
    if tables.fail == "closed":
        return Check("tables", "unhealthy", f"{tables.url} is away, jobs wait (STATE_FAIL=closed): {tables.error}")
    text = f"{tables.url} is away, {tables.unshared} codes were sent without shared state: {tables.error}"
    return Check("tables", "degraded", text)


def _clock(clock: ClockState) -> Iterator[Check]:
    if clock.ahead_ms is None:
        return
    seconds = f"{abs(clock.ahead_ms) / 1000:.1f} s {'ahead of' if clock.ahead_ms > 0 else 'behind'}"
    if abs(clock.ahead_ms) <= CLOCK_TOLERANCE_MS:
        yield Check("clock", "healthy", f"this machine's clock is {seconds} that of Redis")
    elif clock.corrected:
        text = f"this machine's clock is {seconds} that of Redis, with which most other hosts agree: its time is used"
        yield Check("clock", "degraded", text)
    else:
        text = f"this machine's clock is {seconds} that of Redis: codes expire early or late if it is wrong"
        yield Check("clock", "degraded", text)


def _pace(lanes: tuple[LaneState, ...], now_ms: int) -> Check:
    late: list[str] = []
    for lane in lanes:
        if lane.oldest_unacked_ms is not None and now_ms - lane.oldest_unacked_ms > LATE_MS:
            late.append(
                f"the oldest unacked job of {lane.queue} arrived {in_words(now_ms - lane.oldest_unacked_ms)} ago"
            )
        if lane.waiting_ms is not None and now_ms - lane.waiting_ms > LATE_MS:
            since = in_words(now_ms - lane.waiting_ms)
            late.append(f"{lane.depth} wait in {lane.queue}, the oldest for {since}")
    if late:
        return Check("pace", "degraded", f"codes are late: {'; '.join(late)}")
    return Check("pace", "healthy", "no job waits long")


def _endings(stats: Stats) -> Check:
    died, sent = stats.died_last_minute, stats.sent_last_minute
    text = f"{died} jobs failed in the last minute, {sent} were sent"
    if died >= _MIN_DEAD and died * _DEAD_SHARE > died + sent:
        return Check("endings", "degraded", f"{text}: otp-stream dead list, or the page /dead, shows why")
    return Check("endings", "healthy", text)


def _breaker(relay: RelayState) -> str:
    match relay.circuit_breaker:
        case "closed" if relay.stalled:
            return f"{relay.name}: circuit breaker closed, but the relay does not answer"
        case "closed" if relay.slow or relay.slow_domains:
            return f"{relay.name}: circuit breaker closed, but {slow_text(relay)}"
        case "closed" if relay.slowed and relay.rate is not None:
            return f"{relay.name}: circuit breaker closed, slowed to {round(relay.rate, 1):g}/s after a throttle"
        case "closed":
            return f"{relay.name}: circuit breaker closed"
        case "half_open":
            return f"{relay.name}: probing after {relay.reason}: {relay.error}"
        case "open":
            return f"{relay.name}: circuit breaker open, {relay.reason}: {relay.error}"
