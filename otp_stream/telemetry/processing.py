"""The processing of one message: its span, whose duration and error are also a metric."""

from contextlib import AbstractContextManager
from contextvars import ContextVar
from time import perf_counter
from types import TracebackType

from otp_stream.core.messaging import Destination

from .messaging_metrics import MessagingMetrics


class Processing:
    """A message that the current task processes."""

    __slots__ = ("_metrics", "_queue", "_since", "_span", "error_type")

    def __init__(
        self, queue: Destination, metrics: MessagingMetrics, span: AbstractContextManager[object] | None
    ) -> None:
        self._queue, self._metrics, self._span = queue, metrics, span
        self.error_type: str | None = None
        """`error.type`: one of few words; `None` without an error."""

    def __enter__(self) -> None:
        self._since = perf_counter()
        CURRENT_PROCESSING.set(self)
        if self._span is not None:
            self._span.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        CURRENT_PROCESSING.set(None)
        error_type = self.error_type or (kind.__name__ if kind is not None else None)
        self._metrics.processed(self._queue, error_type, perf_counter() - self._since)
        return self._span.__exit__(kind, error, trace) if self._span is not None else None


CURRENT_PROCESSING: ContextVar[Processing | None] = ContextVar("processing", default=None)
