"""Many jobs at once: read from lines, published, and followed to their ends."""

import base64
import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, cast
from uuid import uuid4

from pydantic_core import from_json

from otp_stream.core.decision import ENDINGS
from otp_stream.core.otp_job import MalformedError, OtpJob
from otp_stream.settings import Settings

from .line import NO_WORKER, ProducerError, at_a_pace, opened, until_quiet

ERRORS = 20
"""Different errors that are counted one by one: a relay may find new words for each job."""


class Ready(NamedTuple):
    """A job as it is published."""

    job_id: str
    body: bytes


@dataclass
class Ends:
    """How jobs ended, by outcome and by error."""

    outcomes: Counter[str] = field(default_factory=Counter[str])
    errors: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])

    def add(self, outcome: str, error: str | None) -> None:
        """Count an end."""
        self.outcomes[outcome] += 1
        if error and ((outcome, error) in self.errors or len(self.errors) < ERRORS):
            self.errors[outcome, error] += 1

    def lines(self) -> Iterator[str]:
        """Yield `sent 3` and `rejected 2: 550 no such user`."""
        for outcome, number in self.outcomes.most_common():
            some = [(error, count) for (it, error), count in self.errors.most_common() if it == outcome]
            yield from (f"{outcome} {count}: {error}" for error, count in some)
            if rest := number - sum(count for _, count in some):
                yield f"{outcome} {rest}{': other errors' if some else ''}"

    def told(self) -> dict[str, Any]:
        """Return both as JSON has them."""
        errors = [{"outcome": it, "error": error, "count": count} for (it, error), count in self.errors.most_common()]
        return {"outcomes": dict(self.outcomes), "errors": errors}


@dataclass
class Batch:
    """Jobs on their way: `make` gives each by its number, at the moment at which it is published."""

    total: int
    make: Callable[[int], Ready]
    published: int = 0
    ends: Ends = field(default_factory=Ends)
    trouble: str | None = None
    followed: bool = True
    seconds: float = 0
    _waiting: Counter[str] = field(default_factory=Counter[str])
    _heard_at: float = 0

    @property
    def ended(self) -> int:
        """Jobs whose end is known."""
        return self.ends.outcomes.total()

    @property
    def good(self) -> bool:
        """Whether all were sent, or published where nobody wanted to know more."""
        done = self.ends.outcomes["sent"] if self.followed else self.published
        return self.trouble is None and done == self.total

    async def go(
        self, settings: Settings, *, high_lane: bool, rate: float | None, wait_s: float, look: Callable[[], None]
    ) -> None:
        """Publish all and wait for their ends, until nothing is heard for `wait_s`. Raises `ProducerError`."""
        began = time.monotonic()
        async with opened(settings, high_lane=high_lane) as line:
            self.followed = bool(wait_s)
            if wait_s and not await line.follow(self._hear):
                self.trouble = NO_WORKER

            async def publish(number: int) -> None:
                job = self.make(number)
                self._waiting[job.job_id] += 1
                await line.publish(job.body)
                self.published += 1
                look()

            try:
                await at_a_pace(iter(range(self.total)), publish, rate=rate)
            except ProducerError as error:
                self.trouble = str(error)
            self._heard_at = time.monotonic()
            if self.trouble is None and wait_s:
                await until_quiet(self._all_ended(look), lambda: time.monotonic() - self._heard_at, lambda: wait_s)
            self.seconds = time.monotonic() - began

    def _all_ended(self, look: Callable[[], None]) -> Callable[[], bool]:
        def ended() -> bool:
            look()
            return not self._waiting

        return ended

    def _hear(self, body: bytes) -> None:
        event = from_json(body)
        job_id, outcome = event["jobId"], event["outcome"]
        if job_id not in self._waiting:
            return
        self._heard_at = time.monotonic()
        if outcome in ENDINGS:
            self.ends.add(outcome, event.get("error"))
            self._waiting[job_id] -= 1
            if not self._waiting[job_id]:
                del self._waiting[job_id]


def read(lines: Iterable[bytes]) -> tuple[list[Ready], list[str]]:
    """Return the jobs of JSON lines, and what is wrong with each line that no worker would take.

    A job without an id gets one, so that it can be followed. Empty lines are passed over. A line that `otp-stream dead
    export --raw` wrote is the job in it, with the id by which it was known.
    """
    jobs: list[Ready] = []
    bad: list[str] = []
    for number, line in enumerate(lines, 1):
        body = line.strip().removeprefix(b"\xef\xbb\xbf")
        if not body:
            continue
        known, body = _exported(body)
        try:
            job_id = OtpJob.from_bytes(body).job_id
        except MalformedError as error:
            bad.append(f"line {number}: {error}")
            continue
        if not job_id:
            job_id = known or uuid4().hex
            body = json.dumps({**json.loads(body), "jobId": job_id}).encode()
        jobs.append(Ready(job_id, body))
    return jobs, bad


def _exported(line: bytes) -> tuple[str, bytes]:
    """Return the id and the body of an exported dead letter; any other line is a body itself."""
    with contextlib.suppress(ValueError, RecursionError):
        found: Any = json.loads(line) if b'"body"' in line else None
        fields = cast("dict[str, Any]", found) if isinstance(found, dict) and "email" not in found else {}
        if isinstance(fields.get("body"), str):
            body = base64.b64decode(fields["body"], validate=True).strip()
            return str(fields.get("jobId") or ""), _as_old(body, fields.get("firstSeen"))
    return "", line


def _as_old(body: bytes, first_seen: Any) -> bytes:
    """Give a job without a timestamp the one at which it was first seen: its code does not grow younger."""
    with contextlib.suppress(ValueError, RecursionError):
        job: Any = json.loads(body)
        fields = cast("dict[str, Any]", job) if isinstance(job, dict) else {"timestamp": 0}
        if fields.get("timestamp") is None and isinstance(first_seen, str):
            made_ms = round(datetime.fromisoformat(first_seen).timestamp() * 1000)
            return json.dumps({**fields, "timestamp": made_ms}).encode()
    return body
