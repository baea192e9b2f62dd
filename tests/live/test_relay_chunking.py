"""CHUNKING (RFC 3030): the content goes by BDAT, in one packet with its envelope where that is safe."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import pytest
from event_loop import rounds
from smtp_relay import (
    CLOSE,
    CONTENT,
    KEYWORDS,
    RESET,
    Act,
    ManualConnection,
    ManualRelay,
    ScriptedRelay,
    client,
    envelope,
    send,
)

from otp_stream.core.outcome import Accepted, Deferred, Outcome, Rejected, TimedOut, Unavailable, Uncertain
from otp_stream.relay import SmtpRelay, pipeline, relay_support
from otp_stream.relay.circuit_breaker import Pauses

CHUNKING = (*KEYWORDS, "CHUNKING")
CHUNK = b"BDAT %d LAST\r\n" % len(CONTENT) + CONTENT
ACCEPTED = "250 2.1.0 ok", "250 2.1.5 ok", "250 2.0.0 queued"


def start(recipient: str) -> bytes:
    """Return MAIL and RCPT."""
    return envelope(recipient).removesuffix(b"DATA\r\n")


pytestmark = pytest.mark.usefixtures("never_suspended")


@pytest.fixture(autouse=True)
def _busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no mail be sent alone because the test was late."""
    monkeypatch.setattr(pipeline, "_FOLLOW_S", 60.0)


@pytest.fixture
async def relay():
    async with ScriptedRelay(keywords=CHUNKING) as relay:
        yield relay


@pytest.fixture
async def manual():
    async with ManualRelay() as relay:
        yield relay


async def ready(manual: ManualRelay) -> ManualConnection:
    connection = await manual.connection()
    await connection.reply("220 relay.example")
    await connection.expect(b"EHLO worker.example\r\n")
    await connection.reply("250-relay.example", "250-PIPELINING", "250 CHUNKING")
    return connection


async def proven(manual: ManualRelay, smtp: SmtpRelay) -> ManualConnection:
    """Return a connection on which the first mail was accepted."""
    first = asyncio.create_task(send(smtp, "first@example.com"))
    connection = await ready(manual)
    await connection.expect_alone(start("first@example.com"))
    await connection.reply(*ACCEPTED[:2])
    await connection.expect_alone(CHUNK)
    await connection.reply(ACCEPTED[2])
    assert isinstance(await first, Accepted)
    return connection


async def prove(smtp: SmtpRelay, relay: ScriptedRelay) -> None:
    assert isinstance(await send(smtp, "first@example.com"), Accepted)
    assert relay.commands()[-1] == "BDAT"


async def test_after_the_first_mail_envelope_and_content_go_out_together(manual: ManualRelay):
    async with client(manual, pool_size=1) as smtp:
        connection = await proven(manual, smtp)
        second = asyncio.create_task(send(smtp, "second@example.com"))
        await connection.expect_alone(start("second@example.com") + CHUNK)
        await connection.reply(*ACCEPTED)
        assert isinstance(await second, Accepted)


async def test_the_content_is_sent_as_it_is(relay: ScriptedRelay):
    content = b"Subject: hello\r\n\r\n.one dot\r\n..two dots\r\n.\r\nend\r\n"
    async with client(relay) as smtp:
        assert isinstance(await send(smtp, content=content), Accepted)
        assert isinstance(await send(smtp, content=content), Accepted)
        assert isinstance(await send(smtp, content=b"lone CR \r and LF \n and no end"), Accepted)
    assert [mail.content for mail in relay.accepted] == [content, content, b"lone CR \r\n and LF \r\n and no end\r\n"]
    assert "DATA" not in relay.commands()


async def test_without_pipelining_each_command_waits_for_its_reply():
    async with ScriptedRelay(keywords=("CHUNKING",)) as relay, client(relay, pool_size=1) as smtp:
        outcomes = await asyncio.gather(*(send(smtp, f"u{at}@example.com") for at in range(3)))
    assert all(isinstance(it, Accepted) for it in outcomes)
    assert relay.commands() == ["EHLO", *["MAIL", "RCPT", "BDAT"] * 3, "QUIT"]


