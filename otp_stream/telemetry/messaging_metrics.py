"""Metrics of OpenTelemetry's semantic conventions for messaging, by Prometheus' rules for names and labels."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from otp_stream.core.messaging import Destination, Publication
from otp_stream.core.state import LaneState

from .histogram import CONVENTIONAL_BOUNDS_S, Buckets, add_buckets

_PROCESS, _PUBLISH, _CONSUME = "process", "publish", "consume"
"""Values of `messaging.operation.name`."""


class Server(NamedTuple):
    """`server.address` and `server.port` of RabbitMQ."""

    address: str
    port: int


_Series = tuple[Destination, str | None]
"""Where from or to, and `error.type`."""


class MessagingMetrics(Collector):
    """Counts and measures publishes, and measures the processing of messages."""

    def __init__(self, server: Server | None = None) -> None:
        self._server = server
        self._processed: dict[_Series, Buckets] = {}
        self._published: dict[_Series, Buckets] = {}
        self._sent: Counter[_Series] = Counter()

    def processed(self, queue: Destination, error_type: str | None, took_s: float) -> None:
        """Record the processing of one message."""
        _observe(self._processed, (_kind(queue), error_type), took_s)

    def published(self, publication: Publication, took_s: float, error: BaseException | None) -> None:
        """Record one publish."""
        series = _kind(publication.destination), type(error).__name__ if error is not None else None
        _observe(self._published, series, took_s)
        self._sent[series] += len(publication.parents)

    def describe(self) -> Iterator[Metric]:
        """Return the names of the metrics, which have no series yet at registration."""
        yield from self.collect()

    def collect(self) -> Iterator[Metric]:
        """Yield the current values."""
        text = "Duration of the processing of a message, from its admission to its settlement."
        yield self._durations("messaging_process_duration", text, self._processed, _PROCESS, {})
        text = "Duration of a publish, up to its confirm; events have none."
        kind = {"messaging_operation_type": "send"}
        yield self._durations("messaging_client_operation_duration", text, self._published, _PUBLISH, kind)
        sent = Metric("messaging_client_sent_messages", "Messages that this worker tried to publish.", "counter")
        for series, count in self._sent.items():
            sent.add_sample(f"{sent.name}_total", self._labels(series, _PUBLISH), count)
        yield sent

    def consumed(self, lanes: Sequence[LaneState]) -> Metric:
        """Return the number of messages delivered to this worker."""
        consumed = Metric("messaging_client_consumed_messages", "Messages delivered to this worker.", "counter")
        for lane in lanes:
            series = Destination(lane.queue, lane.template), None
            consumed.add_sample(f"{consumed.name}_total", self._labels(series, _CONSUME), lane.received)
        return consumed

    def _durations(
        self, name: str, text: str, found: Mapping[_Series, Buckets], operation: str, more: dict[str, str]
    ) -> Metric:
        metric = Metric(f"{name}_seconds", text, "histogram")
        for series, buckets in found.items():
            add_buckets(metric, self._labels(series, operation) | more, buckets)
        return metric

    def _labels(self, series: _Series, operation: str) -> dict[str, str]:
        to, error_type = series
        labels = {
            "messaging_system": "rabbitmq",
            "messaging_operation_name": operation,
            f"messaging_destination_{'name' if to.template is None else 'template'}": to.kind,
        }
        if error_type is not None:
            labels["error_type"] = error_type
        if self._server is not None:
            labels |= {"server_address": self._server.address, "server_port": str(self._server.port)}
        return labels


def _kind(to: Destination) -> Destination:
    """Return the destination without a name, if it is one of many: metrics need few series."""
    return to if to.template is None else Destination(to.template, to.template)


def _observe(found: dict[_Series, Buckets], series: _Series, took_s: float) -> None:
    if (buckets := found.get(series)) is None:
        buckets = found[series] = Buckets(CONVENTIONAL_BOUNDS_S)
    buckets.observe(took_s)
