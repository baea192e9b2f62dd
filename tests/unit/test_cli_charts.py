"""Figures of times and rates."""

import pytest

from otp_stream.cli import charts


def test_a_percentile_is_a_value_that_was_there() -> None:
    values = [float(it) for it in range(1, 101)]
    assert [charts.percentile(values, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
    assert charts.percentile([7.0], 0.5) == 7
    assert charts.percentile([], 0.5) is None


def test_a_histogram_counts_every_value_once_and_begins_and_ends_with_one() -> None:
    bars = charts.histogram([0.003, 0.004, 0.005, 0.04, 0.05, 0.051])
    assert [(it.upto_ms, it.count) for it in bars] == [(5, 3), (10, 0), (20, 0), (50, 2), (100, 1)]
    assert charts.histogram([]) == []


def test_a_time_line_holds_rates_whose_last_step_takes_the_rest() -> None:
    line = charts.timeline([0.0, 0.1, 0.6], [0.2, 1.05])
    assert line.step_s == 0.5
    assert line.published == [4, pytest.approx(1 / 0.55)]
    assert line.accepted == [2, pytest.approx(1 / 0.55)]
    assert len(charts.timeline([0.0, 3600.0], []).published) <= 60
    assert charts.timeline([], []).published == [0]


def test_bars_and_blocks_show_even_the_smallest_value() -> None:
    assert charts.blocks([0, 1, 1000]) == " ▁█"
    assert charts.blocks([0]) == " "
    assert charts.bar(1000, 1000, 4) == "████"
    assert charts.bar(1, 1000, 4) == "▏"
    assert not charts.bar(0, 1000, 4)


def test_a_chart_shows_no_more_than_it_is_given() -> None:
    chart = charts.svg("1 < 2", charts.histogram([0.001]), charts.timeline([0.0], [0.001]))
    assert "1 &lt; 2" in chart
    assert charts.svg("none", [], charts.timeline([], [])).startswith("<svg")
