"""Named tokens, roles and sessions of real workers, and the audit lines in their logs."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import Stage
from ledger import Ledger
from rabbitmq import until
from redis_server import RedisServer
from tenants import write
from visitor import Visitor
from worker import CODE, Worker

from otp_stream.core.http_token import digest_of

ADA, VIC, KEY = "4be1c07a9d35f268", "9a6d20f7e1b84c53", "c3a5f0917be4d826"
GROUP = {"reason": "rejected", "code": "550", "domain": "example.com"}
SHARED = "<dt>State</dt><dd>shared</dd>"
"""In the page of a process that is connected to Redis."""


def listed(**roles: str) -> str:
    values = {"ada": f"sha256:{digest_of(ADA).hex()}", "vic": VIC}
    return "[tokens]\n" + "".join(
        f'[tokens.{name}]\nrole = "{role}"\ntoken = "{values[name]}"\n' for name, role in roles.items()
    )


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    path.write_text(listed(ada="operator", vic="viewer"))
    return path


async def run(stage: Stage, tokens: Path, **more: str) -> Worker:
    return await stage.run(HTTP_TOKENS_FILE=str(tokens), SECRET_KEY=KEY, **more)


def audit_lines(worker: Worker) -> list[dict[str, Any]]:
    return [line for line in worker.lines if line["event"] == "audit"]


async def wait_audit(worker: Worker, action: str, result: str = "done") -> dict[str, Any]:
    """Wait for an audit line."""

    def found() -> list[dict[str, Any]]:
        return [it for it in audit_lines(worker) if (it["action"], it["result"]) == (action, result)]

    async def is_there() -> bool:
        return bool(found())

    await until(is_there, f"{action} {result}")
    return found()[-1]


async def dead_letters(stage: Stage, count: int) -> None:
    await Ledger(stage).publish(count)

    async def dead() -> bool:
        return await stage.rabbit.depth(f"{stage.rabbit.prefix}.dead") == count

    await until(dead, "the dead letters", 60)


async def test_a_viewer_sees_causes_and_only_an_operator_replays_and_all_is_recorded(
    stage: Stage, tokens: Path
) -> None:
    stage.relay.always("rcpt", "550 5.1.1 mailbox unknown")
    worker = await run(stage, tokens, LOG_LEVEL="critical")
    await dead_letters(stage, 3)
    viewer, operator = Visitor(worker), Visitor(worker)
    assert viewer.ask("/login", token=VIC)[0] == 303
    page = viewer.get("/dead")
    assert "vic (viewer)" in page
    assert "550 5.1.1 mailbox unknown" in page
    assert "Send again" not in page
    status, text = viewer.ask("/replay", key=viewer.key(), **GROUP)
    assert (status, "only an operator may do this" in text) == (403, True)
    assert viewer.ask("/probe", {"Authorization": f"Bearer {VIC}"}, relay="x")[0] == 403
    assert viewer.ask("/replay", {"Authorization": f"Bearer {VIC}"}, **GROUP)[0] == 403
    assert operator.ask("/login", token=ADA)[0] == 303
    stage.relay.always("rcpt", None)
    assert operator.ask("/replay", key=operator.key(), **GROUP)[0] == 303
    await stage.relay.wait_accepted(3)
    line = await wait_audit(worker, "dead.replay")
    assert {name: line[name] for name in ("by", "role", "source", "count", "target", "level")} == {
        "by": "ada", "role": "operator", "source": "127.0.0.1", "count": 3, "level": "info",
        "target": "reason rejected, code 550, domain example.com",
    }  # fmt: skip
    await worker.wait_log('"refused"', times=3)
    looked = next(it for it in audit_lines(worker) if it["action"] == "dead.list")
    assert (looked["by"], looked["count"]) == ("vic", 3)
    refused = [(it["action"], it["by"]) for it in audit_lines(worker) if it["result"] == "refused"]
    assert refused == [("dead.replay", "vic"), ("relay.probe", "vic"), ("dead.replay", "vic")]
    for secret in (ADA, VIC, digest_of(ADA).hex(), KEY, CODE, "job1@"):
        assert secret not in worker.log_without_fractions


async def test_a_token_that_is_removed_or_changed_ends_its_sessions_at_once(stage: Stage, tokens: Path) -> None:
    worker = await run(stage, tokens, WORKER="false")
    ada, vic = Visitor(worker), Visitor(worker)
    ada.ask("/login", token=ADA)
    vic.ask("/login", token=VIC)
    write(tokens, "[tokens")
    worker.signal(signal.SIGHUP)
    await worker.wait_log("HTTP_TOKENS_FILE cannot be used")
    assert "Log out" in ada.get("/dead")
    write(tokens, listed(vic="operator"))
    worker.signal(signal.SIGHUP)
    await worker.wait_log("HTTP_TOKENS_FILE has changed")
    for visitor in (ada, vic):
        assert "Log out" not in visitor.get("/dead")
    assert ada.ask("/login", token=ADA)[0] == 403
    assert vic.ask("/login", token=VIC)[0] == 303
    assert "vic (operator)" in vic.get("/dead")


async def test_a_file_that_cannot_be_used_prevents_the_start_and_no_token_is_printed(
    stage: Stage, tokens: Path
) -> None:
    write(tokens, f'[tokens.vic]\nrole = "admin"\ntoken = "{VIC}"\n')
    worker = stage.worker(HTTP_TOKENS_FILE=str(tokens), SECRET_KEY=KEY)
    await worker.start(ready=False)
    assert await worker.stopped() == 2
    assert 'HTTP_TOKENS_FILE: [tokens.vic] role: must be "viewer", "operator" or "producer"' in worker.log
    assert VIC not in worker.log


async def test_a_logout_ends_the_session_in_every_process_that_shares_the_redis(
    stage: Stage, tokens: Path, redis: RedisServer
) -> None:
    worker = stage.worker(HTTP_TOKENS_FILE=str(tokens), SECRET_KEY=KEY, REDIS_URL=redis.url)
    worker.options = ("--workers", "2")
    await worker.start()
    visitor = Visitor(worker)
    visitor.ask("/login", token=VIC)
    stolen = visitor.cookie

    async def page() -> str:
        thief = Visitor(worker)
        thief.cookie = stolen
        return await asyncio.to_thread(thief.get, "/")

    async def everywhere(*, logged_in: bool) -> bool:
        """Return whether both processes have answered, and all pages are as expected."""
        # at the same time: of requests one after another, one process may answer all
        pages = await asyncio.gather(*(page() for _ in range(16)))
        processes = {it.partition("This worker is <code>")[2].partition("<")[0] for it in pages}
        # a process learns of a logout only while it is connected to Redis
        shared = all(SHARED in it for it in pages)
        return shared and len(processes) == 2 and all(("vic (viewer)" in it) is logged_in for it in pages)

    await until(lambda: everywhere(logged_in=True), "two processes that know the session", 60)
    visitor.cookie = stolen
    assert visitor.ask("/logout", key=visitor.key())[0] == 303
    for it in await asyncio.gather(*(page() for _ in range(16))):
        assert "vic (viewer)" not in it or SHARED not in it
    await until(lambda: everywhere(logged_in=False), "two processes that do not", 60)


async def test_an_interrupted_replay_is_recorded_with_the_number_so_far(stage: Stage, tokens: Path) -> None:
    stage.relay.always("rcpt", "550 5.1.1 mailbox unknown")
    worker = await run(stage, tokens, SHUTDOWN_GRACE_MS="500")
    await dead_letters(stage, 300)  # for six seconds, of which it takes one
    stage.relay.always("rcpt", None)
    bearer = {"Authorization": f"Bearer {ADA}"}
    assert Visitor(worker).ask("/replay", bearer, **GROUP)[0] == 303

    async def started() -> bool:
        return "jobs are being sent again" in Visitor(worker).ask("/dead", bearer)[1]

    await until(started, "the replay")
    began = await wait_audit(worker, "dead.replay", "started")  # all that is left if the worker is killed
    await worker.stop()
    line = await wait_audit(worker, "dead.replay", "interrupted")
    assert {name: began[name] for name in ("by", "target", "id")} == {
        name: line[name] for name in ("by", "target", "id")
    }
    assert (line["by"], line["target"]) == ("ada", "reason rejected, code 550, domain example.com")
    assert 0 < line["count"] < 300

    async def others_are_left() -> bool:  # RabbitMQ returns unacked ones a moment after the end of their connection
        left = await stage.rabbit.depth(f"{stage.rabbit.prefix}.dead")
        # the copy of one may be confirmed, but not counted yet
        return left in {300 - line["count"], 299 - line["count"]}

    await until(others_are_left, "the other dead letters")


async def test_wrong_tokens_are_recorded_and_slowed(stage: Stage, tokens: Path) -> None:
    worker = await run(stage, tokens, WORKER="false")
    visitor = Visitor(worker)
    answers = [visitor.ask("/dead", {"Authorization": f"Bearer guess{number}"})[0] for number in range(12)]
    assert answers == [200] * 9 + [429] * 3
    assert visitor.ask("/login", token=VIC)[0] == 429
    await worker.wait_log("token.refused", times=10)
    lines = [it for it in audit_lines(worker) if it["action"] == "token.refused"]
    assert [it.get("blocked_s") for it in lines] == [None] * 9 + [60]
    assert {(it["by"], it["source"], it["target"]) for it in lines} == {("-", "127.0.0.1", "/dead")}
    assert "guess" not in worker.log


async def test_behind_a_proxy_the_address_is_from_its_header_and_marked(stage: Stage, tokens: Path) -> None:
    worker = stage.worker(HTTP_TOKENS_FILE=str(tokens), SECRET_KEY=KEY, WORKER="false", FORWARDED_ALLOW_IPS="127.0.0.1")
    await worker.start()
    visitor = Visitor(worker)
    visitor.ask("/dead", {"Authorization": "Bearer x", "X-Forwarded-For": "198.51.100.7, 203.0.113.9"})
    visitor.ask("/dead", {"Authorization": "Bearer x"})
    await worker.wait_log("token.refused", times=2)
    forwarded, direct = [it for it in audit_lines(worker) if it["action"] == "token.refused"]
    assert (forwarded["source"], forwarded["forwarded"]) == ("203.0.113.9", True)  # not what the client wrote
    assert (direct["source"], "forwarded" in direct) == ("127.0.0.1", False)
