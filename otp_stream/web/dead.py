"""The page of dead letters: how many there are; for those who are logged in, why they died, and replay."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from otp_stream.asgi import Answer, Fields, Scope, redirect
from otp_stream.core.dead_letter import InHandError, Letter, Wanted, grouped, words
from otp_stream.core.decision import REASONS

from .pages import render
from .session import FOREIGN, TOO_MANY, Sessions, is_program, who

_MOST = 5_000
"""Letters that one page looks at."""
_FRESH_S = 30.0
"""How long a look is good for: each takes every letter in hand for a moment."""
_AGAIN_S = 3.0
"""The same where the broker does not count as many as were seen."""
_PATIENCE_S = 2.0
_TOLD_S = 600.0
"""How long the page tells of a replay."""
_SHOWN = 100
_RATE = 50.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


Progress = Callable[[int, int], object]
"""Told after each letter how many have left the queue, and how many lay in it."""


class Replayed(Protocol):
    """What came of a replay."""

    replayed: int
    stale: int


class Letters(Protocol):
    """Reaches the dead letters. Its methods raise with a text that may be shown."""

    async def look(self, *, most: int, patience_s: float) -> tuple[list[Letter], int]:
        """Return the oldest letters, and how many more there are. Raises `InHandError` while somebody has them."""
        ...

    async def replay(self, wanted: Wanted, *, by: str, fresh: bool, rate: float, progress: Progress) -> Replayed:
        """Send letters on their way again."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of the last replay, for all who look."""

    at_ms: int
    by: str
    told: str
    failed: bool = False


