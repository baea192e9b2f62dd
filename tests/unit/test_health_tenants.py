"""How /health reports tenants whose mail waits."""

from dataclasses import replace

import pytest

from otp_stream.core.health import Check, checks, worst
from otp_stream.core.state import BrokerState, LaneState, RelayState, TenantState, WorkerState
from otp_stream.core.stats import Stats

NOW = 1_700_000_000_000
LANE = LaneState("jobs", "q.jobs", 10, depth=0, consumers=1)
BROKER = BrokerState("amqp://h", connected=True, reported_ms=NOW, lanes=(LANE,))
OK = RelayState("shop:25")
OPEN = RelayState("shop:25", circuit_breaker="open", reason="throttled", error="454 later")
PROBED = RelayState("spare:25", circuit_breaker="half_open", reason="unreachable", error="no route")
STALLED = RelayState("shop:25", stalled=True)


def tenants_check(*tenants: TenantState) -> Check:
    state = WorkerState("consuming", BROKER, (RelayState("relay:25"),), tenants=tenants)
    found = checks(state, Stats(0), NOW)
    check = next(it for it in found if it.name == "tenants")
    assert worst(found) == check.status
    return check


@pytest.mark.parametrize(
    ("tenant", "trouble"),
    [
        (TenantState("shop", refused="550 no"), "the relay refuses its sender: 550 no"),
        (TenantState("shop", relays=(OPEN,)), "shop:25: throttled: 454 later"),
        (TenantState("shop", relays=(OPEN, PROBED)), "shop:25: throttled: 454 later; spare:25: unreachable: no route"),
        (TenantState("shop", relays=(STALLED,)), "shop:25 does not answer"),
    ],
)
def test_a_tenant_whose_mail_waits_degrades_the_health_with_the_reason(tenant: TenantState, trouble: str) -> None:
    assert tenants_check(TenantState("default"), tenant) == Check(
        "tenants", "degraded", f"the mail of these tenants waits: shop ({trouble})"
    )


def test_tenants_are_healthy_if_each_has_a_relay_that_answers() -> None:
    spare = (OPEN, OK), (STALLED, OK), (OK,), ()
    assert tenants_check(*(TenantState(f"shop{number}", relays=it) for number, it in enumerate(spare))) == Check(
        "tenants", "healthy", "no tenant waits for its own relay, and no relay refuses a sender"
    )


@pytest.mark.parametrize(
    ("waiting", "named"),
    [
        (1, "t1 ({0})"),
        (3, "t1 ({0}); t2 ({0}); t3 ({0})"),
        (4, "t1 ({0}); t2 ({0}); t3 ({0}) and 1 more"),
        (5, "t1 ({0}); t2 ({0}); t3 ({0}) and 2 more"),
    ],
)
def test_only_the_first_three_tenants_are_named(waiting: int, named: str) -> None:
    shop = TenantState("", refused="550")
    check = tenants_check(*(replace(shop, name=f"t{number}") for number in range(1, waiting + 1)))
    assert check.text == "the mail of these tenants waits: " + named.format("the relay refuses its sender: 550")
