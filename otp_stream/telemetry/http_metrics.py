"""The metric of OpenTelemetry's semantic conventions for HTTP servers, by Prometheus' rules for names and labels."""

from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from otp_stream.core.http_request import HttpRequest

from .histogram import CONVENTIONAL_BOUNDS_S, Buckets, add_buckets

_Series = tuple[tuple[str, str], ...]
"""Labels."""


class HttpMetrics(Collector):
    """Measures the requests to the intake."""

    def __init__(self) -> None:
        self._requests: dict[_Series, Buckets] = {}

    def request_ended(self, request: HttpRequest, status: int, took_s: float) -> None:
        """Record one request."""
        labels = {
            "http_request_method": request.method,
            "http_response_status_code": str(status),
            "url_scheme": request.scheme,
        }
        if request.route is not None:
            labels["http_route"] = request.route
        if status >= 500:
            labels["error_type"] = str(status)
        series = tuple(labels.items())
        if (buckets := self._requests.get(series)) is None:
            buckets = self._requests[series] = Buckets(CONVENTIONAL_BOUNDS_S)
        buckets.observe(took_s)

    def describe(self) -> Iterator[Metric]:
        """Return the name of the metric, which has no series yet at registration."""
        yield from self.collect()

    def collect(self) -> Iterator[Metric]:
        """Yield the current values."""
        metric = Metric("http_server_request_duration_seconds", "Duration of a request to the intake.", "histogram")
        for series, buckets in self._requests.items():
            add_buckets(metric, dict(series), buckets)
        yield metric
