"""STARTTLS between a client and an attacker who changes what is not yet encrypted: stripping and injection."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from certificates import Authority
from smtp_relay import ManualConnection, ManualRelay, ScriptedRelay, config, send

from otp_stream.core.outcome import Accepted, Outcome, Unavailable
from otp_stream.relay import SmtpRelay

LOGIN = ("otp@example.com", "n8Vq2xT7")
OFFERS = ("250-relay.example", "250-PIPELINING", "250-CHUNKING", "250-AUTH PLAIN", "250 STARTTLS")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def manual() -> AsyncIterator[ManualRelay]:
    async with ManualRelay() as relay:
        yield relay


@asynccontextmanager
async def sending(relay: ManualRelay | ScriptedRelay, ca_file: Path) -> AsyncIterator[asyncio.Task[Outcome]]:
    """Send one mail with a login by a client that requires STARTTLS."""
    files = {"tls": "starttls", "host": "localhost", "ca_file": ca_file}
    smtp = SmtpRelay(config(relay, user=LOGIN[0], password=LOGIN[1], **files))
    task = asyncio.create_task(send(smtp))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await smtp.close(grace_s=0)


async def greeted(manual: ManualRelay, *offers: str) -> ManualConnection:
    connection = await manual.connection()
    await connection.reply("220 relay.example")
    await connection.expect_alone(b"EHLO worker.example\r\n")
    await connection.reply(*(offers or OFFERS))
    return connection


async def in_tls(manual: ManualRelay, authority: Authority) -> ManualConnection:
    """Return the connection of a client that has started TLS, and greets the relay again."""
    connection = await greeted(manual)
    await connection.expect_alone(b"STARTTLS\r\n")
    await connection.reply("220 go ahead")
    await connection.start_tls(authority.server("localhost"))
    await connection.expect_alone(b"EHLO worker.example\r\n")
    return connection


async def refused(task: asyncio.Task[Outcome], reason: str = "tls_failed") -> str:
    outcome = await task
    assert isinstance(outcome, Unavailable)
    assert outcome.reason == reason
    return outcome.error


@pytest.mark.parametrize(
    "offers",
    [
        ("250 relay.example",),
        ("250 STARTTLS",),  # the first line is the relay's name
        ("250-relay.example", "250 XXXXXXXA"),
        ("250-relay.example", "250 XSTARTTLS"),
        ("250-relay.example", "250 AUTH PLAIN STARTTLS"),
        ("250-relay.example", "250-AUTH PLAIN", "250 \0STARTTLS"),
    ],
)
async def test_without_starttls_in_the_reply_to_ehlo_nothing_is_sent(
    manual: ManualRelay, authority: Authority, offers: tuple[str, ...]
) -> None:
    async with sending(manual, authority.ca_file) as task:
        connection = await greeted(manual, *offers)
        assert "does not offer STARTTLS" in await refused(task)
        await connection.expect_end()


@pytest.mark.parametrize(
    "reply", ["454 4.7.0 not now", "500 what", "502 5.5.1 no", "554 no", "250 ok", "235 ok", "334 ", "421 4.3.2 bye"]
)
async def test_no_reply_but_220_to_starttls_is_followed_by_anything(
    manual: ManualRelay, authority: Authority, reply: str
) -> None:
    async with sending(manual, authority.ca_file) as task:
        connection = await greeted(manual)
        await connection.expect_alone(b"STARTTLS\r\n")
        await connection.reply(reply)
        outcome = await task
        assert isinstance(outcome, Unavailable)
        await connection.expect_end()


@pytest.mark.parametrize("greeting", ["250 PREAUTH", "235 2.7.0 already authenticated", "* PREAUTH ready", "334 "])
async def test_a_greeting_that_claims_a_session_is_refused(
    manual: ManualRelay, authority: Authority, greeting: str
) -> None:
    async with sending(manual, authority.ca_file) as task:
        connection = await manual.connection()
        await connection.reply(greeting)
        await refused(task, "unreachable")
        await connection.expect_end()


@pytest.mark.parametrize(
    "injected", ["250 ok\r\n", "250-relay.example\r\n250 AUTH PLAIN\r\n", "250-", "2", "\r\n", "\0", "235 2.7.0 ok\r\n"]
)
async def test_what_comes_with_the_reply_to_starttls_ends_the_connection(
    manual: ManualRelay, authority: Authority, injected: str
) -> None:
    async with sending(manual, authority.ca_file) as task:
        connection = await greeted(manual)
        await connection.expect_alone(b"STARTTLS\r\n")
        await connection.send(f"220 go ahead\r\n{injected}")
        await refused(task)
        await connection.expect_end()


@pytest.mark.parametrize("injected", ["250 ok\r\n220 go ahead\r\n", "220-go\r\n250 ahead\r\n", "what?\r\n220 go\r\n"])
async def test_what_comes_before_the_reply_to_starttls_ends_the_connection(
    manual: ManualRelay, authority: Authority, injected: str
) -> None:
    async with sending(manual, authority.ca_file) as task:
        connection = await greeted(manual)
        await connection.expect_alone(b"STARTTLS\r\n")
        await connection.send(injected)
        assert isinstance(await task, Unavailable)
        await connection.expect_end()


async def test_text_in_place_of_tls_ends_the_connection(manual: ManualRelay, authority: Authority) -> None:
    async with sending(manual, authority.ca_file) as task:
        connection = await greeted(manual)
        await connection.expect_alone(b"STARTTLS\r\n")
        await connection.reply("220 go ahead")
        await connection.expect(b"\x16\x03")  # nothing but a handshake follows
        await connection.reply("250-relay.example", "250 AUTH PLAIN")
        await refused(task)


async def test_the_login_and_extensions_that_were_offered_before_tls_are_not_used_after_it(
    manual: ManualRelay, authority: Authority
) -> None:
    async with sending(manual, authority.ca_file) as task:
        connection = await in_tls(manual, authority)
        await connection.reply("250-relay.example", "250 AUTH GSSAPI")
        assert "it offers GSSAPI" in await refused(task, "login_refused")
        await connection.expect_end()


async def test_a_reply_within_tls_that_no_command_asked_for_ends_the_connection(
    manual: ManualRelay, authority: Authority
) -> None:
    async with sending(manual, authority.ca_file) as task:
        connection = await in_tls(manual, authority)
        await connection.reply("250-relay.example", "250 AUTH PLAIN", "235 2.7.0 welcome")
        assert "no command asked for" in await refused(task, "unreachable")
        await connection.expect_end()


@pytest.mark.parametrize("again", [True, False])
async def test_what_the_relay_offers_within_tls_is_used(
    manual: ManualRelay, authority: Authority, *, again: bool
) -> None:
    async with sending(manual, authority.ca_file) as task:
        connection = await greeted(manual, "250-relay.example", "250 STARTTLS")
        await connection.expect_alone(b"STARTTLS\r\n")
        await connection.reply("220 go ahead")
        await connection.start_tls(authority.server("localhost"))
        await connection.expect_alone(b"EHLO worker.example\r\n")
        await connection.reply("250-relay.example", *(["250-STARTTLS"] if again else ()), "250 AUTH PLAIN")
        await connection.expect_alone(b"AUTH PLAIN AG90cEBleGFtcGxlLmNvbQBuOFZxMnhUNw==\r\n")
        await connection.reply("235 2.7.0 welcome")
        await connection.expect_alone(b"MAIL FROM:<sender@example.com>\r\n")
        await connection.reply("250 ok")
        await connection.expect_alone(b"RCPT TO:<user@example.com>\r\n")
        await connection.reply("250 ok")
        await connection.expect_alone(b"DATA\r\n")
        await connection.reply("354 go")
        await connection.expect(b"Subject: hello\r\n\r\nyour code\r\n.\r\n")
        await connection.reply("250 queued")
        assert isinstance(await task, Accepted)
