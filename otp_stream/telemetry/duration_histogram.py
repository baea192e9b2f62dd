"""A histogram that is updated for every job, as plain numbers without locks: see docs/dependencies.md."""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class DurationHistogram(Collector):
    """A histogram of durations in seconds, for the event loop's thread only.

    `bounds` are the upper ends of its buckets, in ascending order.
    """

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
