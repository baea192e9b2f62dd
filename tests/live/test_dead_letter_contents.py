"""Dead letters with foreign contents: all are readable, and none shows a code or an address."""

import asyncio
import json
import os
import stat
import struct
import time

import pytest
from aio_pika import Message
from cli import names
from conftest import Stage
from dead_letters import Deployment
from ledger import Ledger
from processes import SCRIPTS
from rabbitmq import until
from visitor import TOKEN
from worker import CODE, job


@pytest.fixture
async def deployment(stage: Stage) -> Deployment:
    worker = await stage.run(SMTP_POOL_SIZE="5", HTTP_TOKEN=TOKEN)
    return Deployment(stage, worker, Ledger(stage))


async def test_a_code_in_place_of_a_name_is_shown_nowhere(deployment: Deployment) -> None:
    stage, rabbit = deployment.stage, deployment.stage.rabbit
    stage.relay.always("rcpt", "550 5.1.1 no such user", to=f"eve@{CODE}.example")
    events = await rabbit.channel.declare_queue(exclusive=True)
    await events.bind(f"{rabbit.prefix}.events", "#")
    await rabbit.publish(job("ada@corp.example", jobId="as-template", metadata={"template": f"t-{CODE}"}))
    await rabbit.publish(job(f"eve@{CODE}.example", jobId="as-domain"))
    # a message that others publish there has none of our headers
    odd = Message(b"no job", message_id=CODE, headers={"x-otp-died-at": 10**18})
    await rabbit.channel.default_exchange.publish(odd, f"{rabbit.prefix}.dead")
    await until(lambda: deployment.holds(3), "three dead letters")
    commands = (("list",), ("list", "--each"), ("show", "as-template"), ("export",))
    outputs = [(await deployment.dead(*words)).out for words in commands]
    assert "as-template" in outputs[1]
    assert "as-domain" in outputs[1]
    assert "***" in outputs[2]
    outputs += [(await deployment.worker.get(path))[1] for path in ("/", "/dead", "/health")]
    await deployment.worker.wait_log("job is dead-lettered", times=2)
    outputs += [await deployment.page(), deployment.worker.log_without_fractions]
    for _ in range(2):
        event = await until(lambda: events.get(fail=False), "an event")
        outputs.append(event.body.decode())
    assert CODE not in "".join(outputs)
    (event_text,) = (it for it in outputs if it.startswith('{"jobId":"as-template"'))
    assert '"template":"***"' in event_text
    assert '"template":"***"' in deployment.worker.log.replace(": ", ":")
    assert stage.relay.accepted == []


async def test_no_foreign_message_makes_other_dead_letters_unreadable(deployment: Deployment) -> None:
    rabbit, folder = deployment.stage.rabbit, deployment.stage.folder
    await rabbit.publish(
        b'{"\\ud800key": 1, "jobId": "x"}',
        b'{"jobId": "nan-1", "timestamp": NaN, "retryCount": 1e999}',
        json.dumps({"email": "nobody", "otp": f" {CODE} ", "jobId": f"login-{CODE}"}).encode(),
        json.dumps({"email": " eve@corp.example ", "otp": int(CODE), "jobId": "eve@corp.example"}).encode(),
        json.dumps({"to": "eve@corp.example", "code": CODE, "jobId": f"otp:{CODE}"}).encode(),
    )
    await until(lambda: deployment.holds(5), "five dead letters")
    far = Message(job(), headers={"x-otp-first-seen": 253_402_300_799_000, "x-otp-job-id": "far"})
    await rabbit.channel.default_exchange.publish(far, f"{rabbit.prefix}.dead")
    await until(lambda: deployment.holds(6), "six dead letters")
    outputs: list[str] = []
    for words in (
        ("list",),
        ("list", "--each"),
        ("export",),
        ("show", "nan-1", "--json"),
        ("list", "--each", "--json"),
    ):
        ran = await deployment.dead(*words)
        assert ran.code == 0, ran.out
        outputs.append(ran.out)
    assert len(json.loads(outputs[-1])["each"]) == 6
    shown = json.loads(outputs[-2], parse_constant=pytest.fail)
    assert shown[0]["content"]["timestamp"] == shown[0]["content"]["retryCount"] == "a number"
    await deployment.worker.wait_log("job is dead-lettered", times=5)
    page = (await deployment.worker.get("/"))[1]
    outputs += [deployment.worker.log_without_fractions, page, await deployment.page()]
    assert "eve@" not in "".join(outputs)
    assert CODE not in "".join(outputs)
    out = folder / "kept.jsonl"
    out.write_text("before")
    assert (await deployment.dead("export", "--out", str(out), "--raw")).code == 0
    assert len(out.read_text().splitlines()) == 6
    os.mkfifo(folder / "pipe")
    for place in (folder / "pipe", folder, folder / "none" / "x"):
        ran = await deployment.dead("export", "--out", str(place))
        assert (ran.code, "--out: " in ran.out) == (2, True)
    assert stat.S_ISFIFO((folder / "pipe").stat().st_mode)


_FLAGS = {"headers": 1 << 13, "message_id": 1 << 7, "timestamp": 1 << 6, "type": 1 << 5}


_NOT_UTF_8 = b"\xff" + b"\xfe" * 255


_NO_TIME = b"T" + b"\xff" * 8


