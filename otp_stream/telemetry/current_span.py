"""The span of the current task. Log lines carry its ids."""

from contextvars import ContextVar
from typing import Protocol


class OpenSpan(Protocol):
    """A span that has not ended. Ids are hexadecimal."""

    @property
    def trace_id(self) -> str: ...  # noqa: D102
    @property
    def span_id(self) -> str: ...  # noqa: D102


CURRENT_SPAN: ContextVar[OpenSpan | None] = ContextVar("span", default=None)
"""`None` outside of a job, and where tracing is off."""
