"""Fixtures of the live tests: a broker, a relay, and workers as processes. Every name and port is unique."""

import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from fcntl import LOCK_EX, flock
from pathlib import Path
from tempfile import gettempdir
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4
from zlib import crc32

import pytest
import settings_sources  # noqa: F401 - loads settings in less time
from event_loop import EventLoop
from hypothesis import settings as hypothesis_settings
from in_memory import Start, Stream, starter
from processes import start
from rabbitmq import Node, Rabbit, rabbit, use_one_core
from redis_server import RedisServer
from smtp_relay import ScriptedRelay
from worker import Worker, settings
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from otp_stream.relay import pipeline, suspension

SHARED = (
    "test_cli_topology.py", "test_client_certificates.py", "test_cluster.py", "test_migrating_page.py",
    "test_operators.py", "test_pages.py", "test_permissions.py", "test_reproducible_build.py", "test_runbook.py",
    "test_sbom.py", "test_waits.py", "test_wheel.py",
)  # fmt: skip
"""Files whose tests share a RabbitMQ, a Chromium or a wheel that takes long, or must not run at the same time."""

# A shell that runs the tests in the background makes them, and all their child processes, ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)

# nohup makes them ignore SIGHUP. A handler, unlike that, is not passed on to a new program.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

# Tests use gRPC and fork child processes, in which it would abort. The worker sets this where it uses gRPC.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

# A deadline for each example would fail on a busy machine.
hypothesis_settings.register_profile("tests", deadline=None)
hypothesis_settings.load_profile("tests")

LONGEST = ("test_operators.py", "test_pages.py", "test_cluster.py", "test_runbook.py")
LONG = bool(os.environ.get("FAULTS_LONG"))
"""Whether random faults last minutes instead of seconds."""


@dataclass
class Stage:
    """The broker, the relay and the workers of a live test."""

    url: str
    rabbit: Rabbit
    relay: ScriptedRelay
    folder: Path
    workers: list[Worker] = field(default_factory=list)
    more_tenants: set[str] = field(default_factory=set[str])
    """Tenants whose queues the test declares without a worker."""

    def tenants(self) -> set[str]:
        """Return each tenant whose queue may exist."""
        return self.more_tenants.union(*(it.tenants() for it in self.workers))

    def worker(self, *, url: str | None = None, **changes: str) -> Worker:
        """Return a worker that is not started. `changes` are environment variables."""
        folder = self.folder / f"worker{len(self.workers)}"
        queue, prefix = self.rabbit.queue, self.rabbit.prefix
        # one wait queue instead of eight, because RabbitMQ takes 0.1 to 0.5 s to declare eight
        if changes.keys().isdisjoint({"BASE_DELAY_MS", "MAX_DELAY_MS", "MAX_RETRIES"}):
            changes |= {"MAX_DELAY_MS": "1000"}
        changes = {"MAX_RETRIES": "1"} | changes
        backoff = {"BASE_DELAY_MS": "1000", "MAX_DELAY_MS": "30000"} | changes
        self.rabbit.backoffs.add(
            (int(backoff["BASE_DELAY_MS"]), int(backoff["MAX_DELAY_MS"]), int(backoff["MAX_RETRIES"]))
        )
        worker = Worker(folder, settings(self.relay, url or self.url, queue, prefix, **changes))
        self.workers.append(worker)
        return worker

    async def run(self, **changes: str) -> Worker:
        """Start a worker and wait until it is ready."""
        worker = self.worker(**changes)
        await worker.start()
        return worker


class Scheduling(LoadScopeScheduling):
    """Runs a file in `SHARED` in one process, short tests in groups, and all others one by one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file.startswith(("tests/unit", "tests/stream")):
            # in groups, because assigning thousands of short tests one by one takes as much CPU as some of them
            return f"{file} {crc32(nodeid.encode()) % 8}"
        return file if file.endswith(SHARED) else nodeid

    def remove_node(self, node: WorkerController) -> str | None:
        """Return the test that ended its process, and do not run it again: each time, it could hang until its limit."""
        units = self.assigned_work[node].values()
        unfinished = next(((unit, test) for unit in units for test, done in unit.items() if not done), None)
        if unfinished is None:
            return super().remove_node(node)
        unit, test = unfinished
        unit[test] = True
        # without the units that are done now: a process that is assigned one gets no test, and waits for ever
        self.assigned_work[node] = {scope: it for scope, it in self.assigned_work[node].items() if not all(it.values())}
        super().remove_node(node)
        return test


def pytest_configure() -> None:
    """Keep each test process, with the servers and workers that it starts, on one core."""
    if name := os.environ.get("PYTEST_XDIST_WORKER"):
        use_one_core(int(name.removeprefix("gw")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest in one process, then the tests that mostly wait."""

    def rank(item: pytest.Item) -> int:
        if item.path.name in LONGEST:
            return LONGEST.index(item.path.name)
        return len(LONGEST) + (item.get_closest_marker("waits") is None)

    items.sort(key=rank)


