"""Writes audit records to the log."""

from typing import Any

import structlog

from .core.audit import EVENT, AuditRecord

AUDIT_LOGGER = "otp_stream.audit"
"""The logger's name. Its lines are kept when others are dropped."""


def write_audit(record: AuditRecord) -> None:
    """Write a record as one log line, whatever `LOG_LEVEL` is."""
    write_audit_fields(record.fields())


def write_audit_fields(fields: dict[str, Any]) -> None:
    """Write the fields of a record."""
    logger: Any = structlog.get_logger(AUDIT_LOGGER).bind()
    logger._proxy_to_logger("info", EVENT, **fields)  # noqa: SLF001 - `info` would drop it above that level
