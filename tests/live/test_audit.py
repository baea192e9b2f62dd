"""What operators do by commands is logged by one of the workers, wherever the command ran."""

import asyncio
import json
import os
import pwd
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from amqp_proxy import ACK, DELIVER, amqp_proxy
from cli import here, names, otp_stream
from conftest import Stage
from dead_letters import Deployment
from ledger import Ledger
from processes import Process, start
from rabbitmq import until
from redis_server import RedisServer
from visitor import TOKEN
from worker import CODE, Worker

KEY = "c3a5f0917be4d826"
MANY = 3_000
"""More dead letters than a command reads before it acknowledges one."""
BY = f"{pwd.getpwuid(os.getuid()).pw_name}@{socket.gethostname()}"


def audit_lines(*workers: Worker) -> list[dict[str, Any]]:
    return [line for worker in workers for line in worker.lines if line["event"] == "audit"]


async def wait_lines(count: int, *workers: Worker) -> list[dict[str, Any]]:
    """Wait for the audit lines of all workers together."""

    async def logged() -> bool:
        return len(audit_lines(*workers)) >= count

    await until(logged, f"{count} audit lines", 60)
    # by the time of the command: each worker logs the records that it gets at its own pace
    return sorted(audit_lines(*workers), key=lambda it: (it.get("at", ""), it["timestamp"]))


def env(stage: Stage, **more: str) -> dict[str, str]:
    return names(stage) | {"SECRET_KEY": KEY} | more


async def test_each_act_of_a_command_is_one_line_of_one_worker_with_who_where_what_and_how_many(stage: Stage) -> None:
    one, other = [await stage.run(SECRET_KEY=KEY, HTTP_TOKEN=TOKEN, LOG_LEVEL="error") for _ in range(2)]
    deployment = Deployment(stage, one, Ledger(stage))
    await deployment.die(3)
    forged = {"USER": "eve", "LOGNAME": "eve", "SUDO_USER": "root", "SSH_CONNECTION": "203.0.113.9 1 192.0.2.1 22"}
    for arguments in (
        ("list",),
        ("show", "alice@example.com"),
        ("export", "--out", "letters", "--raw"),
        ("replay", "--all"),  # not confirmed
        ("drop", "code=550", "--yes"),
    ):
        await otp_stream(stage.folder, "dead", *arguments, **env(stage), **forged)
    await otp_stream(stage.folder, "topology", "apply", **env(stage, MAX_DELAY_MS="1000", MAX_RETRIES="1"))
    logged = await wait_lines(9, one, other)
    lines = [it for it in logged if it["result"] != "started"]
    began = [it for it in logged if it["result"] == "started"]
    acted = [it["id"] for it in lines if "id" in it]
    assert sorted(it["id"] for it in began) == sorted(acted)
    assert sorted(it["action"] for it in began) == ["dead.drop", "dead.export", "topology.apply"]
    # in any order: the times are in seconds, and each worker logs at its own pace
    assert len(lines) == 6
    of = {it["action"]: it for it in lines}
    assert {name: (it["result"], it.get("count"), it.get("target")) for name, it in of.items()} == {
        "dead.list": ("done", 3, "all"),
        "dead.show": ("done", 0, "job …"),
        "dead.export": ("done", 3, "all"),
        "dead.replay": ("cancelled", None, "all"),
        "dead.drop": ("done", 3, "code 550"),
        "topology.apply": ("done", 0, ""),
    }
    assert {(it["by"], it["via"], it["verified"], it["rabbitmq_user"], it["level"]) for it in lines} == {
        (BY, "command", True, "guest", "info")
    }
    assert all(it["source"] == f"{socket.gethostname()}, no terminal" for it in lines)
    applied = of.pop("topology.apply")
    assert "claimed_sudo_user" not in applied
    assert {(it.get("claimed_sudo_user"), it.get("claimed_ssh_client")) for it in of.values()} == {
        ("root", "203.0.113.9")
    }
    assert (of["dead.export"]["raw"], of["dead.export"]["file"]) == (True, "letters")
    for secret in (CODE, "alice@", KEY):
        assert secret not in one.log_without_fractions + other.log_without_fractions


async def test_a_record_waits_until_a_worker_runs(stage: Stage) -> None:
    assert (await otp_stream(stage.folder, "topology", "apply", **env(stage))).code == 0
    ran = await asyncio.to_thread(here, stage.folder, "dead", "list", **env(stage))
    assert "audit" not in ran.out
    worker = await stage.run(SECRET_KEY=KEY)
    lines = await wait_lines(3, worker)
    assert [it["action"] for it in lines] == ["topology.apply", "topology.apply", "dead.list"]


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)


async def stopped(process: Process, stop: signal.Signals) -> int:
    """Send a signal again and again until the process ends, as an impatient user does. Returns its exit code."""

    async def ended() -> bool:
        with suppress(ProcessLookupError):
            process.send_signal(stop)
        return process.returncode is not None

    await until(ended, "the end of the command")
    return await process.wait()