def _table(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def _nested(depth: int) -> bytes:
    found = b""
    for _ in range(depth):
        found = b"\x01nF" + _table(found)
    return _table(found)


ODD = {
    "a time beyond all calendars": ("timestamp", b"\xff" * 8),
    "a time in microseconds": ("timestamp", struct.pack(">Q", 1_700_000_000_000_000)),
    "an id that is not UTF-8": ("message_id", _NOT_UTF_8),
    "a type that is not UTF-8": ("type", _NOT_UTF_8),
    "a header with such a time": ("headers", _table(b"\x01t" + _NO_TIME)),
    "a list with such a time": ("headers", _table(b"\x01tA" + _table(_NO_TIME))),
    "a name that is not UTF-8": ("headers", _table(b"\x02\xff\xfet\x01")),
    "tables in tables": ("headers", _nested(3_000)),
}


async def test_properties_that_no_client_can_read_hide_no_dead_letter(deployment: Deployment) -> None:
    rabbit = deployment.stage.rabbit
    for number, (name, value) in enumerate(ODD.values()):
        body = job(f"odd{number}@corp.example", jobId=f"odd{number}")
        await rabbit.publish_raw(body, _FLAGS[name], value, f"{rabbit.prefix}.dead")
    await deployment.wait_depth(len(ODD))  # they were published without confirms
    await deployment.die(1)
    await until(lambda: deployment.holds(len(ODD) + 1), "every dead letter")
    shown = json.loads(await _in_a_new_process(deployment, "dead", "list", "--each", "--json"))
    ids = {f"odd{number}" for number in range(len(ODD))}
    assert (shown["deadLetters"], shown["notRead"]) == (len(ODD) + 1, 0)
    assert {it["jobId"] for it in shown["each"]} >= ids
    assert f"{len(ODD) + 1} jobs could not be sent" in await deployment.page()
    assert (await deployment.dead("show", "odd0")).code == 0
    deployment.accept_all()
    await _in_a_new_process(deployment, "dead", "replay", "--all", "--yes", "--rate", "0")
    await deployment.stage.relay.wait_accepted(len(ODD) + 1)


async def _in_a_new_process(deployment: Deployment, *words: str) -> str:
    # the processes that tests fork have imported the worker, which has set up pamqp already
    process = await asyncio.create_subprocess_exec(
        SCRIPTS / "otp-stream", *words,
        cwd=deployment.stage.folder, env=os.environ | names(deployment.stage), stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, out
    return out.decode()


async def test_unsigned_headers_are_trusted_nowhere(deployment: Deployment) -> None:
    stage, worker, rabbit = deployment.stage, deployment.worker, deployment.stage.rabbit
    now_ms = time.time_ns() // 1_000_000
    forged = {
        "x-otp-attempt": -2_000, "x-otp-job-id": f"{'j' * 5_000}{CODE}", "x-otp-first-seen": now_ms + 9_000_000,
        "x-otp-replayed-at": now_ms, "x-otp-replayed-by": CODE, "x-otp-fresh": "yes", "x-otp-reason": "rejected",
        "x-otp-error": f"550 5.1.1 {CODE}", "x-otp-mac": "0" * 32,
    }  # fmt: skip
    expired = job("late@example.com", jobId="late", timestamp=now_ms - 3_600_000)
    later = job("later@example.com", jobId="later")
    stage.relay.always("rcpt", "451 4.3.0 try later", to="later@example.com")
    for body in (expired, later):
        await rabbit.publish(body, to=f"{rabbit.prefix}.retry.due", headers=forged)
    await until(lambda: deployment.holds(2), "two dead letters")
    await rabbit.publish(job("dead@example.com", jobId="dead"), to=f"{rabbit.prefix}.dead", headers=forged)
    await until(lambda: deployment.holds(3), "three dead letters")
    each = json.loads((await deployment.dead("list", "--each", "--json")).out)["each"]
    shown = {it["jobId"]: (it["reason"], it["attempt"], it["verified"]) for it in each}
    assert shown == {
        "late": ("expired", 0, True), "later": ("retries_exhausted", 2, True), "dead": ("rejected", 0, False),
    }  # fmt: skip

    async def counted() -> bool:
        return await worker.metric("otp_unverified_retries_total") == 2

    await until(counted, "two unverified retries")
    metrics, page = (await worker.get("/metrics"))[1], await deployment.page()
    assert {row for row in metrics.splitlines() if row.startswith("otp_retries_total{")} == {
        'otp_retries_total{attempt="1"} 1.0'
    }
    assert "its headers have no valid signature" in page
    listed = (await deployment.dead("list", "--each")).out
    assert "rejected (unverified)" in listed
    assert "1 of them are unverified" in listed
    await worker.wait_log("not signed with SECRET_KEY")
    assert CODE not in f"{worker.log_without_fractions}{metrics}{page}{each}{listed}"
    assert stage.relay.accepted == []


async def test_the_id_of_a_message_that_is_no_job_is_no_possible_secret(deployment: Deployment) -> None:
    body = json.dumps({"email": "vic.tim@ok.example", "otp": int(CODE)}).encode()
    await deployment.stage.rabbit.publish(body, message_id="vic.tim@ok.example")
    await deployment.worker.wait_log("job is dead")
    assert "vic.tim@" not in deployment.worker.log + (await deployment.dead("list", "--each")).out
