"""`otp-stream forget`: what is stored about one recipient is deleted, and the receipt says what remains."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aio_pika import Message
from cli import Ran, names, otp_stream
from conftest import Stage
from dead_letters import Deployment
from ledger import Ledger
from rabbitmq import free_port, until
from redis_server import RedisServer
from visitor import TOKEN, Visitor
from worker import CODE, Worker, job

from otp_stream.core.masking import hash_address
from otp_stream.core.sealed_body import JOSE, Content, seal_body
from otp_stream.core.sealing_keys import keys_of, new_jwk

ADDRESS, OTHER = "Ada.Lovelace@example.com", "bob@example.com"
KEY = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.remove()


def url(server: RedisServer) -> str:
    return f"redis://127.0.0.1:{server.port}/0"


async def start(stage: Stage, redis: RedisServer) -> Worker:
    """Start a worker whose relay refuses both recipients, and wait until it has a connection to Redis."""
    for person in (ADDRESS, OTHER):
        stage.relay.always("rcpt", "550 5.1.1 no such user", to=person)
    limits = {"RECIPIENT_LIMIT": "1/1h", "SUPERSEDE": "latest"}
    worker = await stage.run(REDIS_URL=url(redis), SECRET_KEY=KEY, HTTP_TOKEN=TOKEN, **limits)

    async def shares() -> bool:
        return (await worker.health())["tables"]["connected"]

    await until(shares, "a connection to Redis")
    return worker


def keys_in(redis: RedisServer) -> set[str]:
    """Return all keys but those of workers, which expire while a worker does not run."""
    found = {line for line in redis.command("KEYS", "*").split() if not line.startswith(("*", "$"))}
    return {key for key in found if ":worker:" not in key}


async def forget(stage: Stage, *words: str, **env: str) -> Ran:
    ran = await otp_stream(stage.folder, "forget", *words, **names(stage), SECRET_KEY=KEY, **env)
    assert CODE not in ran.out
    return ran


async def test_tables_dead_letters_and_recent_jobs_of_one_recipient_are_deleted(
    stage: Stage, redis: RedisServer
) -> None:
    worker = await start(stage, redis)
    deployment = Deployment(stage, worker, Ledger(stage))
    await stage.rabbit.publish(job(ADDRESS), job(ADDRESS.lower()), job(OTHER))
    await stage.rabbit.publish(json.dumps({"to": ADDRESS.upper(), "code": CODE}).encode(), b'{"to": "x", "code": "1"}')
    exchange = stage.rabbit.channel.default_exchange
    await exchange.publish(Message(b"{}", headers={"user": ADDRESS}), stage.rabbit.queue)
    await exchange.publish(Message(b"{}", correlation_id=ADDRESS), stage.rabbit.queue)
    await deployment.wait_depth(7)
    user = Visitor(worker)  # others see no recent jobs where a token is set
    await asyncio.to_thread(user.ask, "/login", token=TOKEN)

    async def page_has(text: str, *, wanted: bool = True) -> bool:
        return (text in await asyncio.to_thread(user.get, "/")) is wanted

    await until(lambda: page_has("A***@example.com"), "the recent jobs")
    keys = keys_in(redis)
    counted = json.loads((await forget(stage, "--dry-run", "--json", ADDRESS, REDIS_URL=url(redis))).out)
    assert counted["dryRun"]
    await deployment.wait_depth(7)
    assert keys_in(redis) >= keys  # a worker may have added its counts
    assert any(counted["recipient"] in key for key in keys)

    ran = await forget(stage, "--yes", "--json", ADDRESS, REDIS_URL=url(redis))
    assert ran.code == 0, ran.out
    receipt: dict[str, Any] = json.loads(ran.out)
    assert receipt["removed"] == counted["removed"] == {
        "newest": 1, "recipient": 1, "throttled": 1, "deadLetters": 5,
    }  # fmt: skip
    assert receipt["recipient"] == counted["recipient"]
    assert len(receipt["recipient"]) == len(hash_address(ADDRESS, b"any"))
    assert (receipt["complete"], receipt["deadLettersRead"], receipt["workersNotified"]) == (True, 7, 1)
    assert receipt["remains"]
    assert "lovelace" not in ran.out.lower()
    left, _ = await deployment.queue().fetch()
    assert sorted(it.recipient for it in left) == ["", "b***@example.com"]
    assert not any(receipt["recipient"] in key for key in keys_in(redis))
    await until(lambda: page_has("***@example.com", wanted=False), "a page without recent jobs")
    again = json.loads((await forget(stage, "--yes", "--json", ADDRESS, REDIS_URL=url(redis))).out)
    assert set(again["removed"].values()) == {0}


async def test_waiting_jobs_stay_and_the_text_says_so(stage: Stage) -> None:
    await stage.rabbit.declare()
    applied = await otp_stream(stage.folder, "topology", "apply", **names(stage))
    assert applied.code == 0
    await stage.rabbit.publish(job(ADDRESS))
    ran = await forget(stage, "--yes", ADDRESS)
    assert ran.code == 0, ran.out
    assert "Jobs that wait in RabbitMQ, with address and code" in ran.out
    assert "because REDIS_URL is not set" in ran.out
    assert "lovelace" not in ran.out.lower()
    await stage.rabbit.wait_depth(1, stage.rabbit.queue)


async def test_a_server_that_does_not_answer_makes_the_receipt_incomplete(stage: Stage) -> None:
    await otp_stream(stage.folder, "topology", "apply", **names(stage))
    ran = await forget(stage, "--yes", "--json", ADDRESS, REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
    assert ran.code == 1
    receipt = json.loads(ran.out)
    assert not receipt["complete"]
    (error,) = receipt["errors"]
    assert "does not answer" in error


@pytest.mark.parametrize("words", [("nobody",), ("a@b.example, c@d.example",), ("",)])
async def test_an_invalid_address_exits_with_2(stage: Stage, words: tuple[str, ...]) -> None:
    ran = await forget(stage, "--yes", *words)
    assert ran.code == 2
    assert "RECIPIENT" in ran.out


async def test_a_sealed_dead_letter_is_forgotten_with_its_key_and_makes_the_receipt_incomplete_without(
    stage: Stage,
) -> None:
    await otp_stream(stage.folder, "topology", "apply", **names(stage))
    jwk = new_jwk("p256")
    sealed = seal_body(keys_of(jwk), Content(job(ADDRESS))).body
    dead = f"{stage.rabbit.prefix}.dead"
    await stage.rabbit.channel.default_exchange.publish(Message(sealed, content_type=JOSE), dead)
    without = await forget(stage, "--yes", "--json", ADDRESS)
    receipt = json.loads(without.out)
    assert (without.code, receipt["complete"], receipt["removed"]["deadLetters"]) == (1, False, 0)
    assert receipt["errors"] == [
        "1 dead letter cannot be searched: sealed as a whole with a key that is not in SEALING_KEYS"
    ]
    ran = await forget(stage, "--yes", "--json", ADDRESS, SEALING_KEYS=json.dumps(jwk))
    receipt = json.loads(ran.out)
    assert (ran.code, receipt["complete"], receipt["removed"]["deadLetters"]) == (0, True, 1)