@pytest.mark.parametrize("stop", SIGNALS)
async def test_an_interrupted_replay_is_recorded_with_the_number_so_far(stage: Stage, stop: signal.Signals) -> None:
    worker = await stage.run(SECRET_KEY=KEY)
    deployment = Deployment(stage, worker, Ledger(stage))
    await deployment.die(40)
    deployment.accept_all()
    words = ("dead", "replay", "--all", "--yes", "--rate", "4")  # ten seconds, of which it takes one
    everything = {**os.environ, **env(stage)}
    output = stage.folder / "out"
    process = await start("otp-stream", *words, folder=stage.folder, env=everything, output=output)
    await stage.relay.wait_accepted(3)
    code = await stopped(process, stop)
    killed = stop == signal.SIGKILL
    lines = await wait_lines(1 if killed else 2, worker)
    assert (lines[0]["action"], lines[0]["result"], lines[0]["target"]) == ("dead.replay", "started", "all")
    if not killed:
        assert code == 1
        assert (lines[1]["action"], lines[1]["result"]) == ("dead.replay", "interrupted")
        assert lines[0]["id"] == lines[1]["id"]
        assert f"interrupted after {lines[1]['count']} of 40" in await asyncio.to_thread(output.read_text)


@pytest.mark.parametrize(
    ("words", "stop"),
    [
        (("dead", "export", "--raw", "--out", "x.json"), signal.SIGHUP),
        (("dead", "drop", "--all", "--yes"), signal.SIGINT),
        (("forget", "user@example.com", "--yes"), signal.SIGTERM),
    ],
)
async def test_a_signal_ends_a_command_with_its_record_and_leaves_no_file(
    stage: Stage, words: tuple[str, ...], stop: signal.Signals
) -> None:
    worker = await stage.run(SECRET_KEY=KEY)  # declares the queues
    await worker.kill()  # the records stay in their queue, where the first one is seen at once
    dead, audit = f"{stage.rabbit.prefix}.dead", f"{stage.rabbit.prefix}.audit"
    message = aio_pika.Message(b'{"email": "user@example.com", "otp": "73915"}')
    await asyncio.gather(*(stage.rabbit.channel.default_exchange.publish(message, dead) for _ in range(MANY)))
    async with amqp_proxy(stage.url) as (proxy, url):
        # an export acknowledges nothing
        hold = proxy.hold("to worker", DELIVER) if "export" in words else proxy.hold("to broker", ACK)
        everything, output = {**os.environ, **env(stage), "RABBITMQ_URL": url}, stage.folder / "out"
        process = await start("otp-stream", *words, folder=stage.folder, env=everything, output=output)
        (first,) = await stage.rabbit.take(audit)
        await asyncio.wait_for(hold.reached.wait(), 20)
        process.send_signal(stop)
        proxy.release()
        assert await stopped(process, stop)
    (second,) = await stage.rabbit.take(audit)
    started, line = json.loads(first.body), json.loads(second.body)
    assert (started["result"], line["result"], line["id"]) == ("started", "interrupted", started["id"])
    assert line["count"] < MANY
    assert not list(stage.folder.glob("x.json*"))
    changed = 0 if "export" in words else line["count"]
    # the last one may be deleted, but not counted yet
    left = MANY - changed
    await until(lambda: held(stage, dead, left - 1, left), "the others in the queue")


async def held(stage: Stage, queue: str, *counts: int) -> bool:
    return await stage.rabbit.depth(queue) in counts


async def test_a_record_that_cannot_be_stored_is_printed_and_stops_no_command(stage: Stage, tmp_path: Path) -> None:
    redis = RedisServer(tmp_path / "redis")
    redis.start()
    try:
        unreachable = env(stage) | {"RABBITMQ_URL": "amqp://127.0.0.1:1/", "REDIS_URL": redis.url}
        words = ("tables", "forget", "user@example.com", "--yes")
        ran = await asyncio.to_thread(here, stage.folder, *words, **unreachable)
    finally:
        redis.remove()
    assert ran.code == 0, ran.out
    assert "RabbitMQ has not stored the audit record" in ran.out
    began, ended = [it for it in ran.out.splitlines() if it.startswith("{")]
    assert '"action": "forget", "result": "started"' in began
    assert '"action": "forget", "result": "done"' in ended
    assert "user@" not in ran.out.partition("{")[2].partition("Forgotten")[0]


async def test_a_forged_or_broken_record_is_marked_and_harms_nothing(stage: Stage) -> None:
    worker = await stage.run(SECRET_KEY=KEY)
    queue = f"{stage.rabbit.prefix}.audit"
    signed = {"x-otp-audit": "1", "x-otp-mac": "0" * 32}
    bodies = (b'{"action": "dead.drop", "by": "ceo\\u001b[2K", "count": 9}', b"\xff", b"[1]", b'{"a": {"b": "c"}}')
    bodies += (b'{"action": "%s"}' % (b"x" * 2_000_000),)
    # names with another meaning in a log line, more than the worker takes at once
    bodies += (b'{"action": "forget", "event": "sent", "level": "debug", "self": 1, "method_name": "x"}',) * 25
    for body in bodies:
        message = aio_pika.Message(body, headers=signed)
        await stage.rabbit.channel.default_exchange.publish(message, queue)
    lines = await wait_lines(30, worker)
    actions = [it["action"] for it in lines if "action" in it]
    assert actions == ["dead.drop", *["unreadable"] * 3, *["forget"] * 25]
    assert {it["verified"] for it in lines} == {False}
    assert "\\u001b" not in worker.log

    async def empty() -> bool:
        return await stage.rabbit.depth(queue) == 0

    await until(empty, "all records to be acked")


async def test_a_worker_without_the_permission_logs_that_and_sends_codes(stage: Stage) -> None:
    queue = f"{stage.rabbit.prefix}.audit"
    await stage.rabbit.channel.declare_queue(queue, durable=True)  # RabbitMQ refuses it with other arguments
    worker = await stage.run(SECRET_KEY=KEY)
    await worker.wait_log("audit records of commands are not logged here")
    await Ledger(stage).publish(1)
    await stage.relay.wait_accepted(1)
