"""One worker, many tenants: a tenant with many jobs gets them from its own queue, and delays no other."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from amqp_proxy import ACK, amqp_proxy
from conftest import Stage
from deliveries import MadeIds, NoTelemetry
from faststream import BaseMiddleware
from ledger import Ledger
from rabbitmq import until
from smtp_relay import Act
from worker import Worker

from otp_stream.broker import Incoming, OtpBroker, RabbitConfig
from otp_stream.core.backoff import Backoff
from otp_stream.core.decision import Ack, Final
from otp_stream.core.job import Job
from otp_stream.core.otp_job import MalformedError, OtpJob

KEY = b"k" * 32
BACKOFF = Backoff(1000, 1000, 1)


def tenant_of(value: object) -> str:
    if value == "unknown":
        raise MalformedError("metadata.tenant: is not known")
    return value if isinstance(value, str) else ""


def job(number: int, tenant: str | None, **more: Any) -> bytes:
    metadata = {} if tenant is None else {"tenant": tenant}
    return json.dumps(
        {
            "email": f"u{number}@example.com",
            "otp": "739154",
            "jobId": f"{tenant}-{number}",
            "metadata": metadata,
            **more,
        }
    ).encode()


@dataclass
class Tenants:
    """A worker's broker part with a handler of this test: jobs of `hanging` tenants wait until `resume`."""

    broker: OtpBroker
    hanging: set[str] = field(default_factory=set[str])
    resumed: asyncio.Event = field(default_factory=asyncio.Event)
    jobs: list[Job] = field(default_factory=list[Job])
    """Jobs that the handler got."""
    ended: Counter[str] = field(default_factory=Counter[str])
    """Settled jobs by id."""
    settlement: Callable[[Job], Final] = lambda _: Ack("sent")

    async def handle(self, job: Job, incoming: Callable[[Final], Awaitable[bool]]) -> None:
        self.jobs.append(job)
        if job.tenant in self.hanging:
            await self.resumed.wait()
        if await incoming(self.settlement(job)):
            self.ended[job.id] += 1

    def resume(self) -> None:
        self.hanging.clear()
        self.resumed.set()

    def moved(self, tenant: str) -> int:
        return self.broker.state().tenants[tenant].moved

    def unacked(self) -> int:
        return self.broker.unacked

    async def until(self, condition: Callable[[], object], what: str, timeout: float = 20) -> None:  # noqa: ASYNC109
        async def holds() -> bool:
            return bool(condition())

        await until(holds, what, timeout)

    def balance(self) -> dict[str, int]:
        """Return deliveries that are neither settled nor unacked, by lane: none."""
        return {
            lane.queue: lane.received - lane.unacked - sum(lane.ended.values())
            for lane in self.broker.state().all_lanes
        }


@asynccontextmanager
async def tenants(
    stage: Stage, *names: str, prefetch: int = 20, url: str | None = None, hanging: tuple[str, ...] = (),
    middlewares: tuple[Any, ...] = (),
) -> AsyncIterator[Tenants]:  # fmt: skip
    """Start a broker part with these tenants."""
    stage.rabbit.backoffs.add((1000, 1000, 1))
    stage.more_tenants |= {"default", *names} if names else set()
    config = RabbitConfig(
        url or stage.url, "", stage.rabbit.queue, stage.rabbit.prefix, prefetch, BACKOFF, 15, KEY,
        tenants=names, tenant_of=tenant_of,
    )  # fmt: skip
    broker = OtpBroker(config, made=MadeIds(), telemetry=NoTelemetry())
    for middleware in middlewares:
        broker.add_middleware(middleware)
    it = Tenants(broker, set(hanging))
    topology = broker.topology

    @broker.subscriber(topology.high)
    @broker.subscriber(topology.jobs)
    @broker.subscriber(topology.due)
    @broker.subscriber(topology.any_tenant)
    async def handle(request: OtpJob, incoming: Incoming) -> None:
        if found := await incoming.accept(request):
            await it.handle(found, incoming)

    await broker.start()
    try:
        yield it
    finally:
        it.resume()
        await broker.stop_consumers()
        await broker.drain(lambda: False)
        await broker.stop()