async def test_it_can_be_switched_off(relay: ScriptedRelay):
    async with client(relay, chunking=False) as smtp:
        assert isinstance(await send(smtp), Accepted)
    assert relay.commands() == ["EHLO", "MAIL", "RCPT", "DATA", "QUIT"]


async def test_only_one_mail_tries_it_while_the_others_get_data(relay: ScriptedRelay):
    tried = asyncio.Event()
    relay.then("rcpt", Act(until=tried), to="u0@example.com")
    async with client(relay, pool_size=3) as smtp:
        sending = [asyncio.create_task(send(smtp, f"u{at}@example.com")) for at in range(3)]
        await relay.wait_accepted(2)
        assert relay.commands().count("DATA") == 2
        tried.set()
        assert all(isinstance(it, Accepted) for it in await asyncio.gather(*sending))
        assert relay.commands().count("BDAT") == 1
        assert isinstance(await send(smtp), Accepted)
    assert relay.commands().count("BDAT") == 2


@pytest.mark.parametrize("ends", ["550 5.1.1 no such user", "451 4.3.0 later", CLOSE])
async def test_a_mail_that_ends_before_its_content_leaves_the_trial_to_the_next(
    relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch, ends: str | Act
):
    monkeypatch.setattr(Pauses, "next_ms", lambda *_: 1)
    relay.then("rcpt", ends)
    async with client(relay) as smtp:
        assert not isinstance(await send(smtp), Accepted)
        assert isinstance(await send(smtp), Accepted)
    assert (relay.commands().count("BDAT"), relay.commands().count("DATA"), relay.contents) == (1, 0, 1)


@pytest.mark.parametrize("knows_bdat", [True, False], ids=["refuses BDAT", "reads the chunk as commands"])
async def test_a_relay_that_does_not_take_bdat_gets_data_from_then_on(relay: ScriptedRelay, knows_bdat: bool):  # noqa: FBT001
    relay.knows_bdat = knows_bdat
    if knows_bdat:
        relay.then("body", "502 5.5.1 not implemented")
    async with client(relay) as smtp:
        for _ in range(3):
            assert isinstance(await send(smtp), Accepted)
    assert (relay.commands().count("BDAT"), relay.commands().count("DATA"), len(relay.accepted)) == (1, 3, 3)


async def test_a_mail_that_bdat_and_data_refuse_is_rejected_and_bdat_is_tried_again(relay: ScriptedRelay):
    relay.then("body", *["554 5.7.1 spam"] * 2)
    async with client(relay) as smtp:
        outcome = await send(smtp)
        assert isinstance(outcome, Rejected)
        assert str(outcome.reply) == "554 5.7.1 spam (to BODY)"
        assert isinstance(await send(smtp), Accepted)
    assert (relay.commands().count("BDAT"), relay.commands().count("DATA")) == (2, 1)


async def test_a_relay_that_has_taken_bdat_and_no_longer_knows_it_gets_data(relay: ScriptedRelay):
    async with client(relay) as smtp:
        await prove(smtp, relay)
        relay.then("body", "503 5.5.1 bad sequence of commands")
        assert isinstance(await send(smtp), Accepted)
        assert isinstance(await send(smtp), Accepted)
    assert (relay.commands().count("BDAT"), relay.commands().count("DATA"), len(relay.accepted)) == (2, 2, 3)


