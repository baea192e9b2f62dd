"""The states of all tenants, from what each part of the worker knows."""

from collections.abc import Iterator, Mapping, Sequence

from .core.state import BrokerState, RelayState, TenantState
from .core.stats import TenantStats
from .settings import Tenants


def tenant_states(
    tenants: Tenants,
    stats: Mapping[str, TenantStats],
    default: Sequence[RelayState],
    groups: Mapping[str, Sequence[RelayState]],
    broker: BrokerState,
) -> tuple[TenantState, ...]:
    """Return the state of each tenant that has had jobs, or has some in its queue.

    `stats` are by the names that are shown, `groups` are the relays of other groups than the default one.
    """
    return tuple(_states(tenants, stats, default, groups, broker))


def _states(
    tenants: Tenants,
    stats: Mapping[str, TenantStats],
    default: Sequence[RelayState],
    groups: Mapping[str, Sequence[RelayState]],
    broker: BrokerState,
) -> Iterator[TenantState]:
    for name in ("", *tenants.listed):
        shown = name or "default"
        lane = broker.tenants.get(name)
        group = tenants.listed[name].group if name else ""
        relays = groups.get(group, ()) if group else ()
        first = next(iter(relays or default), None)
        state = TenantState(
            name=shown,
            stats=stats.get(shown, TenantStats()),
            relays=tuple(relays),
            refused=first.suspended.get(name) if first else None,
            unacked=broker.kept.get(name, 0) + (lane.lane.unacked if lane else 0),
            moved=lane.moved if lane else 0,
            depth=lane.lane.depth if lane else None,
        )
        if state.stats.endings or state.unacked or state.depth or state.moved or state.refused:
            yield state
    for shown in stats.keys() - {"default", *tenants.listed}:  # removed ones, and those that are counted together
        yield TenantState(name=shown, stats=stats[shown])
