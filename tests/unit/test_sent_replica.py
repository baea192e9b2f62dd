"""The copy of a worker's sent records in Redis."""

import asyncio
import sys
from typing import Any, cast

from otp_stream.tables.keys import JobKeys
from otp_stream.tables.redis_pipeline import RedisPipeline
from otp_stream.tables.sent_records import SentRecord, SentRecords
from otp_stream.tables.sent_replica import SentReplica

DAY = 24 * 3_600_000
NOW = 1_700_000_000_000


class Records(SentRecords):
    """Sent records that know how many were listed at once."""

    most_listed = 0

    def after(self, number: int, most: int = sys.maxsize) -> list[SentRecord]:
        found = super().after(number, most)
        self.most_listed = max(self.most_listed, len(found))
        return found


class Pipeline:
    """Receives operations."""

    def __init__(self) -> None:
        self.received: list[tuple[Any, ...]] = []

    def request(self, *operation: Any) -> asyncio.Future[bytes]:
        self.received.append(operation)
        reply = asyncio.get_running_loop().create_future()
        reply.set_result(b"ok")
        return reply


async def test_missing_records_are_listed_in_parts_and_all_restored() -> None:
    sent, pipeline = Records(DAY, 10_000), Pipeline()
    for number in range(3_500):
        sent.add(JobKeys(f"job{number}", "", NOW, NOW + (2 * DAY if number % 3 else 0)), NOW)
    replica = SentReplica(sent, cast("RedisPipeline", pipeline), lambda: NOW)
    replica.written = 100
    assert await replica.restore() == 3_400
    assert [it[1] for it in pipeline.received] == [f"job{number}" for number in range(100, 3_500)]
    assert replica.missing == 0
    assert sent.most_listed <= 1_000  # to list half a million takes a second
