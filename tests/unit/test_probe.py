"""A requested probe: its result as text, who may request one, and that the command refuses bad input."""

import asyncio
import json
from typing import Any

import pytest
from access import access, form_key, log_in
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from typer.testing import CliRunner

from otp_stream.cli.main import cli
from otp_stream.core.probe import Probed, Result
from otp_stream.core.state import CircuitBreakerState, RelayState
from otp_stream.web import probe as probe_module
from otp_stream.web.probe import ProbeView

TOKEN = "correct-horse-battery"


def request(**headers: str) -> Request:
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": encoded, "client": ("192.0.2.7", 1)})


BEARER = request(authorization=f"Bearer {TOKEN}")


def probed(breaker: CircuitBreakerState, *, sent: bool = True, probing: bool = False, again_in_ms: int = 0) -> Probed:
    relay = RelayState("mx:25", breaker, reason="login_refused", error="535 5.7.8 no", probing=probing)
    return Probed(relay, sent, again_in_ms)


def of_tenant(state: CircuitBreakerState, *, sent: bool = True, probing: bool = False, again_in_ms: int = 0) -> Probed:
    suspended = {"": "553 5.7.1 no", "shop-17": "553 5.7.1 no"} if state != "closed" else {}
    return Probed(RelayState("mx:25", probing=probing, suspended=suspended), sent, again_in_ms, state)


@pytest.mark.parametrize(
    ("it", "result", "good", "text"),
    [
        (probed("closed"), "accepted", True, "mx:25 accepts mail again"),
        (probed("closed", sent=False), "not_needed", True, "mx:25 accepts mail"),
        (probed("half_open"), "connected", True, "no job waits, so the next one is the probe"),
        (probed("half_open", probing=True), "no_answer", False, "mx:25 has not answered yet"),
        (probed("open"), "refused", False, "mx:25 still accepts no mail: login_refused: 535 5.7.8 no"),
        (probed("open", sent=False, again_in_ms=4200), "too_soon", False, "try again in 4.2 s"),
        (of_tenant("closed"), "accepted", True, "mx:25 accepts mail again"),
        (of_tenant("half_open"), "connected", True, "no job waits, so the next one is the probe"),
        (of_tenant("half_open", probing=True), "no_answer", False, "mx:25 has not answered yet"),
        (of_tenant("open"), "refused", False, "mx:25 refuses the sender of default, shop-17: 553 5.7.1 no"),
        (of_tenant("open", sent=False, again_in_ms=4200), "too_soon", False, "(it refuses the sender of default, shop"),
    ],
)
def test_every_result_is_shown_in_words(it: Probed, result: Result, text: str, *, good: bool) -> None:
    assert (it.result, it.good) == (result, good)
    assert text in it.text


async def page(request: Request, refused: str, status: int) -> Response:
    return HTMLResponse(refused, status)


class Relays:
    """Answers with what it is given, and notes what it was asked."""

    def __init__(self, *results: Probed) -> None:
        self.results = list(results)
        self.asked: list[str | None] = []
        self.free = asyncio.Event()
        self.free.set()

    async def probe(self, name: str | None) -> list[Probed]:
        self.asked.append(name)
        await self.free.wait()
        return self.results


def route(relays: Relays) -> ProbeView:
    return ProbeView(relays.probe, access(TOKEN), page, "host:1")


async def browser(route: ProbeView) -> Request:
    return request(cookie=await log_in(route.access, TOKEN, request()))


async def test_only_who_knows_the_token_or_the_key_of_a_form_may_request_a_probe() -> None:
    relays = Relays(probed("closed"))
    it = route(relays)
    logged_in = await browser(it)
    assert (await it.submit(request(), {"relay": "mx:25"})).status_code == 403
    wrong = request(authorization="Bearer guess")
    answer = await it.submit(wrong, {"relay": "mx:25"})
    assert (answer.status_code, answer.body) == (403, b"log in with a token first\n")
    assert (await it.submit(logged_in, {"relay": "mx:25", "key": "forged"})).status_code == 403
    assert relays.asked == []
    answer = await it.submit(logged_in, {"relay": "mx:25", "key": await form_key(it.access, logged_in)})
    assert (answer.status_code, answer.headers["location"]) == (303, ".")
    assert relays.asked == ["mx:25"]


async def test_a_program_gets_what_came_back_of_every_relay() -> None:
    it = route(Relays(probed("closed"), probed("open")))
    answer = await it.submit(BEARER, {})
    body = json.loads(answer.body)
    assert answer.status_code == 200
    assert (body["worker"], body["accepted"]) == ("host:1", False)
    assert [relay["result"] for relay in body["relays"]] == ["accepted", "refused"]
    assert (await route(Relays()).submit(BEARER, {"relay": "other:25"})).status_code == 404


async def test_a_browser_does_not_wait_for_a_slow_relay_and_its_probe_continues(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe_module, "_BROWSER_WAIT_S", 0.01)
    relays = Relays(probed("closed"))
    relays.free.clear()
    it = route(relays)
    logged_in = await browser(it)
    answer = await it.submit(logged_in, {"relay": "mx:25", "key": await form_key(it.access, logged_in)})
    assert answer.status_code == 303
    assert len(it._running) == 1
    relays.free.set()
    await asyncio.gather(*it._running)


async def test_a_browser_that_asks_too_soon_is_shown_when_it_may_again() -> None:
    it = route(Relays(probed("open", sent=False, again_in_ms=3000)))
    logged_in = await browser(it)
    answer = await it.submit(logged_in, {"relay": "mx:25", "key": await form_key(it.access, logged_in)})
    assert answer.status_code == 429
    assert b"try again in 3 s" in answer.body


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        ((), {}, "HTTP_TOKEN: is not set"),
        (("worker:8000",), {"HTTP_TOKEN": TOKEN}, "URL: must be the HTTP address of a worker"),
        (("http://worker:port",), {"HTTP_TOKEN": TOKEN}, "URL: must be the HTTP address of a worker"),
    ],
)
def test_the_command_refuses_bad_input(
    arguments: tuple[str, ...],
    env: dict[str, str],
    message: str,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = CliRunner(env={"HTTP_TOKEN": None} | env).invoke(cli, ("relay", "probe", *arguments))
    assert ran.exit_code == 2
    assert message in ran.stderr
