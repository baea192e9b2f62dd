"""`faststream run --workers N`: its parent process and its workers, of which some are killed or cannot start."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from conftest import Stage
from rabbitmq import until
from smtp_relay import Act
from worker import Worker, job

CONSUMING = '"event":"consuming"'
LIMIT_S = 150
"""Time limit for what needs a new interpreter, which takes half a minute on a busy machine."""


def file_of(stage: Stage) -> Path:
    return stage.folder / "tenants.toml"


def workers_of(command: Worker) -> list[int]:
    """Return the process ids of its workers."""
    assert command.process is not None
    pid = command.process.pid
    found: list[int] = []
    with suppress(OSError):  # a process may end meanwhile
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            with suppress(OSError):
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(child)
    return found


@pytest.fixture
async def command(stage: Stage) -> AsyncIterator[Worker]:
    """Start a command with two workers that take one job each, and one of a tenant's queue. Wait until both consume."""
    tenants = file_of(stage)
    tenants.write_text("[tenants.acme]\n")
    command = stage.worker(TENANTS_FILE=str(tenants), PREFETCH_COUNT="2")
    command.options = ("--workers", "2")
    await command.start(ready=False)
    await command.wait_log(CONSUMING, LIMIT_S, times=2)
    yield command
    if command.is_running:
        await command.stop()


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def has_workers(command: Worker, count: int) -> bool:
    return len(workers_of(command)) == count


async def test_a_worker_that_cannot_start_does_not_stop_the_other_one(stage: Stage, command: Worker) -> None:
    first, second = workers_of(command)
    file_of(stage).write_text("[tenants.acme\n")
    os.kill(first, signal.SIGKILL)
    await command.wait_log("A worker failed to start. The others continue.", LIMIT_S)
    assert second in workers_of(command)
    await stage.rabbit.publish(job())
    await stage.relay.wait_accepted(1)
    file_of(stage).write_text("[tenants.acme]\n")
    await command.wait_log(CONSUMING, LIMIT_S, times=3)


@pytest.mark.waits
async def test_a_worker_that_takes_long_to_start_is_not_replaced(stage: Stage) -> None:
    slow = stage.folder / "slow"
    slow.mkdir()
    # more than uvicorn waits for an answer
    (slow / "sitecustomize.py").write_text("import sys, time\nif 'spawn_main' in str(sys.orig_argv): time.sleep(7)\n")
    command = stage.worker(PYTHONPATH=str(slow))
    command.options = ("--workers", "2")
    await command.start(ready=False)
    await command.wait_log(CONSUMING, LIMIT_S, times=2)
    assert "Starting another one" not in command.log
    await command.stop()


async def test_if_no_worker_can_start_the_command_ends_with_a_status_that_restarts_it(
    stage: Stage, command: Worker
) -> None:
    file_of(stage).write_text("[tenants.acme\n")
    for pid in workers_of(command):
        os.kill(pid, signal.SIGKILL)
    assert await command.stopped(LIMIT_S) == 3
    assert "no other one runs" in command.log


async def test_workers_stop_if_their_parent_process_is_killed(stage: Stage, command: Worker) -> None:
    pids = workers_of(command)
    await command.kill()
    await command.wait_log('"event":"stopped"', times=2)

    async def ended() -> bool:
        return not any(map(_exists, pids))

    await until(ended, "the end of the workers")
    again = stage.worker()
    again.port, again.options = command.port, ("--workers", "2")
    await again.start(ready=False)
    await until(partial(has_workers, again, 2), "two workers", LIMIT_S)
    await stage.rabbit.publish(job())
    await stage.relay.wait_accepted(1, LIMIT_S)
    await again.stop()


async def test_a_viewer_of_the_page_does_not_keep_workers_from_stopping(command: Worker) -> None:
    viewers = [await asyncio.open_connection("127.0.0.1", command.port) for _ in range(4)]
    for reader, writer in viewers:
        writer.write(b"GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert head.startswith(b"HTTP/1.1 200")
        assert b"server:" not in head.lower()
    command.signal()
    assert await command.stopped(40) == 0
    for _, writer in viewers:
        writer.close()


async def test_what_uvicorn_writes_in_a_worker_is_a_line_of_the_worker(command: Worker) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", command.port)
    writer.write(b"no request\r\n\r\n")
    await reader.read()
    writer.close()
    await command.wait_log('"event":"Invalid HTTP request received."')
    assert "WARNING:" not in command.log


async def test_a_second_sigterm_to_the_parent_process_ends_the_grace_time_of_its_workers(
    stage: Stage, command: Worker
) -> None:
    stage.relay.always("body", Act(delay_s=60))
    await stage.rabbit.publish(*(job(f"user{number}@example.com") for number in range(4)))
    await stage.relay.wait(lambda: stage.relay.contents > 2, "mails that are being sent by both workers")
    assert command.process is not None
    for pid in (*workers_of(command), command.process.pid):  # systemd sends the first one to all of them
        os.kill(pid, signal.SIGTERM)
    await command.wait_log("stopping: consumers are cancelled", times=2)
    assert '"event":"stopping at once"' not in command.log
    command.signal()
    await command.wait_log('"event":"stopping at once"', times=2)
    assert await command.stopped(20) == 0  # not after the 25 s of the grace time
    assert command.log.count('"event":"stopped"') == 2

    async def returned() -> bool:
        # some of them in the queue of their tenant, and copies too if RabbitMQ answers late
        return sum((await stage.rabbit.depths()).values()) >= 4

    await until(returned, "the jobs, in their queues")


async def test_every_line_of_the_parent_process_is_json(command: Worker) -> None:
    first, _ = workers_of(command)
    os.kill(first, signal.SIGKILL)
    await command.wait_log(CONSUMING, LIMIT_S, times=3)
    await command.stop()
    lines = command.log.splitlines()
    assert [line for line in lines if not line.startswith("{")] == []
    written = {(it["level"], it["event"]) for it in command.lines if it.get("logger") == "uvicorn.error"}
    assert ("warning", f"Worker [{first}] has ended with exit code -9. Starting another one.") in written
    assert any(event.startswith("Stopping parent process") for _, event in written)


async def test_a_second_ctrl_c_does_not_end_workers_before_their_jobs(stage: Stage, command: Worker) -> None:
    signalled = asyncio.Event()
    stage.relay.always("body", Act(until=signalled))
    await stage.rabbit.publish(*(job(f"user{number}@example.com") for number in range(4)))
    await stage.relay.wait(lambda: stage.relay.held > 2, "mails that are being sent by both workers")
    assert command.process is not None
    for _ in range(2):
        for pid in (*workers_of(command), command.process.pid):  # a terminal sends it to all of them
            os.kill(pid, signal.SIGINT)
        await asyncio.sleep(0.1)
    signalled.set()
    assert await command.stopped(40) == 0
    assert command.log.count('"event":"stopped"') == 2
