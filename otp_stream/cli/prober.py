"""Synthetic codes through the whole system: published, accepted by the relay, delivered to a mailbox."""

import asyncio
import itertools
import json
import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from time import monotonic

from pydantic_core import from_json

from otp_stream.core.decision import ENDINGS
from otp_stream.core.redaction import contains_secret
from otp_stream.settings import Settings

from .line import LOST, NO_WORKER, Line, ProducerError, opened, told

OUTCOMES = (*ENDINGS, "lost", "not_arrived", "wrong_code", "failed")
"""How a probe ends: as a job does; or with no event, no mail, a mail with another code, or not published."""
PURPOSE = "livecheck"
_EXPIRY_MINUTES = 1
_DIGITS = 8
_MARK = "Livecheck-"
"""Precedes the probe's id in `userName`, which identifies our mail even if it contains another code."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one probe. Times are seconds from publishing: to the event of the relay's 250, to the mailbox."""

    outcome: str
    error: str | None = None
    accept_s: float | None = None
    arrive_s: float | None = None

    @property
    def good(self) -> bool:
        """Whether the code was sent and, if there is a mailbox, has arrived."""
        return self.outcome == "sent"


@dataclass(eq=False, slots=True)
class _Probe:
    job_id: str
    code: str = field(repr=False)
    published_at: float | None = None
    outcome: str | None = None
    error: str | None = None
    accept_s: float | None = None
    arrive_s: float | None = None
    code_matches: bool = True
    line: Line | None = None
    """The connection that published it."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Route:
    """Where probes are sent, and the time limit of each."""

    recipient: str
    high_lane: bool
    timeout_s: float
    mailbox: bool


class Prober:
    """Sends probes and reports the result of each. If the connection is lost, probes fail, and it connects again."""

    def __init__(self, settings: Settings, route: Route, report: Callable[[Result], None]) -> None:
        self._settings, self._route, self._report = settings, route, report
        self._in_flight: dict[str, _Probe] = {}
        self._line: Line | None = None
        self._line_stack = AsyncExitStack()
        self._connecting = asyncio.Lock()
        self._last_event_at = 0.0

    async def run(self, count: int, every_s: float) -> None:
        """Send `count` probes, or for 0 without end, and wait for their results."""
        try:
            async with asyncio.TaskGroup() as group:
                due = monotonic()
                for _ in range(count) if count else itertools.count():
                    await asyncio.sleep(due - monotonic())
                    group.create_task(self._check())
                    due = max(due + every_s, monotonic())
        finally:
            await self._line_stack.aclose()

    async def _check(self) -> None:
        probe = _Probe(f"livecheck-{secrets.token_hex(6)}", f"{secrets.randbelow(10**_DIGITS):0{_DIGITS}}")
        self._in_flight[probe.job_id] = probe
        error = None
        try:
            async with asyncio.timeout(self._route.timeout_s):
                await self._send(probe)
                while not self._over(probe):
                    await probe.changed.wait()
                    probe.changed.clear()
        except TimeoutError:
            if probe.published_at is None:
                error = "RabbitMQ does not confirm the publish"
        except (ProducerError, *LOST) as failure:
            error = told(failure)
        finally:
            del self._in_flight[probe.job_id]
        result = self._judge(probe, error)
        if error or (result.outcome == "lost" and self._last_event_at < (probe.published_at or 0)):
            await self._drop(probe.line)  # it may no longer receive events
        self._report(result)

    async def _send(self, probe: _Probe) -> None:
        probe.line = line = await self._connect()
        job = {
            "email": self._route.recipient,
            "otp": probe.code,
            "jobId": probe.job_id,
            "timestamp": time.time_ns() // 1_000_000,
            "metadata": {
                "purpose": PURPOSE,
                "expiryMinutes": _EXPIRY_MINUTES,
                "userName": _MARK + probe.job_id.rpartition("-")[2],
            },
        }
        began = monotonic()
        probe.published_at = began
        try:
            await line.publish(json.dumps(job).encode())
        except BaseException:
            probe.published_at = None
            raise

    def _over(self, probe: _Probe) -> bool:
        if probe.outcome is None or not probe.code_matches:
            return not probe.code_matches
        return probe.outcome != "sent" or not self._route.mailbox or probe.arrive_s is not None

    def _judge(self, probe: _Probe, error: str | None) -> Result:
        outcome: str
        if error is not None:
            outcome = "failed"
        elif not probe.code_matches:
            outcome, error = "wrong_code", "the mail contains another code"
        elif probe.outcome in ENDINGS:
            outcome, error = probe.outcome, probe.error
            if not self._over(probe):
                outcome, error = "not_arrived", f"accepted, but no mail within {self._route.timeout_s:g} s"
        else:
            nothing = "no worker has received it" if probe.arrive_s is None else "but its mail has arrived"
            last = nothing if probe.outcome is None else f"{probe.outcome} {probe.error or ''}".strip()
            outcome, error = "lost", f"no final event within {self._route.timeout_s:g} s: {last}"
        return Result(outcome, error, probe.accept_s, probe.arrive_s)

    async def _connect(self) -> Line:
        async with self._connecting:
            if self._line is None:
                async with AsyncExitStack() as stack:
                    line = await stack.enter_async_context(opened(self._settings, high_lane=self._route.high_lane))
                    if not await line.follow(self._receive_event):
                        raise ProducerError(NO_WORKER)
                    self._line_stack = stack.pop_all()
                self._line = line
            return self._line

    async def _drop(self, line: Line | None) -> None:
        async with self._connecting:
            if line is None or self._line is not line:  # already closed, and replaced if there was a later probe
                return
            self._line, stack, self._line_stack = None, self._line_stack, AsyncExitStack()
        await stack.aclose()

    def _receive_event(self, body: bytes) -> None:
        self._last_event_at = monotonic()
        if b'"livecheck-' not in body:
            return
        event = from_json(body)
        probe = self._in_flight.get(event["jobId"])
        if probe is not None and probe.outcome not in ENDINGS and probe.published_at is not None:
            probe.outcome, probe.error = event["outcome"], event.get("error")
            if probe.outcome == "sent":
                probe.accept_s = self._last_event_at - probe.published_at
            probe.changed.set()

    def take(self, text: str) -> None:
        """Compare a mail with the probes in flight; ignore other mail."""
        for probe in self._in_flight.values():
            matches = contains_secret(text, "", probe.code)
            if probe.published_at is None or not (matches or _MARK + probe.job_id.rpartition("-")[2] in text):
                continue
            if probe.arrive_s is None:
                probe.arrive_s, probe.code_matches = monotonic() - probe.published_at, matches
                probe.changed.set()
            return
