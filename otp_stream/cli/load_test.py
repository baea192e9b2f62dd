"""Many made-up jobs, each with the moment at which it was published and the time until it was accepted.

Sixteen bytes a job, and nothing else grows with their number.
"""

import itertools
import json
import math
import secrets
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from pydantic_core import from_json

from otp_stream.core.decision import ENDINGS
from otp_stream.settings import Settings

from . import producer
from .batch import Ends
from .line import NO_WORKER, ProducerError, at_a_pace, opened, until_quiet

MOST = 1_000_000
PURPOSE = "load"
_RETRY_LATE = 1.1
"""A retry comes that much later than MAX_DELAY_MS at most."""
_NEVER = math.nan


@dataclass(frozen=True, slots=True)
class Order:
    """What to publish: `count` jobs at most, for `seconds` at most, `rate` a second or as fast as it goes."""

    recipient: str
    count: int
    seconds: float | None
    rate: float | None
    high_lane: bool
    wait_s: float

    @property
    def total(self) -> int | None:
        """How many that will be, where it can be said."""
        if self.seconds is None:
            return self.count
        return min(self.count, max(1, round(self.rate * self.seconds))) if self.rate else None

    def numbers(self) -> Iterator[int]:
        """Yield the number of each job."""
        if self.total is not None:  # jobs are drawn before their turn comes, so the clock could not say how many
            return iter(range(self.total))
        ends = time.monotonic() + (self.seconds or 0)
        return itertools.takewhile(lambda _: time.monotonic() < ends, range(self.count))


@dataclass
class LoadTest:
    """The jobs of one load test; moments are seconds from its beginning."""

    order: Order
    run: str = field(default_factory=lambda: secrets.token_hex(4))
    published: int = 0
    ends: Ends = field(default_factory=Ends)
    trouble: str | None = None
    retrying: int = 0
    publishing_s: float = 0
    _began: float = 0
    _heard_at: float = 0
    _published_at: "array[float]" = field(default_factory=lambda: array("d"))
    _accept_s: "array[float]" = field(default_factory=lambda: array("d"))
    _state: bytearray = field(default_factory=bytearray)
    """By number: 0 on its way, 1 to be tried again, 2 ended."""

    @property
    def ended(self) -> int:
        """Jobs whose end is known."""
        return self.ends.outcomes.total()

    @property
    def good(self) -> bool:
        """Whether all were sent."""
        return self.trouble is None and self.published > 0 and self.ends.outcomes["sent"] == self.published

    async def go(self, settings: Settings, look: Callable[[], None]) -> None:
        """Publish and follow all. Raises `ProducerError` where it cannot begin."""
        order = self.order
        async with opened(settings, high_lane=order.high_lane) as line:
            if not await line.follow(self._hear):
                raise ProducerError(NO_WORKER)

            async def publish(number: int) -> None:
                await line.publish(self._make(number))
                self.published += 1
                self.publishing_s = time.monotonic() - self._began
                look()

            def all_ended() -> bool:
                look()
                return self.ended >= self.published

            def wait_s() -> float:
                return order.wait_s + (settings.max_delay_ms / 1000 * _RETRY_LATE if self.retrying else 0)

            self._began = time.monotonic()
            try:
                await at_a_pace(order.numbers(), publish, rate=order.rate)
            except ProducerError as error:
                self.trouble = str(error)
            self._heard_at = time.monotonic()
            await until_quiet(all_ended, lambda: time.monotonic() - self._heard_at, wait_s)

    def _make(self, number: int) -> bytes:
        while len(self._state) <= number:  # in the order of their numbers, or nearly
            self._state.append(0)
            self._published_at.append(_NEVER)
            self._accept_s.append(_NEVER)
        job = {
            "email": self.order.recipient.replace("{n}", str(number)),
            "otp": producer.new_code(),
            "jobId": f"load-{self.run}-{number}",
            "timestamp": time.time_ns() // 1_000_000,
            "metadata": {"purpose": PURPOSE},
        }
        self._published_at[number] = time.monotonic() - self._began
        return json.dumps(job).encode()

    @cached_property
    def _mark(self) -> bytes:
        return f'"load-{self.run}-'.encode()

    def _hear(self, body: bytes) -> None:
        if self._mark not in body:  # of somebody else's job
            return
        event = from_json(body)
        number = int(event["jobId"].rpartition("-")[2])
        outcome, before = event["outcome"], self._state[number]
        self._heard_at = time.monotonic()
        if before == 2:  # a copy of a job that had ended
            return
        if outcome not in ENDINGS:
            self.retrying += before == 0
            self._state[number] = 1
            return
        self.retrying -= before == 1
        self._state[number] = 2
        self.ends.add(outcome, event.get("error"))
        if outcome == "sent":
            self._accept_s[number] = self._heard_at - self._began - self._published_at[number]

    def moments(self) -> tuple[list[float], list[float]]:
        """Return when jobs were published, and when they were accepted."""
        at, took = self._published_at, self._accept_s
        accepted = [it + took_s for it, took_s in zip(at, took, strict=True) if not math.isnan(took_s)]
        return [it for it in at if not math.isnan(it)], accepted

    def times(self) -> list[float]:
        """Return the seconds from publishing to the event of the relay's 250, in order."""
        return sorted(it for it in self._accept_s if not math.isnan(it))
