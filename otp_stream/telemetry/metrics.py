"""The metrics for Prometheus. Counters are updated on events; `state_collector` computes the rest at each scrape."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from otp_stream.core.decision import ENDINGS
from otp_stream.core.job import Lane
from otp_stream.core.lenient import LENIENT_FIELDS
from otp_stream.core.outcome import Outcome
from otp_stream.core.state import WorkerState

from .histogram import DurationHistogram
from .http_metrics import HttpMetrics
from .messaging_metrics import MessagingMetrics, Server
from .state_collector import StateCollector

# a code should arrive within a second, and most expire after 15 minutes
_AGE_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_SEND_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# derived from the unions, so that every value has a series
_LANES: tuple[str, ...] = get_args(Lane)
_OUTCOMES = tuple(kind.__name__.lower() for kind in get_args(Outcome))

_LIFETIME_S = 0.5
"""How long an exposition is used. Making one takes milliseconds of the event loop, which also sends the codes."""

disable_created_metrics()


class Metrics:
    """All metrics of one worker, in a separate registry."""

    def __init__(self, server: Server | None = None) -> None:
        self.registry = CollectorRegistry()
        self.messaging = MessagingMetrics(server)
        self.registry.register(self.messaging)
        self.http = HttpMetrics()
        self.registry.register(self.http)
        self._rendered: dict[str, tuple[float, bytes]] = {}
        """The last exposition in each format, and when it was made."""
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.received = self._labelled_counter("received", "Jobs and malformed messages received.", "lane", _LANES)
        self.ended = self._labelled_counter(
            "jobs", "Jobs that ended, by how: each job is counted once.", "outcome", ENDINGS
        )
        self.attempts = self._labelled_counter("attempts", "Attempts to send, by outcome.", "outcome", _OUTCOMES)
        self.retries = self._counter("retries", "Retries scheduled, by the attempt that failed.", "attempt")
        self.parked = self._counter(
            "parked", "Jobs moved to the broker after waiting long behind an open circuit breaker."
        )
        self.unsettled = self._counter("unsettled", "Settlements that failed: the broker redelivers the job.")
        self.clock_ahead = self._counter("clock_ahead", "Jobs whose timestamp was in the future, beyond tolerance.")
        self.lenient = self._labelled_counter(
            "lenient",
            "Optional fields that did not match the documentation and were coerced or ignored.",
            "field",
            LENIENT_FIELDS,
        )
        self.accept_s = self._histogram("time_to_accept", "From the job's timestamp to the relay's 250.", _AGE_S)
        self.arrive_s = self._histogram("time_to_arrive", "From the job's timestamp to its first delivery.", _AGE_S)
        self.send_s = self._histogram("send", "From entering the send queue to the relay's reply.", _SEND_S)
        self.redis_s = self._histogram("redis_call", "From a call of the shared tables to Redis's reply.", _SEND_S)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"otp_{name}", text, labels, registry=self.registry)

    def _labelled_counter(self, name: str, text: str, label: str, values: Iterable[str]) -> Mapping[str, Counter]:
        counter = self._counter(name, text, label)
        return {value: counter.labels(value) for value in values}

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...]) -> DurationHistogram:
        histogram = DurationHistogram(f"otp_{name}_seconds", text, bounds)
        self.registry.register(histogram)
        return histogram

    def expose(self, state: Callable[[], WorkerState], now_ms: Callable[[], int]) -> None:
        """Add the metrics that are computed from the worker's state at each scrape."""
        self.registry.register(StateCollector(state, now_ms, self.messaging))

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the exposition and its content type, in the format that the `Accept` header requests if it exists."""
        encode, content_type = _encoder(accept)
        made_at, body = self._rendered.get(content_type, (float("-inf"), b""))
        if time.monotonic() - made_at >= _LIFETIME_S:
            body = encode(self.registry)
            self._rendered[content_type] = time.monotonic(), body
        return body, content_type


def _encoder(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    with suppress(ValueError, TypeError):  # a version that is none
        encode, content_type = choose_encoder(accept)
        if content_type in _FORMATS:
            return encode, content_type
    return choose_encoder("")


_FORMATS = {CONTENT_TYPE_PLAIN_0_0_4, openmetrics.CONTENT_TYPE_LATEST} | {
    choose_encoder(f"{kind};version=1.0.0;escaping={escaping}")[1]
    for kind in ("text/plain", "application/openmetrics-text")
    for escaping in ("allow-utf-8", "underscores", "dots", "values")
}
"""Content types. Few, because each is rendered and kept separately, and a client can request any version."""
