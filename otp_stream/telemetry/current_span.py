"""The span of the current task. Log lines contain its ids."""

from contextvars import ContextVar
from typing import Protocol


class SpanContext(Protocol):
    """A span's ids."""

    @property
    def trace_id(self) -> int: ...  # noqa: D102
    @property
    def span_id(self) -> int: ...  # noqa: D102
    @property
    def trace_flags(self) -> int: ...  # noqa: D102


class OpenSpan(Protocol):
    """A span of OpenTelemetry that has not ended."""

    def get_span_context(self) -> SpanContext: ...  # noqa: D102


CURRENT_SPAN: ContextVar[OpenSpan | None] = ContextVar("span", default=None)
"""`None` outside of a job, or if tracing is off."""
