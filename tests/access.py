"""Access with tokens of these names and roles, for unit tests of the pages."""

from starlette.requests import Request

from otp_stream.core.http_token import HttpToken, Role, digest_of
from otp_stream.web.access import Access
from otp_stream.web.session import Flags, Sessions

KEY = b"k" * 32


def token(value: str, name: str = "token", role: Role = "operator", expires_ms: int | None = None) -> HttpToken:
    return HttpToken(name, role, digest_of(value), expires_ms)


def access(*tokens: HttpToken | str | None, flags: Flags | None = None) -> Access:
    """Return the access of a worker with these tokens, or with one operator's token of this value."""
    found = [it if isinstance(it, HttpToken) else token(it) for it in tokens if it]
    return Access(Sessions(lambda: found, [KEY], flags))


async def log_in(it: Access, value: str, request: Request) -> str:
    """Log in. Returns the cookie, or an empty text if the token is wrong."""
    cookie = await it.log_in(request, value)
    return cookie.partition(";")[0] if isinstance(cookie, str) else ""


async def form_key(it: Access, request: Request) -> str:
    """Return the key of the forms on the pages of this user."""
    return it.form_key(request, await it.user(request))
