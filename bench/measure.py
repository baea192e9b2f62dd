"""One run of one system: it drains a backlog, or serves a steady rate. Measured from outside, by the relay's clock."""

import asyncio
import json
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aio_pika
import psutil
from aio_pika.abc import AbstractChannel, AbstractQueue

from otp_stream.app import app

from .relay import Notes, Relay, address_of, code_of
from .systems import PREFIX, System

RELAYS: dict[str, dict[str, Any]] = {
    "instant": {},
    "30 ms": {"delay_s": 0.03},
    "thinks 150 ms": {"body_s": 0.15},
    "instant, CHUNKING": {"chunking": True},
    "30 ms, CHUNKING": {"delay_s": 0.03, "chunking": True},
    "thinks 150 ms, CHUNKING": {"body_s": 0.15, "chunking": True},
}
"""Delay of each reply, and of the last one of a mail, in seconds; and whether the relay offers CHUNKING."""
TENANTS = ("default", "one", "quiet", "busy", "hangs", *(f"t{number}" for number in range(200)))
"""The tenants of all measurements."""
_STALLED_S = 20.0
_START_S = 60.0


@dataclass(frozen=True, slots=True)
class Run:
    """The result of one run. Rates in mails a second, CPU time in seconds, memory in MiB, latencies in ms."""

    system: str
    relay: str
    mode: str
    jobs: int
    rate: float
    cpu_s_per_1000: float
    memory_mib: float
    connections: int
    repeated: int
    wrong: int
    lost: int
    p50_ms: float | None = None
    p99_ms: float | None = None


async def drain(system: System, relay: str, amqp_url: str) -> Run:
    """Publish a backlog of persistent jobs, start the worker, and measure the rate at which it sends them."""
    async with jobs_queue(amqp_url) as (channel, queue):
        for number in range(system.jobs):
            await channel.default_exchange.publish(_job(number, time.time()), queue.name)
        await _until(lambda: depth(channel, queue.name), system.jobs)
        with Relay(system.jobs, **RELAYS[relay]) as it, WorkerProcess(system) as worker:
            worker.start(queue.name, it.port, amqp_url)
            await started(it.notes, worker)
            before = worker.cpu_s()
            memory = await _all_accepted(it.notes, system.jobs, worker)
            spent = worker.cpu_s() - before
            taken_s = max(it.notes.accepted_at) - it.notes.first_mail_at.value
            return _run(system, relay, "drain", it.notes, system.jobs / taken_s, spent, memory)


