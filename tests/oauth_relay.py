"""A relay that accepts the access tokens of a token server, and clients of both."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from conftest import Stage
from smtp_relay import ScriptedRelay, client, send
from token_server import CLIENT, REFRESH_TOKEN, SCOPE, TokenServer

from otp_stream.core.outcome import Outcome
from otp_stream.relay import OAuthConfig, SmtpRelay

USER = "otp@example.com"
SECRETS = (CLIENT["client_secret"], REFRESH_TOKEN, "token-1", "PRIVATE KEY")


@asynccontextmanager
async def relay_of(server: TokenServer, mechanisms: str = "LOGIN XOAUTH2") -> AsyncIterator[ScriptedRelay]:
    async with ScriptedRelay(login=(USER, ""), mechanisms=mechanisms, accepts_token=server.is_valid) as relay:
        yield relay


def client_of(relay: ScriptedRelay, server: TokenServer, **changes: object) -> "asyncio.Future[SmtpRelay]":
    values = {"token_url": server.url, "scope": SCOPE, **CLIENT} | changes
    return client(relay, user=USER, oauth=OAuthConfig(USER, **values))


def grants(**answer: object) -> tuple[int, bytes]:
    """Return the answer of a token server to `answers`."""
    return 200, json.dumps({"access_token": "opaque-0123456789", "token_type": "Bearer", **answer}).encode()


async def outcome_of(server: TokenServer, relay: ScriptedRelay, **changes: object) -> Outcome:
    async with client_of(relay, server, **changes) as smtp:
        return await send(smtp)


def worker_settings(server: TokenServer, **changes: str) -> dict[str, str]:
    return {
        "SMTP_AUTH": "oauth2", "SMTP_USER": USER, "SMTP_OAUTH_TOKEN_URL": server.url, "SMTP_OAUTH_SCOPE": SCOPE,
        "SMTP_OAUTH_CLIENT_ID": CLIENT["client_id"], "SMTP_OAUTH_CLIENT_SECRET": CLIENT["client_secret"], **changes,
    }  # fmt: skip


def wants_tokens(stage: Stage, server: TokenServer) -> None:
    stage.relay.login, stage.relay.mechanisms = (USER, ""), "XOAUTH2"
    stage.relay.accepts_token = server.is_valid
