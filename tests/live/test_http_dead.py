"""The page of dead letters: visitors see their number; with HTTP_TOKEN, users see the causes and can replay."""

import asyncio
from typing import Any

import pytest
from conftest import Stage
from ledger import Ledger
from rabbitmq import until
from redis_server import RedisServer
from visitor import TOKEN, Visitor
from worker import CODE, Worker

EXPIRY_S = 5
"""How long two of the codes are valid: long enough for their jobs to be refused before."""
UNSWEPT = {"DEAD_LETTER_RETENTION": "off", "DEAD_LETTER_CODES": "keep"}
"""With these settings, no sweep of the worker reads a dead letter, or erases its code, at a time by chance."""


@pytest.fixture
async def visitor(stage: Stage) -> Visitor:
    stage.relay.always("rcpt", "550 5.1.1 mailbox unknown")
    worker = await stage.run(HTTP_TOKEN=TOKEN, **UNSWEPT)
    ledger = Ledger(stage)
    await ledger.publish(20)
    await ledger.publish(2, metadata={"expiryMinutes": EXPIRY_S / 60})

    async def dead() -> bool:
        return await stage.rabbit.depth(f"{stage.rabbit.prefix}.dead") == 22

    await until(dead, "22 dead letters")
    return Visitor(worker)


async def replayed(visitor: Visitor) -> dict[str, Any]:
    """Return the audit line of the end of a replay."""

    async def logged() -> dict[str, Any] | None:
        replays = (it for it in visitor.worker.lines if it.get("action") == "dead.replay")
        return next((it for it in replays if it["result"] == "done"), None)

    return await until(logged, "the record of its end")


GROUP = {"reason": "rejected", "code": "550", "domain": "example.com"}


async def test_a_visitor_sees_a_number_a_logged_in_user_the_causes_and_no_one_a_secret(visitor: Visitor) -> None:
    async def counted() -> bool:
        return "<strong>22</strong> jobs could not be sent" in visitor.get("/dead")

    await until(counted, "the broker's count")  # it is refreshed every two seconds
    page = visitor.get("/dead")
    for hidden in ("mailbox unknown", "example.com", "Send again"):
        assert hidden not in page
    for hidden in ("@example.com", "<code title=", "job1"):
        assert hidden not in visitor.get("/")
    assert visitor.ask("/replay", **GROUP)[0] == 403
    assert visitor.ask("/login", token="wrong")[0] == 403
    assert visitor.ask("/replay", {"Authorization": "Bearer wrong"}, **GROUP)[0] == 403
    assert visitor.ask("/replay")[0] == 405
    assert visitor.ask("/login", **{f"field{number}": "1" for number in range(25)})[0] == 413
    visitor.ask("/login", token=TOKEN)
    page = visitor.get("/dead")
    assert "22 jobs could not be sent" in page
    assert "550 5.1.1 mailbox unknown" in page
    assert "j***@example.com" in page
    assert "job1@" not in page
    assert CODE not in page

    async def recent() -> str | None:
        page = visitor.get("/")
        return page if "j***@example.com" in page else None

    assert CODE not in await until(recent, "the recent jobs")


async def test_a_visit_without_login_fetches_no_message(visitor: Visitor, stage: Stage) -> None:
    for _ in range(3):
        visitor.get("/dead")
    assert not any(message.redelivered for message in await stage.rabbit.dead(22))


@pytest.mark.waits
async def test_a_logged_in_user_replays_a_group(visitor: Visitor, stage: Stage) -> None:
    await asyncio.sleep(EXPIRY_S)
    stage.relay.always("rcpt", None)
    assert visitor.ask("/login", token=TOKEN)[0] == 303
    assert visitor.ask("/replay", **GROUP)[0] == 403  # a form of another site does not know the key
    assert visitor.ask("/replay", key=visitor.key())[0] == 400
    assert visitor.ask("/replay", key=visitor.key(), **GROUP)[0] == 303

    async def reported() -> bool:
        return "jobs are being sent again (reason rejected, code 550, domain example.com)" in visitor.get("/dead")

    await until(reported, "the end of the replay")
    assert "with an expired code stayed" in visitor.get("/dead")
    await stage.relay.wait_accepted(20)

    line = await replayed(visitor)
    assert (line["by"], line["source"], line["count"], line["expired"]) == ("token", "127.0.0.1", 20, 2)
    visitor.ask("/logout", key=visitor.key())
    assert "Send again" not in visitor.get("/dead")


async def test_a_script_sends_the_token(visitor: Visitor, stage: Stage) -> None:
    stage.relay.always("rcpt", None)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert visitor.ask("/replay", bearer, reason="gone")[0] == 400
    assert visitor.ask("/replay", bearer, **GROUP)[0] == 303
    await stage.relay.wait_accepted(20)
    assert (await replayed(visitor))["target"] == "reason rejected, code 550, domain example.com"


async def test_what_a_user_typed_and_no_dead_letter_has_is_not_logged(visitor: Visitor) -> None:
    """It may be a code in the wrong field."""
    assert visitor.ask("/replay", domain=CODE)[0] == 403
    assert visitor.ask("/replay", domain="example.com", reason=CODE)[0] == 403
    assert visitor.ask("/replay", {"Authorization": f"Bearer {TOKEN}"}, domain=CODE)[0] == 303
    line = await replayed(visitor)
    assert (line["count"], line["target"]) == (0, "domain …")
    results = {it["result"] for it in visitor.worker.lines if it.get("action") == "dead.replay"}
    assert results == {"refused", "started", "done"}
    assert CODE not in visitor.worker.log


async def test_a_forged_session_is_refused(visitor: Visitor) -> None:
    visitor.cookie = f"otp_session=99999999999.{'0' * 64}"
    assert "Send again" not in visitor.get("/dead")
    visitor.ask("/login", token=TOKEN)
    until_, _, signature = visitor.cookie.partition("=")[2].partition(".")
    visitor.cookie = f"otp_session={int(until_) + 3600}.{signature}"
    assert "Send again" not in visitor.get("/dead")


async def test_an_unreachable_broker_is_reported_and_nothing_else_fails(stage: Stage) -> None:
    worker = await stage.run(WORKER="false", HTTP_TOKEN=TOKEN, RABBITMQ_URL="amqp://u:hunter2@127.0.0.1:9/")
    visitor = Visitor(worker)
    assert "Their number is unknown" in visitor.get("/dead")
    visitor.ask("/login", token=TOKEN)
    page = visitor.get("/dead")
    assert "The queue cannot be read" in page
    assert "hunter2" not in page


async def test_a_logout_ends_the_session_at_every_worker_that_shares_the_redis(
    stage: Stage, redis: RedisServer
) -> None:
    one, other = [Visitor(await stage.run(HTTP_TOKEN=TOKEN, REDIS_URL=redis.url)) for _ in range(2)]
    for visitor in (one, other):

        async def shares(worker: Worker = visitor.worker) -> bool:
            return (await worker.health())["tables"]["connected"]

        await until(shares, "a connection to Redis")
    one.ask("/login", token=TOKEN)
    other.cookie = stolen = one.cookie
    assert "Log out" in other.get("/dead")
    one.ask("/logout", key=one.key())
    other.cookie = stolen
    assert "Log out" not in other.get("/dead")
    assert other.ask("/replay", key="any", **GROUP)[0] == 403
