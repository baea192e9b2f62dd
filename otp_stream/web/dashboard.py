"""The operations page, which shows whether codes are going out."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from otp_stream import clock
from otp_stream.core.decision import GOOD, REASONS
from otp_stream.core.health import Status, checks, slow_text, unshared_state, worst
from otp_stream.core.state import TenantState, WorkerState
from otp_stream.core.stats import Recent, Stats, Step
from otp_stream.core.tables_state import TablesState, WorkerSeen

from . import charts
from .access import Access
from .cached import Cached
from .pages import parts, render
from .session import User
from .stream import Snapshot

PARTS = ("status", "figures", "charts", "lanes", "endings", "recent", "relays", "tenants", "workers", "tables")
"""The parts that are updated: blocks of the template, each in an element with its name as id."""
_TITLES = {
    "healthy": "Codes are going out",
    "degraded": "Codes are going out, with problems",
    "unhealthy": "No codes are going out",
}
_STEPS_A_MINUTE = 12
_TENANTS = 50
"""Tenants on the page."""
_T = TypeVar("_T")
_TIMEOUT_S = 1.0
"""A broker or Redis that does not answer must not keep the page from showing this."""


class Telemetry(Protocol):
    """The statistics of this worker."""

    def stats(self) -> Stats:
        """Return the statistics since start."""
        ...

    def history(self) -> tuple[Step, ...]:
        """Return the last 15 minutes in steps, the oldest first."""
        ...

    def recent(self) -> list[Recent]:
        """Return how recent jobs ended, the newest first."""
        ...


class Tables(Protocol):
    """The state that the workers share."""

    async def most_throttled(self) -> Mapping[str, int]:
        """Return what was over a limit most often, by limit and hashed key."""
        ...

    async def seen(self) -> list[WorkerSeen]:
        """Return the workers that have reported recently; none if they share no state."""
        ...


@dataclass(slots=True)
class Dashboard:
    """Makes the page.

    `fresh_state` returns the worker's state with current figures of the broker, or with older ones after a timeout in
    seconds.
    """

    fresh_state: Callable[[float], Awaitable[WorkerState]]
    telemetry: Telemetry
    tables: Tables
    access: Access
    name: str
    """This worker's."""
    version: str
    environment: str
    _visitor_pages: Cached[str | None, str] = field(init=False)
    """By the reason why a form was refused."""
    _snapshots: Cached[bool, Snapshot] = field(init=False)
    """By whether they contain the recent jobs."""

    def __post_init__(self) -> None:
        self._visitor_pages = Cached(lambda refused: self._html(None, "", refused))
        self._snapshots = Cached(self._snapshot)

    async def page(self, request: Request, refused: str | None = None, status: int = 200) -> Response:
        """Answer with the whole page; `refused` is the reason why a form was refused."""
        if user := await self.access.user(request):
            return HTMLResponse(await self._html(user, self.access.form_key(request, user), refused), status)
        return HTMLResponse(await self._visitor_pages.get(refused), status)

    async def _html(self, user: User | None, form_key: str, refused: str | None) -> str:
        fields = await self._fields(with_jobs=user is not None or not self.access.can_log_in)
        return render("dashboard.html", **fields, user=user, form_key=form_key, refused=refused)

    async def may_see_jobs(self, request: Request) -> bool:
        """Return whether the recent jobs are shown: to users; to everyone if there are no tokens."""
        return not self.access.can_log_in or await self.access.user(request) is not None

    async def snapshot(self, with_jobs: bool) -> Snapshot:  # noqa: FBT001 - a callback
        """Return the parts that are updated. They contain nothing of a session, because many viewers get the same."""
        return await self._snapshots.get(with_jobs)

    async def _snapshot(self, with_jobs: bool) -> Snapshot:  # noqa: FBT001 - a callback
        fields = await self._fields(with_jobs=with_jobs)
        return Snapshot(fields["title"], parts("dashboard.html", PARTS, fields))

    async def _fields(self, *, with_jobs: bool) -> dict[str, Any]:
        state = await self.fresh_state(_TIMEOUT_S)
        now_ms = clock.now_ms()
        stats = self.telemetry.stats()
        found = checks(state, stats, now_ms)
        steps = self.telemetry.history()
        return {
            "state": state,
            "stats": stats,
            "checks": found,
            "status": worst(found),
            "title": _title(state, stats, worst(found)),
            "unshared_state": unshared_state(state),
            "slow": {it.name: text for it in state.relays if (text := slow_text(it))},
            "tenants": _in_order(state.tenants)[:_TENANTS],
            "more_tenants": max(len(state.tenants) - _TENANTS, 0),
            "rates": charts.rates(steps, _step_s(steps)),
            "times": charts.times(steps),
            "minutes": _minutes(steps),
            "recent": self.telemetry.recent() if with_jobs else None,
            "admissions": _admissions(state.tables),
            "throttled": await _or_default(self.tables.most_throttled(), dict[str, int]()) if state.tables else {},
            "workers": await _or_default(self.tables.seen(), list[WorkerSeen]()) if state.tables else [],
            "now_ms": now_ms,
            "name": self.name,
            "version": self.version,
            "environment": self.environment,
            "can_log_in": self.access.can_log_in,
            "good": GOOD,
            "bad": REASONS,
        }


async def _or_default(call: Awaitable[_T], default: _T) -> _T:
    try:
        return await asyncio.wait_for(call, _TIMEOUT_S)
    except Exception:  # noqa: BLE001 - the rest of the page must appear whatever Redis contains
        return default


def _in_order(tenants: tuple[TenantState, ...]) -> list[TenantState]:
    """Return the tenants, those that need attention first."""

    def urgency(it: TenantState) -> tuple[bool, int, int]:
        return it.trouble is None, -(it.unacked + (it.depth or 0)), -it.stats.accepted

    return sorted(tenants, key=urgency)


def _title(state: WorkerState, stats: Stats, status: Status) -> str:
    if state.phase == "http_only":
        return "Serving HTTP only"
    if status == "degraded" and stats.died_last_minute > stats.sent_last_minute:
        return "More jobs are failing than being sent"
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


def _admissions(tables: TablesState | None) -> list[tuple[str, int, float]]:
    """Return each result of admission with its count and its share; without `busy`, after which the check repeats."""
    counts = {name: count for name, count in tables.answers.items() if name != "busy"} if tables else {}
    total = sum(counts.values())
    return [(name.replace("_", " "), count, count / total) for name, count in sorted(counts.items()) if count]