@dataclass(slots=True)
class DeadDesk:
    """Answers for the dead letters. One replay at a time; it goes on when the browser is gone."""

    letters: Letters
    sessions: Sessions
    count: Callable[[], Awaitable[int | None]]
    """Asks the broker how many there are; `None` where it does not say."""
    endings: Callable[[], Mapping[str, int]]
    """Jobs by how they ended at this worker."""
    _looked: tuple[list[Letter], int] = field(default_factory=lambda: (list[Letter](), 0))
    _looked_at: float = float("-inf")
    """When they were seen."""
    _tried_at: float = float("-inf")
    _due: bool = True
    """Whether what was seen is known to be old."""
    _error: str | None = None
    """Why they cannot be seen."""
    _in_hand: bool = False
    _last: Outcome | None = None
    _done: int | None = None
    """Letters that the replay under way has sent."""
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _running: asyncio.Task[None] | None = None

    async def page(self, scope: Scope, refused: str | None = None, status: int = 200) -> Answer:
        """Show dead letters by cause, to a visitor only their number; `refused` is what was not done, and why."""
        if self.sessions.is_blocked(scope):
            return TOO_MANY
        if await self.sessions.knows(scope):
            return await self._by_cause(scope, refused, status)
        html = render(
            "dead_count.html",
            count=await self.count(),
            endings={reason: number for reason in REASONS if (number := self.endings().get(reason, 0))},
            can=self.sessions.token is not None,
            refused=refused,
        )
        return Answer(html.encode(), "text/html; charset=utf-8", status)

    async def _by_cause(self, scope: Scope, refused: str | None, status: int) -> Answer:
        # takes every dead letter from RabbitMQ for a moment, with its body: not for visitors
        if self._done is None:
            await self._look()
        letters, left = self._looked
        now_ms = _now_ms()
        last = self._last if self._last and now_ms - self._last.at_ms < _TOLD_S * 1000 else None
        groups = grouped(letters, now_ms)
        html = render(
            "dead.html",
            groups=groups,
            first=next((it for it in groups if it.worth_it), None) or next((it for it in groups if it.can_go), None),
            words=words,
            letters=letters[:_SHOWN],
            count=len(letters),
            left=left,
            error=self._error,
            in_hand=self._in_hand,
            refused=refused,
            looked_ms=(time.monotonic() - self._looked_at) * 1000,
            last=last,
            done=self._done,
            form_key=self.sessions.form_key(scope),
            now_ms=now_ms,
        )
        return Answer(html.encode(), "text/html; charset=utf-8", status)

    async def _refuse(self, scope: Scope, text: str, status: int) -> Answer:
        if is_program(scope):
            return Answer(f"{text}\n".encode(), "text/plain; charset=utf-8", status)
        return await self.page(scope, text, status)

    async def replay(self, scope: Scope, fields: Fields) -> Answer:
        """Begin a replay of one group."""
        if self.sessions.is_blocked(scope):
            return TOO_MANY
        if refusal := await self.sessions.refusal(scope, fields):
            return await self._refuse(scope, *refusal)
        try:
            wanted = Wanted.read([f"{name}={fields[name]}" for name in _NAMES if name in fields], _now_ms())
        except ValueError as error:
            return await self._refuse(scope, str(error), 400)
        if not wanted:
            return await self._refuse(scope, "reason: is required", 400)
        if self._running is not None:
            return await self._refuse(scope, "a replay is under way: wait for its end", 409)
        self._done, self._last, self._error = 0, None, None
        self._running = asyncio.create_task(self._replay(wanted, who(scope), fresh=fields.get("fresh") == "yes"))
        return redirect("dead")

    async def login(self, scope: Scope, fields: Fields) -> Answer:
        """Open a session."""
        if self.sessions.is_blocked(scope):
            return TOO_MANY
        cookie = await self.sessions.open(fields.get("token", ""), secure=scope.get("scheme") == "https", scope=scope)
        if cookie is None:
            return await self._refuse(scope, "the token is wrong: try again", 403)
        return redirect("." if fields.get("to") == "." else "dead", cookie=cookie)

    async def logout(self, scope: Scope, fields: Fields) -> Answer:
        """Close the session."""
        if not self.sessions.own_form(scope, fields.get("key", "")):
            return await self._refuse(scope, FOREIGN, 403)
        return redirect("dead", cookie=await self.sessions.close(scope))

    async def _look(self) -> None:
        async with self._asking:
            now = time.monotonic()
            if not self._due:
                if now - self._tried_at < _AGAIN_S:
                    return
                well = self._error is None and not self._in_hand
                if well and now - self._looked_at < _FRESH_S and await self.count() == self._seen:
                    return
            self._due, self._error, self._in_hand = False, None, False
            try:
                self._looked = await self.letters.look(most=_MOST, patience_s=_PATIENCE_S)
                self._looked_at = time.monotonic()
            except InHandError:
                self._in_hand = True
            except Exception as error:  # noqa: BLE001 - the page is the place to say so
                self._error = str(error) or type(error).__name__
            self._tried_at = time.monotonic()

    @property
    def _seen(self) -> int:
        letters, left = self._looked
        return len(letters) + left

    async def _replay(self, wanted: Wanted, by: str, *, fresh: bool) -> None:
        def note(done: int, _: int) -> None:
            self._done = done

        try:
            passed = await self.letters.replay(wanted, by=by, fresh=fresh, rate=_RATE, progress=note)
            number = passed.replayed
            told = f"{number} {'job is' if number == 1 else 'jobs are'} being sent again ({wanted})"
            if not number and not passed.stale:
                told = f"no letter was left to send again ({wanted})"
            if passed.stale:
                told += f"; {passed.stale} with an expired code stayed"
            self._last = Outcome(_now_ms(), by, told)
            _log.info("dead letters replayed", by=by, which=str(wanted), letters=passed.replayed, expired=passed.stale)
        except Exception as error:  # noqa: BLE001 - the page is the place to say so
            told = str(error) or type(error).__name__
            self._last = Outcome(_now_ms(), by, f"{told} ({wanted})", failed=True)
            _log.warning("replay failed, the same goes on", by=by, which=str(wanted), error=told)
        finally:
            self._done, self._running, self._due = None, None, True


_NAMES = ("reason", "code", "domain")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
