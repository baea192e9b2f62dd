"""Faults of the machine: a full disk, a clock that is set back or forward, no file descriptors left."""

import json
import resource
from pathlib import Path

import pytest
from conftest import Stage
from ground import FAKETIME
from ledger import Ledger
from rabbitmq import until
from smtp_relay import Act

JOBS = 100
HOUR_S = 3600
LARGE = 15 * 1024 * 1024
"""Bytes of a body; RabbitMQ 4 takes at most 16 MiB."""


@pytest.fixture
def ledger(stage: Stage) -> Ledger:
    return Ledger(stage)


async def test_its_log_is_on_a_full_disk(stage: Stage, ledger: Ledger) -> None:
    worker = stage.worker(SMTP_POOL_SIZE="5", LOG_LEVEL="debug")
    worker.output = Path("/dev/full")
    for number in range(0, JOBS, 10):
        stage.relay.always("rcpt", "550 5.1.1 no such user", to=f"job{number}@example.com")
        stage.relay.then("rcpt", "451 4.3.0 later", to=f"job{number + 1}@example.com")
    await worker.start()
    await ledger.publish(JOBS)
    ledger.fault_ended()
    await ledger.balance()
    row = ledger.row("worker's log on a full disk")
    assert (row.lost, row.duplicated, ledger.reasons) == (0, 0, {"rejected": JOBS // 10})


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S], ids=["forth", "back"])
async def test_its_clock_is_set(stage: Stage, ledger: Ledger, jump_s: int) -> None:
    clock = stage.folder / "clock"
    clock.write_text("+0")
    faked = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    stage.relay.always("body", Act(delay_s=0.1))
    for number in range(0, JOBS, 10):
        stage.relay.then("rcpt", "451 4.3.0 later", to=f"job{number}@example.com")
    worker = stage.worker(SMTP_POOL_SIZE="5", OTP_EXPIRY_MINUTES="180", HEARTBEAT_INTERVAL_MS="500", **faked)
    await worker.start()
    await ledger.publish(JOBS)
    await stage.relay.wait_accepted(20)
    await stage.relay.stop()
    await worker.wait_log("circuit breaker open")
    clock.write_text(f"{jump_s:+d}")
    await worker.wait_log("the clock was set")
    await stage.relay.start()
    ledger.fault_ended()
    await ledger.balance()
    row = ledger.row(f"worker's clock set {'forward' if jump_s > 0 else 'back'} by an hour, relay down")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)


async def test_it_has_no_file_descriptors_left(stage: Stage, ledger: Ledger) -> None:
    worker = stage.worker(SMTP_POOL_SIZE="20")
    await worker.start()
    assert worker.process is not None
    pid = worker.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    # not as many as are open: one that closes later would make room for a connection
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
    await ledger.publish(JOBS)
    await worker.wait_log("Too many open files")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    ledger.fault_ended()
    await ledger.balance()
    row = ledger.row("worker without file descriptors")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)

    async def ready() -> bool:
        return (await worker.get("/readyz"))[0] == 200

    await until(ready, "readiness")


async def test_bodies_too_large_to_keep_do_not_fill_its_memory(stage: Stage, ledger: Ledger) -> None:
    worker = await stage.run()
    assert worker.process is not None
    status = Path(f"/proc/{worker.process.pid}/status")
    large = b"x" * LARGE
    before = _peak(status)
    await stage.rabbit.publish(*[large] * 4, *[b"y" * 1024 * 1024] * 4)
    await ledger.publish(1)
    await stage.relay.wait_accepted(1)
    dead_letters = await stage.rabbit.dead(8, timeout=40)
    assert sorted(len(it.body) for it in dead_letters)[4:] == [1024 * 1024] * 4
    stubs = [json.loads(it.body) for it in dead_letters if len(it.body) < 1024]
    assert [it["originalSize"] for it in stubs] == [LARGE] * 4
    assert {it.headers["x-otp-reason"] for it in dead_letters} == {"malformed"}
    assert _peak(status) - before < LARGE * 2
    await stage.rabbit.wait_depth(0)


def _peak(status: Path) -> int:
    """Return the most memory that a process has had, in bytes."""
    return next(int(it.split()[1]) * 1024 for it in status.read_text().splitlines() if it.startswith("VmHWM"))
