"""Authorization with HTTP_TOKEN. Sessions are signed, not stored, so that every worker accepts them."""

import asyncio
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from otp_stream.asgi import Fields, text

COOKIE = "otp_session"
_SESSION_LIFETIME_S = 8 * 3600
_FAILED_LOGIN_DELAY_S = 0.5
_FAILURE_WINDOW_S = 60.0
_MAX_FAILURES = 10
"""Wrong tokens of one client within a minute; after them every request of the client gets 429."""
_MAX_ENTRIES = 1_000

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Page = Callable[[Request, str, int], Awaitable[Response]]
"""Makes a page that shows why a form was refused, with this status."""


class Flags(Protocol):
    """Flags with a TTL that the workers share."""

    async def set_flag(self, name: str, ttl_ms: int) -> bool:
        """Set a flag for all workers; `False` if they share no state at the moment."""
        ...

    async def has_flag(self, name: str) -> bool:
        """Whether a worker has set it; `False` if that cannot be read."""
        ...


@dataclass(slots=True)
class Sessions:
    """Opens and checks sessions; without a `token`, no one gets one."""

    token: str | None = field(repr=False)
    flags: Flags | None = None
    """Shares logouts with the other workers; `None`: a logout counts in this process only."""
    _failures: OrderedDict[str, list[float]] = field(default_factory=OrderedDict[str, list[float]])
    """Times of the last wrong tokens, by client address."""
    _closed: OrderedDict[str, None] = field(default_factory=OrderedDict[str, None])
    """Cookies of closed sessions."""
    _login_lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def open(self, token: str, request: Request) -> str | None:
        """Return the `Set-Cookie` of a new session, or `None` after a delay if the token is wrong."""
        async with self._login_lock:
            if self.token is None or not hmac.compare_digest(token.encode(), self.token.encode()):
                self._record_failure(request)
                await asyncio.sleep(_FAILED_LOGIN_DELAY_S)
                return None
        until, nonce = str(int(time.time()) + _SESSION_LIFETIME_S), secrets.token_hex(8)
        secure = "; Secure" if request.scope.get("scheme") == "https" else ""
        flags = f"Path=/; HttpOnly; SameSite=Strict; Max-Age={_SESSION_LIFETIME_S}{secure}"
        return f"{COOKIE}={until}.{nonce}-{self._sign('session', f'{until}.{nonce}')}; {flags}"

    async def close(self, request: Request) -> str:
        """Close a session for all workers that share flags, and return the `Set-Cookie` that deletes its cookie."""
        cookie = _cookie(request)
        left_s = self._seconds_left(cookie)
        if left_s > 0:
            self._remember_closed(cookie)
            if not (self.flags and await self.flags.set_flag(_logout_flag(cookie), left_s * 1000)):
                _log.warning("logout is known to this process only", others_accept_the_cookie_for_s=left_s)
        return f"{COOKIE}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0"

    def is_blocked(self, request: Request) -> bool:
        """Whether this client has sent too many wrong tokens within the last minute."""
        times = [at for at in self._failures.get(_client(request), ()) if time.monotonic() - at < _FAILURE_WINDOW_S]
        return len(times) >= _MAX_FAILURES

    def _record_failure(self, request: Request) -> None:
        client = _client(request)
        _log.warning("wrong HTTP_TOKEN", client=client, path=request.scope.get("path"))
        self._failures[client] = [*self._failures.pop(client, ()), time.monotonic()][-_MAX_FAILURES:]
        if len(self._failures) > _MAX_ENTRIES:
            self._failures.popitem(last=False)

    async def is_authorized(self, request: Request) -> bool:
        """Whether the request has the cookie of an open session, or the token itself (`Authorization: Bearer`)."""
        if self.token is None or self.is_blocked(request):
            return False
        if self._has_token(request):
            return True
        if is_program(request):
            self._record_failure(request)
        cookie = _cookie(request)
        if self._seconds_left(cookie) <= 0:
            return False
        if self.flags is not None and await self.flags.has_flag(_logout_flag(cookie)):
            self._remember_closed(cookie)
            return False
        return True

    def form_key(self, request: Request) -> str:
        """Return the CSRF token of this session's forms, without which another site's form is refused."""
        return self._sign("form", _cookie(request))

    async def refusal(self, request: Request, fields: Fields) -> tuple[str, int] | None:
        """Return the reason and the status if this request may not change anything, else `None`."""
        if not await self.is_authorized(request):
            return LOGIN_REQUIRED, 403
        return None if self.is_own_form(request, fields.get("key", "")) else (FOREIGN_FORM, 403)

    def is_own_form(self, request: Request, key: str) -> bool:
        """Whether a form is from our pages. A request with the token itself needs no form key."""
        if self.token is None or self._has_token(request):
            return self.token is not None
        return hmac.compare_digest(key.encode(), self.form_key(request).encode())

    def _has_token(self, request: Request) -> bool:
        sent, expected = _bearer(request) or "", (self.token or "").encode()
        return bool(expected) and hmac.compare_digest(sent.encode(), expected)

    def _seconds_left(self, cookie: str) -> int:
        """Return the remaining lifetime of a session; 0 if it is closed or the cookie is invalid."""
        if self.token is None or cookie in self._closed:
            return 0
        until, _, rest = cookie.partition(".")
        nonce, _, signature = rest.partition("-")
        valid = hmac.compare_digest(signature.encode(), self._sign("session", f"{until}.{nonce}").encode())
        return max(int(until) - int(time.time()), 0) if valid else 0

    def _remember_closed(self, cookie: str) -> None:
        self._closed[cookie] = None
        if len(self._closed) > _MAX_ENTRIES:
            self._closed.popitem(last=False)

    def _sign(self, purpose: str, text: str) -> str:
        return hmac.new((self.token or "").encode(), f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()


LOGIN_REQUIRED = "log in with HTTP_TOKEN first"
FOREIGN_FORM = "this form is from another site, or the session has ended: log in and try again"
TOO_MANY = text("too many wrong tokens: try again in a minute\n", 429, {"retry-after": "60"})


def is_program(request: Request) -> bool:
    """Whether a program sent the request: it sends a bearer token, a browser sends a cookie."""
    return _bearer(request) is not None


async def refuse(request: Request, page: Page, reason: str, status: int) -> Response:
    """Respond to a program with the reason as text, and to a browser with a page that shows it."""
    return PlainTextResponse(f"{reason}\n", status) if is_program(request) else await page(request, reason, status)


def _bearer(request: Request) -> str | None:
    # behind a proxy that requires a password, a browser sends that as `Basic` with each request
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else None


def client_name(request: Request) -> str:
    """Return the client's name for log lines."""
    return f"page@{_client(request)}"


def _logout_flag(cookie: str) -> str:
    # hashed: a reader of Redis must not find a valid cookie there
    return f"logout:{hashlib.sha256(cookie.encode()).hexdigest()}"


def _client(request: Request) -> str:
    return request.client.host if request.client else "unknown"


def _cookie(request: Request) -> str:
    return request.cookies.get(COOKIE, "")
