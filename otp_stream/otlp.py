"""OpenTelemetry's standard variables: which signals are exported by OTLP, and where."""

import os
from collections.abc import Mapping
from typing import Literal, get_args

Signal = Literal["traces", "metrics", "logs"]
SIGNALS: tuple[Signal, ...] = get_args(Signal)
COLLECTOR_URLS = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    *(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT" for signal in SIGNALS),
)
"""The variables that name collectors."""


def is_exported(signal: Signal, environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether to export a signal.

    An endpoint for all signals turns on traces only: metrics are scraped and log lines are read from standard output,
    so exporting them as well is asked for by `OTEL_METRICS_EXPORTER=otlp`, `OTEL_LOGS_EXPORTER=otlp` or their endpoint.
    """
    kind = exporter(signal, environ)
    own = environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
    common = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") if signal == "traces" else None
    is_off = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or kind == "none"
    return not is_off and bool(kind or own or common)


def exporter(signal: Signal, environ: Mapping[str, str] = os.environ) -> str:
    """Return the exporter that is set for a signal, such as `otlp` or `none`; otherwise empty."""
    return environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip().lower()


def setting(signal: Signal, name: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return a variable of the OTLP exporters: that of the signal, or that of all signals; otherwise empty."""
    variables = f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}", f"OTEL_EXPORTER_OTLP_{name}"
    own, common = (environ.get(it, "").strip() for it in variables)
    return own or common
