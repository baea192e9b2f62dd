"""Many jobs, read from JSON lines or made, for `otp-stream send`."""

import base64
import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic
from typing import Any, cast
from uuid import uuid4

from otp_stream.client import JobEvent
from otp_stream.core import sealed_code
from otp_stream.core.decision import ENDINGS
from otp_stream.core.otp_job import KeyMissingError, MalformedError, OtpJob
from otp_stream.core.sealed_body import is_sealed
from otp_stream.core.sealing_keys import SealingKeys

from .publishing import Run


@dataclass(kw_only=True)
class Batch(Run):
    """`total` jobs: `make` returns the ID and the body of each by its number, when it is published."""

    total: int
    make: Callable[[int], tuple[str, bytes]]
    _waiting: Counter[str] = field(default_factory=Counter[str])

    @property
    def followed(self) -> bool:
        """Whether the run waits for outcomes."""
        return bool(self.options.wait_s)

    @property
    def succeeded(self) -> bool:
        """Whether all jobs were sent, or published if the run does not wait."""
        done = self.outcomes.counts["sent"] if self.followed else self.published
        return self.error is None and done == self.total

    def _body(self, number: int) -> bytes:
        job_id, body = self.make(number)
        self._waiting[job_id] += 1
        return body

    def _all_ended(self) -> bool:
        return not self._waiting

    def _receive(self, event: JobEvent) -> None:
        if event.job_id not in self._waiting:
            return
        self._last_event_at = monotonic()
        if event.outcome in ENDINGS:
            self.outcomes.add(event)
            self._waiting[event.job_id] -= 1
            if not self._waiting[event.job_id]:
                del self._waiting[event.job_id]


def read(lines: Iterable[bytes], keys: SealingKeys) -> tuple[list[tuple[str, bytes]], list[str]]:
    """Return the jobs of JSON lines, and an error for each line that no worker would accept.

    A job without an id gets one, so that it can be followed. Empty lines are ignored. From a line that
    `otp-stream dead export --raw` wrote, the job in it is read, with the ID under which it was exported. `keys` open
    sealed codes.
    """
    jobs: list[tuple[str, bytes]] = []
    bad: list[str] = []
    for number, line in enumerate(lines, 1):
        body = line.strip().removeprefix(b"\xef\xbb\xbf")
        if not body:
            continue
        known, body = _exported(body)
        try:
            jobs.append(_identified(body, known, keys))
        except MalformedError as error:
            bad.append(f"line {number}: {error}")
    return jobs, bad


def _identified(body: bytes, known: str, keys: SealingKeys) -> tuple[str, bytes]:
    """Return the id of a job, and its body with this id. Raises `MalformedError`."""
    try:
        job = OtpJob.from_bytes(body, keys=keys)
    except KeyMissingError:
        if is_sealed(body):
            raise
        job = OtpJob.without_code(body)
    if job.job_id:
        return job.job_id, body
    if not job.otp:
        raise MalformedError("jobId: is required with a sealed code that cannot be opened here; set SEALING_KEYS")
    job_id = known or uuid4().hex
    fields = {name: it for name, it in json.loads(body).items() if name not in sealed_code.NAMES}
    return job_id, json.dumps({**fields, "otp": job.otp, "jobId": job_id}).encode()


def _exported(line: bytes) -> tuple[str, bytes]:
    """Return the id and the body of an exported dead letter; any other line is a body itself."""
    with contextlib.suppress(ValueError, RecursionError):
        found: Any = json.loads(line) if b'"body"' in line else None
        fields = cast("dict[str, Any]", found) if isinstance(found, dict) and "email" not in found else {}
        if isinstance(fields.get("body"), str):
            body = base64.b64decode(fields["body"], validate=True).strip()
            return str(fields.get("jobId") or ""), _with_timestamp(body, fields.get("firstSeen"))
    return "", line


def _with_timestamp(body: bytes, first_seen: Any) -> bytes:
    """Add the time at which a job without a timestamp was first seen, so that its code does not get a new lifetime."""
    with contextlib.suppress(ValueError, RecursionError):
        job: Any = json.loads(body)
        fields = cast("dict[str, Any]", job) if isinstance(job, dict) else {"timestamp": 0}
        if fields.get("timestamp") is None and isinstance(first_seen, str):
            made_ms = round(datetime.fromisoformat(first_seen).timestamp() * 1000)
            return json.dumps({**fields, "timestamp": made_ms}).encode()
    return body
