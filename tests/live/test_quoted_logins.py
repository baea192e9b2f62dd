"""Relays and token servers that quote a secret which they were shown, in any later answer."""

import asyncio
import json
from base64 import b64encode
from collections.abc import Iterator

import pytest
from oauth_relay import client_of, relay_of
from smtp_relay import Act, ScriptedRelay, client, config, send
from token_server import CLIENT, TokenServer

from otp_stream.core.outcome import Accepted
from otp_stream.core.shown_secrets import ShownSecrets
from otp_stream.relay import SmtpRelay, oauth, token_server
from otp_stream.relay.access_token import TokenError
from otp_stream.relay.config import OAuthConfig, Rotation

USER, PASSWORD = "mailer@example.com", "Wrong-Horse/7-battery"
TOKENS = "ya29.first-token-0001", "ya29.second-token-0002", "ya29." + "third" * 500

pytestmark = pytest.mark.usefixtures("never_suspended")


@pytest.fixture
def server() -> Iterator[TokenServer]:
    with TokenServer() as server:
        yield server


def grant(server: TokenServer, token: str, life_s: float = 3600) -> None:
    answer = {"access_token": token, "token_type": "Bearer", "expires_in": life_s}
    server.answers.append((200, json.dumps(answer).encode()))
    server.granted_as(token)


async def shown(smtp: SmtpRelay) -> str:
    """Return all that is shown of the next mail."""
    outcome = await send(smtp)
    assert not isinstance(outcome, Accepted)
    return f"{outcome!r} {smtp.state()}"


@pytest.mark.parametrize(("step", "code"), [("data", 250), ("data", 221), ("mail", 354), ("body", 334)])
async def test_no_password_is_shown_of_a_reply_that_is_unexpected(step: str, code: int) -> None:
    async with ScriptedRelay(login=(USER, PASSWORD), mechanisms="PLAIN") as relay:
        relay.always(step, f"{code} 2.0.0 thanks for {PASSWORD}")
        async with client(relay, user=USER, password=PASSWORD) as smtp:
            text = await shown(smtp)
    assert "thanks for ***" in text
    assert PASSWORD not in text


@pytest.mark.parametrize("step", ["greeting", "ehlo", "mail", "rcpt", "body"])
@pytest.mark.parametrize("token", TOKENS[1:])
async def test_no_token_is_shown_of_a_later_connection(
    server: TokenServer, monkeypatch: pytest.MonkeyPatch, step: str, token: str
) -> None:
    for it in (TOKENS[0], token):
        grant(server, it)
    monkeypatch.setattr(oauth, "_REFUSED_S", 0)
    async with relay_of(server) as relay, client_of(relay, server) as smtp:
        assert isinstance(await send(smtp), Accepted)
        server.revoked.add(TOKENS[0])
        relay.cut()
        assert isinstance(await send(smtp), Accepted)
        relay.always(step, Act(f"554 5.7.1 policy: {TOKENS[0]} {token}", then="close"))
        relay.cut()
        text = await shown(smtp)
    assert "policy: *** ***" in text
    assert not [it for it in (TOKENS[0], token, "thirdthird") if it in text]


@pytest.mark.parametrize("step", ["greeting", "rcpt"])
async def test_no_earlier_password_is_shown(step: str) -> None:
    old = [f"{number}-passw0rd-{number}" for number in range(3)]
    async with ScriptedRelay(login=("mailer", old[0]), mechanisms="PLAIN") as relay:
        configs = [config(relay, user="mailer", password=it) for it in old]
        rotation = Rotation(lambda: configs[0], lambda: asyncio.sleep(0))
        async with client(relay, user="mailer", password=old[0], rotation=rotation) as smtp:
            for current in list(configs):
                configs[0] = current
                relay.login = ("mailer", current.password or "")
                relay.cut()
                assert isinstance(await send(smtp), Accepted)
            relay.always(step, Act(f"554 5.7.1 once {' '.join(old)}", then="close"))
            relay.cut()
            text = await shown(smtp)
    assert "once *** *** ***" in text
    assert not [it for it in old if it in text]


async def test_no_password_is_shown_of_the_mechanisms_that_a_relay_offers() -> None:
    async with (
        ScriptedRelay(login=(USER, PASSWORD), mechanisms=PASSWORD) as relay,
        client(relay, user=USER, password=PASSWORD) as smtp,
    ):
        text = await shown(smtp)
    assert "it offers ***" in text
    assert PASSWORD.upper() not in text.upper()


async def test_no_last_token_is_shown_that_a_token_server_quotes(server: TokenServer) -> None:
    grant(server, TOKENS[0])
    error = {"error": "invalid_grant", "error_description": f"old {TOKENS[0]} x"}
    server.answers.append((400, json.dumps(error).encode()))
    source = token_server.TokenServer(lambda: OAuthConfig(USER, server.url, **CLIENT))
    assert (await source.fetch()).value == TOKENS[0]
    with pytest.raises(TokenError, match=r"old \*\*\* x"):
        await source.fetch()


def test_the_secrets_that_are_kept_have_an_end() -> None:
    secrets = ShownSecrets()
    secrets.add("a-password", None, "")
    for number in range(100):
        secrets.add("the-current-one", f"token-{number:03}")
    assert len(list(secrets)) == 16
    assert secrets.redact("the-current-one token-099 token-090") == "*** *** ***"
    assert secrets.redact("token-001") == "token-001"
    assert secrets.redact(b64encode(b"the-current-one").decode()) == "***"