async def test_a_tenant_that_hangs_delays_no_other_and_none_of_its_jobs_is_lost(stage: Stage) -> None:
    async with tenants(stage, "a", "b", hanging=("a",)) as it:
        await stage.rabbit.publish(*(job(n, "a") for n in range(200)))
        # 10 stay in their lane, the others are moved, and of them the worker has 10
        await it.until(lambda: it.moved("a") == 190 and it.unacked() == 20, "moves")
        await stage.rabbit.wait_depth(180, f"{stage.rabbit.prefix}.tenant.a")
        for number in range(30):
            await stage.rabbit.publish(job(number, "b"), job(number, None))
        await it.until(lambda: len(it.ended) == 60, "jobs of the others")
        assert it.moved("b") == it.moved("") == 0
        assert not [name for name in it.ended if name.startswith("a-")]
        it.resume()
        await it.until(lambda: len(it.ended) == 260, "jobs of the tenant")
        await it.until(lambda: not it.unacked(), "end of every job")
        assert set(it.ended.values()) == {1}
        assert not any(it.balance().values())
        assert not any((await stage.rabbit.depths()).values())


async def test_any_name_of_a_tenant_gives_a_name_of_a_queue(stage: Stage) -> None:
    odd = 'Café "x" (東京)'
    async with tenants(stage, odd, "b", hanging=(odd,)) as it:
        await stage.rabbit.publish(*(job(n, odd) for n in range(50)))
        await it.until(lambda: it.moved(odd) == 40, "moves")
        await stage.rabbit.wait_depth(30, it.broker.topology.tenant_queue(odd))
        await stage.rabbit.publish(job(1, "b"))
        await it.until(lambda: it.ended, "job of another tenant")
        it.resume()
        await it.until(lambda: len(it.ended) == 51, "jobs of the tenant")


