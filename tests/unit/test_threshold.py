"""How the slots of a lane are shared between tenants."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from otp_stream.core.threshold import DynamicThreshold


def fill(threshold: DynamicThreshold, *tenants: str, rounds: int = 1_000) -> Counter[str]:
    """Offer jobs of all tenants in turn, and return how many each may have."""
    kept: Counter[str] = Counter()
    for _ in range(rounds):
        for tenant in tenants:
            if threshold.permits(tenant):
                threshold.add(tenant)
                kept[tenant] += 1
    return kept


def test_one_tenant_gets_half_of_the_slots() -> None:
    assert fill(DynamicThreshold(200), "a") == {"a": 100}


def test_each_of_several_busy_tenants_gets_the_same_share_and_as_much_is_left() -> None:
    assert fill(DynamicThreshold(200), "a", "b", "c") == {"a": 50, "b": 50, "c": 50}


def test_a_tenant_that_comes_later_gets_half_of_what_is_left() -> None:
    threshold = DynamicThreshold(200)
    fill(threshold, "a")
    assert fill(threshold, "b") == {"b": 50}
    assert not threshold.permits("a")
    for _ in range(100):
        threshold.remove("a")
    assert fill(threshold, "b") == {"b": 50}  # 100 in all


def test_the_first_job_of_a_tenant_is_always_permitted() -> None:
    for slots in (1, 2, 3):
        threshold = DynamicThreshold(slots)
        for tenant in ("a", "b", "c", "d"):
            assert threshold.permits(tenant)
            threshold.add(tenant)
        assert not any(map(threshold.permits, ("a", "b", "c", "d")))


def test_tenants_without_jobs_are_forgotten() -> None:
    threshold = DynamicThreshold(10)
    threshold.add("a")
    threshold.add("a")
    threshold.remove("a")
    assert threshold.kept == {"a": 1}
    threshold.remove("a")
    assert threshold.kept == {}
    assert fill(threshold, "b") == {"b": 5}


def test_it_is_crowded_if_a_tenant_may_have_no_other_job() -> None:
    for slots in (1, 2, 3, 10, 11):
        threshold = DynamicThreshold(slots)
        for tenant in "aabacaaabbccabcabcabc":
            assert threshold.is_crowded == (not all(map(threshold.permits, "abc")))
            threshold.add(tenant)
        for tenant in "aabacaaabbccabcabcabc":
            threshold.remove(tenant)
            assert threshold.is_crowded == (not all(map(threshold.permits, "abc")))


@given(st.integers(1, 50), st.integers(1, 8), st.randoms(use_true_random=False))
def test_there_is_always_room_for_another_tenant_and_the_count_is_exact(
    slots: int, tenants: int, chance: random.Random
) -> None:
    threshold = DynamicThreshold(slots)
    kept: Counter[str] = Counter()
    for _ in range(300):
        tenant = f"t{chance.randrange(tenants)}"
        if chance.random() < 0.4 and kept[tenant]:
            threshold.remove(tenant)
            kept[tenant] -= 1
        elif threshold.permits(tenant):
            # any tenant but the first job of one leaves a slot
            assert not kept[tenant] or kept.total() + 1 < slots
            threshold.add(tenant)
            kept[tenant] += 1
        assert threshold.kept == +kept