@pytest.mark.parametrize(
    ("step", "reply", "kind"),
    [
        ("mail", "550 5.7.1 you may not send to anyone here", Unavailable),
        ("rcpt", "550 5.1.1 no such user", Rejected),
        ("rcpt", "450 4.2.0 mailbox busy", Deferred),
        ("body", "554 5.7.1 spam", Rejected),
        ("body", "451 4.3.0 later", Deferred),
    ],
)
async def test_a_refusal_is_about_its_mail_and_the_next_is_accepted(
    relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch, step: str, reply: str, kind: type[Outcome]
):
    monkeypatch.setattr(Pauses, "next_ms", lambda *_: 1)
    async with client(relay, pool_size=1) as smtp:
        await prove(smtp, relay)
        relay.then(step, reply)
        outcome = await send(smtp, "second@example.com")
        assert isinstance(outcome, kind)
        assert reply in str(outcome) or reply in str(getattr(outcome, "reply", ""))
        assert isinstance(await send(smtp, "third@example.com"), Accepted)
    assert [mail.recipient for mail in relay.accepted] == ["first@example.com", "third@example.com"]


async def test_a_mail_that_the_relay_takes_in_the_end_is_accepted_whatever_it_replied_before(manual: ManualRelay):
    async with client(manual, pool_size=1) as smtp:
        connection = await proven(manual, smtp)
        second = asyncio.create_task(send(smtp, "second@example.com"))
        await connection.expect_alone(start("second@example.com") + CHUNK)
        await connection.reply("503 5.5.1 nested MAIL command", "250 2.1.5 ok", "250 2.0.0 queued")
        assert isinstance(await second, Accepted)


async def both_in_flight(manual: ManualRelay, smtp: SmtpRelay) -> tuple[ManualConnection, list[asyncio.Task[Outcome]]]:
    """Return a connection to which two mails were sent without a reply."""
    connection = await proven(manual, smtp)
    sending = [asyncio.create_task(send(smtp, f"{name}@example.com")) for name in ("second", "third", "fourth")]
    await connection.expect(start("second@example.com") + CHUNK)
    await connection.reply(*ACCEPTED)
    await connection.expect(start("third@example.com") + CHUNK)
    await connection.expect_alone(b"RSET\r\n" + start("fourth@example.com") + CHUNK)
    assert isinstance(await sending[0], Accepted)
    return connection, sending[1:]


async def test_while_another_connection_may_be_used_no_mail_is_sent_behind_another(manual: ManualRelay):
    async with client(manual, pool_size=3) as smtp:
        connection = await proven(manual, smtp)
        sending = [asyncio.create_task(send(smtp, f"{name}@example.com")) for name in ("second", "third", "fourth")]
        await connection.expect_alone(start("second@example.com") + CHUNK)
        await connection.reply(*ACCEPTED)
        await connection.expect_alone(start("third@example.com") + CHUNK)
        other = await ready(manual)
        await other.expect_alone(start("fourth@example.com") + CHUNK)
        for it in (connection, other):
            await it.reply(*ACCEPTED)
        assert all(isinstance(it, Accepted) for it in await asyncio.gather(*sending))


async def test_with_all_connections_busy_a_mail_is_sent_behind_another(manual: ManualRelay):
    async with client(manual, pool_size=1) as smtp:
        connection, (third, fourth) = await both_in_flight(manual, smtp)
        await connection.reply(*ACCEPTED, "250 reset", *ACCEPTED)
        assert isinstance(await third, Accepted)
        assert isinstance(await fourth, Accepted)


@pytest.mark.parametrize(
    ("replies", "kind"),
    [
        (("250 ok", "550 5.1.1 no such user", "554 5.5.1 no valid recipients"), Rejected),
        (("250 ok", "250 ok", "451 4.3.0 later"), Deferred),
        (("550 5.7.1 you may not send", "503 MAIL first", "503 MAIL first"), Unavailable),
    ],
)
async def test_a_refusal_does_not_touch_the_mail_behind_it(
    manual: ManualRelay, replies: tuple[str, ...], kind: type[Outcome]
):
    async with client(manual, pool_size=1) as smtp:
        connection, (third, fourth) = await both_in_flight(manual, smtp)
        await connection.reply(*replies, "250 reset", *ACCEPTED)
        assert isinstance(await third, kind)
        assert isinstance(await fourth, Accepted)


