"""Passwords that change while a worker runs: in their files, and at RabbitMQ, Redis and the relay, under load."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from conftest import Stage, set_stage
from ledger import Ledger
from rabbitmq import Node
from redis_server import RedisServer
from smtp_relay import Act, ScriptedRelay
from worker import Worker, job

OLD, NEW, LAST = "g7Qw-old-1f", "k3Zx-new-8d", "p5Rt-last-2c"
JOBS = 60
IN_USE = "new secret: new connections use it"
LIMIT_S = 40
"""Time limit for a job, including a poll of the files, a reconnect and a redelivery on a busy machine."""


def write(file: Path, content: str | bytes) -> Path:
    """Replace a file at once, as Kubernetes does."""
    new = file.with_suffix(".new")
    new.write_bytes(content if isinstance(content, bytes) else content.encode())
    new.replace(file)
    return file


@pytest.fixture
def node(shared_node: Node) -> Iterator[Node]:
    shared_node.control("add_user", "worker", OLD)
    shared_node.control("set_permissions", "worker", ".*", ".*", ".*")
    yield shared_node
    shared_node.control("delete_user", "worker")


@pytest.fixture
async def own_stage(node: Node, tmp_path: Path) -> AsyncIterator[Stage]:
    async with set_stage(node.url, tmp_path) as stage:
        yield stage


def login(stage: Stage, file: Path) -> dict[str, str]:
    """Make the relay require a password, and return the settings of a worker that reads it from a file."""
    stage.relay.login = ("mailer", OLD)
    return {"SMTP_AUTH": "login", "SMTP_USER": "mailer", "SMTP_PASS_FILE": str(write(file, OLD))}


def check(worker: Worker, ledger: Ledger, *changed: str) -> None:
    """Check that every job was sent once and in time, and that each change was logged once, without the secret."""
    row = ledger.row("rotation")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)
    assert row.late_p99_ms < LIMIT_S * 1000
    assert [it["setting"] for it in worker.lines if it["event"] == IN_USE] == list(changed)
    assert not any(password in worker.log for password in (OLD, NEW, LAST))


async def test_a_new_password_of_rabbitmq_is_used_when_connections_are_lost(own_stage: Stage, node: Node) -> None:
    stage, ledger = own_stage, Ledger(own_stage)
    stage.relay.always("body", Act(delay_s=0.05))
    file = write(stage.folder / "url", f"amqp://worker:{OLD}@127.0.0.1:{node.port}/")
    worker = stage.worker(RABBITMQ_URL_FILE=str(file), SMTP_POOL_SIZE="5", HEARTBEAT_INTERVAL_MS="1000")
    del worker.env["RABBITMQ_URL"]
    await worker.start()
    await ledger.publish(JOBS)
    await stage.relay.wait_accepted(5)

    # first in the file, then at RabbitMQ
    write(file, f"amqp://worker:{NEW}@127.0.0.1:{node.port}/\r\n")
    await worker.wait_log(IN_USE)
    await asyncio.to_thread(node.control, "change_password", "worker", NEW)
    await asyncio.to_thread(node.control, "close_all_user_connections", "worker", "rotation")
    await worker.wait_log("RabbitMQ is back")
    await ledger.publish(JOBS)

    # first at RabbitMQ, then in the file
    await stage.relay.wait_accepted(JOBS + 5)
    await asyncio.to_thread(node.control, "change_password", "worker", LAST)
    await asyncio.to_thread(node.control, "close_all_user_connections", "worker", "rotation")
    await worker.wait_log("RabbitMQ is away", times=2)
    await ledger.publish(JOBS)
    write(file, f"amqp://worker:{LAST}@127.0.0.1:{node.port}/")
    await ledger.balance()
    check(worker, ledger, "RABBITMQ_URL_FILE", "RABBITMQ_URL_FILE")


async def test_a_new_password_of_redis_is_used_when_the_connection_is_lost(stage: Stage, redis: RedisServer) -> None:
    ledger = Ledger(stage)
    stage.relay.always("body", Act(delay_s=0.05))
    redis.command("ACL", "SETUSER", "worker", "on", f">{OLD}", "~*", "&*", "+@all")
    file = write(stage.folder / "url", redis.url.replace("//", f"//worker:{OLD}@"))
    # without Redis, jobs wait: those that are sent have its new password
    worker = await stage.run(REDIS_URL_FILE=str(file), STATE_FAIL="closed", SMTP_POOL_SIZE="5")
    await ledger.publish(JOBS)
    await stage.relay.wait_accepted(5)
    redis.command("ACL", "SETUSER", "worker", "resetpass", f">{NEW}")
    assert int(redis.command("CLIENT", "KILL", "USER", "worker").removeprefix(":")) > 0
    await worker.wait_log("Redis does not answer")
    await ledger.publish(JOBS)
    write(file, redis.url.replace("//", f"//worker:{NEW}@"))
    await worker.wait_log("Redis answers again")
    await ledger.balance()
    check(worker, ledger, "REDIS_URL_FILE")


async def test_a_new_password_of_the_relay_is_used_for_new_connections(stage: Stage) -> None:
    ledger = Ledger(stage)
    stage.relay.always("body", Act(delay_s=0.05, then="close"))  # each mail needs a login
    file = stage.folder / "pass"
    worker = await stage.run(**login(stage, file), SMTP_POOL_SIZE="5")
    await ledger.publish(JOBS)
    await stage.relay.wait_accepted(5)

    # at the relay and in the file at the same time
    stage.relay.login = ("mailer", NEW)
    write(file, NEW)
    await ledger.publish(JOBS)
    await stage.relay.wait_accepted(JOBS)

    # first at the relay: jobs wait behind the circuit breaker until the file is new
    stage.relay.login = ("mailer", LAST)
    await ledger.publish(JOBS)
    await worker.wait_log("login_refused")
    write(file, f"{LAST}\n")
    await ledger.balance()
    check(worker, ledger, "SMTP_PASS_FILE", "SMTP_PASS_FILE")


async def test_a_new_password_of_a_fallback_is_used(stage: Stage) -> None:
    await stage.relay.stop()
    async with ScriptedRelay(login=("mailer", OLD)) as fallback:
        ledger = Ledger(stage, fallback)
        urls = f"smtp://mailer:{{}}@127.0.0.1:{fallback.port}?tls=none"
        file = write(stage.folder / "urls", urls.format(OLD))
        worker = await stage.run(SMTP_FALLBACK_URLS_FILE=str(file))
        await ledger.publish(JOBS)
        await ledger.balance()
        fallback.login = ("mailer", NEW)
        fallback.cut()
        await ledger.publish(JOBS)
        write(file, urls.format(NEW))
        await ledger.balance()
        check(worker, ledger, "SMTP_FALLBACK_URLS_FILE")


async def test_sighup_reads_the_files_at_once_at_any_time(stage: Stage) -> None:
    ledger = Ledger(stage)
    stage.relay.always("body", Act(delay_s=0.05, then="close"))
    file = stage.folder / "pass"
    worker = stage.worker(**login(stage, file), SMTP_POOL_SIZE="5")
    await worker.start(ready=False)
    await worker.wait_log("otp-stream starts")
    worker.signal(signal.SIGHUP)
    await worker.wait_ready()
    await ledger.publish(JOBS)
    await stage.relay.wait_accepted(5)
    stage.relay.login = ("mailer", NEW)
    write(file, NEW)
    worker.signal(signal.SIGHUP)
    await worker.wait_log(IN_USE)
    await ledger.balance()
    await ledger.publish(JOBS)
    worker.signal()
    await worker.wait_log("stopping")
    worker.signal(signal.SIGHUP)
    assert await worker.stopped() == -signal.SIGTERM
    await stage.run(**login(stage, file))
    await ledger.balance()
    check(worker, ledger, "SMTP_PASS_FILE")
    hangups = [it["settings"] for it in worker.lines if it["event"] == "SIGHUP: reading files"]
    assert hangups[:2] == [["SMTP_PASS_FILE"]] * 2


async def test_sighup_without_files_changes_nothing(stage: Stage) -> None:
    worker = await stage.run()
    worker.signal(signal.SIGHUP)
    await worker.wait_log("SIGHUP: reading files")
    await stage.rabbit.publish(job())
    await stage.relay.wait_accepted(1)


async def test_a_file_that_changes_all_the_time_disturbs_no_job(stage: Stage) -> None:
    ledger = Ledger(stage)
    stage.relay.always("body", Act(delay_s=0.02, then="close"))
    file = stage.folder / "pass"
    worker = await stage.run(**login(stage, file), SMTP_POOL_SIZE="5")
    await ledger.publish(2 * JOBS)
    for number in range(50):
        content = (OLD, "", b"\xff", OLD[:3], None)[number % 5]
        if content is None:
            file.unlink()
        elif number % 2:
            write(file, content)
        else:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        worker.signal(signal.SIGHUP)
        await asyncio.sleep(0.02)
    write(file, OLD)
    await ledger.balance()
    row = ledger.row("many changes")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)
    assert OLD not in worker.log


async def test_two_workers_of_one_process_use_a_new_password(stage: Stage) -> None:
    ledger = Ledger(stage)
    stage.relay.always("body", Act(delay_s=0.05, then="close"))
    file = stage.folder / "pass"
    # with a small prefetch, neither worker can take all jobs
    worker = stage.worker(**login(stage, file), SMTP_POOL_SIZE="5", PREFETCH_COUNT="10")
    worker.options = ("--workers", "2")
    await worker.start(ready=False)
    await worker.wait_log('"event":"consuming"', 150, times=2)
    await ledger.publish(JOBS)
    await stage.relay.wait_accepted(5)
    stage.relay.login = ("mailer", NEW)
    write(file, NEW)
    await worker.wait_log(IN_USE, times=2)
    await ledger.publish(JOBS)
    await ledger.balance()
    check(worker, ledger, "SMTP_PASS_FILE", "SMTP_PASS_FILE")
    # the supervisor passes the signal on, and replaces no worker
    worker.signal(signal.SIGHUP)
    await worker.wait_log("SIGHUP: reading files", times=2)
    assert worker.log.count('"event":"consuming"') == 2
    await worker.stop()
