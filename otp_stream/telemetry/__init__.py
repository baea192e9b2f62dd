"""Traces, metrics, logs and statistics of jobs, and the health monitor."""

from .logs import configure_logs, flush_logs
from .monitor import monitor
from .observer import Observer

__all__ = ["Observer", "configure_logs", "flush_logs", "monitor"]
