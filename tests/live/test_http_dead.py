"""The page of dead letters: anybody may look, only who knows HTTP_TOKEN may send them again."""

import asyncio
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field

import pytest
from conftest import Stage
from ledger import Ledger
from rabbitmq import until
from worker import CODE, Worker

TOKEN = "correct-horse-battery"


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


@dataclass
class Visitor:
    """A browser without a window."""

    worker: Worker
    cookie: str = ""
    opener: urllib.request.OpenerDirector = field(default_factory=lambda: urllib.request.build_opener(_Stay))

    def get(self, path: str) -> str:
        return self.ask(path)[1]

    def ask(self, path: str, headers: dict[str, str] | None = None, **fields: str) -> tuple[int, str]:
        """Return status and body; with fields, a form is sent."""
        data = urllib.parse.urlencode(fields).encode() if fields else None
        sent = {"Cookie": self.cookie} | (headers or {})
        request = urllib.request.Request(f"http://127.0.0.1:{self.worker.port}{path}", data, sent)
        try:
            answer = self.opener.open(request, timeout=10)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            self.cookie = (answer.headers.get("Set-Cookie") or self.cookie).partition(";")[0]
            return answer.status or 0, answer.read().decode()

    def key(self) -> str:
        found = re.search(r'name="key" value="([0-9a-f]+)"', self.get("/dead"))
        return found.group(1) if found else ""


@pytest.fixture
async def visitor(stage: Stage) -> Visitor:
    stage.relay.always("rcpt", "550 5.7.1 relaying denied")
    worker = await stage.run(HTTP_TOKEN=TOKEN)
    ledger = Ledger(stage.rabbit, stage.relay)
    await ledger.publish(20)
    await ledger.publish(2, metadata={"expiryMinutes": 0.02})
    expires = time.monotonic() + 1.2

    async def dead() -> bool:
        return await stage.rabbit.depth(f"{stage.rabbit.prefix}.dead") == 22

    await until(dead, "22 dead letters")
    await asyncio.sleep(max(expires - time.monotonic(), 0))
    return Visitor(worker)


GROUP = {"reason": "rejected", "code": "550", "domain": "example.com"}


async def test_anybody_sees_why_and_nobody_a_secret(visitor: Visitor) -> None:
    page = visitor.get("/dead")
    assert "22 jobs could not be sent" in page
    assert "550 5.7.1 relaying denied" in page
    assert "j***@example.com" in page
    assert "job1@" not in page
    assert CODE not in page
    assert "Send again" not in page
    assert visitor.ask("/replay", **GROUP)[0] == 403
    assert visitor.ask("/login", token="wrong")[0] == 403
    assert visitor.ask("/replay", {"Authorization": "Bearer wrong"}, **GROUP)[0] == 403
    assert visitor.ask("/replay")[0] == 405
    assert visitor.ask("/login", **{f"field{number}": "1" for number in range(25)})[0] == 413


async def test_who_is_logged_in_sends_a_group_again(visitor: Visitor, stage: Stage) -> None:
    stage.relay.always("rcpt", None)
    assert visitor.ask("/login", token=TOKEN)[0] == 303
    assert visitor.ask("/replay", **GROUP)[0] == 403  # a form of another site does not know the key
    assert visitor.ask("/replay", key=visitor.key())[0] == 400
    assert visitor.ask("/replay", key=visitor.key(), **GROUP)[0] == 303

    async def told() -> bool:
        return "letters are on the way again (reason rejected, code 550, domain example.com)" in visitor.get("/dead")

    await until(told, "the end of the replay")
    assert "with an expired code stayed" in visitor.get("/dead")
    await stage.relay.wait_accepted(20)
    line = next(it for it in visitor.worker.lines if it["event"] == "dead letters replayed")
    assert (line["by"], line["letters"], line["expired"]) == ("page@127.0.0.1", 20, 2)
    visitor.ask("/logout", key=visitor.key())
    assert "Send again" not in visitor.get("/dead")


async def test_a_script_brings_the_token_itself(visitor: Visitor, stage: Stage) -> None:
    stage.relay.always("rcpt", None)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert visitor.ask("/replay", bearer, reason="gone")[0] == 400
    assert visitor.ask("/replay", bearer, **GROUP)[0] == 303
    await stage.relay.wait_accepted(20)


async def test_a_forged_session_is_none(visitor: Visitor) -> None:
    visitor.cookie = f"otp_session=99999999999.{'0' * 64}"
    assert "Send again" not in visitor.get("/dead")
    visitor.ask("/login", token=TOKEN)
    until_, _, signature = visitor.cookie.partition("=")[2].partition(".")
    visitor.cookie = f"otp_session={int(until_) + 3600}.{signature}"
    assert "Send again" not in visitor.get("/dead")


async def test_a_broker_that_is_away_is_told_and_nothing_else_fails(stage: Stage) -> None:
    worker = await stage.run(WORKER="false", RABBITMQ_URL="amqp://u:hunter2@127.0.0.1:9/")
    page = Visitor(worker).get("/dead")
    assert "They cannot be reached" in page
    assert "hunter2" not in page
