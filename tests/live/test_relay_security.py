"""TLS and login, tested over real sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword
from certificates import DAY, NOW, Authority
from rabbitmq import until
from smtp_relay import CONTENT, SILENCE, Act, ScriptedRelay, config, send

from otp_stream.core.outcome import Accepted, Unavailable
from otp_stream.core.state import CredentialsState
from otp_stream.relay import RelayConfig, RelayLimits, SmtpRelay
from otp_stream.relay.circuit_breaker import Pauses

LOGIN = ("user@example.com", "pässword")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@asynccontextmanager
async def secured(relay: ScriptedRelay, authority: Authority, **changes: object) -> AsyncIterator[SmtpRelay]:
    settings = {"tls": relay.mode, "ca_file": authority.ca_file, "host": "localhost"} | changes
    smtp = SmtpRelay(config(relay, **settings))
    try:
        yield smtp
    finally:
        await smtp.close(grace_s=0.2)


async def unavailable(smtp: SmtpRelay) -> Unavailable:
    outcome = await send(smtp)
    assert isinstance(outcome, Unavailable)
    assert smtp.state()[0].circuit_breaker == "open"
    assert smtp.state()[0].reason == outcome.reason
    return outcome


def starttls(authority: Authority, *hosts: str, **settings: object) -> ScriptedRelay:
    relay = ScriptedRelay(tls=authority.server(*hosts or ("localhost", "127.0.0.1")), mode="starttls")
    return replace(relay, **settings)


async def test_starttls_then_login_then_mail(authority: Authority):
    async with (
        starttls(authority, login=LOGIN) as relay,
        secured(relay, authority, user=LOGIN[0], password=LOGIN[1]) as smtp,
    ):
        assert isinstance(await send(smtp), Accepted)
        assert relay.commands() == ["EHLO", "STARTTLS", "EHLO", "AUTH", "MAIL", "RCPT", "DATA"]
        assert relay.accepted[0].content == CONTENT
        ends_s = int((NOW + 30 * DAY).timestamp())  # a certificate has whole seconds
        assert smtp.state()[0].credentials == CredentialsState(ends_s)


async def test_without_tls_there_is_no_end_of_a_certificate() -> None:
    async with ScriptedRelay() as relay:
        smtp = SmtpRelay(config(relay, tls="none"))
        assert isinstance(await send(smtp), Accepted)
        assert smtp.state()[0].credentials == CredentialsState()
        await smtp.close(grace_s=0.2)


async def test_implicit_tls_then_login_then_mail(authority: Authority):
    relay = ScriptedRelay(tls=authority.server("localhost"), mode="implicit", login=LOGIN)
    async with relay, secured(relay, authority, user=LOGIN[0], password=LOGIN[1]) as smtp:
        assert isinstance(await send(smtp), Accepted)
        assert relay.commands()[:2] == ["EHLO", "AUTH"]


async def test_an_address_in_the_certificate_is_checked_too(authority: Authority):
    async with starttls(authority) as relay, secured(relay, authority, host="127.0.0.1") as smtp:
        assert isinstance(await send(smtp), Accepted)


@pytest.mark.parametrize("mode", ["starttls", "implicit"])
@pytest.mark.parametrize(
    ("hosts", "expired", "trusted", "fix"),
    [
        (("localhost",), True, True, "needs a new one"),
        (("other.example",), False, True, "SMTP_HOST must be a name in it"),
        (("localhost",), False, False, "SMTP_CA_FILE"),
    ],
)
async def test_a_wrong_certificate_is_refused_with_the_fix(
    authority: Authority, mode: str, hosts: tuple[str], *, expired: bool, trusted: bool, fix: str
):
    relay = ScriptedRelay(tls=authority.server(*hosts, expired=expired), mode=mode)
    changes = {} if trusted else {"ca_file": None}
    async with relay, secured(relay, authority, **changes) as smtp:
        outcome = await unavailable(smtp)
        assert outcome.reason == "tls_failed"
        assert outcome.error.startswith("localhost has a certificate that is not accepted: ")
        assert fix in outcome.error
    assert "MAIL" not in relay.commands()


async def test_tls_is_required_where_it_is_not_offered(authority: Authority):
    async with ScriptedRelay() as relay, secured(relay, authority, tls="starttls") as smtp:
        outcome = await unavailable(smtp)
        assert (outcome.reason, "does not offer STARTTLS" in outcome.error) == ("tls_failed", True)
    assert relay.commands() == ["EHLO"]


async def test_a_refused_starttls_ends_the_connection(authority: Authority):
    async with starttls(authority) as relay, secured(relay, authority) as smtp:
        relay.then("starttls", "454 4.7.0 TLS not available due to temporary reason")
        assert (await unavailable(smtp)).reason == "tls_failed"


@pytest.mark.parametrize("injected", ["250 injected", "250-inj"])
async def test_replies_injected_before_tls_are_refused(authority: Authority, injected: str):
    async with starttls(authority) as relay, secured(relay, authority) as smtp:
        relay.then("starttls", f"220 go ahead\r\n{injected}")
        outcome = await unavailable(smtp)
        assert outcome.reason == "tls_failed"
        assert "more than its answer to STARTTLS" in outcome.error


async def test_the_error_of_implicit_tls_at_a_plain_port_names_starttls(authority: Authority):
    async with ScriptedRelay() as relay, secured(relay, authority, tls="implicit") as smtp:
        outcome = await unavailable(smtp)
        assert outcome.reason == "tls_failed"
        assert "SMTP_TLS=starttls" in outcome.error


async def test_the_error_of_starttls_at_a_port_of_implicit_tls_names_that(authority: Authority):
    relay = ScriptedRelay(tls=authority.server("localhost"), mode="implicit")
    async with relay, secured(relay, authority, tls="starttls", limits=RelayLimits(handshake_s=0.2)) as smtp:
        outcome = await unavailable(smtp)
        assert outcome.reason == "unreachable"
        assert "SMTP_TLS=implicit" in outcome.error


async def test_an_authority_file_that_cannot_be_read_is_named(authority: Authority, tmp_path: Path):
    (tmp_path / "ca.pem").write_text("no certificate")
    async with starttls(authority) as relay, secured(relay, authority, ca_file=tmp_path / "ca.pem") as smtp:
        assert "SMTP_CA_FILE" in (await unavailable(smtp)).error


@pytest.mark.parametrize(
    ("mechanisms", "initial_response"),
    [("PLAIN", True), ("PLAIN", False), ("LOGIN", True), ("XOAUTH2 LOGIN", True), ("CRAM-MD5", True)],
)
async def test_login_by_what_is_offered(mechanisms: str, *, initial_response: bool):
    relay = ScriptedRelay(login=LOGIN, mechanisms=mechanisms, initial_response=initial_response)
    async with relay:
        smtp = SmtpRelay(config(relay, user=LOGIN[0], password=LOGIN[1]))
        assert isinstance(await send(smtp), Accepted)
        await smtp.close()


@pytest.mark.parametrize("mechanisms", ["PLAIN", "LOGIN"])
async def test_a_refused_login_opens_the_circuit_breaker_and_shows_no_secret(mechanisms: str):
    async with ScriptedRelay(login=LOGIN, mechanisms=mechanisms) as relay:
        smtp = SmtpRelay(config(relay, user=LOGIN[0], password="wrong-pässword"))
        outcome = await unavailable(smtp)
        assert outcome.reason == "login_refused"
        assert outcome.error == "535 5.7.8 authentication credentials invalid (to AUTH)"
        assert "wrong" not in repr(config(relay, user=LOGIN[0], password="wrong-pässword"))
        await smtp.close()
    assert "MAIL" not in relay.commands()


async def test_the_error_names_the_mechanisms_where_none_is_supported():
    async with ScriptedRelay(login=LOGIN, mechanisms="GSSAPI XOAUTH2") as relay:
        smtp = SmtpRelay(config(relay, user=LOGIN[0], password=LOGIN[1]))
        outcome = await unavailable(smtp)
        assert (outcome.reason, "GSSAPI, XOAUTH2" in outcome.error) == ("login_refused", True)
        await smtp.close()


async def test_a_login_never_leaves_the_machine_without_tls():
    smtp = SmtpRelay(RelayConfig("relay.example", 25, "s@example.com", tls="none", user="u", password="p"))
    outcome = await unavailable(smtp)
    assert outcome.reason == "tls_failed"
    assert "loopback" in outcome.error
    await smtp.close()


@pytest.mark.parametrize("step", ["ehlo", "auth"])
async def test_a_handshake_that_stalls_ends_in_time(step: str):
    async with ScriptedRelay(login=LOGIN) as relay:
        relay.always(step, SILENCE)
        limits = RelayLimits(handshake_s=1.5)  # enough for the steps before it
        smtp = SmtpRelay(config(relay, user=LOGIN[0], password=LOGIN[1], limits=limits))
        outcome = await unavailable(smtp)
        assert outcome.error == f"no answer within 1.5 s (at {step.upper()})"
        await smtp.close()


@pytest.mark.parametrize(
    ("greeting", "expected"),
    [
        (Act("554 no service here", then="close"), "unreachable"),
        (Act("421 4.7.0 too many connections", then="close"), "throttled"),
        (Act("", then="close"), "unreachable"),
        (Act("SSH-2.0-OpenSSH_9.2", then="close"), "unreachable"),
    ],
)
async def test_a_refused_greeting_names_its_reason(greeting: Act, expected: str):
    async with ScriptedRelay() as relay:
        relay.then("greeting", greeting)
        smtp = SmtpRelay(config(relay))
        assert (await unavailable(smtp)).reason == expected
        await smtp.close()


class _Mailbox:
    def __init__(self) -> None:
        self.mails: list[Envelope] = []

    async def handle_DATA(self, server: object, session: object, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd
        self.mails.append(envelope)
        return "250 2.0.0 taken"


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_aiosmtpd_accepts_our_tls_login_and_mail(authority: Authority, tls: str):
    mailbox = _Mailbox()
    logins: list[tuple[str, str]] = []
    context = authority.server("localhost")

    def check(server: object, session: object, envelope: object, mechanism: str, data: object) -> AuthResult:
        assert isinstance(data, LoginPassword)
        logins.append((data.login.decode(), data.password.decode()))
        return AuthResult(success=logins[-1] == LOGIN)

    def protocol() -> SMTP:
        return SMTP(
            mailbox,
            hostname="relay.example",
            enable_SMTPUTF8=True,
            # wrapped in TLS, it does not know that it is
            auth_required=tls == "starttls",
            auth_require_tls=tls == "starttls",
            authenticator=check,
            tls_context=context if tls == "starttls" else None,
            require_starttls=tls == "starttls",
        )

    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0, ssl=context if tls == "implicit" else None)
    port = server.sockets[0].getsockname()[1]
    smtp = SmtpRelay(
        RelayConfig("localhost", port, "s@example.com", tls, LOGIN[0], LOGIN[1], authority.ca_file, pool_size=2)
    )
    content = b".\r\n" + CONTENT + b"..\r\n"
    try:
        outcomes = await asyncio.gather(*(send(smtp, content=content) for _ in range(6)))
        assert all(isinstance(outcome, Accepted) for outcome in outcomes)
        assert [mail.content for mail in mailbox.mails] == [content] * 6

        async def counted() -> bool:  # another connection may still be opening
            return logins == [LOGIN] * smtp.state()[0].connects

        await until(counted, "one login of each connection")
        assert len(logins) <= 2
    finally:
        await smtp.close()
        server.close()


@pytest.mark.parametrize("code", ["502 5.5.1", "504 5.5.4", "535 5.7.8", "553 5.3.5"])
async def test_a_mechanism_that_is_refused_is_followed_by_the_next_which_is_remembered(code: str):
    async with ScriptedRelay(login=LOGIN) as relay:
        relay.then("auth", f"{code} not by this mechanism")
        smtp = SmtpRelay(config(relay, user=LOGIN[0], password=LOGIN[1], limits=RelayLimits(messages=1)))
        assert isinstance(await send(smtp), Accepted)
        assert isinstance(await send(smtp), Accepted)
        assert smtp.state()[0].circuit_breaker == "closed"
        await smtp.close()
    logins = [line.split()[1] for _, line in relay.log if line.startswith("AUTH")]
    assert logins == ["PLAIN", "LOGIN", "LOGIN"]


async def test_a_relay_that_closes_after_a_refused_login_gets_the_next_mechanism_in_the_probe():
    async with ScriptedRelay(login=LOGIN) as relay:
        relay.then("auth", Act("535 5.7.8 no", then="close"))
        smtp = SmtpRelay(config(relay, user=LOGIN[0], password=LOGIN[1]), fraction=lambda: 0.0)
        assert (await unavailable(smtp)).reason == "login_refused"
        assert isinstance(await send(smtp), Accepted)
        await smtp.close()


@pytest.mark.parametrize(
    "reply", ["454 4.7.0 Temporary authentication failure", "451 4.3.0 try later", "421 4.3.2 bye"]
)
async def test_a_login_that_fails_for_now_is_tried_again_by_the_mechanism_that_worked(
    monkeypatch: pytest.MonkeyPatch, reply: str
):
    monkeypatch.setattr(Pauses, "next_ms", lambda *_: 1)
    async with ScriptedRelay(login=LOGIN, mechanisms="PLAIN LOGIN CRAM-MD5") as relay:
        relay.then("auth", "535 5.7.8 no", "235 ok", reply, reply)
        smtp = SmtpRelay(config(relay, user=LOGIN[0], password=LOGIN[1], limits=RelayLimits(messages=1)))
        assert isinstance(await send(smtp), Accepted)
        for _ in range(2):
            assert isinstance(await send(smtp), Unavailable)
        assert isinstance(await send(smtp), Accepted)
        await smtp.close()
    logins = [line.split()[1] for _, line in relay.log if line.startswith("AUTH")]
    assert logins == ["PLAIN", "LOGIN", "LOGIN", "LOGIN", "LOGIN"]


async def test_the_sender_s_domain_is_our_name():
    async with ScriptedRelay() as relay:
        smtp = SmtpRelay(config(relay, helo=None, sender="otp@mail.example.com"))
        assert isinstance(await send(smtp), Accepted)
        assert relay.log[0] == (1, "EHLO mail.example.com")
        await smtp.close()


async def test_a_wrong_password_is_refused_twice_at_first_and_then_once_in_each_probe():
    async with ScriptedRelay(login=LOGIN, mechanisms="PLAIN LOGIN CRAM-MD5") as relay:
        smtp = SmtpRelay(config(relay, user=LOGIN[0], password="wrong"), fraction=lambda: 0.0)
        assert (await unavailable(smtp)).reason == "login_refused"
        assert relay.commands().count("AUTH") == 2
        await smtp.close()
