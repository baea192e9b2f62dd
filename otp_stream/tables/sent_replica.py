"""The copy of this worker's sent records in Redis."""

import asyncio
from collections.abc import Callable, Sequence

from .keys import JobKeys
from .redis_pipeline import RedisPipeline
from .sent_records import SentRecord, SentRecords

_BATCH = 100
_PART = 1_000


class SentReplica:
    """Writes sent records to Redis, tracks how many of them Redis has, and restores the others."""

    def __init__(self, sent: SentRecords, pipeline: RedisPipeline, now_ms: Callable[[], int]) -> None:
        self._sent, self._pipeline, self._now_ms = sent, pipeline, now_ms
        self.complete = False
        """Whether every record was written over this connection."""
        self.written = 0
        """The number of the last record that was written."""
        self._confirmed = 0
        """The number of the last record that Redis has confirmed."""

    @property
    def missing(self) -> int:
        """Number of records that Redis may lack."""
        return self._sent.last_number - self.written

    def mark_sent(self, keys: JobKeys) -> None:
        """Write a record that is already in memory."""
        only_one_missing = self.missing == 1
        lifetime_ms = self._sent.lifetime_ms(keys, self._now_ms())
        if self._pipeline.send("mark", keys.key, lifetime_ms) and only_one_missing:
            self.written += 1

    def confirm(self, written: int) -> None:
        """Record that Redis has the records up to this number."""
        self._confirmed = written

    async def resume(self) -> None:
        """Continue after the last record that Redis has."""
        reply = await self._pipeline.request("resume")
        with self._pipeline.reading():
            self.written = self._confirmed = min(int(reply.decode().partition(":")[2]), self._sent.last_number)

    async def restore(self) -> int:
        """Write the records that Redis lacks. Returns their number."""
        until, count = self._sent.last_number, 0
        # a part of them at a time: to list half a million takes a second, in which no mail is sent
        while (records := self._sent.after(self.written, _PART)) and records[0].number <= until:
            for start in range(0, len(records), _BATCH):
                await self._write(records[start : start + _BATCH])
            count += len(records)
        self.written = self._sent.last_number  # newer records have been written over this connection as well
        return count

    async def _write(self, records: Sequence[SentRecord]) -> None:
        now_ms = self._now_ms()
        current = [it for it in records if it.expires_ms > now_ms]
        await asyncio.gather(*(self._pipeline.request("mark", it.key, it.expires_ms - now_ms) for it in current))
        self.written = records[-1].number

    def on_lost(self) -> None:
        """Count only confirmed records as written, because the connection was lost."""
        self.complete = False
        self.written = min(self.written, self._confirmed)
