"""Exports the metrics of `/metrics` by OTLP, under the names of OpenTelemetry's semantic conventions.

They have one source, the registry of prometheus_client: the SDK's instruments would count everything a second time.
"""

import asyncio
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import structlog
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.core import Metric as Family
from prometheus_client.samples import Sample

from otp_stream import __version__
from otp_stream.core.messaging import SCHEMA_URL
from otp_stream.tasks import in_thread

from .exporters import LoggedMetricExporter, close_in_time, open_metric_exporter

_INTERVAL_S = 60.0
_CUMULATIVE = AggregationTemporality.CUMULATIVE
_SCOPE = InstrumentationScope("otp-stream", __version__, SCHEMA_URL)
_OURS = "otp_"
_UNITS = {"_seconds": "s", "_bytes": "By", "_ratio": "1"}


class _Name(NamedTuple):
    name: str
    unit: str


_CONVENTIONAL = {
    "messaging_process_duration_seconds": _Name("messaging.process.duration", "s"),
    "messaging_client_operation_duration_seconds": _Name("messaging.client.operation.duration", "s"),
    "messaging_client_sent_messages": _Name("messaging.client.sent.messages", "{message}"),
    "messaging_client_consumed_messages": _Name("messaging.client.consumed.messages", "{message}"),
    "http_server_request_duration_seconds": _Name("http.server.request.duration", "s"),
    "process_cpu_seconds": _Name("process.cpu.time", "s"),
    "process_resident_memory_bytes": _Name("process.memory.usage", "By"),
    "process_virtual_memory_bytes": _Name("process.memory.virtual", "By"),
    "process_open_fds": _Name("process.unix.file_descriptor.count", "{file_descriptor}"),
    "python_gc_collections": _Name("cpython.gc.collections", "{collection}"),
    "python_gc_objects_collected": _Name("cpython.gc.collected_objects", "{object}"),
    "python_gc_objects_uncollectable": _Name("cpython.gc.uncollectable_objects", "{object}"),
}
"""The names by the conventions. Other metrics that are not ours are not exported."""
_UP_DOWN = {"process.memory.usage", "process.memory.virtual", "process.unix.file_descriptor.count"}
"""Gauges that are counters of the kind up and down by the conventions."""
_LABELS = {
    "generation": "cpython.gc.generation",
    **{
        name.replace(".", "_"): name
        for name in (
            "messaging.system", "messaging.operation.name", "messaging.operation.type", "messaging.destination.name",
            "messaging.destination.template", "error.type", "server.address", "server.port", "http.request.method",
            "http.response.status_code", "http.route", "url.scheme",
        )
    },
}  # fmt: skip
_NUMBERS = {"server.port", "cpython.gc.generation", "http.response.status_code"}


class MetricsExport:
    """Exports the metrics that `collect` returns at intervals, in a thread. `collect` is called in the event loop."""

    def __init__(
        self, collect: Callable[[], Iterable[Family]], exporter: LoggedMetricExporter, resource: Mapping[str, str]
    ) -> None:
        self._collect = collect
        self._exporter = exporter
        self._resource = Resource.create(dict(resource))
        self._since_ns = time.time_ns()
        self._interval_s = _interval_s()

    @classmethod
    def open(cls, collect: Callable[[], Iterable[Family]], resource: Mapping[str, str]) -> "MetricsExport":
        """Return the export that the `OTEL_*` variables configure. Raises `ImportError`."""
        return cls(collect, open_metric_exporter(), resource)

    async def run(self) -> None:
        """Export until cancelled. While an export lasts, there is no other one, so that a slow collector costs none."""
        while True:
            await asyncio.sleep(self._interval_s)
            families = list(self._collect())
            await in_thread(lambda families=families: self._export(families), "metrics")

    def close(self) -> None:
        """Export the last state, for at most a few seconds."""

        def last() -> None:
            self._export(list(self._collect()))
            self._exporter.shutdown()

        close_in_time(last)

    def _export(self, families: Iterable[Family]) -> None:
        metrics = list(converted(families, self._since_ns, time.time_ns()))
        scope = ScopeMetrics(_SCOPE, metrics, SCHEMA_URL)
        self._exporter.export(MetricsData([ResourceMetrics(self._resource, [scope], SCHEMA_URL)]))


def _interval_s() -> float:
    text = os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "")
    try:
        interval_s = float(text or _INTERVAL_S * 1000) / 1000
    except ValueError:
        interval_s = 0.0
    if 0 < interval_s < math.inf:
        return interval_s
    structlog.get_logger(__name__).warning("OTEL_METRIC_EXPORT_INTERVAL is no number of ms: the default is used")
    return _INTERVAL_S


def converted(families: Iterable[Family], since_ns: int, now_ns: int) -> Iterator[Metric]:
    """Yield the metrics of Prometheus under OpenTelemetry's names."""
    for family in families:
        known = _CONVENTIONAL.get(family.name) or _own(family.name)
        if known is None or not family.samples:
            continue
        match family.type:
            case "counter":
                points = _points(family, since_ns, now_ns)
                data = Sum(points, _CUMULATIVE, is_monotonic=True)
            case "gauge" if known.name in _UP_DOWN:
                data = Sum(_points(family, since_ns, now_ns), _CUMULATIVE, is_monotonic=False)
            case "gauge":
                data = Gauge(_points(family, now_ns, now_ns))
            case "histogram" | "summary":
                data = Histogram(list(_histograms(family, since_ns, now_ns)), _CUMULATIVE)
            case _:
                continue
        yield Metric(known.name, family.documentation, known.unit, data)


def _own(name: str) -> _Name | None:
    if not name.startswith(_OURS):
        return None
    short = name.removeprefix(_OURS)
    for suffix, unit in _UNITS.items():
        if short.endswith(suffix):
            return _Name(f"otp.{short.removesuffix(suffix)}", unit)
    return _Name(f"otp.{short}", "")


def _points(family: Family, since_ns: int, now_ns: int) -> list[NumberDataPoint]:
    return [NumberDataPoint(_attributes(it.labels), since_ns, now_ns, float(it.value)) for it in family.samples]


def _histograms(family: Family, since_ns: int, now_ns: int) -> Iterator[HistogramDataPoint]:
    series: defaultdict[frozenset[tuple[str, str]], list[Sample]] = defaultdict(list)
    for sample in family.samples:
        series[frozenset(it for it in sample.labels.items() if it[0] != "le")].append(sample)
    for labels, samples in series.items():
        count = sum_value = before = 0.0
        bounds: list[float] = []
        counts: list[int] = []
        for sample in samples:
            if sample.name.endswith("_bucket"):
                if (bound := float(sample.labels["le"])) != math.inf:
                    bounds.append(bound)
                counts.append(round(sample.value - before))
                before = sample.value
            elif sample.name.endswith("_count"):
                count = sample.value
            elif sample.name.endswith("_sum"):
                sum_value = sample.value
        yield HistogramDataPoint(
            attributes=_attributes(dict(labels)),
            start_time_unix_nano=since_ns,
            time_unix_nano=now_ns,
            count=round(count),
            sum=sum_value,
            bucket_counts=counts or [round(count)],
            explicit_bounds=bounds,
            min=None,  # pyright: ignore[reportArgumentType] - OTLP has none here, and the encoder leaves it out
            max=None,  # pyright: ignore[reportArgumentType] - as above
        )


def _attributes(labels: Mapping[str, str]) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    for label, value in labels.items():
        name = _LABELS.get(label, f"otp.{label}")
        found[name] = int(value) if name in _NUMBERS else value
    return found
