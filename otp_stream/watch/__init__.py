"""Spans, metrics, log lines and figures of a job's way, and the monitor that looks at the whole."""

from .logs import configure_logs, finish_logs
from .monitor import monitor
from .watch import Watch

__all__ = ["Watch", "configure_logs", "finish_logs", "monitor"]
