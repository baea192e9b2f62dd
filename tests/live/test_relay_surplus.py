"""Replies that no command asked for: they never become the reply to a later command, whatever the step."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
from smtp_relay import (
    ACCEPTS,
    CONTENT,
    ENDED,
    Act,
    ManualConnection,
    ManualRelay,
    ScriptedRelay,
    client,
    envelope,
    send,
)

from otp_stream.core.outcome import Accepted, Outcome, Rejected, Unavailable, Uncertain
from otp_stream.relay import SmtpRelay, login

SURPLUS = "250 2.0.0 ok"
CHUNK = b"BDAT %d LAST\r\n" % len(CONTENT) + CONTENT
WHOLE = b"MAIL FROM:<sender@example.com>\r\nRCPT TO:<user@example.com>\r\n"


@pytest.fixture
async def manual() -> AsyncIterator[ManualRelay]:
    async with ManualRelay() as relay:
        yield relay


async def opened(manual: ManualRelay, *keywords: str) -> ManualConnection:
    connection = await manual.connection()
    await connection.reply("220 relay.example")
    await connection.expect(b"EHLO worker.example\r\n")
    lines = ["relay.example", *keywords]
    await connection.reply(*(f"250{' ' if it is lines[-1] else '-'}{it}" for it in lines))
    return connection


async def take(manual: ManualRelay, smtp: SmtpRelay) -> tuple[ManualConnection, asyncio.Task[Outcome]]:
    """Return a connection without extensions, after MAIL and RCPT, and the mail on it."""
    sending = asyncio.create_task(send(smtp))
    connection = await opened(manual)
    await connection.expect(b"MAIL FROM:<sender@example.com>\r\n")
    await connection.reply(ACCEPTS[0])
    await connection.expect(b"RCPT TO:<user@example.com>\r\n")
    return connection, sending


@pytest.mark.parametrize("step", ["greeting", "ehlo", "auth"])
@pytest.mark.parametrize("surplus", [f"{SURPLUS}\r\n", "235 2.7.0 welcome\r\n", "250-", "25", "what?\r\n"])
async def test_a_reply_too_many_in_the_handshake_makes_the_relay_unavailable(step: str, surplus: str) -> None:
    login = ("user", "secret")
    async with ScriptedRelay(login=login) as relay, client(relay, user=login[0], password=login[1]) as smtp:
        usual = {"greeting": "220 relay.example", "ehlo": "250-relay.example\r\n250 AUTH PLAIN", "auth": "235 welcome"}
        relay.then(step, Act(f"{usual[step]}\r\n{surplus}", end=""))
        outcome = await send(smtp)
        assert isinstance(outcome, Unavailable)
        assert outcome.reason == "unreachable"
        following = {"greeting": "EHLO", "ehlo": "AUTH", "auth": "MAIL"}[step]
        assert following not in relay.commands()


async def test_a_relay_that_replies_without_end_during_a_login_fills_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It asks for as many iterations as a login may take, and sends replies meanwhile."""
    proceed, respond = threading.Event(), login._next
    monkeypatch.setattr(login, "_next", lambda *arguments: proceed.wait(5) and respond(*arguments))
    async with ManualRelay() as relay, client(relay, user="user", password="secret") as smtp:
        sending = asyncio.create_task(send(smtp))
        connection = await relay.connection()
        await connection.reply("220 relay.example")
        await connection.expect(b"EHLO worker.example\r\n")
        await connection.reply("250-relay.example", "250 AUTH LOGIN")
        await connection.expect(b"AUTH LOGIN\r\n")
        await connection.reply("334 VXNlcm5hbWU6", *["250 more"] * 10)
        await connection.expect_end()
        proceed.set()
        assert isinstance(await sending, Unavailable)


async def test_421_behind_the_greeting_keeps_its_reason() -> None:
    async with ScriptedRelay() as relay, client(relay) as smtp:
        relay.then("greeting", Act("220 relay.example\r\n421 4.7.0 too many connections", then="close"))
        outcome = await send(smtp)
        assert isinstance(outcome, Unavailable)
        assert outcome.reason == "throttled"
    assert relay.commands() == []


@pytest.mark.parametrize("surplus", ["250 ok\r\n", "250 ok\r\n250 ok\r\n", "354 go\r\n", "550 no\n", "what?\r\n", "25"])
async def test_content_is_not_sent_on_a_go_ahead_that_has_another_reply_behind_it(
    manual: ManualRelay, surplus: str
) -> None:
    async with client(manual) as smtp:
        connection, sending = await take(manual, smtp)
        await connection.reply(ACCEPTS[1])
        await connection.expect(b"DATA\r\n")
        await connection.send(f"{ACCEPTS[2]}\r\n{surplus}")
        await connection.expect_end()
        outcome = await sending
        assert isinstance(outcome, Unavailable)
        assert "no command asked for" in outcome.error


async def test_no_chunk_is_sent_on_a_reply_to_rcpt_that_has_another_one_behind_it(manual: ManualRelay) -> None:
    async with client(manual) as smtp:
        sending = asyncio.create_task(send(smtp))
        connection = await opened(manual, "CHUNKING")
        await connection.expect(b"MAIL FROM:<sender@example.com>\r\n")
        await connection.reply(ACCEPTS[0])
        await connection.expect(b"RCPT TO:<user@example.com>\r\n")
        await connection.reply(ACCEPTS[1], SURPLUS)
        await connection.expect_end()
        assert isinstance(await sending, Unavailable)


