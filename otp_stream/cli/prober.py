"""Synthetic codes on their way through everything: published, accepted by the relay, arrived in a mailbox."""

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
from otp_stream.core.masking import tells
from otp_stream.settings import Settings

from .line import LOST, NO_WORKER, Line, ProducerError, opened, told

OUTCOMES = (*ENDINGS, "lost", "not_arrived", "wrong_code", "failed")
"""How a probe ends: as a job does; or no event came, no mail, a mail with another code, or it was not published."""
PURPOSE = "livecheck"
_EXPIRY_MINUTES = 1
_DIGITS = 8
_MARK = "Livecheck-"
"""Before the probe's id, as the name of the addressee: so a mail is known for ours though its code be another."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one probe showed; seconds from publishing to the event of the relay's 250, and to the mailbox."""

    outcome: str
    error: str | None = None
    accept_s: float | None = None
    arrive_s: float | None = None

    @property
    def good(self) -> bool:
        """Whether all went well."""
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
    right: bool = True
    line: Line | None = None
    """Which it was published on."""
    news: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Route:
    """Where probes go, and how long each may take."""

    recipient: str
    high_lane: bool
    timeout_s: float
    mailbox: bool


class Prober:
    """Sends probes and tells the result of each; a broker that goes away costs probes, and is called again."""

    def __init__(self, settings: Settings, route: Route, tell: Callable[[Result], None]) -> None:
        self._settings, self._route, self._tell = settings, route, tell
        self._on_their_way: dict[str, _Probe] = {}
        self._line: Line | None = None
        self._hang_up = AsyncExitStack()
        self._calling = asyncio.Lock()
        self._heard_at = 0.0

    async def run(self, count: int, every_s: float) -> None:
        """Send so many probes, or without end for 0, and wait for their results."""
        try:
            async with asyncio.TaskGroup() as group:
                due = monotonic()
                for _ in range(count) if count else itertools.count():
                    await asyncio.sleep(due - monotonic())
                    group.create_task(self._check())
                    due = max(due + every_s, monotonic())
        finally:
            await self._hang_up.aclose()

    async def _check(self) -> None:
        probe = _Probe(f"livecheck-{secrets.token_hex(6)}", f"{secrets.randbelow(10**_DIGITS):0{_DIGITS}}")
        self._on_their_way[probe.job_id] = probe
        error = None
        try:
            async with asyncio.timeout(self._route.timeout_s):
                await self._send(probe)
                while not self._over(probe):
                    await probe.news.wait()
                    probe.news.clear()
        except TimeoutError:
            if probe.published_at is None:
                error = "the broker does not confirm"
        except (ProducerError, *LOST) as trouble:
            error = told(trouble)
        finally:
            del self._on_their_way[probe.job_id]
        result = self._judge(probe, error)
        if error or (result.outcome == "lost" and self._heard_at < (probe.published_at or 0)):
            await self._drop(probe.line)  # it may be deaf
        self._tell(result)

    async def _send(self, probe: _Probe) -> None:
        probe.line = line = await self._call()
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
        if probe.outcome is None or not probe.right:
            return not probe.right
        return probe.outcome != "sent" or not self._route.mailbox or probe.arrive_s is not None

    def _judge(self, probe: _Probe, error: str | None) -> Result:
        outcome: str
        if error is not None:
            outcome = "failed"
        elif not probe.right:
            outcome, error = "wrong_code", "the mail has come with another code"
        elif probe.outcome in ENDINGS:
            outcome, error = probe.outcome, probe.error
            if not self._over(probe):
                outcome, error = "not_arrived", f"accepted, and no mail within {self._route.timeout_s:g} s"
        else:
            nothing = "no worker has taken it" if probe.arrive_s is None else "though its mail has arrived"
            last = nothing if probe.outcome is None else f"{probe.outcome} {probe.error or ''}".strip()
            outcome, error = "lost", f"no end within {self._route.timeout_s:g} s: {last}"
        return Result(outcome, error, probe.accept_s, probe.arrive_s)

    async def _call(self) -> Line:
        async with self._calling:
            if self._line is None:
                async with AsyncExitStack() as stack:
                    line = await stack.enter_async_context(opened(self._settings, high_lane=self._route.high_lane))
                    if not await line.follow(self._hear):
                        raise ProducerError(NO_WORKER)
                    self._hang_up = stack.pop_all()
                self._line = line
            return self._line

    async def _drop(self, line: Line | None) -> None:
        async with self._calling:
            if line is None or self._line is not line:  # another has hung up, and the next may be on a new one
                return
            self._line, hang_up, self._hang_up = None, self._hang_up, AsyncExitStack()
        await hang_up.aclose()

    def _hear(self, body: bytes) -> None:
        self._heard_at = monotonic()
        if b'"livecheck-' not in body:
            return
        event = from_json(body)
        probe = self._on_their_way.get(event["jobId"])
        if probe is not None and probe.outcome not in ENDINGS and probe.published_at is not None:
            probe.outcome, probe.error = event["outcome"], event.get("error")
            if probe.outcome == "sent":
                probe.accept_s = self._heard_at - probe.published_at
            probe.news.set()

    def take(self, text: str) -> None:
        """Compare a mail with the probes on their way; anybody else's is passed over."""
        for probe in self._on_their_way.values():
            right = tells(text, "", probe.code)
            if probe.published_at is None or not (right or _MARK + probe.job_id.rpartition("-")[2] in text):
                continue
            if probe.arrive_s is None:
                probe.arrive_s, probe.right = monotonic() - probe.published_at, right
                probe.news.set()
            return
