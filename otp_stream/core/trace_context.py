"""The trace context of a job (W3C), in the headers of its message or of its request."""

import re
from typing import TypeGuard

from .masking import contains_secret

TRACE = ("traceparent", "tracestate")
"""Names of the headers that are used."""
_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_TRACE_STATE_LIMIT = 512
"""Maximum number of characters, which is what W3C requires to be propagated."""


def is_trace(value: object, name: str) -> TypeGuard[str]:
    """Return whether a tracer may have written a header's value."""
    if not isinstance(value, str):
        return False
    if name == "traceparent":
        return _TRACE_PARENT.fullmatch(value) is not None
    return value.isascii() and len(value) <= _TRACE_STATE_LIMIT


def is_harmless_trace(value: object, name: str, address: str, code: str) -> TypeGuard[str]:
    """Return whether a tracer may have written a header's value, and it contains neither the address nor the code."""
    # text that no tracer writes is refused first, because it could make the search for secrets slow
    return is_trace(value, name) and not contains_secret(value, address, code, partial=True)
