"""Calls telemetry so that it cannot fail a job: exceptions are counted and logged, never raised."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import ParamSpec

import structlog

P = ParamSpec("P")

_LOG_EVERY_S = 60.0


class _Errors:
    """The number of exceptions in this process."""

    def __init__(self) -> None:
        self.count = 0
        self._logged_at = -_LOG_EVERY_S

    def add(self, error: Exception) -> None:
        """Count an exception, and log its type only, because its text may contain a code."""
        self.count += 1
        now = time.monotonic()
        if now - self._logged_at < _LOG_EVERY_S:  # an error in one job usually repeats in every job
            return
        self._logged_at = now
        with suppress(Exception):  # logging itself may have failed
            structlog.get_logger(__name__).error(
                "telemetry failed, jobs are not affected", error=type(error).__name__, errors=self.count
            )


ERRORS = _Errors()


def observe(call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call telemetry. An exception is counted and logged."""
    try:
        call(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - no error may fail the job
        ERRORS.add(error)


class SafeSpan:
    """A span whose creation, start and end may fail without effect. It does not suppress exceptions of its body."""

    __slots__ = ("_open", "_span")

    def __init__(self, open_span: Callable[[], AbstractContextManager[object]]) -> None:
        self._open = open_span
        self._span: AbstractContextManager[object] | None = None

    def __enter__(self) -> None:
        try:
            span = self._open()
            span.__enter__()
            self._span = span
        except Exception as error:  # noqa: BLE001 - the job continues without its span
            ERRORS.add(error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._span is None:
            return
        try:
            self._span.__exit__(kind, error, trace)
        except Exception as failure:  # noqa: BLE001 - no error may fail the job
            ERRORS.add(failure)
