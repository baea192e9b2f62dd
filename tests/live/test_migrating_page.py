"""docs/migrating.md, followed: its commands run unchanged, and no job is lost or sent twice."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Stage, set_stage
from ledger import Ledger
from old_worker import OldWorker
from rabbitmq import INSTALLED, SERVER, Node, rabbit, until
from runbook import PREFIX, QUEUE, WAIT_S, Fault, Ground, Section, sections

PAGE = sections("migrating.md")
MOVE = PAGE["From RabbitMQ 3.x to 4.x"]
RATE = 150
"""Jobs per second during the move."""
MOST_JOBS = 20_000


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Start the installed RabbitMQ, which is not the one under test with `make test RABBITMQ=4.0`."""
    ground = Ground(tmp_path_factory.mktemp("ground"))
    ground.node.server = INSTALLED if INSTALLED.exists() else SERVER
    ground.start()
    yield ground
    ground.node.remove()


async def test_the_commands_of_the_way_to_this_worker_and_back(ground: Ground, tmp_path: Path) -> None:
    steps = ("Prepare", "Run both", "Cut over", "Go back")
    section = Section("", tuple(block for step in steps for block in PAGE[step].blocks), ())
    waiting = next(it for it in PAGE["Cut over"].commands if it.startswith("awk"))
    consumers = "rabbitmqctl list_consumers queue_name prefetch_count"
    async with set_stage(ground.url, tmp_path, names=(QUEUE, PREFIX)) as stage:
        old = OldWorker(tmp_path, stage.url, QUEUE, stage.relay)
        it = Fault(section, stage, ground.node, _worker=stage.worker())
        try:
            await old.start()
            assert "no problems" in await it.run("otp-stream check")
            assert "otp.retry.due" in await it.run("otp-stream topology apply --dry-run", code=1)
            assert "set_permissions" in await it.run("otp-stream topology permissions --worker otp-worker")

            await it.worker.start()
            assert "consuming" in await it.run('curl -s "$PAGE/readyz"')
            assert f"{QUEUE}\t1\n" in await it.run(consumers)
            assert f"{QUEUE}\t200\n" in it.outputs[consumers][-1]
            people = [f"u{number}@example.com" for number in range(20)]
            await it.publish(*people)
            await it.arrive(*people)

            async def counted() -> bool:
                return await it.worker.metric('otp_jobs_total{outcome="sent"}') > 0

            await until(counted, "mails of this worker", WAIT_S)
            sent = 'curl -s "$PAGE/metrics" | grep \'^otp_jobs_total{outcome="sent"\''
            assert float((await it.run(sent)).split()[-1]) > 0
            assert "0 dead letters" in await it.run("otp-stream dead list")

            assert await it.run(waiting) == "0\n"
            assert old.process is not None
            await it.run('kill -TERM "$OLD_PID"', OLD_PID=str(old.process.pid))
            assert await old.process.wait() == 0
            assert await it.run(waiting) == "0\n"
            assert f"{QUEUE}\t1\n" not in await it.run(consumers)

            await _go_back(it, old)
        finally:
            await old.kill()
    assert set(it.outputs) == section.commands


async def _go_back(it: Fault, old: OldWorker) -> None:
    it.relay.then("rcpt", "451 4.3.0 later", to="ada@example.com")
    await old.start()
    it.relay.always("rcpt", "451 4.3.0 later")
    await it.publish(*(f"w{number}@example.com" for number in range(20)))

    async def retried() -> bool:
        return await it.worker.metric('otp_retries_total{attempt="1"}') > 0

    await until(retried, "retries", WAIT_S)
    it.relay.always("rcpt", None)
    await it.run('kill -TERM "$PID"')
    await it.worker.stopped()
    await it.run("otp-stream topology show")
    await it.start(RABBITMQ_QUEUE_NAME="otp.spare")
    await it.arrive(*(f"w{number}@example.com" for number in range(20)))
    assert "otp.spare" in await it.run("otp-stream topology show")
    await it.worker.stop()
    for name in ("otp.spare", "otp.spare.high"):
        await it.run(f"rabbitmqctl delete_queue {name}")


async def test_a_move_to_another_rabbitmq_loses_and_doubles_nothing(ground: Ground, tmp_path: Path) -> None:
    new = Node(tmp_path / "new")
    starting = asyncio.create_task(asyncio.to_thread(new.start))
    try:
        async with set_stage(ground.url, tmp_path, tidy=False, names=(QUEUE, PREFIX)) as stage:
            await starting
            await _move(stage, ground.node, new)
    finally:
        await asyncio.gather(starting, return_exceptions=True)
        new.remove()


