"""Logins that a Dovecot verifies, for a Postfix: neither is ours."""

from contextlib import AsyncExitStack

import pytest
from conftest import Stage
from dovecot import Dovecot, verifier
from oauth_relay import client_of
from postfix import Postfix
from rabbitmq import until
from smtp_relay import client, send
from token_server import TokenServer
from worker import job

from otp_stream.core.outcome import Accepted, Unavailable

USER, PASSWORD = "otp@example.com", "pass wörd"
BY_PASSWORD = ("PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256")
ALL = " ".join(BY_PASSWORD)


async def relay_of(stack: AsyncExitStack, mechanisms: str, stored: str = "", **changes: object) -> Postfix:
    """Start both servers."""
    users = {USER: stored or f"{{PLAIN}}{PASSWORD}"} if "tokens" not in changes else {}
    dovecot = await stack.enter_async_context(Dovecot(mechanisms.lower(), users, **changes))
    return await stack.enter_async_context(Postfix(logins=dovecot.port))


@pytest.mark.parametrize("mechanism", BY_PASSWORD)
async def test_the_worker_logs_in_by_each_mechanism(stage: Stage, mechanism: str) -> None:
    async with AsyncExitStack() as stack:
        relay = await relay_of(stack, mechanism)
        login = {"SMTP_AUTH": "login", "SMTP_USER": USER, "SMTP_PASS": PASSWORD}
        worker = await stage.run(SMTP_PORT=str(relay.port), **login)
        await stage.rabbit.publish(job())
        await until(relay.has_mail, "mail")
        assert [taken.recipient for taken in relay.accepted] == ["user@example.com"]
        assert relay.mechanisms == [(mechanism, USER)]
        assert PASSWORD not in worker.log


@pytest.mark.parametrize("stored", ["password", "verifier"])
async def test_scram_is_preferred_and_works_if_the_relay_stores_no_password(stored: str) -> None:
    async with AsyncExitStack() as stack:
        relay = await relay_of(stack, ALL, verifier(PASSWORD) if stored == "verifier" else "")
        smtp = await stack.enter_async_context(client(relay, user=USER, password=PASSWORD))
        assert isinstance(await send(smtp), Accepted)
        await until(relay.has_mail, "mail")
        assert relay.mechanisms == [("SCRAM-SHA-256", USER)]


@pytest.mark.parametrize("mechanism", BY_PASSWORD)
async def test_a_wrong_password_is_a_refused_login(mechanism: str) -> None:
    async with AsyncExitStack() as stack:
        relay = await relay_of(stack, mechanism)
        smtp = await stack.enter_async_context(client(relay, user=USER, password="wrong"))
        outcome = await send(smtp)
        assert isinstance(outcome, Unavailable)
        assert outcome.reason == "login_refused"
        assert outcome.error.startswith("535 5.7.8 Error: authentication failed")
        assert relay.accepted == []


async def test_a_wrong_password_costs_no_attempt_and_is_reported(stage: Stage) -> None:
    async with AsyncExitStack() as stack:
        relay = await relay_of(stack, ALL)
        login = {"SMTP_PORT": str(relay.port), "SMTP_AUTH": "login", "SMTP_USER": USER}
        worker = await stage.run(SMTP_PASS="wrong", **login)
        await stage.rabbit.publish(job())
        await worker.wait_log('"reason":"login_refused"')

        async def not_ready() -> bool:
            status, body = await worker.get("/readyz")
            return (status, "login_refused" in body) == (503, True)

        await until(not_ready, "status 503, which a probe of the relay interrupts")
        await worker.stop()
        assert relay.accepted == []
        await stage.run(SMTP_PASS=PASSWORD, **login)
        await until(relay.has_mail, "mail")


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
async def test_dovecot_takes_an_access_token_and_refuses_one_that_was_revoked(mechanism: str) -> None:
    with TokenServer() as server:
        async with AsyncExitStack() as stack:
            relay = await relay_of(stack, mechanism, tokens=server)
            async with client_of(relay, server) as smtp:
                assert isinstance(await send(smtp), Accepted)
                await until(relay.has_mail, "mail")
                assert relay.mechanisms == [(mechanism, USER)]
            server.is_valid = lambda _: False
            async with client_of(relay, server) as smtp:
                outcome = await send(smtp)
            assert isinstance(outcome, Unavailable)
            assert outcome.reason == "login_refused"
            assert len(relay.mechanisms) == 1
