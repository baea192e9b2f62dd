"""Who may do more than look: whoever knows HTTP_TOKEN. Sessions are signed, not stored: every worker accepts them."""

import asyncio
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from otp_stream.asgi import Answer, Fields, Scope, header

COOKIE = "otp_session"
_LIFE_S = 8 * 3600
_PAUSE_S = 0.5
_WRONG_S = 60.0
_MOST_WRONG = 10
"""Wrong tokens of one client within a minute; then it gets 429, whatever it sends."""
_MOST_KNOWN = 1_000

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Flags(Protocol):
    """What all workers of a deployment know for a while."""

    async def set_flag(self, name: str, ttl_ms: int) -> bool:
        """Set a flag for all workers; `False` where they do not share one now."""
        ...

    async def has_flag(self, name: str) -> bool:
        """Whether a worker has set it, as far as is known."""
        ...


@dataclass(slots=True)
class Sessions:
    """Opens sessions and knows them again; with no `token`, nobody gets one."""

    token: str | None = field(repr=False)
    flags: Flags | None = None
    """Where a logout is shared; `None`: only this process knows of it."""
    _wrong: OrderedDict[str, list[float]] = field(default_factory=OrderedDict[str, list[float]])
    """When a client's last wrong tokens came, by address."""
    _ended: OrderedDict[str, None] = field(default_factory=OrderedDict[str, None])
    """Cookies of sessions that are known to be closed."""
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def open(self, said: str, *, secure: bool, scope: Scope | None = None) -> str | None:
        """Return the `Set-Cookie` of a session for the right token; a wrong one waits."""
        async with self._one_at_a_time:
            if self.token is None or not hmac.compare_digest(said.encode(), self.token.encode()):
                self._note_wrong(scope or {})
                await asyncio.sleep(_PAUSE_S)
                return None
        until, nonce = str(int(time.time()) + _LIFE_S), secrets.token_hex(8)
        flags = f"Path=/; HttpOnly; SameSite=Strict; Max-Age={_LIFE_S}{'; Secure' if secure else ''}"
        return f"{COOKIE}={until}.{nonce}-{self._sign('session', f'{until}.{nonce}')}; {flags}"

    async def close(self, scope: Scope) -> str:
        """End a session, at all workers that share flags, and return the `Set-Cookie` that ends it in the browser."""
        cookie = _cookie(scope)
        left_s = self._seconds_left(cookie)
        if left_s > 0:
            self._remember_end(cookie)
            if not (self.flags and await self.flags.set_flag(_ended_flag(cookie), left_s * 1000)):
                _log.warning("logout is known to this process only", others_accept_the_cookie_for_s=left_s)
        return f"{COOKIE}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0"

    def is_blocked(self, scope: Scope) -> bool:
        """Whether this client has sent too many wrong tokens within the last minute."""
        times = [at for at in self._wrong.get(_client(scope), ()) if time.monotonic() - at < _WRONG_S]
        return len(times) >= _MOST_WRONG

    def _note_wrong(self, scope: Scope) -> None:
        client = _client(scope)
        _log.warning("wrong HTTP_TOKEN", client=client, path=scope.get("path"))
        self._wrong[client] = [*self._wrong.pop(client, ()), time.monotonic()][-_MOST_WRONG:]
        if len(self._wrong) > _MOST_KNOWN:
            self._wrong.popitem(last=False)

    async def knows(self, scope: Scope) -> bool:
        """Whether the request comes from an open session, or brings the token itself (`Authorization: Bearer`)."""
        if self.token is None or self.is_blocked(scope):
            return False
        if self._brings_token(scope):
            return True
        if is_program(scope):
            self._note_wrong(scope)
        cookie = _cookie(scope)
        if self._seconds_left(cookie) <= 0:
            return False
        if self.flags is not None and await self.flags.has_flag(_ended_flag(cookie)):
            self._remember_end(cookie)
            return False
        return True

    def form_key(self, scope: Scope) -> str:
        """Return what a form of this session must bring along, so that no other site can send one."""
        return self._sign("form", _cookie(scope))

    async def refusal(self, scope: Scope, fields: Fields) -> tuple[str, int] | None:
        """Return why this request may change nothing, with its status; `None` where it may."""
        if not await self.knows(scope):
            return NEEDED, 403
        return None if self.own_form(scope, fields.get("key", "")) else (FOREIGN, 403)

    def own_form(self, scope: Scope, key: str) -> bool:
        """Whether a form is ours; whoever brings the token itself needs none."""
        if self.token is None or self._brings_token(scope):
            return self.token is not None
        return hmac.compare_digest(key.encode(), self.form_key(scope).encode())

    def _brings_token(self, scope: Scope) -> bool:
        said, known = _bearer(scope) or "", (self.token or "").encode()
        return bool(known) and hmac.compare_digest(said.encode(), known)

    def _seconds_left(self, cookie: str) -> int:
        """Return how long a session lasts; 0 where the cookie is of none, or its end is known here."""
        if self.token is None or cookie in self._ended:
            return 0
        until, _, rest = cookie.partition(".")
        nonce, _, signature = rest.partition("-")
        fits = hmac.compare_digest(signature.encode(), self._sign("session", f"{until}.{nonce}").encode())
        return max(int(until) - int(time.time()), 0) if fits else 0

    def _remember_end(self, cookie: str) -> None:
        self._ended[cookie] = None
        if len(self._ended) > _MOST_KNOWN:
            self._ended.popitem(last=False)

    def _sign(self, what: str, text: str) -> str:
        return hmac.new((self.token or "").encode(), f"{what}:{text}".encode(), hashlib.sha256).hexdigest()


NEEDED = "log in with HTTP_TOKEN first"
FOREIGN = "this form is from another site, or the session has ended: log in and try again"
TOO_MANY = Answer(
    b"too many wrong tokens: try again in a minute\n", "text/plain", 429, headers=((b"retry-after", b"60"),)
)


def is_program(scope: Scope) -> bool:
    """Whether a program sent the request: a browser sends a cookie, no bearer token."""
    return _bearer(scope) is not None


def _bearer(scope: Scope) -> str | None:
    # a browser behind a proxy that asks for a password sends that as `Basic` with each request
    kind, _, said = header(scope, b"authorization").partition(" ")
    return said.strip() if kind.lower() == "bearer" else None


def who(scope: Scope) -> str:
    """Return who sent it, for the log."""
    return f"page@{_client(scope)}"


def _ended_flag(cookie: str) -> str:
    # hashed: whoever reads Redis must not find a cookie there
    return f"logout:{hashlib.sha256(cookie.encode()).hexdigest()}"


def _client(scope: Scope) -> str:
    return str((scope.get("client") or ("unknown",))[0])


def _cookie(scope: Scope) -> str:
    # by hand: a strict reader gives up at what other applications on this host have left there
    pairs = (pair.strip().partition("=") for pair in header(scope, b"cookie").split(";"))
    return next((value for name, _, value in pairs if name == COOKIE), "")
