"""The operations page: one look says whether codes are going out."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from otp_stream.asgi import Answer, Scope
from otp_stream.core.decision import GOOD, REASONS
from otp_stream.core.health import Status, checks, kept_apart, worst
from otp_stream.core.state import Recent, Stats, Step, TablesState, WorkerSeen, WorkerState

from . import charts
from .live import Picture
from .pages import parts, render
from .session import Sessions

PARTS = ("status", "figures", "charts", "lanes", "endings", "recent", "relays", "workers", "tables")
"""What changes by itself: blocks of the template, each in a place with its name."""
_TITLES = {
    "healthy": "Codes are going out",
    "degraded": "Codes are going out, with trouble",
    "unhealthy": "No codes are going out",
}
_STEPS_A_MINUTE = 12
_T = TypeVar("_T")
_PATIENCE_S = 1.0
"""A broker or a Redis that does not answer must not keep somebody from seeing just that."""


class Watched(Protocol):
    """What the worker knows of its own doings."""

    def stats(self) -> Stats:
        """Return the figures since start."""
        ...

    def history(self) -> tuple[Step, ...]:
        """Return the last quarter of an hour, the oldest step first."""
        ...

    def recent(self) -> list[Recent]:
        """Return what became of jobs lately, the newest first."""
        ...


class Shared(Protocol):
    """What the workers know together."""

    async def most_throttled(self) -> Mapping[str, int]:
        """Return what was over a limit most often, by limit and hashed key."""
        ...

    async def seen(self) -> list[WorkerSeen]:
        """Return the workers that were heard of lately; none where they share nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Front:
    """Makes the page. `fresh` returns the worker's state once the broker was asked, or after so many seconds."""

    fresh: Callable[[float], Awaitable[WorkerState]]
    watched: Watched
    shared: Shared
    sessions: Sessions
    name: str
    """This worker's."""
    version: str
    environment: str

    async def page(self, scope: Scope, refused: str | None = None, status: int = 200) -> Answer:
        """Answer with the whole page; `refused` is what was not done, and why."""
        may = await self.sessions.knows(scope)
        form_key = self.sessions.form_key(scope) if may else ""
        html = render("front.html", **await self._fields(), may=may, form_key=form_key, refused=refused)
        return Answer(html.encode(), "text/html; charset=utf-8", status)

    async def picture(self) -> Picture:
        """Return the parts that change."""
        fields = await self._fields()
        return Picture(fields["title"], parts("front.html", PARTS, fields))

    async def _fields(self) -> dict[str, Any]:
        state = await self.fresh(_PATIENCE_S)
        now_ms = time.time_ns() // 1_000_000
        stats = self.watched.stats()
        found = checks(state, stats, now_ms)
        steps = self.watched.history()
        return {
            "state": state,
            "stats": stats,
            "found": found,
            "status": worst(found),
            "title": _title(state, stats, worst(found)),
            "apart": kept_apart(state),
            "rates": charts.rates(steps, _step_s(steps)),
            "times": charts.times(steps),
            "minutes": _minutes(steps),
            "recent": self.watched.recent(),
            "answers": _answers(state.tables),
            "throttled": await self._ask(self.shared.most_throttled(), dict[str, int]()) if state.tables else {},
            "workers": await self._ask(self.shared.seen(), list[WorkerSeen]()) if state.tables else [],
            "now_ms": now_ms,
            "name": self.name,
            "version": self.version,
            "environment": self.environment,
            "can": self.sessions.token is not None,
            "good": GOOD,
            "bad": REASONS,
        }

    async def _ask(self, asked: Awaitable[_T], otherwise: _T) -> _T:
        try:
            return await asyncio.wait_for(asked, _PATIENCE_S)
        except Exception:  # noqa: BLE001 - whatever stands in Redis, the rest of the page is what somebody came for
            return otherwise


def _title(state: WorkerState, stats: Stats, status: Status) -> str:
    if state.phase == "http_only":
        return "Serving HTTP only"
    if status == "degraded" and stats.died_last_minute > stats.sent_last_minute:
        return "More jobs die than go out"
    return _TITLES[status]


def _step_s(steps: tuple[Step, ...]) -> float:
    return (steps[1].at_ms - steps[0].at_ms) / 1000


def _minutes(steps: tuple[Step, ...]) -> list[tuple[int, int, int, int, int | None]]:
    """Return (minutes ago, sent, retried, dead, slowest p95) for each minute, the newest first."""
    found: list[tuple[int, int, int, int, int | None]] = []
    for ago, end in enumerate(range(len(steps), 0, -_STEPS_A_MINUTE)):
        minute = steps[max(end - _STEPS_A_MINUTE, 0) : end]
        slowest = max((it.p95_ms for it in minute if it.p95_ms is not None), default=None)
        sent, retried, dead = (sum(row) for row in zip(*((it.sent, it.retried, it.dead) for it in minute), strict=True))
        found.append((ago, sent, retried, dead, slowest))
    return found


def _answers(tables: TablesState | None) -> list[tuple[str, int, float]]:
    """Return each answer with its number and its share; one that only says "ask again" has none."""
    asked = {name: number for name, number in tables.asked.items() if name != "busy"} if tables else {}
    total = sum(asked.values())
    return [(name.replace("_", " "), number, number / total) for name, number in sorted(asked.items()) if number]
