"""Traces, metrics, logs and statistics of jobs, and the health monitor."""

from .logs import close_log_export, configure_logs, flush_logs
from .messaging_metrics import Server
from .monitor import monitor
from .observer import Observer
from .resource import resource_attributes

__all__ = [
    "Observer",
    "Server",
    "close_log_export",
    "configure_logs",
    "flush_logs",
    "monitor",
    "resource_attributes",
]
