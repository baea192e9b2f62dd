"""The page `/dead`: the number of dead letters; for users who are logged in, their causes and replay."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from otp_stream import clock
from otp_stream.asgi import Fields, client_of, redirect
from otp_stream.core.audit import Result, new_id
from otp_stream.core.dead_letter import DeadLetter, DeadLettersInUseError, Group, filter_by, grouped
from otp_stream.core.dead_letter_filter import DeadLetterFilter
from otp_stream.core.decision import REASONS
from otp_stream.tasks import cancel_and_wait

from .access import FOREIGN_FORM, TOO_MANY, WRONG_TOKEN, Access, refuse
from .audit import audit
from .cached import Cached
from .pages import render
from .session import User

_LIMIT = 5_000
"""Dead letters that the page reads."""
_FRESH_S = 30.0
"""How long they are shown before they are read again: each time RabbitMQ delivers and requeues all of them."""
_STALE_FRESH_S = 3.0
"""The same if RabbitMQ counts another number of them."""
_MOST_RECORDED = 20
"""Most audit lines about viewers between two fetches. A client may have thousands of addresses."""
_TIMEOUT_S = 2.0
_REPORT_S = 600.0
"""How long the page reports the last replay."""
_SHOWN = 100
_RATE = 50.0

Progress = Callable[[int, int], object]
"""Called after each dead letter with the number that have left the queue, and the number in it at the start."""


class ReplaySummary(Protocol):
    """What a replay did."""

    replayed: int
    expired: int
    """Those that stayed, as their code has expired. Includes `erased`."""
    erased: int
    """Those of them whose code was erased."""


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
    access: Access
    count: Callable[[], Awaitable[int | None]]
    """Returns RabbitMQ's number of dead letters, or `None` if it is unknown."""
    endings: Callable[[], Mapping[str, int]]
    """This worker's jobs by outcome."""
    _fetched: tuple[list[DeadLetter], int] = field(default_factory=lambda: (list[DeadLetter](), 0))
    _groups: list[Group] = field(default_factory=list[Group])
    """Those of the fetched ones, because counting thousands for each request would delay codes."""
    _fetched_at: float = float("-inf")
    _tried_at: float = float("-inf")
    _outdated: bool = True
    """Whether a replay has changed the queue since."""
    _error: str | None = None
    """Why the queue cannot be read."""
    _in_use: bool = False
    _recorded: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    """Users, and their addresses, with an audit line since the last fetch."""
    _unrecorded: int = 0
    _report: ReplayReport | None = None
    _done: int | None = None
    """Dead letters that the current replay has sent."""
    _fetching: asyncio.Lock = field(default_factory=asyncio.Lock)
    _running: asyncio.Task[None] | None = None
    _visitor_pages: Cached[str | None, str] = field(init=False)
    """By the reason why a form was refused."""

    def __post_init__(self) -> None:
        self._visitor_pages = Cached(self._count_html)

    async def page(self, request: Request, refused: str | None = None, status: int = 200) -> Response:
        """Return dead letters by cause, to visitors only their number; `refused` is why a form was refused."""
        if user := await self.access.user(request):
            return await self._by_cause(request, user, refused, status)
        if self.access.is_blocked(request):
            return TOO_MANY
        return HTMLResponse(await self._visitor_pages.get(refused), status)

    async def _count_html(self, refused: str | None) -> str:
        return render(
            "dead_letter_count.html",
            count=await self.count(),
            endings={reason: number for reason in REASONS if (number := self.endings().get(reason, 0))},
            can=self.access.can_log_in,
            refused=refused,
        )

    async def _by_cause(self, request: Request, user: User, refused: str | None, status: int) -> Response:
        # RabbitMQ delivers and requeues every dead letter with its body: too expensive for visitors
        if self._done is None:
            await self._fetch()
            self._record_look(request, user)
        dead_letters, not_read = self._fetched
        now_ms = clock.now_ms()
        report = self._report if self._report and now_ms - self._report.at_ms < _REPORT_S * 1000 else None
        groups = self._groups
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
            user=user,
            form_key=self.access.form_key(request, user),
            now_ms=now_ms,
        )
        return HTMLResponse(html, status)

    def _record_look(self, request: Request, user: User) -> None:
        """Record who has seen the dead letters: once until they are read again, however often the page is loaded."""
        viewer = user.name, client_of(request)
        if viewer in self._recorded:
            return
        if len(self._recorded) == _MOST_RECORDED:
            self._unrecorded += 1
            return
        self._recorded.add(viewer)
        dead_letters, not_read = self._fetched
        left_out, self._unrecorded = self._unrecorded, 0
        details = {"not_read": not_read or None, "error": self._error, "left_out": left_out or None}
        result = "failed" if self._error or self._in_use else "done"
        audit(request, user, "dead.list", result, count=len(dead_letters), details=details)

    async def replay(self, request: Request, fields: Fields) -> Response:
        """Start a replay of one group."""
        conditions = [f"{name}={fields[name]}" for name in _FIELDS if name in fields]
        which, mistake = DeadLetterFilter(), ""
        try:
            which = DeadLetterFilter.parse(conditions, clock.now_ms())
        except ValueError as error:
            mistake = str(error)
        user = await self.access.operator(request, fields, self.page, "dead.replay", self._target(which))
        if isinstance(user, Response):
            return user
        if mistake:
            return await refuse(request, self.page, mistake, 400)
        if not which:
            return await refuse(request, self.page, "reason: is required", 400)
        if self._running is not None:
            return await refuse(request, self.page, "a replay is running: wait until it ends", 409)
        self._done, self._report, self._error = 0, None, None
        self._running = asyncio.create_task(self._replay(which, request, user, fresh=fields.get("fresh") == "yes"))
        return redirect("dead")

    async def log_in(self, request: Request, fields: Fields) -> Response:
        """Open a session."""
        if self.access.is_blocked(request):
            return TOO_MANY
        cookie = await self.access.log_in(request, fields.get("token", ""))
        if cookie is None:
            return await refuse(request, self.page, WRONG_TOKEN, 403)
        if isinstance(cookie, Response):
            return cookie
        return redirect("." if fields.get("to") == "." else "dead", cookie=cookie)

    async def log_out(self, request: Request, fields: Fields) -> Response:
        """Close the session."""
        cookie = await self.access.log_out(request, fields)
        if cookie is None:
            return await refuse(request, self.page, FOREIGN_FORM, 403)
        return redirect("dead", cookie=cookie)

    async def close(self) -> None:
        """Interrupt a replay that is running. It can be started again."""
        if self._running is not None:
            await cancel_and_wait(self._running)

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
            self._recorded.clear()
            try:
                self._fetched = await self.dead_letters.fetch(limit=_LIMIT, timeout_s=_TIMEOUT_S)
                self._groups = grouped(self._fetched[0], clock.now_ms())
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

    def _target(self, which: DeadLetterFilter) -> str:
        """Return the text of a filter for audit lines, where a typed value that no dead letter has may be a secret."""
        return str(which) if any(map(which.matches, self._fetched[0])) else which.outline

    async def _replay(self, which: DeadLetterFilter, request: Request, user: User, *, fresh: bool) -> None:
        by = f"{user.name}@{client_of(request)}"

        def record(result: Result, count: int | None = None, *, found: bool = False, **details: Any) -> None:
            target = str(which) if found or count else self._target(which)
            audit(request, user, "dead.replay", result, target=target, count=count, details=common | details)

        common: dict[str, Any] = {"fresh": fresh or None, "id": new_id()}

        def note(done: int, _: int) -> None:
            self._done = done
            if self._running and not self.access.sessions.is_valid(user.token):
                self._running.cancel()  # as when the worker stops

        try:
            await self._fetch()  # for the target
            record("started")  # a worker that is killed writes no other line
            summary = await self.dead_letters.replay(which, by=by, fresh=fresh, rate=_RATE, progress=note)
            self._report = ReplayReport(clock.now_ms(), by, _summary_text(summary, which))
            expired = summary.expired or None
            record("done", summary.replayed, found=bool(expired), expired=expired)
        except asyncio.CancelledError:
            record("interrupted", self._done)
            raise
        except Exception as error:  # noqa: BLE001 - the page shows the error
            text = str(error) or type(error).__name__
            self._report = ReplayReport(clock.now_ms(), by, f"{text} ({which})", failed=True)
            record("failed", self._done, error=text)
        finally:
            self._done, self._running, self._outdated = None, None, True


def _summary_text(summary: ReplaySummary, which: DeadLetterFilter) -> str:
    number = summary.replayed
    text = f"{number} {'job is' if number == 1 else 'jobs are'} being sent again ({which})"
    if not number and not summary.expired:
        text = f"no dead letter was left to send again ({which})"
    if expired := summary.expired - summary.erased:
        text += f"; {expired} with an expired code stayed"
    if summary.erased:
        text += f"; {summary.erased} stayed, because the code was erased when it expired"
    return text


_FIELDS = ("reason", "code", "domain")
