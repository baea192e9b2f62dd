"""The health monitor: looks at the whole from time to time, and says what it sees."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

import structlog

from otp_stream.core.health import checks, kept_apart, worst
from otp_stream.core.state import Stats, WorkerState

_LAG_MS = 250
_SET_MS = 1_000
_REMIND_S = 3_600.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def monitor(
    *,
    look: Callable[[], WorkerState],
    stats: Callable[[], Stats],
    refresh: Callable[[], Awaitable[None]],
    interval_s: float,
) -> None:
    """Ask the broker and log a line every `interval_s` seconds, until cancelled."""
    ahead_s = _ahead_s()
    apart = Reminder()
    while True:
        began = time.monotonic()
        await asyncio.sleep(interval_s)
        lag_ms = round((time.monotonic() - began - interval_s) * 1000)
        before_s, ahead_s = ahead_s, _ahead_s()
        set_ms = round((ahead_s - before_s) * 1000)
        if abs(set_ms) > _SET_MS:
            # codes live by it: forward, they all seem to have expired
            _log.warning("the clock was set", by_ms=set_ms)
        await refresh()
        state = look()
        _tell(state, stats(), lag_ms)
        if apart.due(note := kept_apart(state), time.monotonic()):
            _log.warning("workers do not share their state", why=note)


class Reminder:
    """When to say what goes on: once it was seen twice in a row, and once an hour while it stays.

    Seen once it may pass: a worker that takes another's place is there a moment before that one goes, and a lost
    connection counts as a consumer until the broker misses it.
    """

    def __init__(self) -> None:
        self._seen = False
        self._next_s = -math.inf

    def due(self, note: str | None, now_s: float) -> bool:
        """Tell whether to say it now (monotonic seconds)."""
        seen_before, self._seen = self._seen, note is not None
        if note is None:
            self._next_s = -math.inf
        if not (seen_before and self._seen) or now_s < self._next_s:
            return False
        self._next_s = now_s + _REMIND_S
        return True


def _ahead_s() -> float:
    """How far the wall clock is ahead of the one that nobody sets."""
    return time.time() - time.monotonic()


def _tell(state: WorkerState, stats: Stats, lag_ms: int) -> None:
    found = checks(state, stats, time.time_ns() // 1_000_000)
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
