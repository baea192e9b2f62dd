"""Health, readiness and metrics, and the worker's state with recent figures of the broker."""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from otp_stream import clock
from otp_stream.asgi import json_response
from otp_stream.core.decision import REASONS
from otp_stream.core.health import Check, Status, checks, worst
from otp_stream.core.state import WorkerState
from otp_stream.core.stats import Stats
from otp_stream.core.tables_state import TablesState

from .cached import LIFETIME_S, Cached

_REUSED = 10
"""A response is used again for this many times as long as it took to make, at most for half a second.

With a thousand tenants that is milliseconds, and requests take a tenth of the event loop at most.
"""
_ALIVE = json_response({"status": "alive"})
_MAX_ACCEPT = 1_000
"""Characters of `Accept` that are parsed; Prometheus sends 300."""
_FRESH_MS = 2_000
"""How old the broker's figures may be before they are requested again."""
_REFRESH_TIMEOUT_S = 3.0


class HealthView:
    """Answers `/health`, `/livez`, `/readyz` and `/metrics`."""

    def __init__(
        self,
        state: Callable[[], WorkerState],
        stats: Callable[[], Stats],
        refresh: Callable[[], Awaitable[None]],
        metrics: Callable[[str], tuple[bytes, str]],
        version: str,
    ) -> None:
        self._state = state
        self._stats = stats
        self._refresh = refresh
        self._metrics = metrics
        self._version = version
        self._refreshing: asyncio.Task[None] | None = None
        self._responses = Cached(self._respond, lambda: min(LIFETIME_S, _REUSED * self._cost_s))
        self._cost_s = self._state_s = 0.0
        """CPU time that the last response took, and of this its state, in seconds."""

    async def alive(self, _: Request) -> Response:
        """Answer as long as the event loop runs."""
        return _ALIVE

    async def ready(self, _: Request) -> Response:
        """Answer 503 where no codes are going out."""
        return await self._responses.get("ready")

    async def health(self, _: Request) -> Response:
        """Answer with checks and statistics, with 503 where no codes are going out."""
        return await self._responses.get("health")

    async def _respond(self, name: Literal["ready", "health"]) -> Response:
        state = await self.fresh_state(_REFRESH_TIMEOUT_S)
        since = time.thread_time()
        response = self._ready(state) if name == "ready" else self._health(state)
        self._cost_s = self._state_s + time.thread_time() - since
        return response

    def _ready(self, state: WorkerState) -> Response:
        found = checks(state, self._stats(), clock.now_ms())
        status = worst(found)
        return json_response({"status": status, "checks": _checks(found)}, _http_status(status))

    def _health(self, state: WorkerState) -> Response:
        stats, now_ms = self._stats(), clock.now_ms()
        found = checks(state, stats, now_ms)
        status = worst(found)
        dead = sum(count for ending, count in stats.endings.items() if ending in REASONS)
        body = {
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
            "checks": _checks(found),
            "version": self._version,
        }
        return json_response(body, _http_status(status))

    async def metrics(self, request: Request) -> Response:
        """Answer in the format that the `Accept` header requests."""
        body, content_type = self._metrics(request.headers.get("accept", "")[:_MAX_ACCEPT])
        return Response(body, media_type=content_type)

    async def dead_letters(self) -> int | None:
        """Return the number of dead letters that RabbitMQ reports; `None` if it is disconnected or not consumed."""
        broker = (await self.fresh_state(_REFRESH_TIMEOUT_S)).broker
        return broker.dead if broker is not None and broker.connected else None

    async def fresh_state(self, timeout_s: float) -> WorkerState:
        """Return the state with the broker's figures of the last seconds, or older ones after `timeout_s`."""
        state = self._timed_state()
        broker = state.broker
        if broker is None or not broker.connected or clock.now_ms() - (broker.reported_ms or 0) <= _FRESH_MS:
            return state
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh_broker())
        await asyncio.wait({self._refreshing}, timeout=timeout_s)
        return self._timed_state()

    def _timed_state(self) -> WorkerState:
        since = time.thread_time()
        state = self._state()
        self._state_s = time.thread_time() - since
        return state

    async def _refresh_broker(self) -> None:
        with contextlib.suppress(TimeoutError):  # the figures become stale, which the health check reports
            await asyncio.wait_for(self._refresh(), _REFRESH_TIMEOUT_S)


def _checks(found: tuple[Check, ...]) -> list[dict[str, str]]:
    return [{"name": check.name, "status": check.status, "text": check.text} for check in found]


def _http_status(status: Status) -> int:
    return 503 if status == "unhealthy" else 200


def _tables(tables: TablesState | None) -> dict[str, object] | None:
    if tables is None:
        return None
    return {
        "connected": tables.connected,
        "workers": tables.workers,
        "answers": dict(tables.answers),
        "possibleDuplicates": tables.unshared,
    }


def _iso(at_ms: int | None) -> str | None:
    if at_ms is None:
        return None
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _memory() -> dict[str, int]:
    """Return the resident set size in bytes on Linux; nothing elsewhere."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return {}
    return {"rss": pages * os.sysconf("SC_PAGE_SIZE")}
