"""Sessions and tokens. Sessions are signed, not stored, so that every worker accepts them."""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import structlog
from starlette.requests import Request

from otp_stream import clock
from otp_stream.core.http_token import HttpToken, Role, find_token

COOKIE = "otp_session"
_SESSION = re.compile(rf"(?:^|;)\s*{COOKIE}=([^;]*)")
"""A search, because to split a header of nothing but semicolons takes milliseconds."""
_SESSION_LIFETIME_S = 8 * 3600
_MARGIN_S = 60
"""How long a closed session is remembered after its end."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Flags(Protocol):
    """Flags with a TTL that the workers share."""

    async def set_flag(self, name: str, ttl_ms: int) -> bool:
        """Set a flag for all workers; `False` if they share no state at the moment."""
        ...

    async def has_flag(self, name: str) -> bool:
        """Whether a worker has set it; `False` if that cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class User:
    """Who sent a request."""

    name: str
    """The name of the token. If a proxy names the user, followed by that: `sso:ada`."""
    token: HttpToken
    via: Literal["session", "proxy", "program"]
    """`proxy`: a browser's request to which a proxy has added the token; `program`: a request with the token."""

    @property
    def role(self) -> Role:
        """The role of the token."""
        return self.token.role

    @property
    def may_change(self) -> bool:
        """Whether the user may do what changes something."""
        return self.role == "operator"


@dataclass(slots=True)
class Sessions:
    """Opens and checks sessions. A session ends when its token is removed, changed or expired."""

    tokens: Callable[[], Sequence[HttpToken]]
    """Returns the tokens that are valid now; without one, no one can log in."""
    keys: Sequence[bytes] = field(repr=False)
    """The first key signs; sessions that others signed are accepted, too."""
    flags: Flags | None = None
    """Shares logouts with the other workers; `None`: a logout counts in this process only."""
    _closed: dict[str, float] = field(default_factory=dict[str, float])
    """Cookies of closed sessions, and until when each is kept, in seconds since 1970: as long as it could be used.

    They are few, because the log-ins with each token are limited.
    """

    @property
    def can_log_in(self) -> bool:
        """Whether there are tokens."""
        return bool(self.tokens())

    def is_valid(self, token: HttpToken) -> bool:
        """Return whether this token has neither been removed nor changed, nor has expired."""
        return token in self.tokens() and token.is_valid(clock.now_ms())

    def holder(self, sent: str) -> HttpToken | None:
        """Return the token of this value, if it is valid."""
        return find_token(self.tokens(), sent, clock.now_ms())

    async def open(self, token: HttpToken, request: Request) -> str:
        """Return the `Set-Cookie` of a new session. A session that the browser had before is closed."""
        await self._close(cookie_of(request))
        claims = f"{int(time.time()) + _SESSION_LIFETIME_S}.{secrets.token_hex(16)}.{token.name}"
        cookie = f"{claims}-{_sign(self.keys[0], token, 'session', claims)}"
        return _set_cookie(request, cookie, _SESSION_LIFETIME_S)

    async def close(self, request: Request) -> str:
        """Close a session for all workers that share flags, and return the `Set-Cookie` that deletes its cookie."""
        await self._close(cookie_of(request))
        return _set_cookie(request, "", 0)

    async def user(self, request: Request) -> User | None:
        """Return the user of an open session, or `None`."""
        cookie = cookie_of(request)
        if not (found := self._read(cookie)):
            return None
        if self.flags is not None and await self.flags.has_flag(_logout_flag(cookie)):
            self._remember_closed(cookie, found[2])
            return None
        token, *_ = found
        return User(token.name, token, "session")

    def form_key(self, request: Request, user: User) -> str:
        """Return the CSRF token of this user's forms, without which another site's form is refused."""
        found = self._read(cookie_of(request)) if user.via == "session" else None
        return self._form_key(request, user, found[1] if found else self.keys[0])

    def is_own_form(self, request: Request, user: User, key: str) -> bool:
        """Whether a form is from a page of this user. A program needs no key, because no other site has the token."""
        expected = [self._form_key(request, user, it).encode() for it in self.keys]
        return user.via == "program" or any(hmac.compare_digest(key.encode(), it) for it in expected)

    def _form_key(self, request: Request, user: User, key: bytes) -> str:
        return _sign(key, user.token, "form", cookie_of(request) if user.via == "session" else f"proxy {user.name}")

    async def _close(self, cookie: str) -> None:
        if found := self._read(cookie):
            *_, left_s = found
            self._remember_closed(cookie, left_s)
            if not (self.flags and await self.flags.set_flag(_logout_flag(cookie), left_s * 1000)):
                _log.warning("logout is known to this process only", others_accept_the_cookie_for_s=left_s)

    def _read(self, cookie: str) -> tuple[HttpToken, bytes, int] | None:
        """Return token, key and remaining seconds of a session; `None` if it has ended or the cookie is invalid."""
        claims, _, signature = cookie.rpartition("-")
        if cookie in self._closed or claims.count(".") < 2:
            return None
        until, _, name = claims.split(".", 2)
        for token in self.tokens():
            if token.name != name or not token.is_valid(clock.now_ms()):
                continue
            for key in self.keys:
                if hmac.compare_digest(signature.encode(), _sign(key, token, "session", claims).encode()):
                    left_s = int(until) - int(time.time())
                    return (token, key, left_s) if left_s > 0 else None
        return None

    def _remember_closed(self, cookie: str, left_s: int) -> None:
        now_s = time.time()
        for it in [it for it, until in self._closed.items() if until < now_s]:
            del self._closed[it]
        self._closed[cookie] = now_s + left_s + _MARGIN_S


def cookie_of(request: Request) -> str:
    """Return the cookie of the request's session, or an empty text.

    If there are several, it is the first: browsers send that of the longest path first (RFC 6265 §5.4), and another
    deployment on this host may have set the others.
    """
    found = _SESSION.search(";".join(request.headers.getlist("cookie")))
    return found[1].rstrip() if found else ""


def _set_cookie(request: Request, value: str, max_age_s: int) -> str:
    secure = "; Secure" if request.scope.get("scheme") == "https" else ""
    path = request.scope.get("root_path") or "/"
    return f"{COOKIE}={value}; Path={path}; HttpOnly; SameSite=Strict; Max-Age={max_age_s}{secure}"


def _sign(key: bytes, token: HttpToken, purpose: str, text: str) -> str:
    # the token's own values are part of the key, so that a changed token ends its sessions
    own = hmac.new(key, token.digest + f"{token.role}:{token.name}".encode(), hashlib.sha256).digest()
    return hmac.new(own, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()


def _logout_flag(cookie: str) -> str:
    # hashed: a reader of Redis must not find a valid cookie there
    return f"logout:{hashlib.sha256(cookie.encode()).hexdigest()}"
