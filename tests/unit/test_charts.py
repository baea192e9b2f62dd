"""Charts: their SVG paths, their scales and their current values."""

import re

from otp_stream.core.stats import Step
from otp_stream.web.charts import Series, rates, times


def bars(series: Series) -> list[tuple[int, float, float]]:
    """Return (place, lower end, height) of each bar, upwards."""
    found = re.findall(r"M(\d+) ([\d.e+-]+)v-([\d.e+-]+)h.8v[\d.e+-]+z", series.path)
    return [(int(place), 100 - float(y), float(height)) for place, y, height in found]


def test_bars_are_stacked_to_scale() -> None:
    chart = rates([Step(0), Step(5000, sent=500, retried=250, dead=250), Step(10_000, sent=1000)], 5)
    sent, retried, dead = chart.series
    assert chart.scale == (200, 100, 0)
    assert chart.maximum == 200
    assert bars(sent) == [(1, 0, 50), (2, 0, 100)]
    assert bars(retried) == [(1, 50, 25)]
    assert bars(dead) == [(1, 75, 25)]


def test_the_current_rate_is_that_of_the_last_complete_step() -> None:
    chart = rates([Step(0, sent=10), Step(5000, sent=1)], 5)
    assert [row.now for row in chart.series] == [2, 0, 0]


def test_one_dead_letter_is_visible_next_to_thousands_of_mails() -> None:
    *_, dead = rates([Step(0, sent=30_000, dead=1)], 5).series
    ((_, _, height),) = bars(dead)
    assert height >= 2


def test_a_scale_fits_its_values_and_has_a_short_label_at_half() -> None:
    for sent, top in ((0, 1), (4, 1), (6, 2), (24, 5), (49, 10), (51, 20), (5000, 1000), (5001, 2000)):
        assert rates([Step(0, sent=sent)], 5).scale == (top, top / 2, 0)


def test_times_have_a_logarithmic_scale_and_missing_values_are_gaps() -> None:
    steps = [Step(0, p50_ms=10, p95_ms=100, p99_ms=1000), Step(1), Step(2, p50_ms=100), Step(3, p50_ms=1000)]
    chart = times(steps)
    median, _, last = chart.series
    assert chart.scale == (1000, 100, 10)
    assert median.path == "M0.5 100h.01M2.5 50h.01L3.5 0"
    assert last.path == "M0.5 0h.01"
    assert (median.now, last.now, chart.maximum) == (1000, 1000, 1000)


def test_the_current_time_is_at_most_a_minute_old() -> None:
    old, idle = [Step(0, p50_ms=10)], [Step(number) for number in range(1, 13)]
    assert times([*old, *idle[:-1]]).series[0].now == 10
    assert times([*old, *idle]).series[0].now is None


def test_no_value_and_values_below_a_millisecond_have_a_scale() -> None:
    assert times([Step(0), Step(1)]).scale == (1000, 100, 10)
    assert times([Step(0, p50_ms=0, p95_ms=0, p99_ms=0)]).scale == (10, 1)
    assert times([]).maximum is None
