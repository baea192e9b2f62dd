"""Counters and histograms that are updated for every job, as plain numbers without locks.

Those of prometheus_client take a lock, and ten times as long. These are used in the event loop's thread only.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class LabelledCounter(Collector):
    """A counter with one label, whose values are fixed: any other raises `KeyError`."""

    def __init__(self, name: str, text: str, label: str, values: Iterable[str]) -> None:
        self._name, self._text, self._label = name, text, label
        self._counts = dict.fromkeys(values, 0)

    def inc(self, value: str) -> None:
        """Add one to the series of this label value."""
        self._counts[value] += 1

    def collect(self) -> Iterator[Metric]:
        """Return one sample for each label value."""
        family = CounterMetricFamily(self._name, self._text, labels=[self._label])
        for value, count in self._counts.items():
            family.add_metric([value], count)
        yield family


class DurationHistogram(Collector):
    """A histogram of durations in seconds; `bounds` are the upper ends of its buckets, in ascending order."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...]) -> None:
        self._name, self._text, self._bounds = name, text, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum_s = 0.0

    def observe(self, took_s: float) -> None:
        """Add one duration."""
        self._counts[bisect_left(self._bounds, took_s)] += 1
        self._sum_s += took_s

    def collect(self) -> Iterator[Metric]:
        """Return the cumulative buckets."""
        ends = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        buckets = [(end, float(count)) for end, count in zip(ends, accumulate(self._counts), strict=True)]
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum_s)