async def steady(system: System, relay: str, amqp_url: str, *, rate: float, seconds: float) -> Run:
    """Publish at a fixed rate, and measure how long each job takes to be accepted."""
    warm = max(20, int(rate))
    jobs = int(rate * seconds) + warm
    async with jobs_queue(amqp_url) as (channel, queue):
        with Relay(jobs, **RELAYS[relay]) as it, WorkerProcess(system) as worker:
            worker.start(queue.name, it.port, amqp_url)
            await consumed(channel, queue.name, worker)
            before, began = worker.cpu_s(), time.time() + 0.1
            for number in range(jobs):
                due = began + number / rate
                if (ahead := due - time.time()) > 0:
                    await asyncio.sleep(ahead)
                await channel.default_exchange.publish(_job(number, due), queue.name)
            memory = await _all_accepted(it.notes, jobs, worker)
            spent = worker.cpu_s() - before
            took = sorted(
                (it.notes.accepted_at[at] - began - at / rate) * 1000
                for at in range(warm, jobs) if it.notes.accepted_at[at]
            )  # fmt: skip
            return _run(
                system, relay, "steady", it.notes, rate, spent, memory,
                p50_ms=took[len(took) // 2], p99_ms=took[len(took) * 99 // 100],
            )  # fmt: skip


def _run(
    system: System, relay: str, mode: str, notes: Notes, rate: float, spent_s: float, memory: float,
    **latencies: float,
) -> Run:  # fmt: skip
    jobs = len(notes.accepted_at)
    return Run(
        system.name, relay, mode, jobs, rate, spent_s / jobs * 1000, memory,
        connections=notes.connections.value, repeated=notes.repeated.value, wrong=notes.wrong.value,
        lost=jobs - notes.taken.value, **latencies,
    )  # fmt: skip


def _job(number: int, at: float) -> aio_pika.Message:
    job = {
        "email": address_of(number), "otp": code_of(number), "retryCount": 0, "jobId": str(uuid.UUID(int=number)),
        "timestamp": int(at * 1000), "priority": "normal",
        "metadata": {"userName": f"Alex Johnson {number}", "expiryMinutes": 10},
    }  # fmt: skip
    return aio_pika.Message(json.dumps(job).encode(), delivery_mode=aio_pika.DeliveryMode.PERSISTENT)


@asynccontextmanager
async def jobs_queue(amqp_url: str) -> AsyncIterator[tuple[AbstractChannel, AbstractQueue]]:
    """Declare a jobs queue; delete it and its high lane at the end."""
    connection = await aio_pika.connect(amqp_url)
    async with connection, connection.channel(publisher_confirms=False) as channel:
        queue = await channel.declare_queue(f"otp-bench-{uuid.uuid4().hex[:8]}", durable=True)
        try:
            yield channel, queue
        finally:
            await _remove(connection, queue.name)


async def _remove(connection: aio_pika.abc.AbstractConnection, name: str) -> None:
    async with connection.channel() as channel:
        for queue in (name, f"{name}.high"):
            await channel.queue_delete(queue)


@asynccontextmanager
async def consumed_events(amqp_url: str) -> AsyncIterator[None]:
    """Bind a queue to all events. No one reads it, because a reader would use the same processors."""
    connection = await aio_pika.connect(amqp_url)
    async with connection, connection.channel() as channel:
        exchange = await channel.declare_exchange(f"{PREFIX}.events", aio_pika.ExchangeType.TOPIC, durable=True)
        queue = await channel.declare_queue(exclusive=True, arguments={"x-max-length": 1000})
        await queue.bind(exchange, "otp.#")
        yield


async def tidy(amqp_url: str) -> None:
    """Delete the other queues and exchanges that our workers declared."""
    connection = await aio_pika.connect(amqp_url)
    async with connection, connection.channel() as channel:
        tenants = [f"{PREFIX}.tenant.{name}" for name in TENANTS]
        for queue in [*(PREFIX + it.removeprefix("otp") for it in app.parts.broker.topology.arguments), *tenants]:
            await channel.queue_delete(queue)
        for exchange in ("retry", "events"):
            await channel.exchange_delete(f"{PREFIX}.{exchange}")


async def depth(channel: AbstractChannel, name: str) -> int:
    """Return the number of ready messages."""
    return (await channel.declare_queue(name, passive=True)).declaration_result.message_count or 0


async def consumed(channel: AbstractChannel, name: str, worker: "WorkerProcess") -> None:
    """Wait until a worker consumes from a queue."""

    async def consumers() -> int:
        worker.check()
        return min((await channel.declare_queue(name, passive=True)).declaration_result.consumer_count or 0, 1)

    await _until(consumers, 1)
    await asyncio.sleep(1)  # the rest of the worker's start


async def _until(count: Callable[[], Awaitable[int]], wanted: int) -> None:
    deadline = time.monotonic() + _START_S
    while await count() < wanted:
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited for {wanted}")
        await asyncio.sleep(0.05)


async def started(notes: Notes, worker: "WorkerProcess") -> None:
    """Wait for the first mail."""
    deadline = time.monotonic() + _START_S
    while not notes.first_mail_at.value:
        worker.check()
        if time.monotonic() > deadline:
            raise TimeoutError("no mail came")
        await asyncio.sleep(0.002)


async def _all_accepted(notes: Notes, jobs: int, worker: "WorkerProcess") -> float:
    """Wait for the relay to accept all mails; return the peak memory, MiB."""
    memory, seen, seen_at = 0.0, 0, time.monotonic()
    while (taken := notes.taken.value) < jobs:
        worker.check()
        if taken != seen:
            seen, seen_at = taken, time.monotonic()
        elif time.monotonic() - seen_at > _STALLED_S:
            break  # the rest is lost, and reported as lost
        memory = max(memory, worker.memory_mib())
        await asyncio.sleep(0.02)
    return max(memory, worker.memory_mib())


class WorkerProcess:
    """The process of a system, with its children."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="otp-bench-")
        return self

    def start(self, queue: str, smtp_port: int, amqp_url: str) -> None:
        """Start it."""
        with (Path(self._folder.name) / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self._system.command, env=self._system.environment(queue, smtp_port, amqp_url), cwd=self._folder.name,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            group = self._process.pid
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(group, signal.SIGTERM)
                self._process.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
            self._process.wait()
        self._folder.cleanup()

    def check(self) -> None:
        """Raise if it has ended."""
        if self._process is None or self._process.poll() is not None:
            log = (Path(self._folder.name) / "log").read_text(errors="replace")
            raise RuntimeError(f"{self._system.name} has ended:\n{log[-2000:]}")

    def _all(self) -> list[psutil.Process]:
        assert self._process is not None
        try:
            one = psutil.Process(self._process.pid)
            return [one, *one.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu_s(self) -> float:
        """CPU time so far, all processes together."""
        return sum(sum(it.cpu_times()[:2]) for it in self._all())

    def connections(self) -> int:
        """Open TCP connections, all processes together."""
        return sum(it.status == "ESTABLISHED" for process in self._all() for it in process.net_connections("tcp"))

    def memory_mib(self) -> float:
        """Resident memory, all processes together."""
        return sum(it.memory_info().rss for it in self._all()) / 2**20
