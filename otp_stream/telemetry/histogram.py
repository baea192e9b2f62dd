"""Histograms of durations in seconds, for the event loop's thread only."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONVENTIONAL_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""The buckets that OpenTelemetry's semantic conventions advise."""


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


def add_buckets(metric: Metric, labels: Mapping[str, str], buckets: Buckets) -> None:
    """Add a series to a histogram metric."""
    cumulative = buckets.cumulative()
    for end, count in cumulative:
        metric.add_sample(f"{metric.name}_bucket", {**labels, "le": end}, count)
    metric.add_sample(f"{metric.name}_count", dict(labels), cumulative[-1][1])
    metric.add_sample(f"{metric.name}_sum", dict(labels), buckets.sum_s)


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
