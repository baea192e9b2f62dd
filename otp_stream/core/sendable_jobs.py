"""How many of the waiting jobs another worker could send: the number by which workers are added and removed."""

from collections.abc import Sequence

from .health import STALE_MS
from .state import RelayState, WorkerState
from .tables_state import TablesState


def sendable_jobs(state: WorkerState, now_ms: int) -> int | None:
    """Return how many jobs are ready in RabbitMQ that another worker could send now.

    0 while another worker would have to wait as well: a relay takes no mail, throttles, or is at its rate or at its own
    limit of connections, or jobs wait for Redis. `None` if this worker does not consume, or has no recent report from
    RabbitMQ.
    """
    broker = state.broker
    if state.phase != "consuming" or broker is None or not broker.connected:
        return None
    if broker.reported_ms is None or now_ms - broker.reported_ms > STALE_MS:
        return None
    if _waits_for_redis(state.tables):
        return 0
    accepts_more = _accepts_more(state.relays)
    of_lanes = sum(lane.depth or 0 for lane in broker.lanes) if accepts_more else 0
    of_tenants = sum(
        it.depth or 0
        for it in state.tenants
        if it.refused is None and (_accepts_more(it.relays) if it.relays else accepts_more)
    )
    return of_lanes + of_tenants


def _accepts_more(relays: Sequence[RelayState]) -> bool:
    """Return whether one of the relays takes mail and would take more of it from another worker.

    Mails that wait although connections are free wait for the relay's rate, or for more connections than it accepts.
    """
    waiting = any(relay.waiting for relay in relays)
    return any(
        relay.circuit_breaker == "closed"
        and not relay.stalled
        and not relay.slowed
        and (relay.saturated or not waiting)
        for relay in relays
    )


def _waits_for_redis(tables: TablesState | None) -> bool:
    return tables is not None and tables.connected is False and tables.fail == "closed"