def pytest_asyncio_loop_factories() -> dict[str, type[EventLoop]]:
    """Run all tests on this event loop."""
    return {"asyncio": EventLoop}


def pytest_collection_finish() -> None:
    """Exclude the tests themselves from garbage collections: they are a million objects."""
    gc.freeze()


def pytest_runtest_teardown() -> None:
    """Enable logging again, because `otp-stream check`, which some tests run in this process, disables it."""
    logging.disable(logging.NOTSET)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Assign tests one by one, except that all tests of a file in `SHARED` run in the same process."""
    return Scheduling(config, log)


@pytest.fixture(scope="session")
def rabbitmq_url() -> str:
    """Return the URL of RabbitMQ, which `make test` finds or starts."""
    return os.environ.get("OTP_TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672/")


@pytest.fixture
def shared_node(rabbitmq_url: str, tmp_path: Path) -> Iterator[Node]:
    """Return the node that all tests share, for changes that no other test sees. If it is not ours, start one."""
    if folder := os.environ.get("OTP_TEST_RABBITMQ_NODE"):
        yield Node(Path(folder), port=urlsplit(rabbitmq_url).port or 5672)
        return
    node = Node(tmp_path / "node")
    node.start()
    yield node
    node.remove()


@pytest.fixture
async def stage(rabbitmq_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    """Set up a stage. Every worker is killed at the end."""
    async with set_stage(rabbitmq_url, tmp_path) as stage:
        yield stage


@asynccontextmanager
async def set_stage(
    url: str, folder: Path, *, tidy: bool = True, names: tuple[str, str] | None = None
) -> AsyncIterator[Stage]:
    """Set up a stage on a RabbitMQ. `names` are queue and prefix, for a RabbitMQ that no other test uses."""
    queue, prefix = names or (f"t{uuid4().hex[:10]}",) * 2
    async with rabbit(url, queue, prefix, tidy=tidy) as client, ScriptedRelay() as relay:
        stage = Stage(url, client, relay, folder)
        client.tenants = stage.tenants
        try:
            yield stage
        finally:
            for worker in stage.workers:
                await worker.kill()


@pytest.fixture
def never_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let relay clients of this process ignore its pauses: on a busy machine, they last as long as a suspension."""
    monkeypatch.setattr(suspension, "_SUSPENDED_S", 60.0)
    monkeypatch.setattr(pipeline, "_RESPONSIVE_S", 60.0)


@pytest.fixture
async def start_stream() -> AsyncIterator[Start]:
    """Return a function that starts an application on the in-memory broker."""
    async with AsyncExitStack() as stack:
        yield starter(stack)


@pytest.fixture
async def stream(start_stream: Start) -> Stream:
    """Start an application with the usual settings on the in-memory broker."""
    return await start_stream()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """Start a Redis that no other test uses."""
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.remove()


@contextmanager
def _one_demo_starts() -> Iterator[None]:
    """Wait until no other test process starts a demo, because two at the same time may find the same port free."""
    with Path(gettempdir(), "otp-stream-demo.lock").open("w") as lock:
        flock(lock, LOCK_EX)
        yield


@pytest.fixture
async def demo(tmp_path: Path) -> AsyncIterator[Worker]:
    """Run the demo of `make run`, and wait until its samples are in the inbox."""
    demo = Worker(tmp_path / "demo", {})
    demo.folder.mkdir()
    words = ("demo", "--port", str(demo.port))
    try:
        with _one_demo_starts():
            demo.process = await start("otp-stream", *words, folder=demo.folder, env=os.environ, output=demo.log_path)
            await demo.wait_log("otp-stream is running", timeout=40)
        yield demo
    finally:
        await demo.kill()
