"""The page `/dead`: the number of dead letters; for users who are logged in, their causes and replay."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from otp_stream import clock
from otp_stream.asgi import Fields, redirect
from otp_stream.core.dead_letter import DeadLetter, DeadLettersInUseError, filter_by, grouped
from otp_stream.core.dead_letter_filter import DeadLetterFilter
from otp_stream.core.decision import REASONS

from .pages import render
from .session import FOREIGN_FORM, TOO_MANY, Sessions, client_name, refuse

_LIMIT = 5_000
"""Dead letters that the page reads."""
_FRESH_S = 30.0
"""How long they are shown before they are read again: each time RabbitMQ delivers and requeues all of them."""
_STALE_FRESH_S = 3.0
"""The same if RabbitMQ counts another number of them."""
_TIMEOUT_S = 2.0
_REPORT_S = 600.0
"""How long the page reports the last replay."""
_SHOWN = 100
_RATE = 50.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


Progress = Callable[[int, int], object]
"""Called after each dead letter with the number that have left the queue, and the number in it at the start."""


class ReplaySummary(Protocol):
    """What a replay did."""

    replayed: int
    expired: int


class DeadLetters(Protocol):
    """The dead-letter queue. Its methods raise errors whose text may be shown."""

    async def fetch(self, *, limit: int, timeout_s: float) -> tuple[list[DeadLetter], int]:
        """Return the oldest dead letters, and how many more there are.

        Raises `DeadLettersInUseError` while another user or command reads them.
        """
        ...

    async def replay(
        self, which: DeadLetterFilter, *, by: str, fresh: bool, rate: float, progress: Progress
    ) -> ReplaySummary:
        """Send the selected dead letters again."""
        ...


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """The result of the last replay, for every user."""

    at_ms: int
    by: str
    text: str
    failed: bool = False


@dataclass(slots=True)
class DeadLettersView:
    """Responds for the dead letters. One replay runs at a time, and continues when the browser disconnects."""

    dead_letters: DeadLetters
    sessions: Sessions
    count: Callable[[], Awaitable[int | None]]
    """Returns RabbitMQ's number of dead letters, or `None` if it is unknown."""
    endings: Callable[[], Mapping[str, int]]
    """This worker's jobs by outcome."""
    _fetched: tuple[list[DeadLetter], int] = field(default_factory=lambda: (list[DeadLetter](), 0))
    _fetched_at: float = float("-inf")
    _tried_at: float = float("-inf")
    _outdated: bool = True
    """Whether a replay has changed the queue since."""
    _error: str | None = None
    """Why the queue cannot be read."""
    _in_use: bool = False
    _report: ReplayReport | None = None
    _done: int | None = None
    """Dead letters that the current replay has sent."""
    _fetching: asyncio.Lock = field(default_factory=asyncio.Lock)
    _running: asyncio.Task[None] | None = None

    async def page(self, request: Request, refused: str | None = None, status: int = 200) -> Response:
        """Return dead letters by cause, to visitors only their number; `refused` is why a form was refused."""
        if self.sessions.is_blocked(request):
            return TOO_MANY
        if await self.sessions.is_authorized(request):
            return await self._by_cause(request, refused, status)
        html = render(
            "dead_letter_count.html",
            count=await self.count(),
            endings={reason: number for reason in REASONS if (number := self.endings().get(reason, 0))},
            can=self.sessions.token is not None,
            refused=refused,
        )
        return HTMLResponse(html, status)

    async def _by_cause(self, request: Request, refused: str | None, status: int) -> Response:
        # RabbitMQ delivers and requeues every dead letter with its body: too expensive for visitors
        if self._done is None:
            await self._fetch()
        dead_letters, not_read = self._fetched
        now_ms = clock.now_ms()
        report = self._report if self._report and now_ms - self._report.at_ms < _REPORT_S * 1000 else None
        groups = grouped(dead_letters, now_ms)
        html = render(
            "dead_letters.html",
            groups=groups,
            can_replay=any(it.can_replay for it in groups),
            filter_by=filter_by,
            dead_letters=dead_letters[:_SHOWN],
            count=len(dead_letters),
            not_read=not_read,
            error=self._error,
            in_use=self._in_use,
            refused=refused,
            age_ms=(time.monotonic() - self._fetched_at) * 1000,
            report=report,
            done=self._done,
            form_key=self.sessions.form_key(request),
            now_ms=now_ms,
        )
        return HTMLResponse(html, status)

    async def replay(self, request: Request, fields: Fields) -> Response:
        """Start a replay of one group."""
        if self.sessions.is_blocked(request):
            return TOO_MANY
        if refusal := await self.sessions.refusal(request, fields):
            return await refuse(request, self.page, *refusal)
        try:
            conditions = [f"{name}={fields[name]}" for name in _FIELDS if name in fields]
            which = DeadLetterFilter.parse(conditions, clock.now_ms())
        except ValueError as error:
            return await refuse(request, self.page, str(error), 400)
        if not which:
            return await refuse(request, self.page, "reason: is required", 400)
        if self._running is not None:
            return await refuse(request, self.page, "a replay is running: wait until it ends", 409)
        self._done, self._report, self._error = 0, None, None
        self._running = asyncio.create_task(
            self._replay(which, client_name(request), fresh=fields.get("fresh") == "yes")
        )
        return redirect("dead")

    async def login(self, request: Request, fields: Fields) -> Response:
        """Open a session."""
        if self.sessions.is_blocked(request):
            return TOO_MANY
        cookie = await self.sessions.open(fields.get("token", ""), request)
        if cookie is None:
            return await refuse(request, self.page, "the token is wrong: try again", 403)
        return redirect("." if fields.get("to") == "." else "dead", cookie=cookie)

    async def logout(self, request: Request, fields: Fields) -> Response:
        """Close the session."""
        if not self.sessions.is_own_form(request, fields.get("key", "")):
            return await refuse(request, self.page, FOREIGN_FORM, 403)
        return redirect("dead", cookie=await self.sessions.close(request))

    async def _fetch(self) -> None:
        async with self._fetching:
            now = time.monotonic()
            if not self._outdated:
                if now - self._tried_at < _STALE_FRESH_S:
                    return
                succeeded = self._error is None and not self._in_use
                if succeeded and now - self._fetched_at < _FRESH_S and await self.count() == self._fetched_count:
                    return
            self._outdated, self._error, self._in_use = False, None, False
            try:
                self._fetched = await self.dead_letters.fetch(limit=_LIMIT, timeout_s=_TIMEOUT_S)
                self._fetched_at = time.monotonic()
            except DeadLettersInUseError:
                self._in_use = True
            except Exception as error:  # noqa: BLE001 - the page shows the error
                self._error = str(error) or type(error).__name__
            self._tried_at = time.monotonic()

    @property
    def _fetched_count(self) -> int:
        dead_letters, not_read = self._fetched
        return len(dead_letters) + not_read

    async def _replay(self, which: DeadLetterFilter, by: str, *, fresh: bool) -> None:
        def note(done: int, _: int) -> None:
            self._done = done

        try:
            summary = await self.dead_letters.replay(which, by=by, fresh=fresh, rate=_RATE, progress=note)
            number = summary.replayed
            text = f"{number} {'job is' if number == 1 else 'jobs are'} being sent again ({which})"
            if not number and not summary.expired:
                text = f"no dead letter was left to send again ({which})"
            if summary.expired:
                text += f"; {summary.expired} with an expired code stayed"
            self._report = ReplayReport(clock.now_ms(), by, text)
            _log.info("dead letters replayed", by=by, which=str(which), dead_letters=number, expired=summary.expired)
        except Exception as error:  # noqa: BLE001 - the page shows the error
            text = str(error) or type(error).__name__
            self._report = ReplayReport(clock.now_ms(), by, f"{text} ({which})", failed=True)
            _log.warning("replay failed, start it again to continue", by=by, which=str(which), error=text)
        finally:
            self._done, self._running, self._outdated = None, None, True


_FIELDS = ("reason", "code", "domain")
