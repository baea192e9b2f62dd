"""Who may do more than look: whoever knows HTTP_TOKEN. Sessions are signed, not stored: every worker knows them."""

import asyncio
import hashlib
import hmac
import time
from dataclasses import dataclass, field

from otp_stream.asgi import Scope, header

COOKIE = "otp_session"
_LIFE_S = 8 * 3600
_PAUSE_S = 0.5


@dataclass(slots=True)
class Sessions:
    """Opens sessions and knows them again; with no `token`, nobody gets one."""

    token: str | None = field(repr=False)
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def open(self, said: str, *, secure: bool) -> str | None:
        """Return the `Set-Cookie` of a session for whoever says the token; a wrong one waits."""
        async with self._one_at_a_time:
            if self.token is None or not hmac.compare_digest(said.encode(), self.token.encode()):
                await asyncio.sleep(_PAUSE_S)
                return None
        until = str(int(time.time()) + _LIFE_S)
        flags = f"Path=/; HttpOnly; SameSite=Strict; Max-Age={_LIFE_S}{'; Secure' if secure else ''}"
        return f"{COOKIE}={until}.{self._sign('session', until)}; {flags}"

    def close(self) -> str:
        """Return the `Set-Cookie` that ends a session."""
        return f"{COOKIE}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0"

    def knows(self, scope: Scope) -> bool:
        """Whether the request comes from an open session, or brings the token itself (`Authorization: Bearer`)."""
        if self.token is None:
            return False
        if self._brings_token(scope):
            return True
        until, _, signature = _cookie(scope).partition(".")
        fits = hmac.compare_digest(signature.encode(), self._sign("session", until).encode())
        return fits and until.isascii() and until.isdigit() and int(until) > time.time()

    def form_key(self, scope: Scope) -> str:
        """Return what a form of this session must bring along, so that no other site can send one."""
        return self._sign("form", _cookie(scope))

    def own_form(self, scope: Scope, key: str) -> bool:
        """Whether a form is ours; whoever brings the token itself needs none."""
        if self._brings_token(scope):
            return True
        return hmac.compare_digest(key.encode(), self.form_key(scope).encode())

    def _brings_token(self, scope: Scope) -> bool:
        kind, _, said = header(scope, b"authorization").partition(" ")
        known = (self.token or "").encode()
        return bool(known) and kind.lower() == "bearer" and hmac.compare_digest(said.strip().encode(), known)

    def _sign(self, what: str, text: str) -> str:
        return hmac.new((self.token or "").encode(), f"{what}:{text}".encode(), hashlib.sha256).hexdigest()


def _cookie(scope: Scope) -> str:
    # by hand: a strict reader gives up at what other applications on this host have left there
    pairs = (pair.strip().partition("=") for pair in header(scope, b"cookie").split(";"))
    return next((value for name, _, value in pairs if name == COOKIE), "")