async def test_two_mails_in_flight_are_uncertain_when_the_connection_is_lost(manual: ManualRelay):
    async with client(manual, pool_size=1) as smtp:
        connection, sending = await both_in_flight(manual, smtp)
        connection.close()
        outcomes = [await it for it in sending]
        assert all(isinstance(it, Uncertain) for it in outcomes)
        assert "after its content was sent" in outcomes[0].error  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("reply", ["334 {}", "354 {}"])
async def test_what_a_relay_quotes_of_one_mail_is_not_in_the_outcome_of_the_mail_behind_it(
    manual: ManualRelay, reply: str
):
    async with client(manual, pool_size=1) as smtp:
        connection, (third, fourth) = await both_in_flight(manual, smtp)
        await connection.reply("250 ok", "250 ok", reply.format("your code is 739154"))
        connection.close()
        assert "739154" in repr(await third)  # redacted later, with the secrets of this job
        assert "739154" not in repr(await fourth)


async def test_a_relay_that_ends_the_session_has_not_read_what_is_behind(
    manual: ManualRelay, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Pauses, "next_ms", lambda *_: 1)
    async with client(manual, pool_size=1) as smtp:
        connection, (third, fourth) = await both_in_flight(manual, smtp)
        await connection.reply("421 4.3.2 service is shutting down")
        connection.close()
        again = await ready(manual)
        await again.expect(start("third@example.com") + CHUNK)
        await again.expect_alone(b"RSET\r\n" + start("fourth@example.com") + CHUNK)
        await again.reply(*ACCEPTED, "250 reset", *ACCEPTED)
        assert isinstance(await third, Accepted)
        assert isinstance(await fourth, Accepted)


async def test_a_relay_that_goes_on_after_421_takes_no_mail_twice(manual: ManualRelay):
    async with client(manual, pool_size=1) as smtp:
        connection, (third, fourth) = await both_in_flight(manual, smtp)
        await connection.reply("250 ok", "421 4.2.0 greylisted", "503 no recipients", "250 reset", *ACCEPTED)
        assert isinstance(await third, Deferred | Unavailable)
        assert isinstance(await fourth, Accepted)


async def test_a_session_limit_sends_both_mails_again(manual: ManualRelay):
    async with client(manual, pool_size=1) as smtp:
        connection, (third, fourth) = await both_in_flight(manual, smtp)
        limit = "452 4.5.3 too many messages in this session"
        await connection.reply(limit, "503 no", "503 no", "250 reset", limit, "503 no", "503 no")
        await connection.expect_end()
        again = await ready(manual)
        await again.expect(start("third@example.com") + CHUNK)
        await again.expect_alone(b"RSET\r\n" + start("fourth@example.com") + CHUNK)
        await again.reply(*ACCEPTED, "250 reset", *ACCEPTED)
        assert isinstance(await third, Accepted)
        assert isinstance(await fourth, Accepted)


async def test_on_a_connection_that_was_idle_the_content_waits_for_the_envelope(
    manual: ManualRelay, monkeypatch: pytest.MonkeyPatch
):
    async with client(manual, pool_size=1) as smtp:
        connection = await proven(manual, smtp)
        monkeypatch.setattr(pipeline, "_RESPONSIVE_S", 0)
        second = asyncio.create_task(send(smtp, "second@example.com"))
        await connection.expect_alone(start("second@example.com"))
        connection.close()  # a relay that is gone costs a reconnect, and makes no mail uncertain
        again = await ready(manual)
        await again.expect_alone(start("second@example.com"))
        await again.reply(*ACCEPTED[:2])
        await again.expect_alone(CHUNK)
        await again.reply(ACCEPTED[2])
        assert isinstance(await second, Accepted)


async def test_a_relay_that_often_cuts_connections_gets_the_content_after_the_envelope(
    relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Pauses, "next_ms", lambda *_: 1)
    monkeypatch.setattr(relay_support, "_CUT_APART_S", 0)
    async with client(relay, pool_size=1) as smtp:
        for _ in range(3):
            await prove(smtp, relay)
            relay.then("mail", RESET)
            assert isinstance(await send(smtp), Uncertain)
        await prove(smtp, relay)
        relay.then("mail", RESET)
        assert isinstance(await send(smtp), Accepted)