async def _move(stage: Stage, source: Node, new: Node) -> None:
    ledger = Ledger(stage)
    for number in range(0, MOST_JOBS, 10):
        stage.relay.then("rcpt", "451 4.3.0 later", "451 4.3.0 later", to=f"job{number}@example.com")
    for number in range(7, MOST_JOBS, 50):
        stage.relay.always("rcpt", "550 5.1.1 no such user", to=f"job{number}@example.com")
    settings = {"MAX_RETRIES": "3", "SECRET_KEY": "0123456789abcdef0123456789abcdef"}
    old_worker, new_worker = stage.worker(**settings), stage.worker(url=new.url, **settings)
    old, it = (Fault(MOVE, stage, *them) for them in ((source, {}, old_worker), (new, {}, new_worker)))
    url = f"amqp://guest:guest@127.0.0.1:{source.port}"
    # where RabbitMQ's programs find the commands of plugins; an installed RabbitMQ has these by itself
    plugins_folder = json.loads(new.control("eval", "{ok, Folder} = application:get_env(rabbit, plugins_dir), Folder."))
    plugins = {"RABBITMQ_PLUGINS_DIR": plugins_folder, "RABBITMQ_ENABLED_PLUGINS_FILE": str(new.folder / "plugins")}
    export, restore, shovels, dead_letters, depths, end = MOVE.blocks
    await old_worker.start()
    producers = Producers(ledger)
    await producers.publish_more()

    await old.shell(export)
    await it.shell(restore)
    await new_worker.start()
    await it.shell(shovels, OLD_URL=url, **plugins)
    await producers.publish_more()
    await it.shell(f"rabbitmqctl restart_shovel {QUEUE}", **plugins)  # what it has not acknowledged may exist twice
    await producers.publish_more()
    await old_worker.stop()
    await producers.publish_more()
    await producers.move(new.url)
    await it.shell(dead_letters, OLD_URL=url, **plugins)
    await _wait_empty(stage, url)

    async def moved() -> bool:  # a shovel acknowledges a message once the other RabbitMQ has confirmed it
        rows = dict(line.split("\t") for line in (await old.shell(depths)).splitlines() if "\t" in line)
        assert {QUEUE, f"{QUEUE}.high", "otp.retry.due", "otp.dead"} <= rows.keys()
        return all(
            depth == "0" for name, depth in rows.items() if name == QUEUE or name.startswith((PREFIX, f"{QUEUE}."))
        )

    await until(moved, "empty queues", WAIT_S)
    await it.shell(end, **plugins)
    await producers.stop()

    await ledger.balance(WAIT_S)
    assert not ledger.lost
    assert not ledger.duplicated
    assert not ledger.ended_twice
    # on a slow machine, more are published than the relay knows
    assert ledger.reasons == {"rejected": len(range(7, min(len(ledger.published), MOST_JOBS), 50))}
    assert await new_worker.metric("otp_unverified_retries_total") == 0
    assert await new_worker.metric('otp_ledger_received_total{lane="due"}') > 0


class Producers:
    """Publish to one RabbitMQ, and then to another one, without a pause."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._url = ledger.rabbit.url
        self._stopped = False
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self._stopped:
            if self._ledger.rabbit.url != self._url:
                await self._ledger.rabbit.reconnect(self._url)
            await self._ledger.publish(10)
            await asyncio.sleep(10 / RATE)

    async def publish_more(self) -> None:
        """Wait until another 200 jobs are published."""
        count = len(self._ledger.published) + 200

        async def reached() -> bool:
            return len(self._ledger.published) >= count

        await until(reached, f"{count} jobs", WAIT_S)

    async def move(self, url: str) -> None:
        """Publish the following jobs to another RabbitMQ."""
        self._url = url
        await self.publish_more()

    async def stop(self) -> None:
        self._stopped = True
        await self._task


async def _wait_empty(stage: Stage, url: str) -> None:
    """Wait until no job is in a queue of this RabbitMQ."""
    async with rabbit(url, QUEUE, PREFIX, tidy=False) as left:
        left.backoffs |= stage.rabbit.backoffs

        async def empty() -> bool:
            return not any((await left.depths()).values())

        await until(empty, "empty queues", WAIT_S)