@pytest.mark.parametrize("names", [("b",), ()])
async def test_jobs_return_from_a_queue_that_no_worker_consumes(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    monkeypatch.setattr("otp_stream.broker.topology.TENANT_WAIT_MS", 1_000)
    async with tenants(stage, "a", "b", hanging=("a",)) as it:
        await stage.rabbit.publish(*(job(n, "a") for n in range(50)))
        await it.until(lambda: it.moved("a") == 40, "moves")
        await it.broker.stop_consumers()
        await it.broker.drain(lambda: True)
    async with tenants(stage, *names) as it:
        await it.until(lambda: len(it.ended) == 50, "all jobs")
        await it.until(lambda: not it.unacked(), "end of every job")
        assert set(it.ended.values()) == {1}
        assert not any(it.balance().values())


async def test_single_codes_pass_the_backlog_of_another_tenant(stage: Stage) -> None:
    await stage.rabbit.declare()
    await asyncio.gather(
        *(stage.rabbit.publish(*(job(n, "a") for n in range(at, at + 100))) for at in range(0, 2_000, 100))
    )
    async with tenants(stage, "a", "b", prefetch=100, hanging=("a",)) as it:
        await stage.rabbit.publish(job(-1, "b"))
        # the jobs before it are moved
        await it.until(lambda: it.ended, "first job of the other tenant", 60)
        for number in range(20):
            await stage.rabbit.publish(job(number, "b"))
            await it.until(lambda n=number: it.ended[f"b-{n}"], "job")
        assert it.moved("a") == 2_000 - 50
        it.resume()
        await it.until(lambda: len(it.ended) == 2_021 and not it.unacked(), "end of every job", 60)
        assert set(it.ended.values()) == {1}
        assert not any(it.balance().values())


async def test_two_workers_share_the_queue_of_a_tenant(stage: Stage) -> None:
    async with tenants(stage, "a", hanging=("a",)) as one:
        await stage.rabbit.publish(*(job(n, "a") for n in range(100)))
        await one.until(lambda: one.moved("a") == 90 and one.unacked() == 20, "moves")
        async with tenants(stage, "a") as two:
            await two.until(lambda: len(two.ended) == 80, "the jobs that the other worker does not have")
            assert len(one.jobs) == 20
            one.resume()
            await one.until(lambda: len(one.ended) + len(two.ended) == 100, "end of every job")
            assert not one.ended.keys() & two.ended.keys()
            # a worker whose share of a lane is used up has the jobs moved to where the other one gets them
            one.resumed.clear()
            one.hanging.add("a")
            two.hanging.add("a")
            await stage.rabbit.publish(*(job(n, "a") for n in range(100, 200)))
            await two.until(lambda: one.unacked() == two.unacked() == 20, "work for both")
            two.resume()
            await two.until(lambda: len(one.ended) + len(two.ended) == 180, "end of all but those of one worker")
            one.resume()
            await one.until(lambda: len(one.ended) + len(two.ended) == 200, "end of every job")
        assert set((one.ended + two.ended).values()) == {1}


@pytest.mark.parametrize("earlier", [0, 1], ids=["read", "unread"])
async def test_a_moved_job_whose_acknowledgement_is_lost_is_not_processed_twice(stage: Stage, earlier: int) -> None:
    async with amqp_proxy(stage.url) as (proxy, url), tenants(stage, "a", prefetch=4, url=url, hanging=("a",)) as it:
        own = f"{stage.rabbit.prefix}.tenant.a"
        await until(lambda: stage.rabbit.consumers(own), "consumer")
        # the first move opens the channel, and later ones are made before the job is read
        sent = proxy.hold("to broker", ACK) if earlier else None
        await stage.rabbit.publish(*(job(n, "a") for n in range(2 + earlier)))
        if sent is not None:
            await sent.reached.wait()
            proxy.release()
        await it.until(lambda: len(it.jobs) == 2 + earlier and it.moved("a") == earlier, "earlier jobs")
        await stage.rabbit.wait_depth(0)
        held = proxy.hold("to broker", ACK)
        await stage.rabbit.publish(job(9, "a"))
        await held.reached.wait()
        await it.until(lambda: it.jobs[-1].id == "a-9", "the copy")
        proxy.cut()
        proxy.release()
        # all are redelivered: the first two are moved, because their first deliveries are still being processed

        def acked() -> list[int]:
            return [lane.ended["ack"] for lane in it.broker.state().lanes if lane.lane == "jobs"]

        await it.until(lambda: it.moved("a") == earlier + 3 and acked() == [1], "redelivered jobs")
        await stage.rabbit.wait_depth(0)
        await asyncio.sleep(0.2)
        assert [it.moves for it in it.jobs if it.id == "a-9"][:1] == [1]
        assert it.moved("a") == earlier + 3
        assert acked() == [1]
        it.resume()

        async def nothing_left() -> bool:
            return not it.unacked() and not any((await stage.rabbit.depths()).values()) and not it.unacked()

        await until(nothing_left, "end of every job")


async def test_tenants_change_while_jobs_are_processed(stage: Stage) -> None:
    own = f"{stage.rabbit.prefix}.tenant."
    async with tenants(stage, "a", prefetch=4, hanging=("a", "b")) as it:
        stage.more_tenants.add("b")
        await stage.rabbit.publish(*(job(n, "a") for n in range(10)))
        await it.until(lambda: it.moved("a") == 8, "moves")
        it.broker.use_tenants(["b"])
        await until(lambda: stage.rabbit.consumers(f"{own}b"), "consumer of the new tenant")
        # the old one's jobs are still processed, but no longer moved
        await stage.rabbit.publish(*(job(n, "b") for n in range(10)))
        await it.until(lambda: it.moved("b") == 9, "moves")
        assert it.moved("a") == 8
        it.resume()
        await it.until(lambda: len(it.ended) == 20 and not it.unacked(), "end of every job")
        assert set(it.ended.values()) == {1}
        it.broker._tenants._read_at = 0
        await it.until(lambda: it.broker.state().tenants["a"].lane.depth == 0, "depth")
        it.broker._tenants._read_at = 0

        async def is_cancelled() -> bool:
            return await stage.rabbit.consumers(f"{own}a") == 0

        await until(is_cancelled, "end of the consumer")
        assert await stage.rabbit.consumers(f"{own}b") == 1


async def test_a_queue_that_is_deleted_is_declared_and_consumed_again(stage: Stage) -> None:
    own = f"{stage.rabbit.prefix}.tenant.a"
    async with tenants(stage, "a", prefetch=4, hanging=("a",)) as it:
        await until(lambda: stage.rabbit.consumers(own), "consumer")
        await stage.rabbit.channel.queue_delete(own)
        await until(lambda: stage.rabbit.consumers(own), "consumer again")
        # also if no consumer shows that it is missing
        it.broker._tenants._lanes["a"].start_at = time.monotonic() + 2
        await stage.rabbit.channel.queue_delete(own)
        await stage.rabbit.publish(*(job(n, "a") for n in range(4)))
        await it.until(lambda: len(it.jobs) == 4, "jobs")
        await until(lambda: stage.rabbit.consumers(own), "consumer again")
        it.resume()
        await it.until(lambda: len(it.ended) == 4, "end of every job")


async def test_a_job_that_its_tenants_queue_does_not_take_is_processed_in_its_lane(stage: Stage) -> None:
    own = f"{stage.rabbit.prefix}.tenant.a"
    async with tenants(stage, "a", prefetch=4, hanging=("a",)) as it:
        await until(lambda: stage.rabbit.consumers(own), "consumer")
        await stage.rabbit.publish(*(job(n, "a") for n in range(3)))
        await it.until(lambda: len(it.jobs) == 3 and it.moved("a") == 1, "the move that opens the channel")
        it.broker._tenants._lanes["a"].start_at = time.monotonic() + 60
        await stage.rabbit.channel.queue_delete(own)
        await stage.rabbit.publish(job(9, "a"))
        await it.until(lambda: len(it.jobs) == 4, "job")
        assert (it.jobs[-1].id, it.jobs[-1].moves, it.moved("a")) == ("a-9", 0, 1)
        it.resume()
        await it.until(lambda: len(it.ended) == 4 and not it.unacked(), "end of every job")
        assert not any(it.balance().values())


async def test_a_job_that_a_middleware_has_to_see_is_read_before_its_move(stage: Stage) -> None:
    seen: list[bytes] = []

    class Watching(BaseMiddleware):
        async def consume_scope(self, call_next: Any, msg: Any) -> Any:
            seen.append(msg.body)
            return await call_next(msg)

    async with tenants(stage, "a", prefetch=4, hanging=("a",), middlewares=(Watching,)) as it:
        await stage.rabbit.publish(*(job(n, "a") for n in range(3)))
        await it.until(lambda: it.moved("a") == 1, "move")
        await stage.rabbit.publish(job(9, "a"))
        await it.until(lambda: it.moved("a") == 2 and len(it.jobs) == 4, "second move")
        assert seen.count(job(9, "a")) == 2


async def test_jobs_from_a_tenants_queue_are_given_back_at_a_stop(stage: Stage) -> None:
    own = f"{stage.rabbit.prefix}.tenant.a"
    async with tenants(stage, "a", prefetch=4, hanging=("a",)) as it:
        await stage.rabbit.publish(*(job(n, "a") for n in range(10)))
        await it.until(lambda: it.moved("a") == 8 and it.unacked() == 4, "moves")
        await it.broker.stop_consumers()
        assert await it.broker.drain(lambda: True) == 4
        await it.broker.stop()
        await stage.rabbit.wait_depth(2)
        await stage.rabbit.wait_depth(8, own)
        headers = [message.headers for message in await stage.rabbit.take(own, 8)]
        assert all(it["x-otp-lane"] == "jobs" and it["x-otp-moves"] == 1 for it in headers)


async def test_a_worker_without_tenants_declares_no_queue_of_a_tenant(stage: Stage) -> None:
    async with tenants(stage) as it:
        await stage.rabbit.publish(*(job(n, "a") for n in range(50)))
        await it.until(lambda: len(it.ended) == 50, "jobs")
        assert it.broker.state().tenants == {}
    assert await stage.rabbit.depth(f"{stage.rabbit.prefix}.tenant.default") is None


async def run_worker(stage: Stage, **changes: str) -> Worker:
    """Start a worker process with the tenants a and b."""
    file = stage.folder / "tenants.toml"
    file.write_text("[tenants.a]\n[tenants.b]\n")
    return await stage.run(TENANTS_FILE=str(file), **changes)


async def test_a_worker_that_is_killed_while_it_moves_jobs_loses_none_and_sends_none_twice(stage: Stage) -> None:
    ledger = Ledger(stage)
    stage.relay.always("rcpt", Act(delay_s=60))
    await stage.rabbit.declare()
    for _ in range(3):
        await ledger.publish(120, metadata={"tenant": "a"})
        worker = await run_worker(stage, PREFETCH_COUNT="20")

        async def moves(it: Worker = worker) -> bool:
            return await it.metric('otp_ledger_settled_total{how="moved",lane="jobs"}') >= 20

        await until(moves, "moves")
        await worker.kill()
    stage.relay.always("rcpt", None)
    await ledger.publish(20, metadata={"tenant": "b"})
    worker = await run_worker(stage, PREFETCH_COUNT="20")
    await ledger.balance(60)
    assert (ledger.lost, ledger.duplicated, ledger.died) == (set(), set(), {})
    assert len(ledger.accepted) == 380
    received = await worker.metric('otp_ledger_received_total{lane="tenant"}')
    settled = [f'otp_ledger_settled_total{{how="{how}",lane="tenant"}}' for how in ("ack", "renewed")]
    assert received == sum([await worker.metric(it) for it in settled]) > 40
