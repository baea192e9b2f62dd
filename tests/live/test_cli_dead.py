"""`otp-stream dead` list, show, export and drop."""

import asyncio
import base64
import json
import stat
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from aio_pika import Message
from cli import Ran, here, names, otp_stream
from conftest import Stage
from dead_letters import REFUSED, Deployment
from ledger import Ledger
from rabbitmq import until
from typer.testing import CliRunner
from visitor import TOKEN
from worker import CODE

from otp_stream.cli.main import cli
from otp_stream.dead_letters import DeadLetterQueue


@pytest.fixture
async def deployment(stage: Stage) -> Deployment:
    worker = await stage.run(SMTP_POOL_SIZE="5", HTTP_TOKEN=TOKEN)
    return Deployment(stage, worker, Ledger(stage))


async def test_a_dead_letter_is_shown_without_its_secrets(deployment: Deployment) -> None:
    await deployment.die(1, metadata={"userName": "Ada Lovelace", "template": "otp", "nested": {"otp": CODE}})
    ran = await deployment.dead("show", "job0", "--json")
    (shown,) = json.loads(ran.out)
    assert shown["recipient"] == "j***@corp.example"
    assert shown["error"].startswith(REFUSED)
    assert shown["content"]["otp"] == f"text of {len(CODE)} characters"
    assert shown["content"]["metadata"]["template"] == "otp"
    assert "Ada" not in ran.out
    assert "job0@" not in ran.out
    assert "j***@corp.example" in (await deployment.dead("show", "job0")).out
    assert (await deployment.dead("show", "nobody")).code == 1


async def test_dead_letters_that_were_not_read_are_reported_and_no_success(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):  # one after another: the order in the queue decides which are read
        await deployment.die(1)
    for method in (DeadLetterQueue.fetch, DeadLetterQueue.for_each, DeadLetterQueue._pass):
        assert method.__kwdefaults__ is not None
        monkeypatch.setitem(method.__kwdefaults__, "limit", 2)

    async def dead(*words: str) -> Ran:
        return await asyncio.to_thread(here, deployment.stage.folder, "dead", *words, **names(deployment.stage))

    out = deployment.stage.folder / "dead-letters.jsonl"
    for words, text in (
        (("export", "--out", str(out)), "1 more were not read, and are not in the output"),
        (("list",), "1 more were not read"),
        (("list", "--json"), '"notRead": 1'),
        (("show", "job2"), "no dead letter has this id (of those read; 1 more were not read)"),
        (
            ("drop", "job=job2", "--yes"),
            "No dead letter matches (of those read; 1 more were not read)",
        ),
        (("replay", "job=job2", "--yes"), "No dead letter matches (of those read"),
    ):
        ran = await dead(*words)
        assert (ran.code, text in ran.out) == (1, True), ran.out
    shown = await dead("show", "job0")
    assert (shown.code, "1 more were not read" in shown.out) == (0, True)
    # those that were not read were not counted either, and a replayed job that dies again is not replayed once more
    again = await dead("replay", "--all", "--yes", "--rate", "0", "--json")
    result = json.loads(again.out[: again.out.rindex("}") + 1])
    assert (again.code, result["deadLetters"], result["notRead"]) == (1, 2, 1)
    await until(lambda: deployment.holds(3), "all of them again")


async def test_bodies_in_memory_are_limited_whatever_is_in_the_queue(deployment: Deployment) -> None:
    rabbit = deployment.stage.rabbit
    large, kept = b"x" * (4 * 1024 * 1024), b"y" * (1024 * 1024)
    await deployment.die(1)
    await rabbit.publish(*[large] * 8, *[kept] * 40, to=f"{rabbit.prefix}.dead", message_id="large")
    tracemalloc.start()
    try:
        dead_letters, not_read = await deployment.queue().fetch()
        assert tracemalloc.get_traced_memory()[1] < 44 * 1024 * 1024
    finally:
        tracemalloc.stop()
    assert (len(dead_letters), not_read) == (49, 0)
    assert Counter(it.size for it in dead_letters if not it.is_job) == {len(large): 8, len(kept): 40}
    out = deployment.stage.folder / "raw.jsonl"
    ran = await deployment.dead("export", "--raw", "--out", str(out))
    assert (ran.code, "8 bodies of more than 1 MiB were not read" in ran.out) == (1, True)
    bodies = [json.loads(line)["body"] for line in out.read_text().splitlines()]
    sizes = Counter(it and len(base64.b64decode(it)) for it in bodies)
    assert (len(bodies), sizes[None], sizes[len(kept)]) == (49, 8, 40)
    dropped = await deployment.dead("drop", "--all", "--yes", "--json")
    assert json.loads(dropped.out)["deadLetters"] == 49
    await deployment.wait_depth(0)


