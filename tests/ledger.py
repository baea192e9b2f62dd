"""Compares published jobs with accepted mails and dead letters, without looking inside the worker."""

import asyncio
import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from aio_pika import Message
from aio_pika.exceptions import AMQPError
from conftest import Stage
from patience import deadline
from rabbitmq import Rabbit
from smtp_relay import Received, ScriptedRelay
from worker import CODE

_BATCH = 100


@dataclass(frozen=True)
class Row:
    """A row of the table of results."""

    case: str
    jobs: int
    lost: int
    duplicated: int
    expired: int
    late_p99_ms: int
    """99th percentile of the time from publish to acceptance or dead letter."""
    recovered_s: float
    """Time from the end of the fault to the end of the last job."""


@dataclass
class Ledger:
    """Counts jobs by their ids. Each job has its own recipient."""

    stage: Stage
    fallback: ScriptedRelay | None = None
    domains: Sequence[str] = ("example.com",)
    published: dict[str, float] = field(default_factory=dict)
    died: dict[str, tuple[str, float]] = field(default_factory=dict)
    fault_ended_at: float = 0.0

    @property
    def rabbit(self) -> Rabbit:
        return self.stage.rabbit

    @property
    def relay(self) -> ScriptedRelay:
        return self.stage.relay

    async def publish(self, count: int, *, to: str | None = None, **fields: object) -> None:
        """Publish `count` jobs, each with a confirm. Their recipients are in turn in one of the `domains`."""
        for start in range(0, count, _BATCH):
            await asyncio.gather(*(self._publish(to, fields) for _ in range(min(_BATCH, count - start))))

    async def _publish(self, to: str | None, fields: dict[str, object]) -> None:
        job_id = f"job{len(self.published)}"
        self.published[job_id] = time.monotonic()
        now_ms = time.time_ns() // 1_000_000
        domain = self.domains[len(self.published) % len(self.domains)]
        job = {"email": f"{job_id}@{domain}", "otp": CODE, "jobId": job_id, "timestamp": now_ms, **fields}
        message = Message(json.dumps(job).encode(), delivery_mode=2)
        await self.rabbit.channel.default_exchange.publish(message, to or self.rabbit.queue)

    def fault_ended(self) -> None:
        """Record when the fault ended."""
        self.fault_ended_at = time.monotonic()

    async def balance(self, timeout: float = 40) -> None:  # noqa: ASYNC109
        """Wait until every job has ended: no message is in a queue, in a worker or at a relay.

        While a wait queue dead-letters a message, its depth is 0 for some milliseconds, so everything is read twice.
        """
        ends = deadline(timeout)
        idle_reads = 0
        while idle_reads < 2 and time.monotonic() < ends:
            await self.read_dead_letters()
            idle_reads = idle_reads + 1 if not self.lost and await self._is_idle() else 0
            await asyncio.sleep(0.1)
        await self.read_dead_letters()

    async def _is_idle(self) -> bool:
        try:
            async with asyncio.timeout(5):
                depths = await self.rabbit.depths()
        except (AMQPError, TimeoutError, RuntimeError):
            return False
        workers = [it for it in self.stage.workers if it.is_running]
        relays = [self.relay, *([self.fallback] if self.fallback else [])]
        return (
            not any(depths.values())
            and not any([await worker.may_have_unacked() for worker in workers])
            and not any(relay.is_busy for relay in relays)
        )

    async def read_dead_letters(self) -> None:
        """Read the dead letters, unless the broker is unavailable."""
        try:
            async with asyncio.timeout(5):
                await self._read_dead_letters()
        except (AMQPError, TimeoutError, RuntimeError):
            with contextlib.suppress(AMQPError, OSError):
                await self.rabbit.reconnect()

    async def _read_dead_letters(self) -> None:
        queue = await self.rabbit.channel.get_queue(f"{self.rabbit.prefix}.dead", ensure=False)
        while (dead_letter := await queue.get(fail=False)) is not None:
            reason = str(dead_letter.headers["x-otp-reason"])
            self.died.setdefault(str(dead_letter.headers["x-otp-job-id"]), (reason, time.monotonic()))
            await dead_letter.ack()

    @property
    def accepted(self) -> list[Received]:
        """All mails that a relay accepted."""
        return self.relay.accepted + (self.fallback.accepted if self.fallback else [])

    @property
    def lost(self) -> set[str]:
        """Jobs that were published and neither accepted nor dead-lettered."""
        return self.published.keys() - self._accepted.keys() - self.died.keys()

    @property
    def duplicated(self) -> set[str]:
        """Jobs whose mail was accepted more than once."""
        return {job_id for job_id, count in self._accepted.items() if count > 1}

    @property
    def copies_are_identical(self) -> bool:
        """Whether all duplicates are identical."""
        contents: dict[str, set[bytes]] = {}
        for mail in self.accepted:
            contents.setdefault(mail.recipient, set()).add(mail.content)
        return all(len(kinds) == 1 for kinds in contents.values())

    @property
    def reasons(self) -> Counter[str]:
        """Dead letters by reason."""
        return Counter(reason for reason, _ in self.died.values())

    @property
    def ended_twice(self) -> set[str]:
        """Jobs that were both accepted and dead-lettered."""
        return self._accepted.keys() & self.died.keys()

    @property
    def _accepted(self) -> Counter[str]:
        return Counter(mail.recipient.partition("@")[0] for mail in self.accepted)

    def row(self, case: str, *, may_end_twice: int = 0) -> Row:
        """Return the result. Also appends it to the file in `OTP_FAULTS_REPORT`.

        `may_end_twice` limits the number of jobs that are both accepted and dead-lettered after an uncertain outcome.
        """
        assert len(self.ended_twice) <= may_end_twice
        ended = {job_id: at for job_id, (_, at) in self.died.items()}
        for mail in self.accepted:
            ended.setdefault(mail.recipient.partition("@")[0], mail.accepted_at)
        late = sorted(at - self.published[job_id] for job_id, at in ended.items() if job_id in self.published)
        last = max(ended.values(), default=0.0)
        row = Row(
            case=case,
            jobs=len(self.published),
            lost=len(self.lost),
            duplicated=len(self.duplicated),
            expired=self.reasons["expired"],
            late_p99_ms=round(1000 * late[min(len(late) * 99 // 100, len(late) - 1)]) if late else 0,
            recovered_s=round(max(last - self.fault_ended_at, 0), 1) if self.fault_ended_at else 0.0,
        )
        if report := os.environ.get("OTP_FAULTS_REPORT"):
            with Path(report).open("a") as out:
                out.write(json.dumps(asdict(row)) + "\n")
        return row
