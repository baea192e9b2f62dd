"""Histograms of durations in seconds, for the event loop's thread only."""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Buckets:
    """The counts of one histogram. `bounds` are the upper bounds of its buckets, in ascending order."""

    __slots__ = ("_bounds", "_counts", "sum_s")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum_s = 0.0

    def observe(self, took_s: float) -> None:
        """Add one duration."""
        self._counts[bisect_left(self._bounds, took_s)] += 1
        self.sum_s += took_s

    def cumulative(self) -> list[tuple[str, float]]:
        """Return each upper bound, as Prometheus writes it, with the number of durations up to it."""
        ends = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        return [(end, float(count)) for end, count in zip(ends, accumulate(self._counts), strict=True)]


class DurationHistogram(Collector):
    """A histogram without labels."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...]) -> None:
        self._name, self._text = name, text
        self._buckets = Buckets(bounds)

    def observe(self, took_s: float) -> None:
        """Add one duration."""
        self._buckets.observe(took_s)

    def collect(self) -> Iterator[Metric]:
        """Yield the cumulative buckets."""
        buckets = self._buckets
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets.cumulative(), sum_value=buckets.sum_s)
