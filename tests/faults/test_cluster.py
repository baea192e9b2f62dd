"""A RabbitMQ of three nodes, with the jobs queue as a quorum queue: any one of them may go."""

import asyncio
import datetime as dt
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from amqp_proxy import AmqpProxy, amqp_proxy
from cli import here, names
from conftest import Stage, set_stage
from ledger import Ledger
from rabbitmq import Cluster, Node, speaks_amqp, until
from smtp_relay import Act
from worker import Worker, job

from otp_stream.broker.queue_inspect import inspect_queue

JOBS = 100


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.remove()


@dataclass
class Scene:
    """A worker that reaches the first node through a proxy, as through a load balancer."""

    stage: Stage
    cluster: Cluster
    balancer: AmqpProxy
    url: str
    ledger: Ledger

    @property
    def ours(self) -> Node:
        return self.cluster.nodes[0]

    async def begin(self, leader: Node) -> Worker:
        """Put the jobs queue on `leader`, start the worker, give it jobs, let it work."""
        await self.stage.rabbit.reconnect(leader.url)
        await self.ledger.rabbit.declare(**{"x-queue-type": "quorum"})
        self.stage.relay.always("body", Act(delay_s=0.1))
        for number in range(0, JOBS, 5):
            self.stage.relay.then("rcpt", "451 4.3.0 later", to=f"job{number}@example.com")
        changes = {"SMTP_POOL_SIZE": "5", "HEARTBEAT_INTERVAL_MS": "1000", "MAX_RETRIES": "3"}  # as in test_broker.py
        worker = self.stage.worker(url=f"{self.url}?heartbeat=2", **changes)
        await worker.start()
        await self.ledger.publish(JOBS)
        await self.stage.relay.wait_accepted(10)
        return worker

    @asynccontextmanager
    async def without(self, node: Node) -> AsyncIterator[None]:
        """Kill a node, and start it again at the end. Every job that is not in a wait queue must end without it."""
        await asyncio.to_thread(node.stop)
        self.ledger.fault_ended()
        try:
            yield
            await self.ledger.balance(30)
            assert self.ledger.lost <= {f"job{number}" for number in range(0, JOBS, 5)}
        finally:
            await asyncio.to_thread(node.start)
        if self.ledger.lost:
            await self.heal()

    async def heal(self) -> None:
        """Do what an operator does after a partition, or after the death of a node.

        Before RabbitMQ 4.2, what a wait queue hands on while its target has no leader can stay with it until the wait
        queue has another leader.
        """
        await until(lambda: _up(self.ours), "our node", 60)
        self.ledger.fault_ended()
        await asyncio.to_thread(self.cluster.move_leaders)

    async def end(self, worker: Worker, case: str, most: int = 0) -> None:
        """Close the books."""
        try:
            await worker.wait_ready(60)
        except AssertionError:
            # RabbitMQ 3.10 can answer basic.consume with INTERNAL_ERROR after leaders were moved, until they move again
            await self.heal()
            await worker.wait_ready(120)
        await self.ledger.balance(60)
        row = self.ledger.row(case)
        assert row.lost == 0
        assert row.duplicated <= most
        assert self.ledger.reasons.total() == 0


@pytest.fixture
async def scene(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Scene]:
    first = cluster.nodes[0]
    # a node that the test before has started again speaks AMQP before it is a member again
    await asyncio.to_thread(first.control, "await_online_nodes", str(len(cluster.nodes)))
    async with set_stage(first.url, tmp_path, tidy=False) as stage, amqp_proxy(first.url) as (balancer, url):
        yield Scene(stage, cluster, balancer, url, Ledger(stage))
        for node in cluster.nodes:
            assert await until(lambda node=node: _up(node), f"node {node.name}", 60)


async def _up(node: Node) -> bool:
    return await asyncio.to_thread(speaks_amqp, node.port)


async def test_the_node_that_we_are_on_dies(scene: Scene) -> None:
    # a worker makes a quorum queue of it beside a quorum jobs queue; a producer may have made a classic one
    await scene.stage.rabbit.declare(f"{scene.stage.rabbit.queue}.high")
    worker = await scene.begin(leader=scene.cluster.nodes[1])
    scene.balancer.upstream = scene.cluster.nodes[2].port
    async with scene.without(scene.ours):
        await worker.wait_log("RabbitMQ is back")
        await worker.wait_log("queue is away, nothing is consumed from it")  # the high lane
    await scene.end(worker, "cluster: the worker's node dies")
    await worker.wait_log("consuming again")
    await scene.stage.rabbit.publish(job("late@example.com"), to=f"{scene.stage.rabbit.queue}.high")
    await scene.stage.relay.wait_accepted(JOBS + 1)


