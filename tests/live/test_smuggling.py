"""SMTP smuggling: whatever a mail contains, a lenient relay finds one mail in it, and no command."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session
from hostile_mails import CODE
from lenient_relay import LenientRelay, lenient_relay
from mails import identity, job
from postfix import Postfix
from rabbitmq import until
from smtp_relay import client, now_ms, send

from otp_stream.core.mail import Mail
from otp_stream.core.outcome import Accepted, Outcome, Rejected
from otp_stream.mail import Brand, Composer
from otp_stream.relay import SmtpRelay

BREAKS = ("\r\n", "\n", "\r", "\0\n", "\r\r\n", "\n\r", "\x0b", "\x85", "\u2028")
EVIL = "MAIL FROM:<eve@example.com>{0}RCPT TO:<eve@example.com>{0}DATA{0}Subject: evil{0}{0}evil{0}.{0}"
PAYLOADS = tuple(
    f"{before}.{after}{EVIL.format(line)}"
    for before in BREAKS
    for after, line in [*((it, "\r\n") for it in BREAKS), ("\r\n", before), ("\r", "\r")]
)
"""Ends of a mail, as one relay or another reads them, and another mail behind each."""
ALL_KEYWORDS = [(), ("PIPELINING",), ("CHUNKING",), ("PIPELINING", "CHUNKING")]


async def deliver(smtp: SmtpRelay, mail: Mail) -> Outcome:
    ends = now_ms() + 60_000
    async with asyncio.timeout(10):
        return await smtp.send(mail, rank=2, lane="jobs", expires_ms=ends, deadline_ms=ends)


def check(relay: LenientRelay, number: int) -> None:
    """Check that the relay has so many mails and no command of another, and that no line end is ambiguous."""
    assert len(relay.mails) == number
    assert not [it for it in relay.commands if b"eve@" in it]
    for read in (relay.outside, *relay.mails):
        assert not re.search(rb"[\r\n\0]", read.replace(b"\r\n", b""))


@pytest.mark.parametrize("keywords", ALL_KEYWORDS, ids=lambda it: "+".join(it) or "none")
async def test_any_content_is_one_mail(keywords: tuple[str, ...]) -> None:
    async with lenient_relay(*keywords) as relay, client(relay, pool_size=2) as smtp:
        contents = [f"Subject: x\r\n\r\nhello{it}".encode() for it in PAYLOADS]
        contents += [it.lstrip("\0").encode() for it in PAYLOADS]  # at the very beginning
        contents = [it.replace(b"\0", b"") for it in contents]  # no template can write it: the next test
        for content in contents:
            assert isinstance(await send(smtp, content=content), Accepted)
        check(relay, len(contents))


def composed(folder: Path) -> Iterator[Mail]:
    """Yield mails with each payload in every value that reaches a mail, in every part of it."""
    for number, payload in enumerate(PAYLOADS):
        value = f"Ann{payload}"
        brand = Brand(name=f"Acme{payload}", support=f"help{payload}", footer=(f"Inc{payload}", payload))
        reply_to, sender = (value, "help@example.com"), (value, "no-reply@example.com")
        hostile = identity(None, sender=sender, reply_to=reply_to, brand=brand, subject_time=True)
        fields = dict.fromkeys(("userName", "purpose", "locale", "template", "tenant", "timeZone", "team"), value)
        asked = job(CODE, job_id=value, request={"place": value, "device": value}, **fields)
        yield Composer(hostile, b"k" * 32).compose(asked) if number % 25 == 0 else _SHARED.compose(asked)
    for payload in PAYLOADS[::13]:
        for template in ("otp", "welcome"):
            (folder / template).mkdir(parents=True, exist_ok=True)
            for name in ("subject.txt", "body.txt", "body.html"):
                text = f"{payload} {{{{ otp }}}}{payload}{{{{ userName }}}}{payload}"
                (folder / template / name).write_bytes(text.encode())
        yield Composer(identity(folder), b"k" * 32).compose(job(CODE, template="welcome", userName=f".{payload}"))


_SHARED = Composer(identity(brand=Brand(name="Acme")), b"k" * 32)


@pytest.fixture(scope="module")
def mails(tmp_path_factory: pytest.TempPathFactory) -> list[Mail]:
    return list(composed(tmp_path_factory.mktemp("templates")))


@pytest.mark.parametrize("keywords", ALL_KEYWORDS, ids=lambda it: "+".join(it) or "none")
async def test_a_composed_mail_is_one_mail_whatever_its_values_contain(
    keywords: tuple[str, ...], mails: list[Mail]
) -> None:
    async with lenient_relay(*keywords) as relay, client(relay, pool_size=2) as smtp:
        for mail in mails:
            assert isinstance(await deliver(smtp, mail), Accepted)
        check(relay, len(mails))


@pytest.mark.parametrize("break_", [*BREAKS[:6], ">", "> ", "\0"])
@pytest.mark.parametrize("field", ["recipient", "sender"])
async def test_no_address_adds_a_command(break_: str, field: str) -> None:
    hostile = f"a@example.com>{break_}RCPT TO:<eve@example.com"
    recipient, sender = (hostile, None) if field == "recipient" else ("user@example.com", hostile)
    async with lenient_relay("PIPELINING", "SMTPUTF8") as relay, client(relay) as smtp:
        assert isinstance(await deliver(smtp, Mail(recipient, b"x\r\n", sender=sender)), Rejected)
        assert isinstance(await send(smtp), Accepted)
        check(relay, 1)


class _Mailbox:
    def __init__(self) -> None:
        self.mails: list[Envelope] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd
        self.mails.append(envelope)
        return "250 2.0.0 ok"


async def test_aiosmtpd_finds_one_mail_in_each(mails: list[Mail]) -> None:
    mailbox = _Mailbox()
    server = await asyncio.get_running_loop().create_server(lambda: SMTP(mailbox), "127.0.0.1", 0)
    relay = LenientRelay(port=server.sockets[0].getsockname()[1])
    try:
        async with client(relay, pool_size=2) as smtp:
            for mail in mails:
                assert isinstance(await deliver(smtp, mail), Accepted)
    finally:
        server.close()
    assert [it.rcpt_tos for it in mailbox.mails] == [["user@example.com"]] * len(mails)
    assert [it.content for it in mailbox.mails] == [it.content for it in mails]


async def test_postfix_finds_one_mail_in_each(mails: list[Mail]) -> None:
    mails = [*mails, *(Mail("user@example.com", f"Subject: x\r\n\r\nhello{it}".encode()) for it in PAYLOADS[:40])]
    async with Postfix() as postfix:
        for chunking in (True, False):
            async with client(LenientRelay(port=postfix.port), chunking=chunking) as smtp:
                outcomes = await asyncio.gather(*(deliver(smtp, mail) for mail in mails))
            assert {type(it) for it in outcomes} == {Accepted}

        async def discarded() -> bool:
            return len(postfix.accepted) >= 2 * len(mails)

        await until(discarded, "all mails in Postfix's log")
        assert [it.recipient for it in postfix.accepted] == ["user@example.com"] * 2 * len(mails)
