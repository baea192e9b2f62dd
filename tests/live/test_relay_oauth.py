"""Logins by OAuth 2.0: a token server and a relay that check every field."""

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli import here
from conftest import Stage
from ledger import Ledger
from oauth_relay import SECRETS, USER, client_of, relay_of, wants_tokens, worker_settings
from smtp_relay import send
from token_server import REFRESH_TOKEN, TokenServer
from worker import job

from otp_stream.core.outcome import Accepted, Unavailable
from otp_stream.relay import oauth


@pytest.fixture
def server() -> Iterator[TokenServer]:
    with TokenServer() as server:
        yield server


@pytest.mark.parametrize("mechanisms", ["LOGIN XOAUTH2", "PLAIN XOAUTH2 OAUTHBEARER", "OAUTHBEARER"])
@pytest.mark.parametrize("place", ["in the command", "in a response"])
async def test_a_mail_is_sent_with_a_token_for_the_clients_credentials(
    server: TokenServer, mechanisms: str, place: str
) -> None:
    async with relay_of(server, mechanisms) as relay, client_of(relay, server) as smtp:
        relay.initial_response = place == "in the command"
        assert isinstance(await send(smtp), Accepted)
        assert relay.tokens == ["token-1"]
        (state,) = smtp.state()
        assert (state.credentials.token_valid_s or 0) > 60
        assert state.credentials.token_failures == 0
        assert ("AUTH OAUTHBEARER" in " ".join(line for _, line in relay.log)) == ("OAUTHBEARER" in mechanisms)


async def test_a_refresh_token_that_is_replaced_is_used_the_next_time(
    server: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oauth, "_REFUSED_S", 0)
    async with relay_of(server) as relay, client_of(relay, server, refresh_token=REFRESH_TOKEN) as smtp:
        assert isinstance(await send(smtp), Accepted)
        server.revoked.add("token-1")
        relay.cut()
        assert isinstance(await send(smtp), Accepted)
        assert [it["refresh_token"] for it in server.requests] == [REFRESH_TOKEN, "refresh-1"]


async def test_a_service_account_signs_for_its_user(server: TokenServer, tmp_path: Path) -> None:
    key_file = tmp_path / "key.json"
    key_file.write_text(server.service_account())
    async with relay_of(server) as relay:
        values = {"token_url": None, "client_id": None, "client_secret": None, "key_file": key_file}
        async with client_of(relay, server, **values) as smtp:
            assert isinstance(await send(smtp), Accepted)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"client_email": 1}', None, "broken key"])
async def test_a_key_that_cannot_be_used_is_named(server: TokenServer, tmp_path: Path, content: str | None) -> None:
    key_file = tmp_path / "key.json"
    if content == "broken key":
        content = json.dumps(json.loads(server.service_account()) | {"private_key": "-----BEGIN PRIVATE KEY-----\nx"})
    if content is not None:
        key_file.write_text(content)
    async with relay_of(server) as relay, client_of(relay, server, token_url=None, key_file=key_file) as smtp:
        outcome = await send(smtp)
        assert isinstance(outcome, Unavailable)
        assert outcome.reason == "login_refused"
        assert "SMTP_OAUTH_KEY_FILE" in outcome.error
        assert relay.connections == 0


async def test_a_refused_token_is_renewed_at_once_and_the_mail_is_sent(
    server: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oauth, "_REFUSED_S", 0)
    async with relay_of(server) as relay, client_of(relay, server) as smtp:
        assert isinstance(await send(smtp), Accepted)
        for closes in (True, False):
            server.revoked.add(f"token-{server.granted}")
            relay.closes_after_refusal = closes
            relay.cut()
            assert isinstance(await send(smtp), Accepted)
        assert server.granted == 3
        assert smtp.state()[0].circuit_breaker == "closed"


async def test_a_new_token_that_is_refused_opens_the_circuit_breaker_after_one_request(server: TokenServer) -> None:
    async with relay_of(server) as relay, client_of(relay, server) as smtp:
        server.revoked.add("token-1")
        outcome = await send(smtp)
        assert outcome == Unavailable("login_refused", "535 5.7.3 Authentication unsuccessful (to AUTH)")
        assert (server.granted, relay.tokens) == (1, ["token-1"])


@pytest.mark.parametrize("most", [1_900, 300, 90])
async def test_a_token_that_a_relay_quotes_is_not_shown(server: TokenServer, most: int) -> None:
    token = "".join(f"{number:x}" for number in range(700))
    server.answers.append((200, json.dumps({"access_token": token}).encode()))
    async with relay_of(server) as relay, client_of(relay, server) as smtp:
        response = base64.b64encode(f"user={USER}\1auth=Bearer {token}\1\1".encode()).decode()
        relay.always("auth", f"535 5.7.8 not accepted: {f'AUTH XOAUTH2 {response} {token}'[:most]}")
        outcome = await send(smtp)
        assert isinstance(outcome, Unavailable)
        assert outcome.error.startswith("535 5.7.8 not accepted: AUTH XOAUTH2 ***")
        assert not [at for at in range(0, len(response), 20) if response[at : at + 20] in outcome.error]


