"""How much tenants disturb each other, and what two hundred of them cost."""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel

from . import measure
from .measure import RELAYS, WorkerProcess
from .relay import Notes, Relay, address_of, code_of
from .systems import ours

_PER_S = 50
"""Single codes of the quiet tenant."""
_SECONDS = 20
_HANGING = 2_000
_BACKLOG = 50_000
_QUIET = _PER_S * _SECONDS
_OWN = 'sender_email = "no-reply@{name}.example"\nsmtp_host = "127.0.0.1"\nsmtp_port = {port}\nsmtp_tls = "none"\n'


def message(number: int, tenant: str) -> Message:
    """Return a job of a tenant; its number is found again at the relay."""
    job = {
        "email": address_of(number), "otp": code_of(number), "jobId": f"{tenant}-{number}",
        "timestamp": time.time_ns() // 1_000_000, "metadata": {"tenant": tenant, "expiryMinutes": 60},
    }  # fmt: skip
    return Message(json.dumps(job).encode(), delivery_mode=DeliveryMode.PERSISTENT)


@asynccontextmanager
async def _worker(url: str, toml: str, relay: Relay) -> AsyncIterator[tuple[AbstractChannel, str, WorkerProcess]]:
    with tempfile.TemporaryDirectory(prefix="otp-bench-") as folder:
        file = Path(folder) / "tenants.toml"
        file.write_text(toml)
        system = ours(connections=20, TENANTS_FILE=str(file))
        async with measure.jobs_queue(url) as (channel, queue):
            with WorkerProcess(system) as worker:
                worker.start(queue.name, relay.port, url)
                await measure.consumed(channel, queue.name, worker)
                yield channel, queue.name, worker


async def _quiet(channel: AbstractChannel, queue: str, notes: Notes, first: int) -> list[float]:
    """Publish single codes of the tenant `quiet`; return the times to acceptance, ms, in order."""
    began = time.time() + 0.1
    for number in range(_QUIET):
        await asyncio.sleep(max(began + number / _PER_S - time.time(), 0))
        await channel.default_exchange.publish(message(first + number, "quiet"), queue)
    ends = time.monotonic() + 120
    while not all(notes.accepted_at[first : first + _QUIET]) and time.monotonic() < ends:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    late = [notes.accepted_at[first + at] - began - at / _PER_S for at in range(_QUIET)]
    return sorted(it * 1000 if it > -1 else float("inf") for it in late)


async def _burst(channel: AbstractChannel, queue: str, count: int, tenant: str, first: int) -> float:
    """Publish jobs as fast as possible; return the seconds that it took."""
    began = time.monotonic()
    for number in range(count):
        await channel.default_exchange.publish(message(first + number, tenant), queue)
    return time.monotonic() - began


async def hang(url: str, pairs: int) -> None:
    """Compare a quiet tenant alone with the same one while the relay of another tenant hangs."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    found: dict[str, list[list[float]]] = {"alone": [], "beside one that hangs": []}
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    toml = f'[tenants.quiet]\n[tenants.hangs]\n{_OWN.format(name="hangs", port=port)}smtp_auth = "none"\n'
    for _ in range(pairs):
        for name, its in found.items():
            with Relay(_QUIET, **RELAYS["30 ms"]) as relay:
                async with _worker(url, toml, relay) as (channel, queue, _):
                    if name != "alone":
                        await _burst(channel, queue, _HANGING, "hangs", 0)
                        await asyncio.sleep(3)
                    its.append(await _quiet(channel, queue, relay.notes, 0))
    server.close()
    _report(found)


async def backlog(url: str) -> None:
    """Measure a quiet tenant beside a backlog of another one at the same relay, and while that is published."""
    toml = "[tenants.quiet]\n[tenants.busy]\n"
    mails = _QUIET + _BACKLOG
    for name in ("after it was published", "while it is published"):
        with Relay(mails, **RELAYS["30 ms"]) as relay:
            async with _worker(url, toml, relay) as (channel, queue, _):
                publishing = asyncio.create_task(_burst(channel, queue, _BACKLOG, "busy", _QUIET))
                if name.startswith("after"):
                    _say(f"{_BACKLOG} jobs published in {await publishing:.1f} s")
                    while await measure.depth(channel, queue):  # noqa: ASYNC110 - RabbitMQ is asked
                        await asyncio.sleep(0.1)
                times = await _quiet(channel, queue, relay.notes, 0)
                await publishing
                sent = relay.notes.taken.value - _QUIET
                _report({f"{name}, {sent} of the backlog sent by then": [times]})


async def cold(url: str) -> None:
    """Measure how long the first single code waits if the worker starts behind a backlog of another tenant."""
    with (
        Relay(_QUIET + _BACKLOG, **RELAYS["30 ms"]) as relay,
        tempfile.TemporaryDirectory(prefix="otp-bench-") as folder,
    ):
        file = Path(folder) / "tenants.toml"
        file.write_text("[tenants.quiet]\n[tenants.busy]\n")
        async with measure.jobs_queue(url) as (channel, queue):
            await _burst(channel, queue.name, _BACKLOG, "busy", _QUIET)
            await channel.default_exchange.publish(message(0, "quiet"), queue.name)
            with WorkerProcess(ours(connections=20, TENANTS_FILE=str(file))) as worker:
                worker.start(queue.name, relay.port, url)
                await measure.started(relay.notes, worker)
                began = time.time()
                while not relay.notes.accepted_at[0] and time.time() - began < 120:
                    worker.check()
                    await asyncio.sleep(0.05)
                late = relay.notes.accepted_at[0] - relay.notes.first_mail_at.value
                _say(f"behind {_BACKLOG} jobs at the start: the single code was sent {late:.1f} s after the first mail")


async def many(url: str, count: int = 200) -> None:
    """Measure memory, start and connections of a worker with many tenants, each with its own relay."""
    for tenants in (0, count):
        toml = "[tenants.one]\n" + "".join(
            f'[tenants.t{n}]\n{_OWN.format(name=f"t{n}", port=1)}smtp_auth = "none"\n' for n in range(tenants)
        )
        with Relay(100) as relay:
            began = time.monotonic()
            async with _worker(url, toml, relay) as (_, _, worker):
                took = time.monotonic() - began - 1  # `consumed` waits for a second
                await asyncio.sleep(15)
                before = worker.cpu_s()
                await asyncio.sleep(20)
                busy = (worker.cpu_s() - before) / 20
                _say(
                    f"{tenants} tenants with a relay each: consuming after {took:.1f} s, "
                    f"{worker.memory_mib():.0f} MiB, {busy:.1%} of a core when idle, {worker.connections()} connections"
                )


def _report(found: dict[str, list[list[float]]]) -> None:
    of: Callable[[list[float], int], float] = lambda times, percent: times[len(times) * percent // 100]  # noqa: E731
    base: float | None = None
    for name, runs in found.items():
        p50, p99 = (median(of(times, percent) for times in runs) for percent in (50, 99))
        base = base or p99
        each = ", ".join(f"{of(times, 99):.1f}" for times in runs)
        _say(f"quiet tenant, {name}: p50 {p50:.1f} ms, p99 {p99:.1f} ms ({p99 / base:.2f}; p99 of each run: {each})")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def main(url: str, pairs: int) -> None:
    """Run all of them."""
    await many(url)
    await hang(url, pairs)
    await backlog(url)
    await cold(url)
