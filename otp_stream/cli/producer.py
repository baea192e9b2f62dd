"""A producer as there are many: plain JSON to the jobs queue through the default exchange."""

import asyncio
import contextlib
import json
import secrets
import time
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from otp_stream.core.decision import ENDINGS
from otp_stream.core.otp_job import MalformedError, OtpJob
from otp_stream.settings import Settings

from .line import LOST, Line, ProducerError, opened, told

Job = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Told:
    """What became of a job, in one line."""

    text: str
    good: bool = True


def new_code() -> str:
    """Return six random digits."""
    return f"{secrets.randbelow(10**6):06}"


def make_job(*, email: str, otp: str | None, job_id: str | None, priority: str, metadata: Job) -> Job:
    """Return a job as the contract has it. Raises `ProducerError` where the worker would refuse it."""
    job: Job = {
        "email": email,
        "otp": otp or new_code(),
        "jobId": job_id or uuid4().hex,
        "timestamp": time.time_ns() // 1_000_000,
        "priority": priority,
        "metadata": {key: value for key, value in metadata.items() if value is not None},
    }
    try:
        OtpJob.from_bytes(json.dumps(job).encode(), strict=True)
    except MalformedError as error:
        raise ProducerError(str(error)) from None
    return job


def check_recipient(address: str, name: str) -> None:
    """Raise `ProducerError` for what is no address; `name` is what the person calls it."""
    try:
        make_job(email=address, otp=None, job_id=None, priority="normal", metadata={})
    except ProducerError as error:
        raise ProducerError(str(error).replace("email", name, 1)) from None


async def publish(job: Job, settings: Settings, *, high_lane: bool, wait_s: float) -> Told:
    """Publish a job, confirmed, and wait for its event. Raises `ProducerError`."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    async with opened(settings, high_lane=high_lane) as line:
        told_of = bool(wait_s) and await line.follow(heard.put_nowait)
        began = time.monotonic()
        try:
            await line.publish(json.dumps(job).encode())
        except LOST as error:
            raise ProducerError(told(error)) from None
        if not told_of:
            return Told(f"published {job['jobId']} to {line.queue}")
        return await _watch(heard, job["jobId"], line, began, wait_s)


async def _watch(heard: "asyncio.Queue[bytes]", job_id: str, line: Line, began: float, wait_s: float) -> Told:
    last: str | None = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            while True:
                event = json.loads(await heard.get())
                if event["jobId"] == job_id:
                    last = " ".join(filter(None, (event["outcome"], event.get("error"))))
                    if event["outcome"] in ENDINGS:
                        took_ms = round((time.monotonic() - began) * 1000)
                        return Told(f"{job_id}: {last}, after {took_ms} ms", good=event["outcome"] == "sent")
    if last is None:
        try:
            last = await line.situation()
        except LOST as error:
            last = told(error)
    return Told(f"{job_id} was published to {line.queue}; after {wait_s:g} s: {last}", good=False)
