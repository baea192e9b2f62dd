"""Mixed faults for a configurable time, from a seed: no job is lost, and no resource grows.

`make faults FAULTS_LONG=1 FAULTS_SEED=7` is the long form.
"""

import asyncio
import os
import random
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from amqp_proxy import AmqpProxy, amqp_proxy
from conftest import LONG, Stage, set_stage
from ledger import Ledger
from rabbitmq import Node, until
from smtp_relay import Act
from worker import Worker

SOAK_S = float(os.environ.get("FAULTS_SOAK_S", "600" if LONG else "15"))
SEED = int(os.environ.get("FAULTS_SEED", "1"))
PER_S = 50
CONNECTIONS = 5
TAKEN_THEN_CLOSED = Act("", then="close", keep=True)


@dataclass
class Scene:
    """Two workers, each behind a proxy: one may be killed and frozen, the other must not grow."""

    stage: Stage
    node: Node
    ledger: Ledger
    victim: Worker
    steady: Worker
    proxies: list[AmqpProxy]
    chance: random.Random
    may_double: int = 0
    """The bound on duplicates, from what was done."""
    done: list[str] = field(default_factory=list)
    publishing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held where a publish could not be confirmed: whether such a job was accepted is unknown."""

    async def harm(self) -> None:
        """Do one of the faults."""
        fault = self.chance.choice(FAULTS)
        self.done.append(fault.__name__.strip("_"))
        await fault(self)

    @property
    def pid(self) -> int:
        assert self.victim.process is not None
        return self.victim.process.pid


async def _relay_down(scene: Scene) -> None:
    scene.may_double += 2 * CONNECTIONS  # the relay accepts a mail and is down before it replies
    await scene.stage.relay.stop()
    await asyncio.sleep(scene.chance.uniform(0.5, 2))
    await scene.stage.relay.start()


async def _relay_defers(scene: Scene) -> None:
    scene.stage.relay.then("rcpt", *["451 4.3.0 later"] * 20)


async def _relay_rejects(scene: Scene) -> None:
    scene.stage.relay.then("rcpt", *["550 5.1.1 no such user"] * 5)


async def _relay_replies_421(scene: Scene) -> None:
    scene.stage.relay.then("mail", Act("421 4.3.2 closing", then="close"))


async def _relay_takes_and_closes(scene: Scene) -> None:
    scene.may_double += 2
    scene.stage.relay.then("body", *[TAKEN_THEN_CLOSED] * 2)


async def _relay_slows_down(scene: Scene) -> None:
    scene.stage.relay.always("body", Act(delay_s=0.2))
    await asyncio.sleep(scene.chance.uniform(0.5, 2))
    scene.stage.relay.always("body", None)


async def _broker_cut(scene: Scene) -> None:
    # what each knew to be sent, it still knows; but what it had may go to the other one
    scene.may_double += 2 * CONNECTIONS
    scene.chance.choice(scene.proxies).cut()


async def _broker_drips(scene: Scene) -> None:
    proxy = scene.chance.choice(scene.proxies)
    proxy.drip_s = 0.0005
    await asyncio.sleep(0.5)
    proxy.release()


async def _broker_half_open(scene: Scene) -> None:
    scene.may_double += 2 * CONNECTIONS
    proxy = scene.chance.choice(scene.proxies)
    proxy.swallow = True
    await asyncio.sleep(scene.chance.uniform(1, 8))  # some of it is long enough to be noticed
    proxy.cut()
    proxy.release()


async def _broker_short_of_memory(scene: Scene) -> None:
    await asyncio.to_thread(scene.node.control, "set_vm_memory_high_watermark", "absolute", "1MB")
    await asyncio.sleep(scene.chance.uniform(0.5, 2))
    await asyncio.to_thread(scene.node.control, "set_vm_memory_high_watermark", "0.8")


async def _broker_restarted(scene: Scene) -> None:
    scene.may_double += 4 * CONNECTIONS
    async with scene.publishing:
        await asyncio.to_thread(scene.node.stop)
        await asyncio.to_thread(scene.node.start)
        await scene.ledger.rabbit.reconnect()


async def _killed(scene: Scene) -> None:
    scene.may_double += 2 * CONNECTIONS
    await scene.victim.kill()
    await scene.victim.start()


async def _stopped(scene: Scene) -> None:
    await scene.victim.stop()
    await scene.victim.start()


async def _frozen(scene: Scene) -> None:
    scene.may_double += 2 * CONNECTIONS
    os.kill(scene.pid, signal.SIGSTOP)
    await asyncio.sleep(scene.chance.uniform(1, 3))
    os.kill(scene.pid, signal.SIGCONT)


FAULTS: list[Callable[[Scene], Awaitable[None]]] = [
    _relay_down, _relay_defers, _relay_rejects, _relay_replies_421, _relay_takes_and_closes, _relay_slows_down,
    _broker_cut, _broker_drips, _broker_half_open, _broker_short_of_memory, _broker_restarted, _killed, _stopped,
    _frozen,
]  # fmt: skip


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    node = Node(tmp_path / "node")
    await asyncio.to_thread(node.start)
    try:
        async with AsyncExitStack() as stack:
            stage = await stack.enter_async_context(set_stage(node.url, tmp_path, tidy=False))
            ways = [await stack.enter_async_context(amqp_proxy(node.url)) for _ in range(2)]
            victim, steady = (
                stage.worker(
                    url=f"{url}?heartbeat=2",
                    SMTP_POOL_SIZE=str(CONNECTIONS),
                    PREFETCH_COUNT=str(2 * CONNECTIONS),  # so that no fault of one worker can double more
                    MAX_RETRIES="3",
                )
                for _, url in ways
            )
            for worker in (victim, steady):
                await worker.start()
            ledger = Ledger(stage)
            yield Scene(stage, node, ledger, victim, steady, [proxy for proxy, _ in ways], random.Random(SEED))  # noqa: S311
    finally:
        node.remove()


async def test_mixed_faults(scene: Scene) -> None:
    publishing = asyncio.create_task(_publish(scene))
    begun = time.monotonic()
    early: tuple[int, int] | None = None
    while time.monotonic() - begun < SOAK_S:
        await scene.harm()
        await asyncio.sleep(scene.chance.uniform(0, 1))
        if early is None and time.monotonic() - begun > SOAK_S / 3:
            early = _size(scene.steady)
    async with scene.publishing:  # so that each job that is counted was published
        publishing.cancel()
    scene.ledger.fault_ended()
    await scene.ledger.balance(60)
    case = f"soak: {len(scene.done)} mixed faults in {SOAK_S:.0f} s, seed {SEED}"
    row = scene.ledger.row(case, may_end_twice=scene.may_double)
    assert row.lost == 0, scene.done
    assert row.duplicated <= scene.may_double
    assert scene.ledger.copies_are_identical
    # the first are those that were deferred four times
    assert set(scene.ledger.reasons) <= {"retries_exhausted", "rejected"}
    await _check_growth(scene, early)


async def _check_growth(scene: Scene, early: tuple[int, int] | None) -> None:
    assert early is not None
    memory, descriptors = (late - before for late, before in zip(_size(scene.steady), early, strict=True))
    assert memory < 16 << 20
    assert descriptors < 2 * CONNECTIONS

    async def few_channels() -> bool:
        channels = await asyncio.to_thread(scene.node.control, "eval", "length(rabbit_channel:list()).")
        # for each worker: three lanes, one to publish, one for events, one for audit records; the lock of the worker
        # that sweeps; one of the ledger
        return int(channels) <= 2 * 6 + 1 + 1

    await until(few_channels, "end of the channels of closed connections")
    body = (await scene.steady.get("/metrics"))[1]
    received, settled, held = (
        sum(float(value) for value in re.findall(rf"^otp_ledger_{name}{{.*}} (\S+)$", body, re.MULTILINE))
        for name in ("received_total", "settled_total", "unacked")
    )
    assert received == settled + held


async def _publish(scene: Scene) -> None:
    ledger = scene.ledger
    while True:
        urgent = {"to": f"{ledger.rabbit.queue}.high"} if len(ledger.published) % 10 == 0 else {}
        async with scene.publishing:
            await ledger.publish(1, **urgent)
        await asyncio.sleep(1 / PER_S)


def _size(worker: Worker) -> tuple[int, int]:
    """Return its memory, bytes, and how many descriptors it has open."""
    assert worker.process is not None
    process = Path("/proc") / str(worker.process.pid)
    pages = int((process / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(list((process / "fd").iterdir()))