async def test_a_job_that_is_lost_before_its_content_is_not_sent(relay: ScriptedRelay):
    wanted = True
    asked = asyncio.Event()
    relay.then("rcpt", Act(until=asked))
    async with client(relay, pool_size=1) as smtp:
        sending = asyncio.create_task(send(smtp, wanted=lambda: wanted))
        await relay.wait(lambda: relay.held == 1, "RCPT")
        wanted = False
        asked.set()
        assert isinstance(await sending, TimedOut)
        assert relay.contents == 0
        assert isinstance(await send(smtp), Accepted)


async def test_a_relay_that_keeps_its_replies_has_the_time_of_the_last_one(
    manual: ManualRelay,
):
    async with client(manual, pool_size=1) as smtp:
        connection = await proven(manual, smtp)
        (ours,) = smtp._upstreams[0].pool.open
        ours._waits |= {"mail": 0.2, "rcpt": 0.2}
        second = asyncio.create_task(send(smtp, "second@example.com"))
        await connection.expect(start("second@example.com") + CHUNK)
        await asyncio.sleep(0.5)  # longer than MAIL may take if nothing is behind it
        await connection.reply(*ACCEPTED)
        assert isinstance(await second, Accepted)


async def test_a_connection_with_a_session_limit_takes_no_more_mail(manual: ManualRelay):
    async with client(manual, pool_size=1) as smtp:
        connection, (third, fourth) = await both_in_flight(manual, smtp)
        limit = "452 4.5.3 too many messages in this session"
        await connection.reply(limit, "503 no", "503 no")
        await rounds()
        await connection.reply("250 reset", *ACCEPTED)
        assert isinstance(await fourth, Accepted)
        await connection.expect(b"QUIT\r\n")
        connection.close()
        again = await ready(manual)
        await again.expect_alone(start("third@example.com") + CHUNK)
        await again.reply(*ACCEPTED)
        assert isinstance(await third, Accepted)


@pytest.mark.parametrize("step", ["mail", "rcpt"])
async def test_a_relay_that_finds_each_command_out_of_order_takes_no_mail(relay: ScriptedRelay, step: str):
    async with client(relay, pool_size=1) as smtp:
        await prove(smtp, relay)
        relay.always(step, "503 5.5.1 bad sequence of commands")
        assert isinstance(await send(smtp), Unavailable)
        assert relay.connections <= 3


async def test_a_relay_that_is_silent_after_421_may_have_read_what_is_behind(
    manual: ManualRelay, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipeline, "_ENDED_S", 0.2)
    async with client(manual, pool_size=1) as smtp:
        connection, (third, fourth) = await both_in_flight(manual, smtp)
        await connection.reply("421 4.3.2 busy")
        assert isinstance(await fourth, Uncertain)
        third.cancel()


async def test_a_relay_that_cuts_each_connection_at_a_packet_with_content_gets_the_content_after_the_envelope(
    relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Pauses, "next_ms", lambda *_: 1)
    monkeypatch.setattr(relay_support, "_CUT_APART_S", 0)
    async with client(relay, pool_size=1) as smtp:
        await prove(smtp, relay)
        relay.then("mail", *[RESET] * 4)
        assert [type(await send(smtp)) for _ in range(5)] == [Uncertain] * 3 + [Unavailable, Accepted]


@pytest.mark.parametrize("ends", [CLOSE, RESET])
async def test_a_relay_that_cuts_each_connection_at_bdat_gets_data(
    relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch, ends: Act
):
    monkeypatch.setattr(Pauses, "next_ms", lambda *_: 1)
    relay.then("body", ends, ends)
    async with client(relay) as smtp:
        assert [type(await send(smtp)) for _ in range(3)] == [Uncertain, Uncertain, Accepted]
    assert (relay.commands().count("BDAT"), relay.commands().count("DATA")) == (2, 1)


