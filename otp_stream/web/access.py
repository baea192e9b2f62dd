"""Who may do what: checks every request of a page, and records each one that is refused."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from otp_stream.asgi import Fields, client_of, text
from otp_stream.core.audit import Action
from otp_stream.core.http_token import HttpToken
from otp_stream.core.line_limit import LineLimit
from otp_stream.guess_limit import WINDOW_S, GuessLimit

from .audit import audit
from .session import Sessions, User

LOGIN_REQUIRED = "log in with a token first"
FOREIGN_FORM = "this form is from another site, or the session has ended: log in and try again"
WRONG_ROLE = "the token {} has the role viewer: only an operator may do this"
WRONG_TOKEN = "the token is wrong: try again"  # noqa: S105 - a text, not a token
TOO_MANY = text("too many wrong tokens: try again in a minute\n", 429, {"retry-after": "60"})
TOO_MANY_LOG_INS = text("too many log-ins with this token: try again in a minute\n", 429, {"retry-after": "60"})
_FAILED_LOGIN_DELAY_S = 0.5
_BROWSER_HEADERS = {"origin", "sec-fetch-site"}
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._@+-]")
_MAX_NAME = 64
_REFUSALS = 100
"""Audit lines about refused requests in a minute, of users and of others. A client may have thousands of addresses, and
the lines about what operators do must not be dropped."""

Page = Callable[[Request, str, int], Awaitable[Response]]
"""Makes a page that shows why a form was refused, with this status."""


@dataclass(slots=True)
class Access:
    """Checks tokens, sessions, roles and forms."""

    sessions: Sessions
    guesses: GuessLimit = field(default_factory=GuessLimit)
    _log_ins: GuessLimit = field(default_factory=GuessLimit)
    """Limits the log-ins with each token, because every worker, or Redis, remembers closed sessions for hours."""
    _anonymous: GuessLimit = field(default_factory=GuessLimit)
    """Limits the records of requests without any token, which cost a client nothing."""
    _refusals: LineLimit = field(default_factory=lambda: LineLimit(_REFUSALS))
    _user_refusals: LineLimit = field(default_factory=lambda: LineLimit(_REFUSALS))

    @property
    def can_log_in(self) -> bool:
        """Whether there are tokens."""
        return self.sessions.can_log_in

    def is_blocked(self, request: Request) -> bool:
        """Whether this client has sent too many wrong tokens within the last minute."""
        return self.guesses.is_blocked(client_of(request))

    async def user(self, request: Request) -> User | None:
        """Return the user of a session, or of the token in the request (`Authorization: Bearer`); else `None`.

        A client that is blocked may use a session that it has, because a session cannot be guessed.
        """
        if (sent := _bearer(request)) is not None and self.can_log_in and not self.is_blocked(request):
            if token := self.sessions.holder(sent):
                return User(_name(token, request), token, "program" if is_program(request) else "proxy")
            self.guesses.record(client_of(request))
            target = str(request.scope.get("path", ""))
            self._record(request, None, "token.refused", target=target, details=self._blocked(request))
        return await self.sessions.user(request)

    async def log_in(self, request: Request, token: str) -> str | Response | None:
        """Return the `Set-Cookie` of a new session, or `None` after a delay if the token is wrong.

        After ten log-ins with one token within a minute, return the response that refuses it.
        """
        if found := self.sessions.holder(token):
            if self._log_ins.is_blocked(found.name):
                return TOO_MANY_LOG_INS
            self._log_ins.record(found.name)
            cookie = await self.sessions.open(found, request)
            audit(request, User(found.name, found, "session"), "session.log_in")
            return cookie
        self.guesses.record(client_of(request))
        self._record(request, None, "session.log_in", details=self._blocked(request))
        await asyncio.sleep(_FAILED_LOGIN_DELAY_S)
        return None

    async def log_out(self, request: Request, fields: Fields) -> str | None:
        """Close the session, and return the `Set-Cookie` that deletes its cookie; `None` for a form of another site."""
        user = await self.sessions.user(request)
        if user is None or not self.sessions.is_own_form(request, user, fields.get("key", "")):
            return None
        cookie = await self.sessions.close(request)
        audit(request, user, "session.log_out")
        return cookie

    async def operator(
        self, request: Request, fields: Fields, page: Page, action: Action, target: str | None = None
    ) -> User | Response:
        """Return the user who may do what the form asks for, or the response that refuses it."""
        user = await self.user(request)
        if user is None and self.is_blocked(request):
            return TOO_MANY
        if user is None:
            reason = LOGIN_REQUIRED
        elif not self.sessions.is_own_form(request, user, fields.get("key", "")):
            reason = FOREIGN_FORM
        elif not user.may_change:
            reason = WRONG_ROLE.format(user.name)
        else:
            return user
        self._record_refusal(request, user, action, target, reason)
        return await refuse(request, page, reason, 403)

    def _record_refusal(
        self, request: Request, user: User | None, action: Action, target: str | None, reason: str
    ) -> None:
        if user is None:
            client = client_of(request)
            if _bearer(request) is not None or self._anonymous.is_blocked(client):  # a wrong token is recorded already
                return
            self._anonymous.record(client)
        self._record(request, user, action, target=target, details={"error": reason})

    def _record(
        self,
        request: Request,
        user: User | None,
        action: Action,
        *,
        target: str | None = None,
        details: Mapping[str, Any],
    ) -> None:
        limit = self._user_refusals if user else self._refusals
        if limit.admits(time.monotonic()):
            details = {**details, "left_out": limit.take_left_out() or None}
            audit(request, user, action, "refused", target=target, details=details)

    def form_key(self, request: Request, user: User | None) -> str:
        """Return the CSRF token of the forms of a page; empty without a user."""
        return self.sessions.form_key(request, user) if user else ""

    def _blocked(self, request: Request) -> dict[str, int]:
        return {"blocked_s": int(WINDOW_S)} if self.is_blocked(request) else {}


def is_program(request: Request) -> bool:
    """Whether a program sent the request: with a bearer token, and without the headers that browsers add to forms.

    A proxy can add the token to the requests of a browser, which also sends the forms of other sites.
    """
    return _bearer(request) is not None and _BROWSER_HEADERS.isdisjoint(request.headers.keys())


async def refuse(request: Request, page: Page, reason: str, status: int) -> Response:
    """Respond to a program with the reason as text, and to a browser with a page that shows it."""
    return PlainTextResponse(f"{reason}\n", status) if is_program(request) else await page(request, reason, status)


def _bearer(request: Request) -> str | None:
    # behind a proxy that requires a password, a browser sends that as `Basic` with each request
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else None


def _name(token: HttpToken, request: Request) -> str:
    user = request.headers.get(token.user_header, "") if token.user_header else ""
    return f"{token.name}:{_NOT_IN_NAMES.sub('?', user[:_MAX_NAME])}" if user else token.name