async def test_the_leader_of_the_jobs_queue_dies(scene: Scene) -> None:
    leader = scene.cluster.nodes[1]
    worker = await scene.begin(leader)
    async with scene.without(leader):
        await scene.stage.rabbit.reconnect(scene.cluster.nodes[2].url)
    await scene.end(worker, "cluster: the leader of the jobs queue dies")


async def test_our_node_is_cut_off_from_the_others(scene: Scene) -> None:
    worker = await scene.begin(leader=scene.cluster.nodes[1])
    scene.balancer.upstream = scene.cluster.nodes[2].port
    await asyncio.to_thread(scene.cluster.cut_off, scene.ours)
    try:
        await worker.wait_log("RabbitMQ is back", timeout=60)
        await scene.ledger.balance(10)
    finally:
        await asyncio.to_thread(scene.cluster.join_again, scene.ours)
    await scene.heal()
    await scene.end(worker, "cluster: the worker's node in a minority partition, leaders moved afterwards")


async def test_our_node_freezes(scene: Scene) -> None:
    worker = await scene.begin(leader=scene.cluster.nodes[1])
    scene.balancer.upstream = scene.cluster.nodes[2].port
    assert scene.ours.process is not None
    os.killpg(scene.ours.process.pid, signal.SIGSTOP)
    try:
        await worker.wait_log("RabbitMQ is back", timeout=60)
        await scene.ledger.balance(10)
    finally:
        await asyncio.to_thread(scene.ours.stop)
        await asyncio.to_thread(scene.ours.start)
    await scene.heal()
    await scene.end(worker, "cluster: the worker's node freezes and is restarted, leaders moved afterwards")


@pytest.mark.parametrize("jobs", ["classic", "away"])
async def test_the_high_lane_of_a_cluster_is_made_as_a_quorum_queue(scene: Scene, jobs: str) -> None:
    rabbit, holder = scene.stage.rabbit, scene.cluster.nodes[2]
    await rabbit.reconnect(holder.url)
    await rabbit.declare()
    if jobs == "away":
        await asyncio.to_thread(holder.stop)
    try:
        await rabbit.reconnect(scene.ours.url)
        api = f"http://127.0.0.1:{scene.cluster.api_port}"
        env = {**names(scene.stage), "RABBITMQ_URL": scene.ours.url}
        made = await asyncio.to_thread(here, scene.stage.folder, "topology", "apply", "--management-url", api, **env)
        assert f"declared: queue {rabbit.queue}.high\n" in made.out
        found = await inspect_queue(rabbit.connection, f"{rabbit.queue}.high", {})
        assert found is not None
        assert found.kind == "quorum"
    finally:
        if jobs == "away":
            await asyncio.to_thread(holder.start)


AWAY_S = 20
"""RabbitMQ 4 itself answers after more than a minute; most of this is for a busy machine."""


async def test_a_worker_starts_while_the_node_of_a_classic_high_lane_is_down(scene: Scene) -> None:
    rabbit, holder = scene.stage.rabbit, scene.cluster.nodes[2]
    await rabbit.reconnect(holder.url)
    await rabbit.declare(f"{rabbit.queue}.high")  # on the node that is asked for it
    await rabbit.reconnect(scene.cluster.nodes[1].url)
    await rabbit.declare(**{"x-queue-type": "quorum"})
    before = scene.stage.worker(url=scene.url)
    await before.start()
    await before.stop()
    await asyncio.to_thread(holder.stop)
    try:
        worker = scene.stage.worker(url=scene.url, HEARTBEAT_INTERVAL_MS="1000")
        await scene.ledger.publish(JOBS)
        await worker.start()
        await scene.ledger.balance()
        assert _seconds(worker, "otp-stream starts", "job started") < AWAY_S
        await worker.wait_ready()

        async def reported() -> bool:
            return f"not available at the broker: {rabbit.queue}.high" in (await worker.get("/health"))[1]

        await until(reported, "the queue on /health")
    finally:
        await asyncio.to_thread(holder.start)
    await worker.wait_log("consuming again", timeout=60)
    await rabbit.publish(job("late@example.com"), to=f"{rabbit.queue}.high")
    await scene.stage.relay.wait_accepted(JOBS + 1)
    row = scene.ledger.row("cluster: a worker starts while the node of a classic .high is down")
    assert (row.lost, row.duplicated, scene.ledger.reasons.total()) == (0, 0, 0)


def _seconds(worker: Worker, first: str, last: str) -> float:
    """Return the time between two lines of its log, each the first of its kind."""
    at = {line["event"]: dt.datetime.fromisoformat(line["timestamp"]) for line in reversed(worker.lines)}
    return (at[last] - at[first]).total_seconds()
