"""What an operator or a RabbitMQ in need does to the worker: connections closed, memory short, queues full or gone."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aio_pika.exceptions import ChannelClosed
from certificates import Authority
from conftest import Stage, set_stage
from ledger import Ledger
from rabbitmq import Node, Rabbit, rabbit, until
from smtp_relay import Act
from worker import Worker, job

JOBS = 100
POOL = "5"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("node")
    authority = Authority(folder)
    node = Node(folder / "node", tls=(authority.ca_file, *authority.issue("127.0.0.1")))
    node.start()
    yield node
    node.remove()


@pytest.fixture
async def stage(node: Node, tmp_path: Path) -> AsyncIterator[Stage]:
    async with set_stage(node.url, tmp_path) as stage:
        yield stage


@pytest.fixture
def ledger(stage: Stage) -> Ledger:
    return Ledger(stage)


async def steer(node: Node, *arguments: str) -> str:
    return await asyncio.to_thread(node.control, *arguments)


async def begin(stage: Stage, *, ready: bool = True, **changes: str) -> Worker:
    worker = stage.worker(**{"SMTP_POOL_SIZE": POOL, "HEARTBEAT_INTERVAL_MS": "1000"} | changes)
    await worker.start(ready=ready)
    return worker


async def test_every_connection_is_closed_by_management(stage: Stage, ledger: Ledger, node: Node) -> None:
    stage.relay.always("body", Act(delay_s=0.1))
    worker = await begin(stage)
    await ledger.publish(JOBS)
    for times in range(1, 3):
        await stage.relay.wait_accepted(10 * times)
        await steer(node, "close_all_connections", "maintenance")

        async def back(times: int = times) -> bool:
            return worker.log.count("RabbitMQ is back") >= times

        await until(back, "new connection")
    ledger.fault_ended()
    await stage.rabbit.reconnect(node.url)
    await ledger.balance()
    row = ledger.row("every connection closed by management, twice")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)


SHORT = {
    "memory": (("set_vm_memory_high_watermark", "absolute", "1MB"), ("set_vm_memory_high_watermark", "0.4")),
    "disk": (("set_disk_free_limit", "100000GB"), ("set_disk_free_limit", "50MB")),
}


@pytest.mark.parametrize("of", SHORT)
async def test_codes_go_out_while_the_broker_is_short(stage: Stage, ledger: Ledger, node: Node, of: str) -> None:
    short, enough = SHORT[of]
    stage.relay.always("body", Act(delay_s=0.05))
    deferred = range(0, JOBS, 10)
    for number in deferred:
        stage.relay.then("rcpt", "451 4.3.0 later", to=f"job{number}@example.com")
    worker = await begin(stage, PREFETCH_COUNT="20")
    await stage.relay.stop()
    await ledger.publish(JOBS)
    try:
        await steer(node, *short)
        await stage.relay.start()
        # far more than the prefetch count: acknowledgements are received
        await stage.relay.wait_accepted(JOBS - len(deferred), timeout=30)
        await until(lambda: _is_degraded(worker), "a degraded status", 30)
        assert len(ledger.lost) == len(deferred)  # their retries cannot be published
    finally:
        await steer(node, *enough)
    ledger.fault_ended()
    await ledger.balance()
    row = ledger.row(f"broker short of {of}: accepts no publishes")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)
    assert await stage.rabbit.depth(f"{stage.rabbit.prefix}.retry.due") == 0
    assert "job duplicate" not in worker.log  # one copy of each retry


async def _is_degraded(worker: Worker) -> bool:
    health = await worker.health()
    return health["status"] == "degraded" and "memory" in str(health["checks"])


async def test_a_broker_is_reached_over_tls_with_an_encoded_password_and_virtual_host(stage: Stage, node: Node) -> None:
    for command in (
        ("add_vhost", "a/b"),
        ("add_user", "shop", "p@ss/w#rd"),
        ("set_permissions", "-p", "a/b", "shop", ".*", ".*", ".*"),
    ):
        await steer(node, *command)
    assert node.tls is not None
    host = f"shop:p%40ss%2Fw%23rd@127.0.0.1:{node.tls_port}/a%2Fb"
    untrusting = stage.worker(url=f"amqps://{host}")
    await untrusting.start(ready=False)
    await untrusting.wait_log("waiting for RabbitMQ")
    await untrusting.wait_log("certificate")
    await untrusting.stop()
    worker = stage.worker(
        url=f"amqps://{host}?cafile={node.tls[0]}", NODE_ENV="production", SECRET_KEY="c0ffee15900dc0deba5eba11"
    )
    await worker.start()
    url = f"amqp://shop:p%40ss%2Fw%23rd@127.0.0.1:{node.port}/a%2Fb"
    async with rabbit(url, stage.rabbit.queue, stage.rabbit.prefix) as client:
        await client.publish(job())
        await stage.relay.wait_accepted(1)
        await worker.stop()
    for log in (worker.log, untrusting.log):
        assert "p%40ss" not in log
        assert "p@ss" not in log


async def test_a_broker_that_is_low_on_memory_is_reported_and_its_jobs_end_afterwards(stage: Stage, node: Node) -> None:
    short, enough = SHORT["memory"]
    await stage.relay.stop()
    stage.relay.always("rcpt", "550 5.1.1 no such user")
    worker = await begin(stage, HEARTBEAT_INTERVAL_MS="500")
    await stage.rabbit.publish(job())
    await worker.wait_log("circuit breaker open")
    try:
        await steer(node, *short)
        await stage.relay.start()

        async def reported() -> bool:
            return "refuses publishes: it is low on memory" in (await worker.get("/health"))[1]

        await until(reported, "the reason on /health")
    finally:
        await steer(node, *enough)
    (dead_letter,) = await stage.rabbit.dead(timeout=40)
    assert dead_letter.headers["x-otp-reason"] == "rejected"
    await worker.wait_ready()


async def test_stopped_while_the_broker_is_short_of_memory(stage: Stage, ledger: Ledger, node: Node) -> None:
    for number in range(0, JOBS, 10):
        stage.relay.then("rcpt", "451 4.3.0 later", to=f"job{number}@example.com")
    worker = await begin(stage, SHUTDOWN_GRACE_MS="3000")
    await stage.relay.stop()
    await ledger.publish(JOBS)
    try:
        await steer(node, *SHORT["memory"][0])
        await stage.relay.start()
        await stage.relay.wait_accepted(JOBS * 9 // 10, timeout=30)
        worker.signal()
        await worker.stopped(3 + 20)
    finally:
        await steer(node, *SHORT["memory"][1])
    ledger.fault_ended()
    await begin(stage)
    await ledger.balance()
    row = ledger.row("SIGTERM while the broker accepts no publishes")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)


async def test_wait_and_dead_queues_are_full(stage: Stage, ledger: Ledger, node: Node) -> None:
    full = '{"max-length": 1, "overflow": "reject-publish"}'
    for number in range(0, JOBS, 10):
        stage.relay.always("rcpt", "550 5.1.1 no such user", to=f"job{number}@example.com")
        stage.relay.then("rcpt", "451 4.3.0 later", to=f"job{number + 1}@example.com")
    await begin(stage, PREFETCH_COUNT="50")
    await steer(node, "set_policy", "full", rf"^{stage.rabbit.prefix}\.(dead|retry\.\d+)$", full)
    try:
        await ledger.publish(JOBS)
        await stage.relay.wait_accepted(JOBS * 8 // 10, timeout=30)  # other jobs are not affected
        await until(lambda: _logged(stage, "publish not confirmed"), "refused publish")
    finally:
        await steer(node, "clear_policy", "full")
    ledger.fault_ended()
    await ledger.balance()
    row = ledger.row("wait and dead-letter queues full")
    assert (row.lost, row.duplicated, ledger.reasons) == (0, 0, {"rejected": JOBS // 10})


async def _logged(stage: Stage, text: str) -> bool:
    return text in stage.workers[0].log


async def test_every_queue_of_ours_is_deleted(stage: Stage, ledger: Ledger) -> None:
    for number in range(0, JOBS, 10):
        stage.relay.always("rcpt", "550 5.1.1 no such user", to=f"job{number}@example.com")
        stage.relay.then("rcpt", "451 4.3.0 later", to=f"job{number + 1}@example.com")
    worker = await begin(stage)
    await stage.rabbit.remove()
    await worker.wait_log("topology is checked again")
    await until(lambda: _exists(stage.rabbit), "queues")
    await ledger.publish(JOBS)
    ledger.fault_ended()
    await ledger.balance()
    row = ledger.row("every queue deleted while the worker runs")
    assert (row.lost, row.duplicated, ledger.reasons) == (0, 0, {"rejected": JOBS // 10})


async def test_the_exchange_of_events_is_deleted(stage: Stage, ledger: Ledger) -> None:
    await begin(stage)
    name = f"{stage.rabbit.prefix}.events"
    await stage.rabbit.channel.exchange_delete(name)
    queue = await stage.rabbit.channel.declare_queue(exclusive=True)
    await until(lambda: _bound(stage.rabbit, queue.name, name), "exchange")
    await ledger.publish(1)
    await stage.rabbit.take(queue.name)


async def _bound(rabbit: Rabbit, queue: str, exchange: str) -> bool:
    channel = await rabbit.connection.channel()
    try:
        await (await channel.get_queue(queue, ensure=False)).bind(exchange, "otp.#")
    except ChannelClosed:
        return False
    finally:
        await channel.close()
    return True


async def _exists(rabbit: Rabbit) -> bool:
    return await rabbit.depth() is not None


async def test_our_password_is_changed_and_changed_back(stage: Stage, ledger: Ledger, node: Node) -> None:
    stage.relay.always("body", Act(delay_s=0.1))
    await steer(node, "add_user", "otp", "right")
    await steer(node, "set_permissions", "otp", ".*", ".*", ".*")
    worker = stage.worker(url=node.url.replace("guest:guest", "otp:right"), SMTP_POOL_SIZE=POOL)
    await worker.start()
    await ledger.publish(JOBS)
    await stage.relay.wait_accepted(10)
    await steer(node, "change_password", "otp", "wrong")
    await steer(node, "close_all_user_connections", "otp", "password changed")
    await worker.wait_log("refuses the login of otp")
    await until(lambda: _is_not_ready(worker), "503")
    await steer(node, "change_password", "otp", "right")
    ledger.fault_ended()
    await worker.wait_log("RabbitMQ is back")
    await ledger.balance()
    row = ledger.row("RabbitMQ password changed and changed back")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)
    assert "right" not in worker.log


async def _is_not_ready(worker: Worker) -> bool:
    return (await worker.get("/readyz"))[0] == 503


CONSUMER_TIMEOUT_S = 8
"""Longer than the pause between two probes of a relay, because jobs that RabbitMQ has taken back may use up a probe."""


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_jobs_wait_for_longer_than_the_consumer_timeout(
    stage: Stage, ledger: Ledger, node: Node, kind: str
) -> None:
    await steer(node, "eval", "application:set_env(rabbit, channel_tick_interval, 1000).")
    await steer(node, "eval", f"application:set_env(rabbit, consumer_timeout, {CONSUMER_TIMEOUT_S * 1000}).")
    await stage.rabbit.declare(**{"x-queue-type": kind})
    try:
        await stage.relay.stop()
        await ledger.publish(JOBS)  # before, so that all of them are delivered at once, and time out at once
        worker = await begin(stage, ready=False)  # which it is not without a relay
        # 4.3 has no consumer timeout for classic queues, and cancels the consumer of a quorum queue; before, RabbitMQ
        # closes the channel
        if kind == "classic" and stage.rabbit.version >= (4, 3):
            ends = time.monotonic() + 3 * CONSUMER_TIMEOUT_S
            await until(lambda: _in_flight_at(worker, ends), "jobs in flight for longer than the timeout", 60)
            assert await worker.metric('otp_ledger_received_total{lane="jobs"}') == JOBS
            assert "consuming again" not in worker.log
        else:
            await until(lambda: _consumes_again(worker, 2), "another consumer, twice", 60)
            cancelled = stage.rabbit.version >= (4, 3)
            assert ("RabbitMQ has cancelled our consumer" in worker.log) == cancelled
        await stage.relay.start()
        ledger.fault_ended()
        await ledger.balance(60)
        if "consuming again" in worker.log:
            # each job came at least three times, and the first two copies were given up, neither sent nor acknowledged,
            # but for one each time that may have been the probe at that moment
            given_up = await worker.metric('otp_ledger_settled_total{how="taken_back",lane="jobs"}')
            assert given_up >= 2 * (JOBS - 1)
    finally:
        await steer(node, "eval", "application:set_env(rabbit, consumer_timeout, 1800000).")
    row = ledger.row(f"jobs of a {kind} queue wait for the relay for longer than the consumer timeout")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)


async def _consumes_again(worker: Worker, times: int) -> bool:
    return worker.log.count("consuming again") >= times


async def _in_flight_at(worker: Worker, at: float) -> bool:
    return time.monotonic() >= at and await worker.metric('otp_ledger_unacked{lane="jobs"}') == JOBS


async def test_the_jobs_queue_is_deleted_with_jobs_in_flight(stage: Stage, ledger: Ledger) -> None:
    stage.relay.always("body", Act(delay_s=0.2))
    worker = await begin(stage, PREFETCH_COUNT=str(JOBS), HEARTBEAT_INTERVAL_MS="60000")
    await ledger.publish(JOBS)
    await stage.relay.wait_accepted(5)
    await until(lambda: _is_empty(stage.rabbit, stage.rabbit.queue), "every job in flight")
    await stage.rabbit.channel.queue_delete(stage.rabbit.queue)
    await worker.wait_log("consuming again")
    await ledger.publish(JOBS)
    ledger.fault_ended()
    await ledger.balance()
    row = ledger.row("jobs queue deleted, all of its jobs in flight")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_the_jobs_queue_is_deleted_and_declared_again_at_once(stage: Stage, ledger: Ledger, kind: str) -> None:
    prefetch = 20  # on 4.3 jobs that have been in flight for less than two seconds are not lost
    await stage.rabbit.declare(**{"x-queue-type": kind})
    stage.relay.always("body", Act(delay_s=0.2))
    await begin(stage, PREFETCH_COUNT=str(prefetch))
    await ledger.publish(prefetch)
    await stage.relay.wait_accepted(1)
    await until(lambda: _is_empty(stage.rabbit, stage.rabbit.queue), "every job in flight")
    # without a wait for the reply, so that the worker cannot declare it first, and as a classic queue
    await stage.rabbit.channel.queue_delete(stage.rabbit.queue, nowait=True)
    await stage.rabbit.declare(**{"x-queue-type": kind})
    # 3.10 still counts the consumer of a quorum queue and delivers nothing: seen once more jobs wait than it takes
    await ledger.publish(2 * prefetch)
    ledger.fault_ended()
    await ledger.balance()
    row = ledger.row(f"{kind} jobs queue deleted and declared again, all of its jobs in flight")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)


CONFIRM_TIMEOUT = "dead_letter_worker_publisher_confirm_timeout"
"""After this time RabbitMQ dead-letters an unconfirmed message of a wait queue again; 180 s by default."""


@pytest.mark.parametrize("due", ["full", "deleted"])
async def test_waits_end_where_nothing_takes_them(stage: Stage, ledger: Ledger, node: Node, due: str) -> None:
    for number in range(JOBS):
        stage.relay.then("rcpt", "451 4.3.0 later", to=f"job{number}@example.com")
    await steer(node, "eval", f"application:set_env(rabbit, {CONFIRM_TIMEOUT}, 3000).")
    # long enough to stop the worker on a busy machine: what is in the queue when it is deleted is lost
    one_wait = {"BASE_DELAY_MS": "8000", "MAX_DELAY_MS": "8000"}
    worker = await begin(stage, **one_wait)
    wait, queue = (f"{stage.rabbit.prefix}.retry.{name}" for name in ("8000", "due"))
    await ledger.publish(JOBS)
    await until(lambda: _has(stage.rabbit, wait, JOBS // 2), "jobs that wait")
    await worker.stop()
    if due == "full":
        await steer(node, "set_policy", "full", f"^{queue}$", '{"max-length": 5}')
    else:
        await stage.rabbit.channel.queue_delete(queue)
    await until(lambda: _is_empty(stage.rabbit, wait), "end of all waits", 40)
    await begin(stage, **one_wait)
    ledger.fault_ended()
    await ledger.balance()
    await steer(node, "eval", f"application:set_env(rabbit, {CONFIRM_TIMEOUT}, 180000).")
    if due == "full":
        await steer(node, "clear_policy", "full")
    row = ledger.row(f"waits end while otp.retry.due is {due}")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)


async def _has(rabbit: Rabbit, queue: str, count: int) -> bool:
    return (await rabbit.depth(queue) or 0) >= count


async def _is_empty(rabbit: Rabbit, queue: str) -> bool:
    return await rabbit.depth(queue) == 0
