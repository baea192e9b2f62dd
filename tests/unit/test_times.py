"""Lengths of time as people read them."""

import pytest

from otp_stream.core.times import in_words, iso


@pytest.mark.parametrize(
    ("span_ms", "text"),
    [
        (-5, "0 ms"),
        (0, "0 ms"),
        (999.9, "999 ms"),
        (1000, "1 s"),
        (9999, "9.9 s"),
        (10_000, "10 s"),
        (119_999, "119 s"),
        (120_000, "2 min"),
        (150_000, "2.5 min"),
        (7_199_999, "119 min"),
        (7_200_000, "2 h"),
        (172_800_000, "2 days"),
        (86_400_000 * 400, "400 days"),
    ],
)
def test_a_length_of_time_is_rounded_down_in_a_unit_that_is_precise_enough(span_ms: float, text: str) -> None:
    assert in_words(span_ms) == text


def test_a_moment_is_shown_in_utc() -> None:
    assert iso(1_700_000_000_999) == "2023-11-14T22:13:20Z"
