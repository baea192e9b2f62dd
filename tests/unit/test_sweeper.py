"""When the next sweep starts, and when a sweep has read the whole queue."""

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest
from sweeps import DAY, KEY, dead_letter

from otp_stream.broker.message import Delivered
from otp_stream.broker.topology import Topology
from otp_stream.core.backoff import Backoff
from otp_stream.core.dead_letter import DeadLettersError
from otp_stream.dead_letters import DeadLetterQueue, Sweeper, exclusive_queue
from otp_stream.dead_letters.exclusive_queue import ExclusiveQueue
from otp_stream.dead_letters.sweep import Sweep, Swept


def _sweeper() -> Sweeper:
    topology = Topology("jobs", "otp", Backoff(1000, 30000, 3))
    queue = DeadLetterQueue(lambda: "amqp://localhost/", topology, 15, KEY)
    return Sweeper(queue, lambda: None, lambda: True, least_s=300)


async def _pause_s(sweeper: Sweeper) -> float:
    sweeper._not_before = 0
    await sweeper._sweep_if_due()
    return round(sweeper._not_before - time.monotonic())


@pytest.mark.parametrize("error", [ValueError("493817"), RecursionError(), DeadLettersError("the queue is full")])
async def test_the_pause_doubles_while_sweeps_fail_because_each_requeues_what_it_has_read(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: Sweep) -> Swept:
        raise error

    async def succeed(_: Sweep) -> Swept:
        return Swept(unhandled=1, error="KeyError")

    sweeper = _sweeper()
    monkeypatch.setattr(Sweep, "run", fail)
    assert [await _pause_s(sweeper) for _ in range(4)] == [300, 300 * 2, 300 * 4, 300 * 8]
    assert sweeper.state.failed == 4
    assert "493817" not in sweeper._error
    for _ in range(20):
        longest_s = await _pause_s(sweeper)
    assert longest_s == 300 * 256
    monkeypatch.setattr(Sweep, "run", succeed)
    assert await _pause_s(sweeper) == 300
    assert (sweeper._error, sweeper.state.failed) == ("KeyError in 1 of them, the others were swept", 25)


class Slow:
    """A connection and a channel over which one message arrives in `parts`, one for each check."""

    is_closed, consumer_tag = False, "tag"

    def __init__(self, parts: int) -> None:
        self.deliveries: asyncio.Queue[Delivered] = asyncio.Queue()
        self.parts, self.received_parts = parts, 0

    async def basic_qos(self, **_: int) -> None:
        pass

    async def basic_consume(self, *_: Any) -> "Slow":
        return self

    async def basic_cancel(self, _: str) -> None:
        pass

    @property
    def received(self) -> int:
        if self.received_parts < self.parts:
            self.received_parts += 1
            if self.received_parts == self.parts:
                self.deliveries.put_nowait(dead_letter())
        return self.received_parts

    def expect(self, channel: object, prefetch: int) -> None:
        assert channel is self
        assert prefetch > 0


async def test_a_queue_is_read_until_no_byte_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exclusive_queue, "_QUIET_S", 0.01)
    slow = Slow(parts=9)
    queue = ExclusiveQueue(cast("Any", slow), slow.deliveries, cast("Any", None), "otp.dead", 2, cast("Any", slow))
    async with asyncio.timeout(5):
        assert len([it async for it in queue.messages(10)]) == 1


async def test_a_sweep_is_complete_only_if_it_has_read_as_many_as_there_are() -> None:
    class Queue:
        name, count = "otp.dead", 2

        def __init__(self, read: int) -> None:
            self.read = read

        async def messages(self, _: int) -> AsyncGenerator[Delivered]:
            for _ in range(self.read):
                yield dead_letter()

    sweep = Sweep(_sweeper().dead_letters)
    ends = time.monotonic() + DAY
    for read, complete in ((0, False), (1, False), (2, True), (3, True)):
        queue = cast("ExclusiveQueue", Queue(read))
        assert await sweep._read(queue, sweep.dead_letters.reader, ends) is complete
