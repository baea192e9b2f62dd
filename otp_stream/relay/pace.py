"""Keeps a relay's rate: comes back when a slot is due, and asks those who share the rate for slots."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from otp_stream.core.rate import Grant

from .rate import Rate

_ANSWER_S = 1.0
_ALONE_S = 1.0
"""How long to go on alone before asking again."""


class Reserve(Protocol):
    """Grants slots of a schedule that several workers share."""

    async def __call__(self, relay: str, count: int, ceiling: float, slowed: bool) -> Grant | None:  # noqa: FBT001
        """Reserve up to `count` slots (at least one); `slowed` reports a throttle, once. `None`: nobody can be asked.

        `ceiling` is mails per second. Must not raise; an answer that takes a second counts as none.
        """
        ...


@dataclass(frozen=True, slots=True)
class Sharing:
    """How workers share a relay's rate; by default this one has it to itself."""

    reserve: Reserve | None = None
    share: Callable[[], int] = lambda: 1
    """How many workers share it, for as long as nobody can be asked."""


class Pace:
    """Tells how many mails may leave now. Where none may and jobs wait, `serve` is called when one may."""

    def __init__(
        self, relay: str, rate: Rate, reserve: Reserve | None, waiting: Callable[[], int], serve: Callable[[], None]
    ) -> None:
        self._relay = relay
        self._rate = rate
        self._reserve = reserve if rate.ceiling is not None else None
        self._waiting = waiting
        self._serve = serve
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self._ask_from = 0.0
        self._throttled = False
        """Whether there is a throttle to report."""
        self._closed = False
        rate.alone = self._reserve is None

    def slots(self) -> int:
        """Return how many mails may leave now."""
        now = monotonic()
        slots = self._rate.slots(now)
        self._look_ahead(now, slots)
        return slots

    def lacking(self) -> int:
        """Return how many connections more could be used."""
        now = monotonic()
        lacking = self._rate.lacking(now)
        self._look_ahead(now, lacking)
        return lacking

    def throttled(self) -> None:
        """Slow down, and let the others know at once: the gate is closed, so we might not ask again for long."""
        self._rate.slow(monotonic())
        if self._reserve is not None:
            self._throttled = True
            if self._asking is None:
                self._ask(self._reserve, 1)

    def close(self) -> None:
        """Come back no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._asking is not None:
            self._asking.cancel()

    def _look_ahead(self, now: float, slots: int) -> None:
        waiting = self._waiting()
        if self._closed or not waiting:
            return
        if self._reserve is not None and self._asking is None and now >= self._ask_from:
            short = self._rate.short(waiting, now)
            if short > 0:
                self._ask(self._reserve, short)
        if not slots and self._timer is None and (wait_s := self._rate.wait_s(now)) is not None:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._serve()

    def _ask(self, reserve: Reserve, count: int) -> None:
        self._asking = asyncio.get_running_loop().create_task(self._hear(reserve, count))

    async def _hear(self, reserve: Reserve, count: int) -> None:
        slowed, self._throttled = self._throttled, False
        grant = None
        try:
            async with asyncio.timeout(_ANSWER_S):
                grant = await reserve(self._relay, count, self._rate.ceiling or 0.0, slowed)
        except TimeoutError:
            pass
        finally:
            self._asking = None
            if not self._closed:
                self._answered(reserve, grant)

    def _answered(self, reserve: Reserve, grant: Grant | None) -> None:
        now = monotonic()
        if grant is None:
            self._rate.nobody_grants()
            self._ask_from = now + _ALONE_S
        else:
            # it does not know of our throttle yet
            self._rate.take(grant, now, news=not self._throttled)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._throttled:
            self._ask(reserve, 1)
        self._serve()
