"""Audit records of what users do on the pages."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from otp_stream.asgi import client_of, is_forwarded
from otp_stream.audit_log import write_audit
from otp_stream.core.audit import Action, AuditRecord, Result

from .session import User

_UNKNOWN = "-"


def audit(
    request: Request,
    user: User | None,
    action: Action,
    result: Result = "done",
    *,
    count: int | None = None,
    target: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write the record of an action. `user` is `None` if it is not known who sent the request."""
    about = {"role": user and user.role, "forwarded": is_forwarded(request) or None, **(details or {})}
    by, source = user.name if user else _UNKNOWN, client_of(request)
    write_audit(AuditRecord(action, result, by, source, count, target, about))