async def test_behind_a_content_that_takes_long_no_mail_is_sent(manual: ManualRelay, monkeypatch: pytest.MonkeyPatch):
    async with client(manual, pool_size=1) as smtp:
        connection = await proven(manual, smtp)
        monkeypatch.setattr(pipeline, "_FOLLOW_S", 0.0)
        names = "second", "third", "fourth"
        sending = [asyncio.create_task(send(smtp, f"{name}@example.com")) for name in names]
        for name in names:
            await connection.expect(start(f"{name}@example.com") + CHUNK)
            await rounds()
            await connection.expect_alone(b"")
            await connection.reply(*ACCEPTED)
        assert all(isinstance(it, Accepted) for it in await asyncio.gather(*sending))


async def test_a_stop_completes_both_mails(manual: ManualRelay):
    async with client(manual, pool_size=1) as smtp:
        connection, (third, fourth) = await both_in_flight(manual, smtp)
        closing = asyncio.create_task(smtp.close(grace_s=5))
        await connection.reply(*ACCEPTED, "250 reset", *ACCEPTED)
        assert isinstance(await third, Accepted)
        assert isinstance(await fourth, Accepted)
        await connection.expect(b"QUIT\r\n")
        connection.close()
        await closing


def counters(smtp: SmtpRelay) -> tuple[int, int, int]:
    """Return the mails in flight, the ordinary ones among them, and the replies that the relay owes."""
    (upstream,) = smtp._upstreams
    return upstream._sending, upstream._ordinary, upstream.availability.owed


FAULTS: dict[str, tuple[str | Act, ...]] = {
    "mail": ("450 4.7.1 sender later", "452 4.5.3 too many messages in this session", "421 4.3.2 bye", CLOSE, RESET),
    "rcpt": ("550 5.1.1 no", "450 4.2.0 later", "421 4.3.2 bye", RESET),
    "body": (
        "554 5.7.1 spam", "451 4.3.0 later", "421 4.3.2 bye", "503 5.5.1 bad sequence",
        Act("no reply"), Act("", then="close", keep=True), CLOSE, RESET, Act("250 ok", then="close"),
    ),
    "rset": ("250 ok", CLOSE, "421 bye", "502 5.5.1 not implemented"),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
async def test_under_random_faults_every_mail_ends_as_the_relay_recorded(
    relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch, seed: int
):
    monkeypatch.setattr(Pauses, "next_ms", lambda *_: 1)
    chance = random.Random(seed)  # noqa: S311
    steps: Callable[[str], str | Act] = lambda step: chance.choice(FAULTS[step])  # noqa: E731
    people = [f"u{at}@example.com" for at in range(400)]
    faulty = {person: (step := chance.choice(list(FAULTS)), steps(step)) for person in people if chance.random() < 0.15}
    for person, (step, act) in faulty.items():
        relay.then(step, act, to=person if step in {"rcpt", "body"} else None)
    relay.byte_by_byte = seed % 2 == 1
    async with client(relay, pool_size=4) as smtp:
        outcomes = dict(zip(people, await asyncio.gather(*(send(smtp, it) for it in people)), strict=True))
        await relay.wait(lambda: counters(smtp) == (0, 0, 0), "idle counters")
    counts = Counter(mail.recipient for mail in relay.accepted)
    assert max(counts.values()) == 1
    for person, outcome in outcomes.items():
        match outcome:
            case Accepted():
                assert counts[person] == 1, person
            case Uncertain():
                pass
            case _:
                assert counts[person] == 0, (person, outcome)
    uncertain = sum(isinstance(it, Uncertain) for it in outcomes.values())
    assert uncertain <= 2 * sum(isinstance(act, Act) for _, act in faulty.values()), uncertain
    assert sum(isinstance(it, Accepted) for it in outcomes.values()) > 200
