"""The whole worker against aiosmtpd, with TLS and login."""

import asyncio
import email
import email.policy
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from certificates import Authority
from conftest import Stage
from rabbitmq import until
from worker import CODE, job


class Mailbox:
    """Takes everything."""

    def __init__(self) -> None:
        self.mails: list[Envelope] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        self.mails.append(envelope)
        return "250 2.0.0 ok"

    async def count(self) -> int:
        return len(self.mails)


@asynccontextmanager
async def relay(mailbox: Mailbox, tls: ssl.SSLContext, *, implicit: bool) -> AsyncIterator[int]:
    def authenticate(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        good = isinstance(data, LoginPassword) and (data.login, data.password) == (b"otp", b"pa:ss w\xc3\xb6rd")
        return AuthResult(success=good, handled=False)

    options: dict[str, Any] = {
        "authenticator": authenticate,
        "auth_required": True,
        "require_starttls": not implicit,
        "tls_context": None if implicit else tls,
        "auth_require_tls": not implicit,
    }
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(mailbox, loop=loop, **options), "127.0.0.1", 0, ssl=tls if implicit else None
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


# aiosmtpd does not count TLS from the first byte as TLS
@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
@pytest.mark.parametrize("mode", ["starttls", "implicit"])
async def test_a_job_goes_out_over_tls_with_login(stage: Stage, tmp_path: Path, mode: str) -> None:
    authority, mailbox = Authority(tmp_path), Mailbox()
    async with relay(mailbox, authority.server("127.0.0.1"), implicit=mode == "implicit") as port:
        login = {"SMTP_AUTH": "login", "SMTP_USER": "otp", "SMTP_PASS": "pa:ss wörd"}
        tls = {"SMTP_TLS": mode, "SMTP_CA_FILE": str(authority.ca_file)}
        worker = await stage.run(SMTP_PORT=str(port), **login, **tls)
        await stage.rabbit.publish(job(metadata={"locale": "de", "userName": "Jürgen", "template": "welcome"}))
        await until(mailbox.count, "mail")
        await worker.stop()
    (envelope,) = mailbox.mails
    assert (envelope.mail_from, envelope.rcpt_tos) == ("no-reply@example.com", ["user@example.com"])
    message = email.message_from_bytes(envelope.original_content or b"", policy=email.policy.default)
    assert message["subject"] == "Bitte bestätigen Sie Ihre E-Mail-Adresse"
    assert CODE in message.get_body(("plain",)).get_content()
    assert "pa:ss" not in worker.log


async def test_a_wrong_password_opens_the_circuit_breaker_and_costs_no_attempt(stage: Stage, tmp_path: Path) -> None:
    authority, mailbox = Authority(tmp_path), Mailbox()
    async with relay(mailbox, authority.server("127.0.0.1"), implicit=False) as port:
        env = {
            "SMTP_PORT": str(port),
            "SMTP_TLS": "starttls",
            "SMTP_CA_FILE": str(authority.ca_file),
            "SMTP_AUTH": "login",
        }
        worker = await stage.run(**env, SMTP_USER="otp", SMTP_PASS="wrong")
        await stage.rabbit.publish(job())
        await worker.wait_log('"reason":"login_refused"')

        async def not_ready() -> bool:
            return (await worker.get("/readyz"))[0] == 503

        await until(not_ready, "status 503, which a probe of the relay interrupts")
        await worker.stop()
        assert not mailbox.mails
        await stage.run(**env, SMTP_USER="otp", SMTP_PASS="pa:ss wörd")
        await until(mailbox.count, "mail")
