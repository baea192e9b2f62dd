"""Many generated jobs, with the time at which each was published and the time until it was accepted.

Memory grows by 17 bytes per job.
"""

import itertools
import json
import math
import secrets
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from otp_stream.client import JobEvent, OtpClient
from otp_stream.clock import now_ms
from otp_stream.core.decision import ENDINGS

from .publishing import Run, new_code

MAX_JOBS = 1_000_000
PURPOSE = "load"
_RETRY_MARGIN = 1.1
"""A retry is late by at most this factor of MAX_DELAY_MS."""
_NEVER = math.nan
_IN_FLIGHT, _RETRYING, _ENDED = range(3)


@dataclass(kw_only=True)
class LoadTest(Run):
    """Up to `count` jobs, published for up to `seconds`; times are in seconds since the start."""

    recipient: str
    count: int
    limit_s: float | None
    max_delay_ms: int
    run_id: str = field(default_factory=lambda: secrets.token_hex(4))
    retrying: int = 0
    _published_at: "array[float]" = field(default_factory=lambda: array("d"))
    _accept_s: "array[float]" = field(default_factory=lambda: array("d"))
    _state: bytearray = field(default_factory=bytearray)
    """By number of the job."""

    @property
    def total(self) -> int | None:
        """The number of jobs, if it is known in advance."""
        rate = self.options.rate
        if self.limit_s is None:
            return self.count
        return min(self.count, max(1, round(rate * self.limit_s))) if rate else None

    @property
    def succeeded(self) -> bool:
        """Whether all jobs were sent."""
        return self.error is None and self.published > 0 and self.outcomes.counts["sent"] == self.published

    async def measure(self, client: OtpClient, update: Callable[[], None]) -> None:
        """Publish and follow all. Raises `ClientError` if it cannot start."""
        await self.run(client, self._numbers(), update, needs_events=True)

    def _numbers(self) -> Iterator[int]:
        if self.total is not None:  # with a rate, jobs are taken before they are due: the clock cannot limit them
            return iter(range(self.total))
        ends = time.monotonic() + (self.limit_s or 0)
        return itertools.takewhile(lambda _: time.monotonic() < ends, range(self.count))

    def _body(self, number: int) -> bytes:
        while len(self._state) <= number:  # jobs are published nearly in the order of their numbers
            self._state.append(_IN_FLIGHT)
            self._published_at.append(_NEVER)
            self._accept_s.append(_NEVER)
        job = {
            "email": self.recipient.replace("{n}", str(number)),
            "otp": new_code(),
            "jobId": f"load-{self.run_id}-{number}",
            "timestamp": now_ms(),
            "metadata": {"purpose": PURPOSE},
        }
        self._published_at[number] = time.monotonic() - self._began
        return json.dumps(job).encode()

    def _all_ended(self) -> bool:
        return self.ended >= self.published

    def _wait_s(self) -> float:
        return self.options.wait_s + (self.max_delay_ms / 1000 * _RETRY_MARGIN if self.retrying else 0)

    def _receive(self, event: JobEvent) -> None:
        run, _, number_text = event.job_id.rpartition("-")
        if run != f"load-{self.run_id}":
            return
        number = int(number_text)
        before = self._state[number]
        self._last_event_at = time.monotonic()
        if before == _ENDED:  # a duplicate of the job
            return
        if event.outcome not in ENDINGS:
            self.retrying += before == _IN_FLIGHT
            self._state[number] = _RETRYING
            return
        self.retrying -= before == _RETRYING
        self._state[number] = _ENDED
        self.outcomes.add(event)
        if event.outcome == "sent":
            self._accept_s[number] = self._last_event_at - self._began - self._published_at[number]

    def moments(self) -> tuple[list[float], list[float]]:
        """Return when jobs were published, and when they were accepted."""
        at, took = self._published_at, self._accept_s
        accepted = [it + took_s for it, took_s in zip(at, took, strict=True) if not math.isnan(took_s)]
        return [it for it in at if not math.isnan(it)], accepted

    def times(self) -> list[float]:
        """Return the sorted times from publishing to the event of the relay's 250."""
        return sorted(it for it in self._accept_s if not math.isnan(it))