async def test_a_message_that_is_no_job_can_be_read_and_dropped(deployment: Deployment) -> None:
    rabbit = deployment.stage.rabbit
    for body in (b"\xff\x00 no json " + CODE.encode(), json.dumps({"email": "a@b.example", "otp": int(CODE)}).encode()):
        await rabbit.channel.default_exchange.publish(Message(body), rabbit.queue)
    await until(lambda: deployment.holds(2), "two dead letters")
    listed = json.loads((await deployment.dead("list", "--json", "--each")).out)
    assert [(it["reason"], it["deadLetters"]) for it in listed["groups"]] == [("malformed", 2)]
    assert "replay" not in (await deployment.dead("list")).out  # it would fail again
    await deployment.die(1)
    assert "otp-stream dead replay reason=rejected" in (await deployment.dead("list")).out
    assert (await deployment.dead("drop", "reason=rejected", "--yes")).code == 0
    out = deployment.stage.folder / "dead-letters.jsonl"
    assert (await deployment.dead("export", "--out", str(out), "--raw")).code == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert len(out.read_text().splitlines()) == 2
    contents = [json.loads(line)["content"] for line in (await deployment.dead("export")).out.splitlines()]
    assert contents == ["no JSON", {"email": "a***@b.example", "otp": "a number"}]
    assert (await deployment.dead("export", "--raw")).code == 2
    assert (await deployment.dead("drop", "reason=rejected", "--yes")).code == 0
    await deployment.wait_depth(2)
    assert (await deployment.dead("drop", "reason=malformed", "--yes")).code == 0
    await deployment.wait_depth(0)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("replay",), "Which dead letters?"),
        (("drop",), "Which dead letters?"),
        (("replay", "domain"), "must look like reason=rejected"),
        (("list", "reason=gone"), "reason: must be one of malformed, key_missing, expired"),
        (("list", "older=soon"), "older: must look like 10m"),
        (("list", "colour=red"), "colour: is none of reason, code"),
    ],
)
def test_invalid_filters_are_refused(words: tuple[str, ...], shown: str) -> None:
    ran = CliRunner().invoke(cli, ["dead", *words])
    assert ran.exit_code == 2
    assert shown in ran.output


async def test_an_unreachable_broker_is_reported(tmp_path: Path) -> None:
    ran = await otp_stream(tmp_path, "dead", "list", RABBITMQ_URL="amqp://u:hunter2@127.0.0.1:9/")
    assert ran.code == 1
    assert "does not answer" in ran.out
    assert "hunter2" not in ran.out
    assert (await otp_stream(tmp_path, "dead", "list", RABBITMQ_URL="ftp://x")).code == 2


async def test_foreign_text_is_shown_unchanged_and_quoted_in_commands(deployment: Deployment) -> None:
    await deployment.die(1, domain="`id`.example", reply="550 5.7.1 [/blocked] [policy] by us", jobId="[/red]j[bold]")
    shown = (await deployment.dead("list")).out
    assert "[/blocked] [policy]" in shown
    assert "'domain=`id`.example'" in shown
    assert (await deployment.dead("list", "--each")).code == 0
    assert "[/red]j[bold]" in (await deployment.dead("show", "[/red]j[bold]")).out


@pytest.mark.parametrize("action", ["drop", "replay"])
async def test_what_dies_after_the_question_stays(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    rabbit, loop = deployment.stage.rabbit, asyncio.get_running_loop()
    job = {"email": "user@example.com", "otp": "73915"}
    equal = Message(json.dumps(job).encode(), message_id="1")
    other = Message(json.dumps(job | {"jobId": "later"}).encode())

    async def publish(*messages: Message) -> None:
        for message in messages:
            await rabbit.channel.default_exchange.publish(message, f"{rabbit.prefix}.dead")

    questions: list[str] = []

    def confirm(question: str, *_: object) -> None:
        questions.append(question)
        asyncio.run_coroutine_threadsafe(publish(equal, other, equal), loop).result(10)

    await publish(equal, equal)
    await deployment.die(1)
    monkeypatch.setattr("otp_stream.cli.output.confirm", confirm)
    words = ("dead", action, "--all", *(("--fresh-expiry",) if action == "replay" else ()))
    ran = await asyncio.to_thread(here, deployment.stage.folder, *words, **names(deployment.stage))
    assert "3 dead letters" in questions[0]
    assert "deadLetters=3" in ran.out
    # the relay refuses one of those that are sent again
    await until(lambda: deployment.holds(3 if action == "drop" else 4), "those that died since")
