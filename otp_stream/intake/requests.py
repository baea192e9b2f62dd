"""What the intake reads of a request."""

import re

from starlette.requests import ClientDisconnect, Request

from otp_stream.core.otp_job import MAX_BODY_BYTES
from otp_stream.request_body import Bodies, BodyTooLargeError, TooManyBodiesError

from .problem import ProblemError

BODY_S = 10.0
"""How long a client may take to send a body."""
MAX_KEY = 255
_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
"""A string of RFC 8941."""


async def read_body(request: Request, bodies: Bodies, *, is_known: bool) -> bytes:
    """Return a JSON body. Raises `ProblemError` for another content type, a body that is too large or too slow.

    `is_known` is whether the request has a valid token. Few of those without one may wait for their bodies at once.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ProblemError(415, "content-type: must be application/json", {"accept": "application/json"})
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ProblemError(415, "content-encoding: send the body without compression", {"accept-encoding": "identity"})
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    try:
        return await bodies.read(request, most_bytes=MAX_BODY_BYTES, timeout_s=BODY_S, is_known=is_known)
    except BodyTooLargeError:
        raise _too_large() from None
    except TimeoutError:
        raise ProblemError(408, "the body did not arrive in time", {"connection": "close"}) from None
    except TooManyBodiesError:
        headers = {"retry-after": "1", "connection": "close"}
        raise ProblemError(503, "too many requests wait for their bodies; send the request again", headers) from None
    except ClientDisconnect:
        raise ProblemError(400, "the body is incomplete") from None


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
