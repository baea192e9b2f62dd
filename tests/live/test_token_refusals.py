"""Relays that refuse access tokens in odd ways, and workers that stop while they fetch one."""

import asyncio
import base64
import os
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest
from cli import here
from conftest import Stage
from oauth_relay import client_of, grants, outcome_of, relay_of, wants_tokens, worker_settings
from rabbitmq import until
from smtp_relay import CLOSE, Act, ScriptedRelay, send
from token_server import TokenServer
from worker import job

from otp_stream.core.outcome import Accepted, Unavailable
from otp_stream.relay import oauth


@pytest.fixture
def server() -> Iterator[TokenServer]:
    with TokenServer() as server:
        yield server


async def test_a_short_token_that_a_relay_quotes_is_not_shown(server: TokenServer) -> None:
    server.answers.append(grants())
    async with relay_of(server) as relay:
        relay.always("auth", "535 5.7.8 opaque-0123456789 is no token")
        outcome = await outcome_of(server, relay)
        assert isinstance(outcome, Unavailable)
        assert outcome.error == "535 5.7.8 *** is no token (to AUTH)"


@pytest.mark.parametrize("act", [CLOSE, Act("334 e30="), Act("hello")])
async def test_a_relay_that_tells_why_it_refuses_and_sends_no_reply_has_refused(
    server: TokenServer, act: Act, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with relay_of(server) as relay, client_of(relay, server) as smtp:
        assert isinstance(await send(smtp), Accepted)
        monkeypatch.setattr(oauth, "_REFUSED_S", 0)
        server.revoked.add("token-1")
        relay.then("auth", act)
        relay.cut()
        assert isinstance(await send(smtp), Accepted)
        server.revoked |= {"token-2", "token-3"}
        relay.then("auth", act, act)
        relay.cut()
        outcome = await send(smtp)
        assert isinstance(outcome, Unavailable)
        assert outcome.reason == "login_refused"
        assert outcome.error.startswith("the relay refuses the access token")


async def test_a_token_that_ends_does_not_change_the_mechanism(
    server: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oauth, "_REFUSED_S", 0)
    async with relay_of(server, "OAUTHBEARER XOAUTH2") as relay, client_of(relay, server) as smtp:
        assert isinstance(await send(smtp), Accepted)
        for number in (1, 2):
            server.revoked.add(f"token-{number}")
            relay.cut()
            assert isinstance(await send(smtp), Accepted)
        assert [line.split()[1] for _, line in relay.log if line.startswith("AUTH")] == ["OAUTHBEARER"] * 5


async def test_a_revoked_token_is_renewed_once_for_many_connections(
    server: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oauth, "_REFUSED_S", 0.5)
    async with relay_of(server) as relay, client_of(relay, server) as smtp:
        relay.always("mail", Act(delay_s=0.05))
        assert len(await asyncio.gather(*(send(smtp) for _ in range(60)))) == 60
        assert server.granted == 1
        await asyncio.sleep(0.6)
        server.revoked.add("token-1")
        before = relay.tokens.count("token-1")
        relay.cut()
        outcomes = await asyncio.gather(*(send(smtp) for _ in range(60)))
        assert all(isinstance(it, Accepted) for it in outcomes)
        assert server.granted == 2
        assert relay.tokens.count("token-1") - before <= 20  # those that open at the same time


async def test_a_revoked_token_that_mail_is_refused_for_is_renewed(
    server: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oauth, "_REFUSED_S", 0)
    async with relay_of(server) as relay, client_of(relay, server) as smtp:
        assert isinstance(await send(smtp), Accepted)
        server.revoked.add("token-1")
        relay.then("mail", "530 5.7.57 Client not authenticated to send mail")
        assert isinstance(await send(smtp), Unavailable)
        async with asyncio.timeout(15):
            while smtp.state()[0].circuit_breaker == "open":
                await asyncio.sleep(0.05)
                await smtp.probe(smtp.state()[0].name)
        assert isinstance(await send(smtp), Accepted)
        assert server.granted == 2


async def test_a_fallback_relay_is_logged_in_to_by_password_alone(stage: Stage, server: TokenServer) -> None:
    wants_tokens(stage, server)
    async with ScriptedRelay(login=("other", "pass-word")) as other:
        url = f"smtp://other:pass-word@127.0.0.1:{other.port}?tls=none"
        worker = await stage.run(**worker_settings(server, SMTP_FALLBACK_URLS=url))
        server.stop()
        await stage.relay.stop()
        await stage.rabbit.publish(job())
        await other.wait_accepted(1)
        assert {line.split()[1] for _, line in other.log if line.startswith("AUTH")} == {"PLAIN"}
        assert not [line for _, line in other.log if base64.b64encode(b"auth=Bearer").decode()[:-3] in line]
        assert "token-1" not in worker.log
    await stage.relay.start()


@pytest.mark.parametrize("source", ["token server", "command"])
async def test_a_worker_stops_at_once_while_a_token_is_fetched(
    stage: Stage, server: TokenServer, source: str, tmp_path: Path
) -> None:
    wants_tokens(stage, server)
    server.delay_s = 25
    settings = worker_settings(server)
    if source == "command":
        settings["SMTP_OAUTH_TOKEN_URL"] = ""
        settings["SMTP_OAUTH_TOKEN_COMMAND"] = f"/bin/sh -c 'echo $$ >{tmp_path}/pid; sleep 25; echo x'"
    worker = await stage.run(**settings)
    await stage.rabbit.publish(job())
    pid = tmp_path / "pid"
    await stage.relay.wait(lambda: bool(server.requests) or pid.exists(), "fetch of a token")
    began = monotonic()
    await worker.stop()
    assert monotonic() - began < 20
    if source == "command":

        async def ended() -> bool:
            return not os.path.exists(f"/proc/{pid.read_text().strip()}")  # noqa: PTH110, ASYNC240 - a look at memory

        await until(ended, "end of the command")


async def test_check_names_a_token_server_that_is_silent(
    stage: Stage, server: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otp_stream.checks.relay._TOKEN_S", 0.5)
    wants_tokens(stage, server)
    server.delay_s = 5
    await stage.rabbit.declare()
    env = stage.worker(**worker_settings(server)).env
    result = await asyncio.to_thread(here, stage.folder, "check", **env)
    assert "no access token within 0.5 s" in " ".join(result.out.split()), result.out
    assert result.code == 1