@pytest.mark.parametrize(
    ("answer", "reason", "words"),
    [
        ((400, b'{"error": "invalid_client", "error_description": "AADSTS7000215"}'), "login_refused",
         "refuses: invalid_client AADSTS7000215; check SMTP_OAUTH_CLIENT_ID and SMTP_OAUTH_CLIENT_SECRET"),
        ((400, b'{"error": "invalid_grant"}'), "login_refused", "refresh token or the key is expired or revoked"),
        ((401, b'{"error": "odd"}'), "login_refused", "refuses: odd ; check the SMTP_OAUTH settings"),
        ((200, b'{"error": "invalid_scope"}'), "login_refused", "check SMTP_OAUTH_SCOPE"),
        ((503, b"busy"), "unreachable", "answers 503"),
        ((429, b"<html>"), "unreachable", "answers 429"),
        ((302, b""), "unreachable", "check SMTP_OAUTH_TOKEN_URL"),
        ((200, b"<html>sign in</html>"), "login_refused", "holds no access token; check SMTP_OAUTH_TOKEN_URL"),
        ((200, b"[]"), "login_refused", "holds no access token"),
        ((200, b'{"access_token": 1}'), "login_refused", "holds no access token"),
        ((200, b'{"token_type": "Bearer"}'), "login_refused", "holds no access token"),
    ],
)  # fmt: skip
async def test_a_token_server_that_grants_nothing_is_named_and_nothing_connects(
    server: TokenServer, answer: tuple[int, bytes], reason: str, words: str
) -> None:
    server.answers.append(answer)
    async with relay_of(server) as relay, client_of(relay, server) as smtp:
        outcome = await send(smtp)
        assert isinstance(outcome, Unavailable)
        assert (outcome.reason, words in outcome.error) == (reason, True), outcome.error
        assert outcome.error.startswith("no access token: ")
        assert "127.0.0.1" in outcome.error
        assert relay.connections == 0


async def test_what_a_token_server_quotes_is_not_shown(server: TokenServer) -> None:
    changes = {"scope": "wrong", "refresh_token": REFRESH_TOKEN}
    async with relay_of(server) as relay, client_of(relay, server, **changes) as smtp:
        outcome = await send(smtp)
        assert isinstance(outcome, Unavailable)
        assert "AADSTS7000" in outcome.error
        assert not [secret for secret in SECRETS if secret in outcome.error + repr(smtp) + str(smtp.state())]


async def test_a_token_server_that_is_away_is_named(server: TokenServer) -> None:
    server.stop()
    async with relay_of(server) as relay, client_of(relay, server) as smtp:
        outcome = await send(smtp)
        assert isinstance(outcome, Unavailable)
        assert outcome.reason == "unreachable"
        assert "the token server 127.0.0.1 does not answer (ConnectionError)" in outcome.error


@pytest.mark.waits
async def test_tokens_that_end_in_the_middle_of_a_load_cost_no_job_and_no_delay(
    stage: Stage, server: TokenServer
) -> None:
    server.life_s = 2
    wants_tokens(stage, server)
    worker = await stage.run(**worker_settings(server))
    ledger = Ledger(stage)
    async with asyncio.timeout(60):
        while min(server.granted, len(set(stage.relay.tokens))) < 4:
            await ledger.publish(20)
            await ledger.balance()
            stage.relay.cut()  # the next connection shows the token of its time
    row = ledger.row("access tokens that live two seconds, every connection used for 20 jobs")
    assert (row.lost, row.duplicated, ledger.reasons.total()) == (0, 0, 0)
    assert "circuit breaker open" not in worker.log
    assert not [secret for secret in SECRETS if secret in worker.log + (await worker.get("/metrics"))[1]]


async def test_a_token_server_that_comes_back_ends_the_outage(stage: Stage, server: TokenServer) -> None:
    server.stop()
    wants_tokens(stage, server)
    worker = await stage.run(**worker_settings(server))
    await stage.rabbit.publish(job())
    await worker.wait_log("circuit breaker open")
    assert "the token server 127.0.0.1 does not answer" in worker.log
    assert "the token server 127.0.0.1 does not answer" in (await worker.get("/health"))[1]
    server.start()
    await stage.relay.wait_accepted(1)
    assert server.granted == 1


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({}, 0, ["an access token was granted for 60 min", "the login is accepted"]),
        ({"SMTP_OAUTH_SCOPE": "other"}, 1, ["refuses: invalid_scope", "check SMTP_OAUTH_SCOPE"]),
        ({"SMTP_USER": "other@example.com"}, 1,
         ["an access token was granted", "535 5.7.3", "SMTP.SendAsApp", "Add-MailboxPermission"]),
        ({"SMTP_OAUTH_CLIENT_SECRET": ""}, 1, ["SMTP_OAUTH_CLIENT_SECRET: is required", "the login was not tried"]),
        ({"SMTP_OAUTH_TOKEN_FILE": "/token"}, 1, ["SMTP_AUTH: oauth2 needs one of them, not"]),
    ],
)  # fmt: skip
async def test_check_walks_through_the_steps_of_the_login(
    stage: Stage, server: TokenServer, changes: dict[str, str], code: int, words: list[str]
) -> None:
    wants_tokens(stage, server)
    env = stage.worker(**worker_settings(server, **changes)).env
    await stage.rabbit.declare()
    result = await asyncio.to_thread(here, stage.folder, "check", **env)
    assert not [it for it in words if it not in " ".join(result.out.split())], result.out
    assert (result.code == 0) >= (code == 0), result.out
    assert not [secret for secret in SECRETS if secret in result.out]
