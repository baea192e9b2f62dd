"""How many jobs another worker could send: 0 while it would have to wait as well."""

from dataclasses import replace

import pytest

from otp_stream.core.health import STALE_MS
from otp_stream.core.sendable_jobs import sendable_jobs
from otp_stream.core.state import BrokerState, LaneState, RelayState, TenantState, WorkerState
from otp_stream.core.tables_state import TablesState

NOW = 1_700_000_000_000
LANES = LaneState("jobs", "q", 200, depth=40), LaneState("high", "q.high", 200, depth=2), LaneState("due", "q.due", 9)
BROKER = BrokerState("amqp://h", connected=True, reported_ms=NOW, lanes=LANES)
FULL = RelayState("a:25", size=20, sending=19, waiting=181, saturated=True)
BUSY = WorkerState("consuming", BROKER, (FULL,))
SHOP = TenantState("shop", depth=7)


def test_jobs_in_all_lanes_count_while_this_worker_uses_all_its_connections() -> None:
    assert sendable_jobs(BUSY, NOW) == 42


def test_jobs_count_while_none_waits_for_a_connection() -> None:
    assert sendable_jobs(replace(BUSY, relays=(RelayState("a:25", sending=5),)), NOW) == 42


@pytest.mark.parametrize(
    "relay",
    [
        replace(FULL, circuit_breaker="open", reason="unreachable"),
        replace(FULL, circuit_breaker="half_open", reason="throttled", probing=True),
        replace(FULL, slowed=True, rate=12.5),
        replace(FULL, stalled=True),
        replace(FULL, saturated=False, sending=3, rate=50.0),  # waits for its rate
        replace(FULL, saturated=False, sending=5),  # the relay accepts five connections
    ],
)
def test_no_job_counts_while_the_relay_limits_us(relay: RelayState) -> None:
    assert sendable_jobs(replace(BUSY, relays=(relay,)), NOW) == 0


def test_jobs_count_while_one_of_several_relays_takes_more() -> None:
    away = replace(FULL, circuit_breaker="open", reason="unreachable")
    fallback = RelayState("b:25", saturated=True)
    assert sendable_jobs(replace(BUSY, relays=(away, fallback)), NOW) == 42
    assert sendable_jobs(replace(BUSY, relays=(away, replace(fallback, saturated=False))), NOW) == 0


def test_jobs_in_a_tenant_s_queue_count_while_its_own_relay_takes_more() -> None:
    own = replace(FULL, name="shop/c:25")
    assert sendable_jobs(replace(BUSY, tenants=(SHOP,)), NOW) == 49
    assert sendable_jobs(replace(BUSY, tenants=(replace(SHOP, relays=(own,)),)), NOW) == 49
    away = replace(own, circuit_breaker="open", reason="login_refused")
    assert sendable_jobs(replace(BUSY, tenants=(replace(SHOP, relays=(away,)),)), NOW) == 42
    assert sendable_jobs(replace(BUSY, tenants=(replace(SHOP, refused="550 not verified"),)), NOW) == 42
    default_is_away = replace(BUSY, relays=(replace(FULL, stalled=True),))
    assert sendable_jobs(replace(default_is_away, tenants=(SHOP,)), NOW) == 0
    assert sendable_jobs(replace(default_is_away, tenants=(replace(SHOP, relays=(own,)),)), NOW) == 7


def test_no_job_counts_while_jobs_wait_for_redis() -> None:
    waits = TablesState("redis://h", connected=False, fail="closed")
    assert sendable_jobs(replace(BUSY, tables=waits), NOW) == 0
    assert sendable_jobs(replace(BUSY, tables=replace(waits, fail="open")), NOW) == 42
    assert sendable_jobs(replace(BUSY, tables=replace(waits, connected=True)), NOW) == 42
    assert sendable_jobs(replace(BUSY, tables=TablesState()), NOW) == 42


@pytest.mark.parametrize(
    "state",
    [
        WorkerState("http_only", None, ()),
        replace(BUSY, phase="starting"),
        replace(BUSY, phase="stopping"),
        replace(BUSY, broker=replace(BROKER, connected=False)),
        replace(BUSY, broker=replace(BROKER, reported_ms=None)),
        replace(BUSY, broker=replace(BROKER, reported_ms=NOW - STALE_MS - 1)),
    ],
)
def test_a_worker_that_cannot_know_gives_no_number(state: WorkerState) -> None:
    assert sendable_jobs(state, NOW) is None
