"""The stage of the live tests: a broker, a relay, and workers as processes; every name and port is fresh."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from rabbitmq import Rabbit, rabbit
from redis_server import RedisServer
from smtp_relay import ScriptedRelay
from worker import SCRIPT, Worker, settings
from xdist.scheduler import LoadScopeScheduling

SHARED = ("test_cli_topology.py", "test_cluster.py", "test_operators.py", "test_runbook.py", "test_waits.py")
"""Files whose tests share a RabbitMQ that is costly to start, or would spoil each other's times: one process each."""


@dataclass
class Stage:
    """Everything that a live test plays with."""

    url: str
    rabbit: Rabbit
    relay: ScriptedRelay
    folder: Path
    workers: list[Worker] = field(default_factory=list)

    def worker(self, *, url: str | None = None, **changes: str) -> Worker:
        """Make a worker, not started; `changes` are environment variables."""
        folder = self.folder / f"worker{len(self.workers)}"
        queue, prefix = self.rabbit.queue, self.rabbit.prefix
        ladder = {"BASE_DELAY_MS": "1000", "MAX_DELAY_MS": "30000", "MAX_RETRIES": "3"} | changes
        self.rabbit.ladders.add((int(ladder["BASE_DELAY_MS"]), int(ladder["MAX_DELAY_MS"]), int(ladder["MAX_RETRIES"])))
        worker = Worker(folder, settings(self.relay, url or self.url, queue, prefix, **changes))
        self.workers.append(worker)
        return worker

    async def run(self, **changes: str) -> Worker:
        """Start a worker and wait until it is ready."""
        worker = self.worker(**changes)
        await worker.start()
        return worker


class _Scheduling(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if file.endswith(SHARED) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Hand tests out one by one, but for those that share a server."""
    return _Scheduling(config, log)


@pytest.fixture(scope="session")
def rabbitmq_url() -> str:
    """Return the RabbitMQ of the live tests; `make test` finds or starts one."""
    return os.environ.get("OTP_TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672/")


@pytest.fixture
async def stage(rabbitmq_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    """Set the stage; every worker is gone at the end."""
    async with set_stage(rabbitmq_url, tmp_path) as stage:
        yield stage


@asynccontextmanager
async def set_stage(
    url: str, folder: Path, *, tidy: bool = True, names: tuple[str, str] | None = None
) -> AsyncIterator[Stage]:
    """Set a stage on this RabbitMQ; `names` are queue and prefix, for one that is nobody else's."""
    queue, prefix = names or (f"t{uuid4().hex[:10]}",) * 2
    async with rabbit(url, queue, prefix, tidy=tidy) as client, ScriptedRelay() as relay:
        stage = Stage(url, client, relay, folder)
        try:
            yield stage
        finally:
            for worker in stage.workers:
                await worker.kill()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """Start a Redis that is nobody else's."""
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.remove()


@pytest.fixture
async def demo(tmp_path: Path) -> AsyncIterator[Worker]:
    """Run what `make run` runs, until its samples are in the inbox."""
    demo = Worker(tmp_path / "demo", {})
    demo.folder.mkdir()
    with demo.log_path.open("ab") as log:
        demo.process = await asyncio.create_subprocess_exec(
            SCRIPT, "demo", "--port", str(demo.port), cwd=demo.folder, stdout=log, stderr=log
        )
    try:
        await demo.wait_log("otp-stream is running", timeout=40)
        yield demo
    finally:
        await demo.kill()
