"""RabbitMQ and the way to it fail in every manner: the worker finds back within seconds, and nothing is lost."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator

import pytest
from amqp_proxy import ACK, CONSUME, DELIVER, AmqpProxy, amqp_proxy
from conftest import Stage
from ledger import Ledger
from rabbitmq import Node, until
from smtp_relay import Act
from worker import Worker, job

from otp_stream.broker.topology import Topology
from otp_stream.core.backoff import Backoff

JOBS = 100


@pytest.fixture
def ledger(stage: Stage) -> Ledger:
    return Ledger(stage)


@pytest.fixture
async def proxied(stage: Stage) -> AsyncIterator[tuple[AmqpProxy, str]]:
    async with amqp_proxy(stage.url) as proxy:
        yield proxy


async def begin(stage: Stage, url: str, **changes: str) -> Worker:
    worker = stage.worker(url=url, **{"SMTP_POOL_SIZE": "5", "HEARTBEAT_INTERVAL_MS": "1000"} | changes)
    await worker.start()
    return worker


async def test_the_connection_is_reset_again_and_again(
    stage: Stage, ledger: Ledger, proxied: tuple[AmqpProxy, str]
) -> None:
    proxy, url = proxied
    stage.relay.always("body", Act(delay_s=0.05))
    worker = await begin(stage, url)
    await ledger.publish(JOBS)
    for number in range(1, 4):
        await stage.relay.wait_accepted(20 * number)
        proxy.cut()
        await worker.wait_log("RabbitMQ is back", times=number)
    ledger.fault_ended()
    await ledger.balance()
    row = ledger.row("broker connection reset three times")
    # the same worker continues, with its sent records
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)


async def test_a_frame_is_torn_in_the_middle(stage: Stage, ledger: Ledger, proxied: tuple[AmqpProxy, str]) -> None:
    proxy, url = proxied
    worker = await begin(stage, url)
    proxy.tear = DELIVER
    await ledger.publish(JOBS)
    await worker.wait_log("RabbitMQ is back")
    ledger.fault_ended()
    await ledger.balance()
    row = ledger.row("broker connection closed in the middle of a frame")
    assert (row.lost, row.duplicated) == (0, 0)


async def test_the_broker_drips_byte_by_byte(stage: Stage, ledger: Ledger, proxied: tuple[AmqpProxy, str]) -> None:
    proxy, url = proxied
    await begin(stage, url)
    proxy.drip_s = 0.0005
    await ledger.publish(30)
    await stage.relay.wait_accepted(3, 60)
    proxy.release()
    ledger.fault_ended()
    await ledger.balance()
    row = ledger.row("broker sends one byte at a time")
    assert (row.lost, row.duplicated) == (0, 0)


@pytest.mark.waits
async def test_the_broker_stops_responding(stage: Stage, ledger: Ledger, proxied: tuple[AmqpProxy, str]) -> None:
    proxy, url = proxied
    stage.relay.always("body", Act(delay_s=0.05))
    worker = await begin(stage, url)
    await ledger.publish(JOBS)
    await stage.relay.wait_accepted(10)
    proxy.swallow = True

    async def seen() -> bool:
        return (await worker.get("/readyz"))[0] == 503

    await until(seen, "the detection", 45)
    proxy.release()
    proxy.cut()
    ledger.fault_ended()
    await worker.wait_ready(60)
    await ledger.balance()
    row = ledger.row("broker connection half-open until it is detected")
    assert (row.lost, row.duplicated) == (0, 0)


async def test_acknowledgements_are_lost_with_the_connection(
    stage: Stage, ledger: Ledger, proxied: tuple[AmqpProxy, str]
) -> None:
    proxy, url = proxied
    worker = await begin(stage, url)
    hold = proxy.hold("to broker", ACK)
    await ledger.publish(JOBS)
    await asyncio.wait_for(hold.reached.wait(), 20)
    await stage.relay.wait_accepted(JOBS)
    proxy.cut()
    proxy.release()
    ledger.fault_ended()
    await worker.wait_log("RabbitMQ is back")
    await ledger.balance()
    row = ledger.row("acks lost with the connection")
    assert (row.lost, row.duplicated) == (0, 0)
    assert await _all_settled(stage)


async def _all_settled_here(worker: Worker) -> bool:
    received = await worker.metric('otp_ledger_received_total{lane="jobs"}')
    return received == JOBS and await worker.metric('otp_ledger_unacked{lane="jobs"}') == 0


@pytest.mark.parametrize("ends_as", ["a dead letter", "a retry"])
async def test_the_acknowledgement_of_what_was_moved_is_lost(
    stage: Stage, ledger: Ledger, proxied: tuple[AmqpProxy, str], ends_as: str
) -> None:
    proxy, url = proxied
    reply = "550 5.1.1 no such user" if ends_as == "a dead letter" else "451 4.3.0 later"
    for number in range(JOBS):
        stage.relay.then("rcpt", reply, to=f"job{number}@example.com")
    worker = await begin(stage, url)
    hold = proxy.hold("to broker", ACK)
    await ledger.publish(JOBS)
    await asyncio.wait_for(hold.reached.wait(), 20)
    await until(lambda: _all_settled_here(worker), "every job moved, and its publish confirmed")
    proxy.cut()
    proxy.release()
    ledger.fault_ended()
    await worker.wait_log("RabbitMQ is back")
    await ledger.balance()
    row = ledger.row(f"acks lost after {ends_as} was published for each job")  # and none of them was sent besides
    assert (row.lost, row.duplicated) == (0, 0)
    assert ledger.reasons.keys() == ({"rejected"} if ends_as == "a dead letter" else set())


async def test_dead_letters_of_one_message_id_find_no_queue(stage: Stage, ledger: Ledger) -> None:
    stage.relay.always("rcpt", Act("550 5.1.1 no such user", delay_s=1))
    await begin(stage, stage.url, SMTP_POOL_SIZE="105", HEARTBEAT_INTERVAL_MS="60000")
    await stage.rabbit.channel.queue_delete(f"{stage.rabbit.prefix}.dead")
    for number in range(JOBS):
        ledger.published[f"job{number}"] = time.monotonic()
        await stage.rabbit.publish(job(f"job{number}@example.com", jobId=f"job{number}"), message_id="the same")
    ledger.fault_ended()
    await ledger.balance()
    row = ledger.row("dead letters with the same message id are returned as unroutable")
    assert (row.lost, row.duplicated, ledger.reasons) == (0, 0, {"rejected": JOBS})


async def _all_settled(stage: Stage) -> bool:
    async def empty() -> bool:
        return await stage.rabbit.depth() == 0

    return await until(empty, "empty queue")


async def test_a_delivery_is_lost_on_the_way(stage: Stage, ledger: Ledger, proxied: tuple[AmqpProxy, str]) -> None:
    proxy, url = proxied
    await begin(stage, url)
    hold = proxy.hold("to worker", DELIVER)
    await ledger.publish(JOBS)
    await asyncio.wait_for(hold.reached.wait(), 20)
    proxy.cut()
    proxy.release()
    ledger.fault_ended()
    await ledger.balance()
    row = ledger.row("deliveries lost with the connection")
    assert (row.lost, row.duplicated) == (0, 0)


async def test_the_broker_is_killed_and_restarted_under_load(stage: Stage) -> None:
    node = Node(stage.folder / "node")
    await asyncio.to_thread(node.start)
    try:
        stage.relay.always("body", Act(delay_s=0.05))
        await stage.rabbit.reconnect(node.url)
        # killed at once, RabbitMQ 3.10 brings the quorum queue that was declared last back without a leader: no wait of
        # this test is that long
        worker = stage.worker(url=node.url, SMTP_POOL_SIZE="5", MAX_RETRIES="3")
        await worker.start()
        ledger = Ledger(stage)
        for number in range(0, JOBS, 4):
            stage.relay.then("rcpt", "451 4.3.0 later", to=f"job{number}@example.com")
        await ledger.publish(JOBS)
        await stage.relay.wait_accepted(20)
        await asyncio.to_thread(node.stop)
        await asyncio.to_thread(node.start)
        ledger.fault_ended()
        await stage.rabbit.reconnect(node.url)
        await worker.wait_ready(60)
        await ledger.balance(60)
        row = ledger.row("broker killed and restarted under load")
        assert (row.lost, row.duplicated) == (0, 0)
    finally:
        for it in stage.workers:
            await it.kill()
        await stage.rabbit.reconnect(stage.url)
        node.remove()


@pytest.mark.waits
async def test_the_worker_is_frozen_for_longer_than_the_heartbeat_and_thawed(stage: Stage, ledger: Ledger) -> None:
    go_ahead = asyncio.Event()
    connections = 4  # of five: one is kept for urgent jobs
    stage.relay.always("body", Act(delay_s=0.05))
    worker = await begin(stage, f"{stage.url}?heartbeat=1")
    await ledger.publish(JOBS)
    await stage.relay.wait_accepted(10)
    stage.relay.then("data", *[Act(until=go_ahead)] * connections)
    await stage.relay.wait(lambda: stage.relay.held == connections, "envelope on each connection")
    worker.signal(signal.SIGSTOP)
    second = stage.worker(SMTP_POOL_SIZE="5")
    await second.start()
    await _all_ended(stage, ledger, second)
    # the first bytes that the thawed worker reads allow it to send what the other worker has sent
    go_ahead.set()
    await stage.relay.wait(lambda: stage.relay.held == 0, "answer to each envelope")
    thawed_at = time.monotonic()
    worker.signal(signal.SIGCONT)
    ledger.fault_ended()
    await ledger.balance()
    row = ledger.row("worker frozen past its heartbeat timeout, another takes over, resumed")
    assert row.lost == 0
    assert row.duplicated <= 2 * 5  # for each connection: the mail on it, and the one before, not yet acknowledged
    before = {mail.recipient for mail in stage.relay.accepted if mail.at < thawed_at}
    assert not [mail for mail in stage.relay.accepted if mail.at >= thawed_at and mail.recipient in before]
    assert ledger.copies_are_identical


async def _all_ended(stage: Stage, ledger: Ledger, worker: Worker) -> None:
    idle_reads = 0

    async def ended() -> bool:
        nonlocal idle_reads
        held = await worker.metric('otp_ledger_unacked{lane="jobs"}')
        idle = not ledger.lost and held == 0 and await stage.rabbit.depth() == 0
        # read twice, because a job on its way from the broker to the worker is not seen
        idle_reads = idle_reads + 1 if idle else 0
        return idle_reads == 2

    await until(ended, "end of all jobs", 40)


async def test_the_connection_is_lost_more_often_than_a_queue_delivers(
    stage: Stage, ledger: Ledger, proxied: tuple[AmqpProxy, str]
) -> None:
    proxy, url = proxied
    jobs, limit = 30, 10  # RabbitMQ 4 has 20 for every quorum queue that names none, and no place for what is over it
    await stage.rabbit.declare(**{"x-queue-type": "quorum", "x-delivery-limit": limit})
    await stage.relay.stop()
    worker = await begin(stage, url)
    await ledger.publish(jobs)

    for times in range(1, limit + 4):
        counts: list[float] = []

        async def in_flight(times: int = times, counts: list[float] = counts) -> bool:
            received = await worker.metric('otp_ledger_received_total{lane="jobs"}')
            renewed = await worker.metric('otp_ledger_settled_total{how="renewed",lane="jobs"}')
            counts.append(received)
            # a job that is being renewed is in flight as well, and is redelivered at once: the count then changes
            return received - renewed >= times * jobs and counts[-5:] == [received] * 5

        await until(in_flight, f"delivery {times} of all jobs")
        proxy.cut()
    await stage.relay.start()
    ledger.fault_ended()
    await ledger.balance()
    row = ledger.row(f"broker connection lost {times} times with all jobs in flight, delivery limit {limit}")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)


async def test_wait_and_dead_queues_are_missing_when_they_are_wanted(stage: Stage, ledger: Ledger) -> None:
    # held until the queues are deleted: a job that is retried before would be deleted with its wait queue
    deleted = asyncio.Event()
    stage.relay.always("rcpt", Act(until=deleted))
    for number in range(0, JOBS, 10):
        stage.relay.always("rcpt", Act("550 5.1.1 no such user", until=deleted), to=f"job{number}@example.com")
        stage.relay.then("rcpt", Act("451 4.3.0 later", until=deleted), to=f"job{number + 1}@example.com")
    await begin(stage, stage.url, SMTP_POOL_SIZE="105", HEARTBEAT_INTERVAL_MS="60000")
    await ledger.publish(JOBS)

    async def asked() -> bool:
        return stage.relay.held == JOBS

    await until(asked, "all mails at the relay", 40)
    await stage.rabbit.remove(keep=(stage.rabbit.queue,))
    ledger.fault_ended()
    deleted.set()
    await ledger.balance()
    row = ledger.row("wait and dead-letter queues deleted while mails are being sent")
    assert (row.lost, row.duplicated, ledger.reasons) == (0, 0, {"rejected": JOBS // 10})


async def test_a_queue_is_declared_again_while_it_is_being_deleted(stage: Stage, ledger: Ledger) -> None:
    due = f"{stage.rabbit.prefix}.retry.due"
    arguments = Topology(stage.rabbit.queue, stage.rabbit.prefix, Backoff(1000, 1000, 1)).arguments[due]
    worker = await begin(stage, stage.url, HEARTBEAT_INTERVAL_MS="60000")
    # 3.10 sends no cancel for its consumer, so only the cancel of another lane's shows that queues were deleted
    await stage.rabbit.channel.queue_delete(due)
    await stage.rabbit.channel.declare_queue(due, durable=True, arguments=arguments)
    await stage.rabbit.channel.queue_delete(f"{stage.rabbit.queue}.high")
    await worker.wait_log("consuming again")
    ledger.fault_ended()
    for number in range(JOBS):
        stage.relay.then("rcpt", "451 4.3.0 later", to=f"job{number}@example.com")
    await ledger.publish(JOBS)
    await ledger.balance(30)
    row = ledger.row("queue of due retries deleted and declared again, and another queue deleted")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)


@pytest.mark.waits
async def test_only_the_connection_that_publishes_goes_silent(
    stage: Stage, ledger: Ledger, proxied: tuple[AmqpProxy, str]
) -> None:
    proxy, url = proxied
    for number in range(JOBS):
        stage.relay.then("rcpt", "451 4.3.0 later", to=f"job{number}@example.com")
    worker = await begin(stage, f"{url}?heartbeat=1")
    await ledger.publish(1)
    await stage.relay.wait_accepted(1)
    proxy.swallow = "publishing"
    await ledger.publish(JOBS - 1)  # each has a retry to publish, and no confirm comes
    await worker.wait_log("RabbitMQ is away")
    proxy.release()
    ledger.fault_ended()
    await ledger.balance()
    row = ledger.row("broker connection for publishes half-open, a retry to publish for each job")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)


@pytest.mark.waits
async def test_consumers_are_lost_and_the_connection_gives_no_answer(
    stage: Stage, ledger: Ledger, proxied: tuple[AmqpProxy, str]
) -> None:
    proxy, url = proxied
    worker = await begin(stage, url, HEARTBEAT_INTERVAL_MS="500")
    proxy.ignore(CONSUME)
    for name in (stage.rabbit.queue, f"{stage.rabbit.queue}.high", f"{stage.rabbit.prefix}.retry.due"):
        await stage.rabbit.channel.queue_delete(name)

    async def made_again() -> bool:
        return await stage.rabbit.depth() is not None

    await until(made_again, "jobs queue")
    await ledger.publish(JOBS)
    ledger.fault_ended()
    await ledger.balance()
    assert worker.log.count("RabbitMQ is away") == 1  # for all lanes together
    row = ledger.row("all queues deleted, then no reply to basic.consume")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)


@pytest.mark.waits
@pytest.mark.parametrize("held", [False, True])
async def test_the_broker_drops_the_consumers_without_a_cancel(
    stage: Stage, ledger: Ledger, proxied: tuple[AmqpProxy, str], *, held: bool
) -> None:
    proxy, url = proxied
    worker = await begin(stage, url, HEARTBEAT_INTERVAL_MS="500")
    if held:
        # the first mails take longer than it takes until the consumer is started again
        stage.relay.then("body", *[Act(delay_s=12)] * 3)
        await ledger.publish(3)

        async def sending() -> bool:
            return stage.relay.commands().count("DATA") >= 3

        await until(sending, "mails on the wire")
    proxy.forget()

    async def forgotten() -> bool:
        if "the broker does not know our consumer" in worker.log:
            return True  # and another one may have been started
        consumers = [await stage.rabbit.consumers(name) for name in lanes]
        return not any(consumers)

    lanes = (stage.rabbit.queue, f"{stage.rabbit.queue}.high", f"{stage.rabbit.prefix}.retry.due")
    await until(forgotten, "no consumer at the broker")
    await ledger.publish(JOBS)
    ledger.fault_ended()
    await ledger.balance()

    async def consumed() -> bool:
        return [await stage.rabbit.consumers(name) for name in lanes] == [1] * len(lanes)

    await until(consumed, "a consumer for each lane")
    # that of retries may already be started again because the topology was checked
    assert worker.log.count("the broker does not know our consumer") in {len(lanes) - 1, len(lanes)}
    assert "RabbitMQ is away" not in worker.log
    row = ledger.row(f"broker drops the consumers, {'some' if held else 'no'} jobs in flight")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)


@pytest.mark.waits
async def test_stopped_while_the_broker_is_silent(stage: Stage, ledger: Ledger, proxied: tuple[AmqpProxy, str]) -> None:
    proxy, url = proxied
    stage.relay.always("body", Act(delay_s=12))
    worker = await begin(stage, f"{url}?heartbeat=1")
    await ledger.publish(JOBS)

    async def sending() -> bool:
        return stage.relay.commands().count("DATA") >= 4

    await until(sending, "mails on the wire")
    proxy.swallow = True
    await asyncio.sleep(4)  # it notices after about six seconds: in the middle of its questions to the broker
    worker.signal()
    assert await worker.stopped(40) in {0, -signal.SIGTERM}
    assert len(stage.relay.accepted) >= 4  # what was on the wire came to its end
    assert '"event":"stopped"' in worker.log
    proxy.cut()
    proxy.release()
    stage.relay.always("body", None)
    ledger.fault_ended()
    await begin(stage, stage.url)
    await ledger.balance()
    row = ledger.row("SIGTERM while the broker connection is half-open")
    assert row.lost == 0
    assert row.duplicated <= 5  # what could not be acknowledged any more
    assert ledger.copies_are_identical
