"""The health monitor: looks at the whole from time to time, and says what it sees."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from otp_stream.core.health import checks, worst
from otp_stream.core.state import Stats, WorkerState

_LAG_MS = 250
_SET_MS = 1_000

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def monitor(
    *,
    look: Callable[[], WorkerState],
    stats: Callable[[], Stats],
    refresh: Callable[[], Awaitable[None]],
    interval_s: float,
) -> None:
    """Ask the broker and log a line every `interval_s` seconds, until cancelled."""
    while True:
        began, wall = time.monotonic(), time.time()
        await asyncio.sleep(interval_s)
        slept_s = time.monotonic() - began
        lag_ms = round((slept_s - interval_s) * 1000)
        set_ms = round((time.time() - wall - slept_s) * 1000)
        if abs(set_ms) > _SET_MS:
            # codes live by it: forward, they all seem to have expired
            _log.warning("the clock was set", by_ms=set_ms)
        await refresh()
        _tell(look(), stats(), lag_ms)


def _tell(state: WorkerState, stats: Stats, lag_ms: int) -> None:
    found = checks(state, time.time_ns() // 1_000_000)
    status = worst(found)
    figures: dict[str, object] = {
        "status": status,
        "sent": stats.endings.get("sent", 0),
        "sent_last_minute": stats.sent_last_minute,
        "retried": stats.retried,
    }
    if state.broker is not None:
        figures["held"] = sum(lane.held for lane in state.broker.lanes)
        figures["queued"] = sum(lane.depth or 0 for lane in state.broker.lanes)
        figures["retries_waiting"] = state.broker.waiting
        figures["dead_letters"] = state.broker.dead
    if state.relays:
        figures["gates"] = {relay.name: relay.gate for relay in state.relays}
        figures["connections"] = sum(relay.connections for relay in state.relays)
    if lag_ms > _LAG_MS:
        figures["loop_lag_ms"] = lag_ms
    troubles = [check.text for check in found if check.status != "healthy"]
    if status == "healthy":
        _log.info("health", **figures)
    else:
        _log.warning("health", **figures, troubles=troubles)
