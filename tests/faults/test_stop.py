"""A worker that is stopped: nothing is lost, nothing is sent twice, no delivery is counted."""

import asyncio
import signal
from collections.abc import Callable

import pytest
from amqp_proxy import ACK, CANCELLED, amqp_proxy
from conftest import Stage
from ledger import Ledger
from patience import limit
from rabbitmq import until
from smtp_relay import Act
from worker import Worker, job

JOBS = 60
CONNECTIONS = 5


@pytest.fixture
async def ledger(stage: Stage) -> Ledger:
    await stage.rabbit.declare(**{"x-queue-type": "quorum"})
    return Ledger(stage)


async def begin(stage: Stage, **changes: str) -> Worker:
    worker = stage.worker(SMTP_POOL_SIZE=str(CONNECTIONS), **changes)
    await worker.start()
    return worker


async def sending(stage: Stage, worker: Worker) -> None:
    name = f"127.0.0.1:{stage.relay.port}"

    async def on_the_wire() -> bool:
        return await worker.metric(f'otp_relay_sends_in_flight{{relay="{name}"}}') >= CONNECTIONS - 1

    await until(on_the_wire, "mails at the relay")


async def take_over(stage: Stage, ledger: Ledger) -> None:
    """Check the messages in the queue, then start another worker for them."""
    ledger.fault_ended()
    if await stage.rabbit.depth():
        queue = await stage.rabbit.channel.get_queue(stage.rabbit.queue, ensure=False)
        message = await queue.get()
        assert not message.headers.get("x-delivery-count")
        await message.channel.basic_nack(message.delivery_tag, requeue=True)
    stage.relay.always("body", None)
    second = stage.worker(SMTP_POOL_SIZE=str(CONNECTIONS))
    await second.start()
    await ledger.balance()


async def test_stopped_while_idle(stage: Stage, ledger: Ledger) -> None:
    worker = await begin(stage)
    assert await worker.stop() in {0, -signal.SIGTERM}
    await ledger.publish(JOBS)
    await take_over(stage, ledger)
    row = ledger.row("SIGTERM while idle")
    assert (row.lost, row.duplicated) == (0, 0)


# what the relay does with the final dot, the grace time, whether the signal comes twice, most duplicates
CASES: dict[str, tuple[Callable[[], Act], str, bool, int]] = {
    "in the middle of DATA": (lambda: Act(delay_s=0.5), "25000", False, 0),
    "past the grace time": (lambda: Act(until=asyncio.Event()), "500", False, 0),
    "past the grace time, mails accepted": (lambda: Act("", then="hang", keep=True), "500", False, CONNECTIONS),
    "twice": (lambda: Act(until=asyncio.Event()), "25000", True, 0),
}


@pytest.mark.parametrize("name", CASES)
async def test_stopped(stage: Stage, ledger: Ledger, name: str) -> None:
    act, grace_ms, twice, most = CASES[name]
    stage.relay.always("body", act())
    worker = await begin(stage, SHUTDOWN_GRACE_MS=grace_ms)
    await ledger.publish(JOBS)
    await sending(stage, worker)
    worker.signal()
    if twice:
        await worker.wait_log("stopping: consumers are cancelled")
        worker.signal()
    assert await worker.stopped() in {0, -signal.SIGTERM}
    await take_over(stage, ledger)
    row = ledger.row(f"SIGTERM {name}")
    assert row.lost == 0
    assert row.duplicated <= most
    assert ledger.copies_are_identical


@pytest.mark.parametrize("kind", ["quorum", "classic"])
async def test_what_waits_goes_back_while_mails_are_still_on_the_wire(stage: Stage, kind: str) -> None:
    await stage.rabbit.declare(**{"x-queue-type": kind})
    ledger = Ledger(stage)
    go_ahead = asyncio.Event()
    stage.relay.always("body", Act(until=go_ahead))
    worker = await begin(stage)
    await ledger.publish(JOBS)
    await sending(stage, worker)
    worker.signal()

    async def back() -> bool:
        return (await stage.rabbit.depth() or 0) >= JOBS - CONNECTIONS

    await until(back, "jobs back in their queue")
    assert not stage.relay.accepted
    assert worker.process is not None
    assert worker.process.returncode is None
    stage.relay.always("body", None)
    go_ahead.set()
    assert await worker.stopped() in {0, -signal.SIGTERM}
    second = stage.worker(SMTP_POOL_SIZE=str(CONNECTIONS))
    await second.start()
    ledger.fault_ended()
    await ledger.balance()
    row = ledger.row(f"SIGTERM with a slow relay, {kind} queue: waiting jobs requeued at once")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)


@pytest.mark.parametrize("moved", [False, True], ids=["a retry", "a move to the tenant's queue"])
async def test_stopped_at_once_before_the_confirm_of_a_copy(stage: Stage, *, moved: bool) -> None:
    tenants = stage.folder / "tenants.toml"
    tenants.write_text("[tenants.acme]\n")
    if moved:
        stage.relay.always("body", Act(until=asyncio.Event()))
        changes = {"TENANTS_FILE": str(tenants), "PREFETCH_COUNT": "4"}
    else:
        stage.relay.always("rcpt", Act("451 4.3.0 later"))
        changes = {"BASE_DELAY_MS": "600000", "MAX_DELAY_MS": "600000"}
    async with amqp_proxy(stage.url) as (proxy, url):
        worker = await begin(stage, RABBITMQ_URL=url, **changes)
        hold = proxy.hold("to worker", ACK)
        jobs = 8 if moved else 1
        await stage.rabbit.publish(*(job(f"user{number}@example.com") for number in range(jobs)))
        await asyncio.wait_for(hold.reached.wait(), limit(20))
        worker.signal()
        await worker.wait_log("stopping: consumers are cancelled")
        worker.signal()
        await worker.wait_log('"event":"stopping at once"')
        await asyncio.sleep(0.5)  # the broker confirms that late
        proxy.release()
        assert await worker.stopped() in {0, -signal.SIGTERM}

    async def returned() -> bool:
        return sum((await stage.rabbit.depths()).values()) >= jobs

    await until(returned, "every job in a queue")
    assert sum((await stage.rabbit.depths()).values()) == jobs


async def test_stopped_while_the_broker_is_slow(stage: Stage, ledger: Ledger) -> None:
    go_ahead = asyncio.Event()
    stage.relay.always("body", Act(until=go_ahead))
    async with amqp_proxy(stage.url) as (proxy, url):
        worker = await begin(stage, RABBITMQ_URL=url)
        await ledger.publish(JOBS)
        await sending(stage, worker)
        proxy.hold("to worker", CANCELLED)
        worker.signal()
        await worker.wait_log("stopping: consumers are cancelled")
        stage.relay.always("body", None)
        go_ahead.set()
        await stage.relay.wait_accepted(CONNECTIONS - 1)
        proxy.release()
        assert await worker.stopped() in {0, -signal.SIGTERM}
    await take_over(stage, ledger)
    row = ledger.row("SIGTERM while RabbitMQ is slow")
    assert (row.lost, row.duplicated) == (0, 0)
