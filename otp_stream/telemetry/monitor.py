"""The health monitor: refreshes the broker's figures and logs the worker's health at regular intervals."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

import structlog

from otp_stream import clock
from otp_stream.core.health import checks, unshared_state, worst
from otp_stream.core.state import WorkerState
from otp_stream.core.stats import Stats

_LOOP_LAG_MS = 250
_CLOCK_JUMP_MS = 1_000
_REMINDER_INTERVAL_S = 3_600.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def monitor(
    *,
    state: Callable[[], WorkerState],
    stats: Callable[[], Stats],
    refresh: Callable[[], Awaitable[None]],
    interval_s: float,
) -> None:
    """Refresh the broker's figures and log a line every `interval_s` seconds, until cancelled."""
    offset_s = _clock_offset_s()
    reminder = Reminder()
    while True:
        began = time.monotonic()
        await asyncio.sleep(interval_s)
        lag_ms = round((time.monotonic() - began - interval_s) * 1000)
        before_s, offset_s = offset_s, _clock_offset_s()
        jump_ms = round((offset_s - before_s) * 1000)
        if abs(jump_ms) > _CLOCK_JUMP_MS:
            # expiry depends on the clock: after a jump forward, all codes seem to have expired
            _log.warning("the clock was set", by_ms=jump_ms)
        await refresh()
        now = state()
        _log_health(now, stats(), lag_ms)
        if reminder.due(note := unshared_state(now), time.monotonic()):
            _log.warning("workers do not share their state", why=note)


class Reminder:
    """Decides when to log a lasting condition: when it is found for the second time in a row, then once an hour.

    If it is found only once, it may be temporary: a new worker starts a moment before the worker that it replaces
    stops, and a lost connection counts as a consumer until the broker notices.
    """

    def __init__(self) -> None:
        self._seen = False
        self._next_s = -math.inf

    def due(self, note: str | None, now_s: float) -> bool:
        """Return whether to log `note` at `now_s` (monotonic). `None` means that the condition does not exist."""
        seen_before, self._seen = self._seen, note is not None
        if note is None:
            self._next_s = -math.inf
        if not (seen_before and self._seen) or now_s < self._next_s:
            return False
        self._next_s = now_s + _REMINDER_INTERVAL_S
        return True


def _clock_offset_s() -> float:
    """Return the difference of wall clock and monotonic clock, which changes only when the wall clock is set."""
    return time.time() - time.monotonic()


def _log_health(state: WorkerState, stats: Stats, lag_ms: int) -> None:
    found = checks(state, stats, clock.now_ms())
    status = worst(found)
    figures: dict[str, object] = {
        "status": status,
        "sent": stats.endings.get("sent", 0),
        "sent_last_minute": stats.sent_last_minute,
        "retried": stats.retried,
    }
    if state.broker is not None:
        figures["unacked"] = state.broker.unacked
        figures["queued"] = state.broker.queued
        figures["retries_waiting"] = state.broker.waiting
        figures["dead_letters"] = state.broker.dead
    if state.relays:
        figures["circuit_breakers"] = {relay.name: relay.circuit_breaker for relay in state.relays}
        figures["connections"] = sum(relay.connections for relay in state.relays)
    if lag_ms > _LOOP_LAG_MS:
        figures["loop_lag_ms"] = lag_ms
    problems = [check.text for check in found if check.status != "healthy"]
    if status == "healthy":
        _log.info("health", **figures)
    else:
        _log.warning("health", **figures, problems=problems)
