"""What the intake reads of a request."""

import asyncio
import re
from contextlib import aclosing

from starlette.requests import ClientDisconnect, Request

from otp_stream.core.otp_job import MAX_BODY_BYTES

from .problem import ProblemError

BODY_S = 10.0
"""How long a client may take to send a body."""
MAX_KEY = 255
_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
"""A string of RFC 8941."""


async def read_body(request: Request) -> bytes:
    """Return a JSON body. Raises `ProblemError` for another content type, a body that is too large or too slow."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ProblemError(415, "content-type: must be application/json", {"accept": "application/json"})
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ProblemError(415, "content-encoding: send the body without compression", {"accept-encoding": "identity"})
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    try:
        async with asyncio.timeout(BODY_S):
            return await _read(request)
    except TimeoutError:
        raise ProblemError(408, "the body did not arrive in time", {"connection": "close"}) from None
    except ClientDisconnect:
        raise ProblemError(400, "the body is incomplete") from None


async def _read(request: Request) -> bytes:
    body = bytearray()
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise _too_large()
    return bytes(body)


def _too_large() -> ProblemError:
    # the rest of the body is not read, so the connection cannot be used again
    return ProblemError(413, f"the body must have at most {MAX_BODY_BYTES} bytes", {"connection": "close"})


def idempotency_key(request: Request) -> str | None:
    """Return the `Idempotency-Key`, with or without quotes around it. Raises `ProblemError` for an invalid one."""
    values = request.headers.getlist("idempotency-key")
    if not values:
        return None
    value = values[0].strip()
    if found := _QUOTED.fullmatch(value):
        value = re.sub(r"\\(.)", r"\1", found[1])
    if len(values) > 1 or not value or len(value) > MAX_KEY or not value.isascii() or not value.isprintable():
        raise ProblemError(400, f"idempotency-key: must be one text of 1 to {MAX_KEY} printable ASCII characters")
    return value
