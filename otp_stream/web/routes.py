"""Every address of the HTTP side, and who answers there."""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml

from otp_stream.asgi import Answer, Route, Scope, answering, as_json, header, streaming, taking
from otp_stream.core.decision import REASONS
from otp_stream.core.health import Status, checks, worst
from otp_stream.core.state import TablesState, WorkerState

from .dead_letters import DeadLetters, DeadLettersView
from .front import Front, Shared, Watched
from .live import MOST, Live
from .pages import ASSETS, asyncapi_page
from .probe import Probe, ProbeRoute
from .session import Flags, Sessions
from .templates import Previews, TemplateDesk

_FRESH_MS = 2_000
"""How old the broker's word may be before it is asked again."""
_ASK_S = 3.0


@dataclass(frozen=True, slots=True)
class Sources:
    """Whom the HTTP side asks."""

    look: Callable[[], WorkerState]
    watched: Watched
    refresh: Callable[[], Awaitable[None]]
    shared: Shared
    flags: Flags | None
    probe: Probe
    dead_letters: DeadLetters
    previews: Previews
    default_locale: str
    http_token: str | None
    """Required to replay dead letters and to probe a relay."""
    metrics: Callable[[str], tuple[bytes, str]]
    document: Callable[[], dict[str, Any]]
    name: str
    """This worker's, as `host:pid`."""
    version: str
    environment: str


def routes(sources: Sources) -> dict[str, Route]:
    """Return every path with its ASGI route."""
    desk = _Desk(sources)
    sessions = Sessions(sources.http_token, sources.flags)
    about = sources.name, sources.version, sources.environment
    front = Front(desk.fresh, sources.watched, sources.shared, sessions, *about)
    live = Live(front.picture, stopping=lambda: sources.look().phase == "stopping")
    templates = TemplateDesk(sources.previews, sources.default_locale)
    dead_letters = DeadLettersView(
        sources.dead_letters, sessions, desk.dead_letter_count, lambda: sources.watched.stats().endings
    )
    probe = ProbeRoute(sources.probe, sessions, front, sources.name)
    document = cache(sources.document)  # it does not change while the process runs, and takes milliseconds to make
    answers: dict[str, Callable[[Scope], Awaitable[Answer]]] = {
        "/": front.page,
        "/dead": dead_letters.page,
        "/templates": templates.page,
        "/preview": templates.preview,
        "/health": desk.health,
        "/livez": _alive,
        "/readyz": desk.ready,
        "/metrics": desk.metrics,
        "/asyncapi": partial(_asyncapi_page, document),
        "/asyncapi.json": partial(_asyncapi_json, document),
        "/asyncapi.yaml": partial(_asyncapi_yaml, document),
        **{f"/{name}": partial(_asset, name) for name in ASSETS},
    }
    forms = {
        "/replay": dead_letters.replay,
        "/login": dead_letters.login,
        "/logout": dead_letters.logout,
        "/probe": probe.take,
    }
    return {
        **{path: answering(answer) for path, answer in answers.items()},
        **{path: taking(take) for path, take in forms.items()},
        "/live": streaming(live.stream, "text/event-stream", free=lambda: live.viewers < MOST),
    }


class _Desk:
    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._asking: asyncio.Task[None] | None = None

    async def ready(self, _: Scope) -> Answer:
        found = checks(await self.fresh(_ASK_S), self._sources.watched.stats(), _now_ms())
        status = worst(found)
        told = {"status": status, "checks": [{"name": c.name, "status": c.status, "text": c.text} for c in found]}
        return as_json(told, _http(status))

    async def health(self, _: Scope) -> Answer:
        state, stats, now_ms = await self.fresh(_ASK_S), self._sources.watched.stats(), _now_ms()
        found = checks(state, stats, now_ms)
        status = worst(found)
        dead = sum(count for ending, count in stats.endings.items() if ending in REASONS)
        told = {
            "status": status,
            "stats": {
                "processedJobs": sum(stats.endings.values()) - dead,
                "failedJobs": dead,
                "retriedJobs": stats.retried,
                "startTime": _iso(stats.started_ms),
                "lastProcessedAt": _iso(stats.last_processed_ms),
            },
            "uptime": (now_ms - stats.started_ms) / 1000,
            "memoryUsage": _memory(),
            "lastError": stats.last_error,
            "lastErrorAt": _iso(stats.last_error_ms),
            "phase": state.phase,
            "outcomes": stats.endings,
            "sentLastMinute": stats.sent_last_minute,
            "timeToAcceptMs": {"p50": stats.p50_ms, "p99": stats.p99_ms},
            "tables": _tables(state.tables),
            "checks": [{"name": c.name, "status": c.status, "text": c.text} for c in found],
            "version": self._sources.version,
        }
        return as_json(told, _http(status))

    async def metrics(self, scope: Scope) -> Answer:
        body, content_type = self._sources.metrics(header(scope, b"accept"))
        return Answer(body, content_type)

    async def dead_letter_count(self) -> int | None:
        """Return how many there are by the broker's word; `None` where it is away, or this worker does not ask."""
        broker = (await self.fresh(_ASK_S)).broker
        return broker.dead if broker is not None and broker.connected else None

    async def fresh(self, patience_s: float) -> WorkerState:
        """Return the state, with the broker's word of the last seconds unless it takes longer than `patience_s`."""
        broker = self._sources.look().broker
        if broker is not None and broker.connected and _now_ms() - (broker.looked_ms or 0) > _FRESH_MS:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask())
            await asyncio.wait({self._asking}, timeout=patience_s)
        return self._sources.look()

    async def _ask(self) -> None:
        with contextlib.suppress(TimeoutError):  # its word grows old, and the check says so
            await asyncio.wait_for(self._sources.refresh(), _ASK_S)


async def _alive(_: Scope) -> Answer:
    return as_json({"status": "alive"})


async def _asset(name: str, _: Scope) -> Answer:
    content_type, content = ASSETS[name]
    return Answer(content, content_type)


async def _asyncapi_page(document: Callable[[], dict[str, Any]], _: Scope) -> Answer:
    return Answer(asyncapi_page(document()).encode(), "text/html; charset=utf-8")


async def _asyncapi_json(document: Callable[[], dict[str, Any]], _: Scope) -> Answer:
    return as_json(document())


async def _asyncapi_yaml(document: Callable[[], dict[str, Any]], _: Scope) -> Answer:
    text = yaml.safe_dump(document(), sort_keys=False, allow_unicode=True)
    return Answer(text.encode(), "application/yaml")


def _http(status: Status) -> int:
    return 503 if status == "unhealthy" else 200


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _tables(tables: TablesState | None) -> dict[str, object] | None:
    if tables is None:
        return None
    return {
        "connected": tables.connected,
        "workers": tables.workers,
        "answers": dict(tables.asked),
        "possibleDuplicates": tables.unshared,
    }


def _iso(at_ms: int | None) -> str | None:
    if at_ms is None:
        return None
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _memory() -> dict[str, int]:
    """Return bytes in memory now, from Linux; nothing elsewhere."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return {}
    return {"rss": pages * os.sysconf("SC_PAGE_SIZE")}