@pytest.mark.parametrize("step", ["mail", "rcpt"])
async def test_a_reply_too_many_to_an_envelope_ends_the_connection_before_any_content(
    manual: ManualRelay, step: str
) -> None:
    async with client(manual) as smtp:
        sending = asyncio.create_task(send(smtp))
        connection = await opened(manual)
        await connection.expect(b"MAIL FROM:<sender@example.com>\r\n")
        await connection.reply(ACCEPTS[0], *([SURPLUS] if step == "mail" else ()))
        if step == "rcpt":
            await connection.expect(b"RCPT TO:<user@example.com>\r\n")
            await connection.reply(ACCEPTS[1], SURPLUS)
        await connection.expect_end()
        assert isinstance(await sending, Unavailable)


async def test_pipelined_replies_with_one_too_many_send_no_content(manual: ManualRelay) -> None:
    async with client(manual) as smtp:
        sending = asyncio.create_task(send(smtp))
        connection = await opened(manual, "PIPELINING")
        await connection.expect(envelope("user@example.com"))
        await connection.reply(*ACCEPTS, SURPLUS)
        await connection.expect_end()
        assert isinstance(await sending, Unavailable)


@pytest.mark.parametrize(
    ("replies", "kind"),
    [
        (["250 queued", "250 ok"], Accepted),
        (["550 5.7.1 no", "550 5.7.1 no"], Rejected),
        (["250 queued", "550 no"], Uncertain),
        (["250 ok", "451 4.3.0 later"], Uncertain),
        (["451 4.3.0 later", "250 queued"], Uncertain),
        (["250 queued", "421 4.4.2 bye"], Accepted),
        (["250 queued", "what?"], Accepted),
    ],
)
async def test_two_replies_to_a_content_decide_only_where_they_agree(
    manual: ManualRelay, replies: list[str], kind: type[Outcome]
) -> None:
    async with client(manual) as smtp:
        connection, sending = await take(manual, smtp)
        await connection.reply(ACCEPTS[1])
        await connection.expect(b"DATA\r\n")
        await connection.reply(ACCEPTS[2])
        await connection.expect(ENDED)
        await connection.reply(*replies)
        assert isinstance(await sending, kind)
        await connection.expect_end(after=b"RSET\r\n")
        assert smtp.state()[0].connections == 0


@pytest.mark.parametrize(
    ("replies", "kind"),
    [
        ([SURPLUS, "250 2.1.0 ok", "250 2.1.5 ok", "550 5.7.1 no"], Uncertain),
        (["250 2.1.0 ok", "250 2.1.5 ok", SURPLUS, "250 2.0.0 queued"], Accepted),
        (["250 2.1.0 ok", "550 5.1.1 no", "554 5.5.1 no", "554 5.5.1 no"], Rejected),
    ],
)
async def test_a_whole_mail_in_one_packet_is_decided_only_where_all_replies_agree(
    manual: ManualRelay, replies: list[str], kind: type[Outcome]
) -> None:
    async with client(manual) as smtp:
        first = asyncio.create_task(send(smtp))
        connection = await opened(manual, "PIPELINING", "CHUNKING")
        await connection.expect(WHOLE)
        await connection.reply(*ACCEPTS[:2])
        await connection.expect(CHUNK)
        await connection.reply("250 2.0.0 queued")
        assert isinstance(await first, Accepted)
        second = asyncio.create_task(send(smtp))
        await connection.expect(WHOLE + CHUNK)
        await connection.reply(*replies)
        assert isinstance(await second, kind)
        await connection.expect_end(after=b"RSET\r\n")


@pytest.mark.parametrize("surplus", [f"{SURPLUS}\r\n", "250-", "25", "\0", "\r\n", "354 go\r\n", "550 no\r\n"])
async def test_a_reply_on_an_idle_connection_ends_it_and_the_next_mail_uses_another(
    manual: ManualRelay, surplus: str
) -> None:
    async with client(manual) as smtp:
        first = asyncio.create_task(send(smtp))
        connection = await opened(manual, "PIPELINING")
        await connection.accept("user@example.com")
        assert isinstance(await first, Accepted)
        await connection.send(surplus)
        await connection.expect_end()
        second = asyncio.create_task(send(smtp))
        other = await opened(manual, "PIPELINING")
        await other.accept("user@example.com")
        assert isinstance(await second, Accepted)


@pytest.mark.parametrize("surplus", [SURPLUS, "550 no"])
async def test_a_reply_too_many_to_rset_ends_the_connection(manual: ManualRelay, surplus: str) -> None:
    async with client(manual) as smtp:
        connection, sending = await take(manual, smtp)
        await connection.reply("550 5.1.1 no such user")
        assert isinstance(await sending, Rejected)
        await connection.expect(b"RSET\r\n")
        await connection.reply("250 2.0.0 ok", surplus)
        await connection.expect_end()
        second = asyncio.create_task(send(smtp))
        other = await opened(manual, "PIPELINING")
        await other.accept("user@example.com")
        assert isinstance(await second, Accepted)


async def test_a_reply_too_many_to_quit_changes_nothing(manual: ManualRelay) -> None:
    smtp = client(manual)
    async with smtp as opened_client:
        first = asyncio.create_task(send(opened_client))
        connection = await opened(manual, "PIPELINING")
        await connection.accept("user@example.com")
        assert isinstance(await first, Accepted)
        closing = asyncio.create_task(opened_client.close(grace_s=5))
        await connection.expect(b"QUIT\r\n")
        await connection.reply("221 2.0.0 bye", SURPLUS)
        await closing
