"""Enforces a relay's rate: calls back when a slot is due, and reserves slots if workers share the rate."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from otp_stream.core.rate import Grant

from .rate import Rate

_ANSWER_S = 1.0
_ALONE_S = 1.0
"""How long to send at our part of the rate before trying to reserve again."""


class Reserve(Protocol):
    """Grants slots of a schedule that several workers share."""

    async def __call__(self, relay: str, count: int, ceiling: float, slowed: bool) -> Grant | None:  # noqa: FBT001
        """Reserve up to `count` slots (at least one), or return `None` if that is not possible.

        `ceiling` is mails per second; `slowed` reports a throttle, once. Must not raise. A timeout counts as `None`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Sharing:
    """How workers share a relay's rate. By default, this worker has all of it."""

    reserve: Reserve | None = None
    share: Callable[[], int] = lambda: 1
    """Returns how many workers share the rate, while no slots can be reserved."""


class RateLimiter:
    """Returns how many mails may be sent now. If none may and jobs wait, it calls `serve` as soon as one may."""

    def __init__(
        self, relay: str, rate: Rate, reserve: Reserve | None, waiting: Callable[[], int], serve: Callable[[], None]
    ) -> None:
        self._relay = relay
        self._rate = rate
        self._reserve = reserve if rate.ceiling is not None else None
        self._waiting = waiting
        self._serve = serve
        self._timer: asyncio.TimerHandle | None = None
        self._reserving: asyncio.Task[None] | None = None
        self._reserve_from = 0.0
        self._throttled = False
        """Whether a throttle must be reported."""
        self._closed = False
        rate.alone = self._reserve is None

    def slots(self) -> int:
        """Return how many mails may be sent now."""
        now = monotonic()
        slots = self._rate.slots(now)
        self._plan(now, slots)
        return slots

    def lacking(self) -> int:
        """Return how many more connections could be used."""
        now = monotonic()
        lacking = self._rate.lacking(now)
        self._plan(now, lacking)
        return lacking

    def throttled(self) -> None:
        """Slow down, and report the throttle at once: with an open circuit breaker, there may be no reservation."""
        self._rate.slow(monotonic())
        if self._reserve is not None:
            self._throttled = True
            if self._reserving is None:
                self._start_reserving(self._reserve, 1)

    def close(self) -> None:
        """Cancel the timer and the reservation."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._reserving is not None:
            self._reserving.cancel()

    def _plan(self, now: float, slots: int) -> None:
        waiting = self._waiting()
        if self._closed or not waiting:
            return
        if self._reserve is not None and self._reserving is None and now >= self._reserve_from:
            count = self._rate.slots_to_reserve(waiting, now)
            if count > 0:
                self._start_reserving(self._reserve, count)
        if not slots and self._timer is None and (wait_s := self._rate.wait_s(now)) is not None:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._serve()

    def _start_reserving(self, reserve: Reserve, count: int) -> None:
        self._reserving = asyncio.get_running_loop().create_task(self._await_grant(reserve, count))

    async def _await_grant(self, reserve: Reserve, count: int) -> None:
        slowed, self._throttled = self._throttled, False
        grant = None
        try:
            async with asyncio.timeout(_ANSWER_S):
                grant = await reserve(self._relay, count, self._rate.ceiling or 0.0, slowed)
        except TimeoutError:
            pass
        finally:
            self._reserving = None
            if not self._closed:
                self._grant_received(reserve, grant)

    def _grant_received(self, reserve: Reserve, grant: Grant | None) -> None:
        now = monotonic()
        if grant is None:
            self._rate.no_grants()
            self._reserve_from = now + _ALONE_S
        else:
            # not newer if our throttle is still to be reported
            self._rate.take(grant, now, newer=not self._throttled)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._throttled:
            self._start_reserving(reserve, 1)
        self._serve()
