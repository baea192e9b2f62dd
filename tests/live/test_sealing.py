"""Sealed codes from end to end: what RabbitMQ stores, keys that change under load, and keys that are gone."""

import asyncio
import json
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from aio_pika import Message
from aio_pika.abc import AbstractIncomingMessage
from cli import Ran, names, otp_stream
from conftest import Stage
from ledger import Ledger
from rabbitmq import until
from worker import CODE, Worker, job

from otp_stream.client import OtpClient, OtpJob
from otp_stream.core.body_at_rest import at_rest
from otp_stream.core.sealed_body import Content, is_sealed
from otp_stream.core.sealing_keys import keys_of, new_jwk, read_keys
from otp_stream.core.secret_search import Searched, contains_any, of_code

EXAMPLE = Path(__file__).parents[2] / "examples" / "sealed_producer.mjs"
KINDS = ("oct", "p256", "x25519")
RELOADED = "new secret: new jobs use it"


def write(file: Path, *jwks: dict[str, Any]) -> Path:
    """Replace a file of keys at once."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps({"keys": jwks}, indent=1))
    new.replace(file)
    return file


def contains_code(message: AbstractIncomingMessage) -> bool:
    """Return whether the code is anywhere in a message, in any usual encoding."""
    properties = [message.message_id, message.correlation_id, message.type, message.app_id, message.reply_to]
    text = f"{message.body.decode('latin-1')} {message.headers} {properties}"
    return contains_any(Searched(text), of_code(CODE))


def waits(stage: Stage) -> list[str]:
    """Return the routing keys of the wait queues."""
    return [last for it in stage.rabbit.names() if ".retry." in it and (last := it.rpartition(".")[2]).isdecimal()]


async def dead_letters(stage: Stage, count: int) -> list[AbstractIncomingMessage]:
    """Return the dead letters, which stay in the queue."""
    name = f"{stage.rabbit.prefix}.dead"
    await stage.rabbit.wait_depth(count, name)

    async def read() -> list[AbstractIncomingMessage]:
        channel = await stage.rabbit.connection.channel()
        queue = await channel.get_queue(name, ensure=False)
        found = [it for _ in range(count) if (it := await queue.get(fail=False)) is not None]
        await channel.close()
        return found if len(found) == count else []  # a worker may read them at the moment

    found = await until(read, f"{count} dead letters")
    await stage.rabbit.wait_depth(count, name)
    return found


async def dead(stage: Stage, *words: str, file: Path | None = None, **env: str) -> Ran:
    """Run `otp-stream dead` with these keys."""
    keys = {"SEALING_KEYS_FILE": str(file)} if file else {}
    return await otp_stream(stage.folder, "dead", *words, **names(stage), **keys, **env)


async def run(stage: Stage, file: Path, **changes: str) -> Worker:
    return await stage.run(SEALING_KEYS_FILE=str(file), PREFETCH_COUNT="50", **changes)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_sealed_code_is_sent(stage: Stage, kind: str) -> None:
    jwk = new_jwk(kind)
    worker = await run(stage, write(stage.folder / "keys", jwk))
    status, public = await worker.get("/jwks.json")
    assert (status, json.loads(public)) == (200, keys_of(jwk).public())
    rabbit = stage.rabbit
    key = jwk if kind == "oct" else public
    client = OtpClient(stage.url, queue=rabbit.queue, prefix=rabbit.prefix, sealing_key=key)
    async with client, client.follow("j-1") as events, asyncio.timeout(20):
        await client.publish(OtpJob(email="user@example.com", otp=CODE, job_id="j-1"))
        assert [it.outcome async for it in events] == ["sent"]
    (mail,) = stage.relay.accepted
    assert CODE in mail.content.decode()
    assert CODE not in worker.log_without_fractions
    assert resource.prlimit(worker.process.pid, resource.RLIMIT_CORE) == (1, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
async def test_the_example_for_node_seals(stage: Stage, kind: str) -> None:
    jwk = new_jwk(kind)
    await run(stage, write(stage.folder / "keys", jwk))
    key = stage.folder / "public.json"
    key.write_text(json.dumps(jwk if kind == "oct" else keys_of(jwk).public()))
    process = await asyncio.create_subprocess_exec(
        "node", str(EXAMPLE), str(key), "user@example.com", CODE, "j-1", stdout=asyncio.subprocess.PIPE
    )
    body, _ = await asyncio.wait_for(process.communicate(), 20)
    assert CODE.encode() not in body
    await stage.rabbit.publish(body)
    await stage.relay.wait_accepted(1)
    assert CODE in stage.relay.accepted[0].content.decode()


async def test_nothing_that_a_worker_publishes_contains_a_code(stage: Stage) -> None:
    file = write(stage.folder / "keys", new_jwk("p256"), new_jwk("oct"))
    stage.relay.always("rcpt", "451 4.3.0 later")
    await stage.rabbit.declare()
    copied = await stage.rabbit.channel.declare_queue(exclusive=True)
    await run(stage, file, BASE_DELAY_MS="200")
    for exchange, keys in (("retry", waits(stage)), ("events", ["otp.#"])):
        for key in keys:
            await copied.bind(f"{stage.rabbit.prefix}.{exchange}", key)
    bodies = [
        job(email=f"a{n}@example.com", jobId=f"j{n}", **more)
        for n, more in enumerate([{}, {"metadata": {"pin": CODE}}, {"otp_sealed": "x"}, {"metadata": {"x": "739 154"}}])
    ]
    headers = {"note": f"code {CODE}", "kept": "yes"}
    await stage.rabbit.publish(*bodies, headers=headers, correlation_id=f"c{CODE}", message_id=f"m-{CODE}")
    await stage.rabbit.publish(b'{"email": "b@example.com", "otp": 739154}', b"no json 739154", f"eyJ{CODE}".encode())
    found = await dead_letters(stage, 7)
    copies: list[AbstractIncomingMessage] = []

    async def retried() -> bool:
        while copy := await copied.get(no_ack=True, fail=False):
            copies.append(copy)
        return len([it for it in copies if it.routing_key.isdecimal()]) >= 4

    await until(retried, "a retry of each job")
    assert [it.body for it in (*found, *copies) if contains_code(it)] == []
    assert {str(it.headers["x-otp-reason"]) for it in found} == {"malformed", "retries_exhausted"}
    assert sum(is_sealed(it.body) for it in found) == 5
    assert all(it.content_type == "application/jose" for it in found if is_sealed(it.body))
    assert all(it.headers["kept"] == "yes" for it in found if it.headers["x-otp-reason"] != "malformed")

    # an operator sees the same as without sealing, with the keys; without them, a message asks for them
    listed = json.loads((await dead(stage, "list", "--json", "--each", file=file)).out)
    assert {it["recipient"] for it in listed["each"]} == {"a***@example.com", ""}
    shown = await dead(stage, "export", file=file)
    assert '"otp": "a number"' in shown.out
    assert CODE not in shown.out
    blind = await dead(stage, "export")
    assert "sealed as a whole with a key that is not in SEALING_KEYS" in blind.out
    stage.relay.always("rcpt", None)
    replayed = await dead(stage, "replay", "reason=retries_exhausted", "--yes", file=file)
    assert replayed.code == 0
    await stage.relay.wait_accepted(4)
    assert all(CODE in it.content.decode() for it in stage.relay.accepted)
    replays = await dead(stage, "replay", "reason=malformed", "--yes", file=file)
    assert replays.code == 0
    again = await dead_letters(stage, 3)
    assert {str(it.headers["x-otp-reason"]) for it in again} == {"malformed"}
    assert not any(map(contains_code, again))


async def test_dead_letters_from_before_are_sealed_when_they_are_replayed(stage: Stage) -> None:
    stage.relay.then("rcpt", "550 5.1.1 unknown")
    plain = await stage.run()
    await stage.rabbit.publish(job(jobId="j-1"), headers={"note": f"code {CODE}"})
    (found,) = await dead_letters(stage, 1)
    assert contains_code(found)
    await plain.stop()
    file = write(stage.folder / "keys", new_jwk("x25519"))
    assert (await dead(stage, "replay", "job=j-1", "--yes", file=file)).code == 0
    (replayed,) = await stage.rabbit.take(f"{stage.rabbit.prefix}.retry.due")
    assert not contains_code(replayed)
    assert json.loads(replayed.body).keys() == {"email", "jobId", "retryCount", "otpSealed"}


async def test_a_key_that_is_gone_costs_no_code(stage: Stage) -> None:
    old, new = new_jwk("p256"), new_jwk("p256")
    file = write(stage.folder / "keys", new)
    await run(stage, file)
    sealed = at_rest(Content(job(jobId="j-1")), keys_of(old)).body
    whole = at_rest(Content(job(jobId="j-2", metadata={"pin": CODE})), keys_of(old)).body
    await stage.rabbit.publish(sealed, whole)
    found = await dead_letters(stage, 2)
    assert {str(it.headers["x-otp-reason"]) for it in found} == {"key_missing"}
    assert {it.body for it in found} == {sealed, whole}
    assert {str(it.headers["x-otp-error"]).partition(":")[0] for it in found} == {"otpSealed", "body"}
    assert all(str(old["kid"]) in str(it.headers["x-otp-error"]) for it in found)
    # without the key, a replay ends in the same way, and a sealed job is still shown as a job
    listed = json.loads((await dead(stage, "list", "--json", "--each", file=file)).out)
    assert {it["recipient"] for it in listed["each"]} == {"u***@example.com", ""}
    assert (await dead(stage, "replay", "reason=key_missing", "--yes", file=file)).code == 0
    again = await dead_letters(stage, 2)
    assert {str(it.headers["x-otp-reason"]) for it in again} == {"key_missing"}

    write(file, new, old)
    await stage.workers[0].wait_log(RELOADED)
    assert (await dead(stage, "replay", "reason=key_missing", "--yes", file=file)).code == 0
    await stage.relay.wait_accepted(2)
    assert all(CODE in it.content.decode() for it in stage.relay.accepted)


async def test_keys_are_rotated_under_load_and_each_job_is_sent_once(stage: Stage) -> None:
    jobs = 1_000
    first, second, third = new_jwk("oct"), new_jwk("p256"), new_jwk("oct")
    file = write(stage.folder / "keys", first)
    ledger = Ledger(stage)
    for number in range(0, jobs, 10):  # a tenth of the jobs, sealed or not, is sealed again for its retry
        stage.relay.then("rcpt", "451 4.3.0 later", to=f"job{number}@example.com")
    worker = await run(stage, file, BASE_DELAY_MS="200")
    sealing = [keys_of(first)]

    async def publish(number: int) -> None:
        job_id = f"job{number}"
        ledger.published[job_id] = time.monotonic()
        body = job(f"{job_id}@example.com", jobId=job_id, timestamp=time.time_ns() // 1_000_000)
        if number % 4:
            body = at_rest(Content(body), sealing[0]).body
        await stage.rabbit.channel.default_exchange.publish(Message(body, delivery_mode=2), stage.rabbit.queue)

    async def publish_some(start: int, end: int) -> None:
        for at in range(start, end, 50):
            await asyncio.gather(*map(publish, range(at, min(at + 50, end))))

    steps = ((first, second), (second, first), (second, first, third), (third, second, first))
    for number, jwks in enumerate(steps):
        publishing = asyncio.create_task(publish_some(number * 200, (number + 1) * 200))
        write(file, *jwks)
        await publishing
        await worker.wait_log(RELOADED, times=number + 1)
        sealing[0] = read_keys(json.dumps({"keys": [jwks[-1] if number % 2 == 0 else jwks[0]]}))
    await publish_some(800, jobs)
    await ledger.balance(60)
    assert (ledger.lost, ledger.duplicated, dict(ledger.reasons)) == (set(), set(), {})
    assert len(stage.relay.accepted) == jobs


async def test_a_sealed_body_whose_properties_amqp_cannot_carry_ends_like_any_other(stage: Stage) -> None:
    jwk = new_jwk("p256")
    await run(stage, write(stage.folder / "keys", jwk), MAX_RETRIES="0")
    stage.relay.always("rcpt", "550 5.1.1 mailbox unknown")
    await stage.rabbit.publish(keys_of(jwk).seal({"cty": "x" * 300}, job(jobId="j-1")))
    (found,) = await dead_letters(stage, 1)
    assert found.headers["x-otp-reason"] == "rejected"
    assert not contains_code(found)
