"""`python -m bench.tables`: what a worker's tables in memory take when they are full, with every limit on.

The limits of entries are those of the settings (`SENT_MEMORY_LIMIT`, `TABLES_MEMORY_LIMIT`).
"""

import asyncio
import gc
import sys
import time

import psutil

from otp_stream.app import app
from otp_stream.core.admission import Refusal, read_limits
from otp_stream.core.job import Job
from otp_stream.core.otp_job import OtpJob
from otp_stream.tables import KeyBuilder, MemoryTables, Tables

_LIMITS = (
    *read_limits("recipient", "5/10m,20/1d"), *read_limits("domain", "1000/1h"),
    *read_limits("tenant", "10000/1d"), *read_limits("total", "100000000/1d"),
)  # fmt: skip
_FORGOTTEN_MS = 24 * 3_600_000


def _job(number: int, at_ms: int) -> Job:
    body = {
        "email": f"user{number}@domain{number}.example", "otp": f"{number % 1_000_000:06}", "jobId": f"job{number}",
        "timestamp": at_ms, "metadata": {"tenant": f"tenant{number}"},
    }  # fmt: skip
    request = OtpJob.model_validate(body)
    return Job.from_request(
        request, job_id=body["jobId"], lane="jobs", first_seen_ms=at_ms, attempts_made=0, default_expiry_minutes=15
    )


def _rss_mib() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def _fill() -> None:
    settings = app.settings
    memory = MemoryTables(
        _LIMITS,
        sent_ttl_ms=_FORGOTTEN_MS,
        sent_limit=settings.sent_memory_limit,
        entries_limit=settings.tables_memory_limit,
    )
    tables = Tables(KeyBuilder(b"k" * 32, supersede=True, limits=_LIMITS), memory)
    _print(f"empty: {_rss_mib():.0f} MiB")
    number, full = 0, False
    while len(memory.sent) < settings.sent_memory_limit:
        now_ms = time.time_ns() // 1_000_000
        claim = await tables.admit(_job(number, now_ms), now_ms + 60_000)
        if isinstance(claim, Refusal):
            raise TypeError(claim)
        claim.mark_sent()
        number += 1
        if memory.evicted and not full:
            full = True
            _print(f"limits and newest codes full, after {number:,} jobs: {_rss_mib():.0f} MiB")
    _print(f"sent records full as well, after {number:,} jobs: {_rss_mib():.0f} MiB")
    _print(f"entries: {memory.sizes}")


if __name__ == "__main__":
    asyncio.run(_fill())
