"""Opens the exports that the `OTEL_*` variables configure. Errors in them are logged, not raised."""

from collections.abc import Callable
from typing import TypeVar

import structlog

from otp_stream.otlp import Signal, exporter, is_exported

T = TypeVar("T")

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def opened(signal: Signal, open_: Callable[[], T]) -> T | None:
    """Return the export of a signal, or `None` if it is off."""
    if not is_exported(signal):
        return None
    if exporter(signal) not in {"", "otlp"}:
        _log.warning(f"{signal} are not exported: OTLP is the only exporter", exporter=exporter(signal))
        return None
    try:
        return open_()
    except ImportError as error:
        fix = "Run pip install 'otp-stream[otel]'"
        _log.error(f"{signal} are not exported: OpenTelemetry is not installed", missing=error.name, fix=fix)
    except Exception as error:  # noqa: BLE001 - telemetry must not keep the worker from starting
        # the text of an error may quote a secret
        kind = type(error).__name__
        _log.error(f"{signal} are not exported: a value of the OTEL_* variables is invalid", error=kind)
    return None
