"""Sessions of requests to servers that may misbehave: they follow no redirect, and read no long or slow response."""

import io
from functools import partial
from typing import Any


def bound(session: Any, limit: int, within_s: float) -> Any:
    """Limit what a session reads: `limit` bytes of a body, and the whole response within `within_s` seconds.

    Returns the session. Its requests raise what requests raises, and `ValueError` for a response that is too long.
    """
    from .bounded_adapter import BoundedAdapter  # noqa: PLC0415 - requests is needed for some servers only

    for scheme in ("http://", "https://"):
        session.mount(scheme, BoundedAdapter(limit, within_s))
    session.max_redirects = 0
    session.auth = _unchanged  # otherwise it sends a password of ~/.netrc, in place of the header that is set
    session.hooks["response"].append(partial(_read, limit=limit))
    return session


def _unchanged(request: Any) -> Any:
    return request


def _read(response: Any, *, limit: int, **_: object) -> Any:
    """Read the body, which may be compressed."""
    from requests import ConnectionError  # noqa: A004, PLC0415 - as above
    from urllib3.exceptions import HTTPError  # noqa: PLC0415

    body = b""
    try:
        while piece := response.raw.read1(limit + 1 - len(body), decode_content=True):
            body += piece
            if len(body) > limit:
                raise ValueError("it is too long")
    except HTTPError as error:  # it broke off, or is slow
        raise ConnectionError(type(error).__name__, response=response) from None
    finally:
        response.close()
    response.raw = io.BytesIO(body)
    return response
