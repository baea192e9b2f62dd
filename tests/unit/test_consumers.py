"""The consumers: those that the broker does not know or that get no jobs are restarted."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from otp_stream.broker import consumers
from otp_stream.broker.amqp_stream import DeliveryReader
from otp_stream.broker.consumers import Consumers
from otp_stream.broker.unacked_limit import UnackedLimit
from otp_stream.clock import now_ms


class Channel:
    number = 1

    def __init__(self) -> None:
        self.consumers = {"tag": None}
        self.is_closed = False
        self.did: list[str] = []
        self.connection = SimpleNamespace(write_queue=None)

    async def basic_qos(self, *, prefetch_count: int) -> None:
        self.did.append(f"qos {prefetch_count}")

    async def basic_consume(self, queue: str, _: object) -> Any:
        self.did.append(f"consume {queue}")
        return SimpleNamespace(consumer_tag="new")

    async def close(self) -> None:
        self.did.append("close")
        self.is_closed = True

    async def basic_cancel(self, tag: str) -> None:
        self.did.append(f"cancel {tag}")
        del self.consumers[tag]


@pytest.mark.parametrize(("unacked", "did"), [(0, ["close"]), (3, ["cancel tag"])])
async def test_a_consumer_that_was_unknown_for_long_is_closed(
    monkeypatch: pytest.MonkeyPatch, unacked: int, did: list[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(consumers, "monotonic", lambda: now)
    it, channel = Consumers(cast("Any", None), lambda: None, lambda _: None), Channel()
    it._consumers["q"] = cast("Any", consumers._Consumer(cast("Any", channel), cast("Any", None), "tag"))
    lane = SimpleNamespace(
        queue="q", depth=SimpleNamespace(consumers=0, messages=0), state=SimpleNamespace(unacked=unacked, received=3)
    )
    looks = [0, 0, 1, 0, 0]  # consumers by the broker's count, three seconds apart: one that is seen restarts the timer
    for count in looks:
        lane.depth.consumers = count
        await it.compare([cast("Any", lane)])
        now += 3
    assert channel.did == []
    await it.compare([cast("Any", lane)])
    assert channel.did == did
    assert not it.is_active("q")
    await it.compare([cast("Any", lane)])  # already gone
    assert channel.did == did


async def test_a_consumer_that_gets_nothing_although_jobs_wait_is_restarted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(consumers, "monotonic", lambda: now)
    it, channel = Consumers(cast("Any", None), lambda: None, lambda _: None), Channel()
    state = SimpleNamespace(unacked=0, received=3)
    lane = SimpleNamespace(queue="q", depth=SimpleNamespace(consumers=1, messages=5), state=state)

    async def look(received: int, unacked: int = 0) -> None:
        nonlocal now
        state.received, state.unacked = received, unacked
        await it.compare([cast("Any", lane)])
        now += 3

    def consume() -> None:
        channel.is_closed = False
        it._consumers["q"] = cast("Any", consumers._Consumer(cast("Any", channel), cast("Any", None), "tag"))

    consume()
    # three seconds apart; meanwhile it got a job, or had some in flight
    for received, unacked in [(3, 0), (3, 0), (4, 0), (4, 0), (4, 2), (4, 0), (4, 0)]:
        await look(received, unacked)
    assert channel.did == []
    await look(4)
    assert channel.did == ["close"]
    consume()
    for _ in range(5):
        await look(4)  # no effect: with single active consumer, another one gets the jobs
    assert channel.did == ["close"]
    for _ in range(3):
        await look(5)
    assert channel.did == ["close", "close"]


@pytest.mark.parametrize(
    ("version", "quorum", "ended_by_us", "unacked_ms", "old", "new"),
    [
        ("4.3.6", True, False, 3000, ["close"], ["qos 5", "consume q"]),
        ("4.3.6", True, True, 3000, ["qos 5", "consume q"], []),
        # its queue was deleted, and what is in flight exists only here
        ("4.3.6", True, False, 1000, ["qos 5", "consume q"], []),
        ("4.3.6", False, False, 3000, ["qos 5", "consume q"], []),
        ("4.0.5", True, False, 3000, ["qos 5", "consume q"], []),
        ("3.10.8", True, False, 3000, ["qos 5", "consume q"], []),
    ],
)
async def test_jobs_in_flight_of_a_consumer_that_the_broker_cancelled_are_requeued(
    *, version: str, quorum: bool, ended_by_us: bool, unacked_ms: int, old: list[str], new: list[str]
) -> None:
    it, before, after = Consumers(cast("Any", None), lambda: None, lambda _: None), Channel(), Channel()
    before.consumers.clear()
    tag = None if ended_by_us else "tag"
    acks = cast("Any", SimpleNamespace(settled=0))
    it._consumers["q"] = cast("Any", consumers._Consumer(cast("Any", before), UnackedLimit(acks), tag))

    async def channel(**_: Any) -> Channel:
        return after

    state = SimpleNamespace(oldest_unacked_ms=now_ms() - unacked_ms)
    lane = SimpleNamespace(queue="q", prefetch=5, dispatch=None, state=state, counts_returns=quorum)
    connection, transport = (
        SimpleNamespace(large=None),
        SimpleNamespace(channel=channel, server_properties={"version": version}),
    )
    await it._open(cast("Any", lane), cast("Any", connection), cast("Any", transport), DeliveryReader())
    assert (before.did, after.did) == (old, new)


async def test_no_lane_waits_at_the_start_for_the_answer_about_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, opened = asyncio.Event(), asyncio.Event()

    async def exists(queue: str) -> bool:
        if queue == "high":  # RabbitMQ does not answer about it
            asked.set()
            await opened.wait()
            return False
        return True

    async def _open(self: Consumers, lane: Any, *_: Any) -> None:
        assert lane.queue == "jobs"
        opened.set()

    monkeypatch.setattr(Consumers, "_open", _open)
    transport = SimpleNamespace(connection=SimpleNamespace(is_closed=False))
    connection = SimpleNamespace(transport=transport, deliveries=object())
    it = Consumers(exists, lambda: cast("Any", connection), lambda _: None)
    async with asyncio.timeout(5):
        await it.start([cast("Any", SimpleNamespace(queue=queue)) for queue in ("high", "jobs")])
    assert asked.is_set()


async def test_a_refusal_at_the_start_is_raised() -> None:
    async def exists(queue: str) -> bool:
        if queue == "jobs":
            raise ConnectionError("refused")
        return False

    it = Consumers(exists, lambda: None, lambda _: None)
    with pytest.raises(ConnectionError, match="refused"):
        await it.start([cast("Any", SimpleNamespace(queue=queue)) for queue in ("high", "jobs")])
