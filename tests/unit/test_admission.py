"""Limits as an operator writes them in the settings."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otp_stream.core.admission import Limit, read_limits, span

UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("5/10m", [(5, 600_000)]),
        ("1/1s", [(1, 1000)]),
        ("3/h", [(3, 3_600_000)]),  # without a number, the period is one unit
        ("5/10m,20/1d", [(5, 600_000), (20, 86_400_000)]),
        (" 5/10m , 20/1d ", [(5, 600_000), (20, 86_400_000)]),
        ("9/31d", [(9, 31 * 86_400_000)]),
        ("9/744h", [(9, 31 * 86_400_000)]),
    ],
)
def test_a_limit_is_a_count_and_a_period_and_several_are_separated_by_commas(
    text: str, limits: list[tuple[int, int]]
) -> None:
    assert read_limits("recipient", text) == tuple(Limit("recipient", count, period) for count, period in limits)


@pytest.mark.parametrize(
    "text",
    [
        "", ",", "5/10m,", "5", "510m", "/10m", "0/10m", "-1/10m", "5/0m", "5/-1m", "5/10", "5/10w", "5/10M", "5/",
        "5/1.5m", "5.5/10m", "\u0665/10m", "5/\u0661m", "\u00b2/10m", "5/\u00b2m", "5 /10m", "5/10 m", "5/10m/1h",
    ],
)  # fmt: skip
def test_a_limit_in_another_form_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="must look like") as caught:
        read_limits("total", text)
    assert str(caught.value) == ("must look like 5/10m (five in any ten minutes; s, m, h or d), or 5/10m,20/1d")


@pytest.mark.parametrize("text", ["1/32d", "1/745h", "1/2678401s", "5/10m,1/32d"])
def test_a_period_of_more_than_31_days_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^has a period of more than 31 days$"):
        read_limits("total", text)


@settings(deadline=None)  # a busy machine may stop any example for a second
@given(count=st.integers(1, 10**9), number=st.integers(1, 31), unit=st.sampled_from(sorted(UNITS_MS)))
def test_a_limit_is_written_as_it_can_be_read_again(count: int, number: int, unit: str) -> None:
    (limit,) = read_limits("tenant", f"{count}/{number}{unit}")
    assert limit == Limit("tenant", count, number * UNITS_MS[unit])
    assert read_limits("tenant", str(limit)) == (limit,)


@pytest.mark.parametrize(
    ("period_ms", "text"),
    [
        (600_000, "10m"), (60_000, "1m"), (90_000, "90s"), (3_600_000, "1h"), (86_400_000, "1d"), (90_000_000, "25h"),
        (1500, "1500ms"),
    ],
)  # fmt: skip
def test_a_period_is_written_in_the_largest_unit_that_divides_it(period_ms: int, text: str) -> None:
    assert span(period_ms) == text
    assert str(Limit("domain", 5, period_ms)) == f"5/{text}"
