"""One mail after another, on the wire."""

import asyncio
import time

import pytest
from smtp_relay import CLOSE, CONTENT, KEYWORDS, RESET, SILENCE, Act, ScriptedRelay, client, now_ms, send

from otp_stream.core.mail import Mail
from otp_stream.core.outcome import Accepted, Deferred, Lapsed, Outcome, Rejected, Unavailable, Uncertain
from otp_stream.relay import RelayLimits

WITHOUT_PIPELINING = tuple(word for word in KEYWORDS if word != "PIPELINING")


@pytest.fixture(params=[KEYWORDS, WITHOUT_PIPELINING], ids=["pipelining", "one by one"])
async def relay(request: pytest.FixtureRequest):
    async with ScriptedRelay(keywords=request.param) as relay:
        yield relay


async def test_a_mail_is_accepted_with_its_envelope_and_content(relay: ScriptedRelay):
    async with client(relay) as smtp:
        outcome = await send(smtp)
        assert isinstance(outcome, Accepted)
        assert str(outcome.reply) == "250 2.0.0 queued (to BODY)"
        [mail] = relay.accepted
        assert (mail.sender, mail.recipient, mail.content) == ("sender@example.com", "user@example.com", CONTENT)
        assert mail.parameters == f"SIZE={len(CONTENT)}"
    await relay.wait(lambda: relay.open_connections == 0, "end of the connection")
    assert relay.commands() == ["EHLO", "MAIL", "RCPT", "DATA", "QUIT"]
    assert relay.log[0] == (1, "EHLO worker.example")


async def test_many_mails_share_few_connections(relay: ScriptedRelay):
    async with client(relay, pool_size=3) as smtp:
        outcomes = await asyncio.gather(*(send(smtp, f"u{at}@example.com") for at in range(60)))
        assert all(isinstance(outcome, Accepted) for outcome in outcomes)
        assert {mail.recipient for mail in relay.accepted} == {f"u{at}@example.com" for at in range(60)}
        assert relay.connections <= 3
        state = smtp.look()[0]
        assert (state.replies, state.sending, state.waiting) == ({"250": 60}, 0, 0)


async def test_the_next_envelope_goes_out_behind_the_content():
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def read(end: bytes, *replies: bytes) -> None:
            await reader.readuntil(end)
            writer.writelines(reply + b"\r\n" for reply in replies)

        writer.write(b"220 relay.example\r\n")
        await read(b"\r\n", b"250-relay.example", b"250 PIPELINING")
        await read(b"DATA\r\n", b"250 ok", b"250 ok", b"354 go on")
        await read(b"\r\n.\r\n")
        # the relay says nothing of the first mail before it has the second one's envelope
        await read(b"DATA\r\n", b"250 first", b"250 ok", b"250 ok", b"354 go on")
        await read(b"\r\n.\r\n", b"250 second")
        await read(b"QUIT\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    relay = ScriptedRelay(port=server.sockets[0].getsockname()[1])
    async with server, client(relay, pool_size=1) as smtp, asyncio.timeout(5):
        first, second = await asyncio.gather(send(smtp, "first@example.com"), send(smtp, "second@example.com"))
    assert isinstance(first, Accepted)
    assert isinstance(second, Accepted)
    assert (first.reply.text, second.reply.text) == ("first", "second")


@pytest.mark.parametrize("fault", [Act("", then="close", keep=True), RESET, Act("421 4.3.2 bye", then="close")])
async def test_a_mail_behind_one_that_broke_goes_over_another_connection(relay: ScriptedRelay, fault: Act):
    relay.then("body", fault, to="first@example.com")
    async with client(relay, pool_size=1) as smtp:
        first, second = await asyncio.gather(send(smtp, "first@example.com"), send(smtp, "second@example.com"))
        assert isinstance(first, Uncertain | Unavailable)
        assert isinstance(second, Accepted | Unavailable)  # it met the gate that the 421 had closed, and waits
    assert [mail.recipient for mail in relay.accepted].count("second@example.com") <= 1


async def test_no_mail_waits_long_behind_another(relay: ScriptedRelay):
    relay.always("body", SILENCE, to="slow@example.com")
    async with client(relay, pool_size=3) as smtp:
        slow = asyncio.create_task(send(smtp, "slow@example.com"))
        others = await asyncio.gather(*(send(smtp, f"u{at}@example.com") for at in range(30)))
        assert all(isinstance(outcome, Accepted) for outcome in others)
        assert smtp.look()[0].waiting == 0
        relay.cut()
        assert isinstance(await slow, Uncertain)


async def test_no_mail_goes_behind_another_where_the_relay_thinks_for_long(relay: ScriptedRelay):
    relay.always("body", Act(delay_s=0.05))
    async with client(relay, pool_size=1) as smtp:
        assert isinstance(await send(smtp, "first@example.com"), Accepted)
        rest = [asyncio.create_task(send(smtp, f"u{at}@example.com")) for at in range(3)]
        await relay.wait(lambda: relay.contents == 2, "second mail on the wire")
        urgent = asyncio.create_task(send(smtp, "urgent@example.com", rank=0))
        await asyncio.gather(urgent, *rest)
    assert relay.accepted[2].recipient == "urgent@example.com"


async def test_a_mail_behind_another_is_asked_once_more_whether_it_is_wanted(relay: ScriptedRelay):
    relay.then("mail", Act(), Act(delay_s=0.2))
    wanted = True
    async with client(relay, pool_size=1) as smtp:
        first = asyncio.create_task(send(smtp, "first@example.com"))
        second = asyncio.create_task(send(smtp, "second@example.com", wanted=lambda: wanted))
        await relay.wait(lambda: relay.commands().count("MAIL") == 2, "second envelope")
        wanted = False
        assert isinstance(await first, Accepted)
        assert isinstance(await second, Lapsed)
    assert [mail.recipient for mail in relay.accepted] == ["first@example.com"]


async def test_dots_and_long_content_arrive_as_they_were(relay: ScriptedRelay):
    content = b".\r\n..\r\n.first\r\nmid.\r\n" + b".line of text\r\n" * 20_000 + b".\r\n"
    async with client(relay) as smtp:
        assert isinstance(await send(smtp, content=content), Accepted)
    assert relay.accepted[0].content == content


@pytest.mark.parametrize(
    ("step", "reply", "kind"),
    [
        ("mail", "550 5.7.1 sender refused", Rejected),
        ("mail", "451 4.3.0 later", Deferred),
        ("rcpt", "550 5.1.1 no such user", Rejected),
        ("rcpt", "450 4.2.0 greylisted", Deferred),
        ("data", "554 5.6.0 no", Rejected),
        ("data", "451 4.3.0 later", Deferred),
        ("body", "552 5.3.4 too big", Rejected),
        ("body", "451 4.3.0 later", Deferred),
    ],
)
async def test_a_refused_mail_keeps_the_connection(relay: ScriptedRelay, step: str, reply: str, kind: type[Outcome]):
    relay.then(step, reply)
    async with client(relay, pool_size=1) as smtp:
        refused = await send(smtp, "first@example.com")
        assert isinstance(refused, kind)
        assert str(refused.reply) == f"{reply} (to {step.upper()})"
        assert isinstance(await send(smtp, "second@example.com"), Accepted)
        assert smtp.look()[0].gate == "open"
    assert [mail.recipient for mail in relay.accepted] == ["second@example.com"]
    assert relay.connections == 1


async def test_refused_recipients_do_not_disturb_those_beside_them(relay: ScriptedRelay):
    for at in range(0, 100, 3):
        relay.always("rcpt", "550 5.1.1 no", to=f"u{at}@example.com")
    async with client(relay, pool_size=4) as smtp:
        outcomes = await asyncio.gather(*(send(smtp, f"u{at}@example.com") for at in range(100)))
    assert [type(outcome) for outcome in outcomes] == [Rejected if at % 3 == 0 else Accepted for at in range(100)]
    assert len(relay.accepted) == 66
    assert relay.connections <= 4


async def test_the_connection_is_lost_after_the_final_dot(relay: ScriptedRelay):
    relay.then("body", Act("", then="close", keep=True))
    async with client(relay) as smtp:
        outcome = await send(smtp)
        assert isinstance(outcome, Uncertain)
        assert "after the final dot" in outcome.error
        assert isinstance(await send(smtp), Accepted)
        assert len(relay.accepted) == 2


async def test_silence_after_the_final_dot_is_uncertain(relay: ScriptedRelay):
    relay.then("body", SILENCE)
    async with client(relay, limits=RelayLimits(body_s=0.2)) as smtp:
        outcome = await send(smtp)
        assert isinstance(outcome, Uncertain)
        assert "no reply in time" in outcome.error


async def test_garbage_after_the_final_dot_is_uncertain(relay: ScriptedRelay):
    relay.then("body", "what a nice mail")
    async with client(relay) as smtp:
        assert isinstance(await send(smtp), Uncertain)


@pytest.mark.parametrize("fault", [CLOSE, RESET, SILENCE, Act("garbage"), Act("250-"), Act("334 hm")])
@pytest.mark.parametrize("step", ["mail", "rcpt", "data"])
async def test_a_fresh_connection_lost_before_the_final_dot_is_the_relay_s_trouble(
    relay: ScriptedRelay, step: str, fault: Act
):
    relay.then(step, fault)
    limits = RelayLimits(mail_s=0.2, rcpt_s=0.2, data_s=0.2)
    async with client(relay, limits=limits) as smtp:
        outcome = await send(smtp)
        assert isinstance(outcome, Unavailable)
        assert outcome.trouble == "unreachable"
        assert smtp.look()[0].gate == "closed"
    assert relay.accepted == []


@pytest.mark.parametrize(
    "fault", [CLOSE, RESET, SILENCE, Act("421 4.4.2 timeout", then="close"), Act("garbage", then="close")]
)
async def test_a_connection_that_went_stale_costs_a_reconnect_and_no_job(relay: ScriptedRelay, fault: Act):
    async with client(relay, limits=RelayLimits(mail_s=0.2)) as smtp:
        assert isinstance(await send(smtp), Accepted)
        relay.then("mail", fault)
        assert isinstance(await send(smtp), Accepted)
        assert smtp.look()[0].gate == "open"
    assert relay.connections == 2


async def test_idle_connections_that_the_relay_cuts_cost_no_job(relay: ScriptedRelay):
    async with client(relay, pool_size=5) as smtp:
        await asyncio.gather(*(send(smtp) for _ in range(20)))
        relay.cut()
        outcomes = await asyncio.gather(*(send(smtp) for _ in range(20)))
        assert all(isinstance(outcome, Accepted) for outcome in outcomes)
        assert len(relay.accepted) == 40


async def test_a_goodbye_to_an_idle_connection_is_heard(relay: ScriptedRelay):
    async with client(relay) as smtp:
        await send(smtp)
        [talk] = relay._talks.values()
        await talk.say("421 4.4.2 idle for too long")
        await relay.wait(lambda: smtp.look()[0].connections == 0, "end of the connection")
        assert isinstance(await send(smtp), Accepted)


@pytest.mark.parametrize("step", ["rcpt", "data", "body"])
async def test_421_in_the_middle_is_the_relay_s_trouble(relay: ScriptedRelay, step: str):
    async with client(relay) as smtp:
        await send(smtp)
        relay.then(step, Act("421 4.3.0 shutting down", then="close"))
        outcome = await send(smtp)
        assert isinstance(outcome, Unavailable)
        assert outcome.error == f"421 4.3.0 shutting down (to {step.upper()})"
        assert smtp.look()[0].gate == "closed"
    assert len(relay.accepted) == 1


async def test_a_connection_that_breaks_after_a_refused_recipient_keeps_the_refusal(relay: ScriptedRelay):
    relay.then("rcpt", Act("550 5.1.1 no", then="close"))
    async with client(relay) as smtp:
        assert isinstance(await send(smtp), Rejected)


async def test_connections_are_replaced_after_so_many_mails(relay: ScriptedRelay):
    async with client(relay, pool_size=1, limits=RelayLimits(messages=2)) as smtp:
        for _ in range(5):
            assert isinstance(await send(smtp), Accepted)
        assert [mail.connection for mail in relay.accepted] == [1, 1, 2, 2, 3]
    assert relay.commands(1)[-1] == "QUIT"


@pytest.mark.parametrize("limits", [RelayLimits(idle_s=0.1), RelayLimits(age_s=0.1)])
async def test_connections_leave_politely_when_idle_or_old(relay: ScriptedRelay, limits: RelayLimits):
    async with client(relay, limits=limits) as smtp:
        await send(smtp)
        await relay.wait(lambda: relay.open_connections == 0, "end of the connection")
        assert relay.commands(1)[-1] == "QUIT"
        assert isinstance(await send(smtp), Accepted)


async def test_closing_lets_the_mail_on_the_wire_finish(relay: ScriptedRelay):
    relay.always("body", Act(delay_s=0.2))
    async with client(relay) as smtp:
        sending = asyncio.create_task(send(smtp))
        await relay.wait(lambda: "DATA" in relay.commands(), "mail on the wire")
        await smtp.close(grace_s=5)
        assert isinstance(await sending, Accepted)
        assert relay.commands()[-1] == "QUIT"


async def test_closing_does_not_wait_for_a_relay_that_is_silent(relay: ScriptedRelay):
    relay.always("body", SILENCE)
    relay.always("quit", SILENCE)
    async with client(relay, pool_size=1) as smtp:
        on_wire = asyncio.create_task(send(smtp))
        await relay.wait(lambda: "DATA" in relay.commands(), "mail on the wire")
        waiting = asyncio.create_task(send(smtp))
        await relay.wait(lambda: smtp.look()[0].waiting == 1, "waiting job")
        begun = time.monotonic()
        await smtp.close(grace_s=0.2)
        assert time.monotonic() - begun < 2
        assert isinstance(await on_wire, Uncertain)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(asyncio.CancelledError):
            await send(smtp)


async def test_a_cancelled_send_that_waits_gives_its_place_up(relay: ScriptedRelay):
    relay.always("body", Act(delay_s=0.1))
    async with client(relay, pool_size=1) as smtp:
        first = asyncio.create_task(send(smtp, "first@example.com"))
        await relay.wait(lambda: "DATA" in relay.commands(), "mail on the wire")
        second = asyncio.create_task(send(smtp, "second@example.com"))
        await relay.wait(lambda: smtp.look()[0].waiting == 1, "waiting job")
        second.cancel()
        assert isinstance(await send(smtp, "third@example.com"), Accepted)
        assert isinstance(await first, Accepted)
        assert second.cancelled()
    assert [mail.recipient for mail in relay.accepted] == ["first@example.com", "third@example.com"]


async def test_a_cancelled_send_on_the_wire_stays_on_the_wire(relay: ScriptedRelay):
    relay.then("body", Act(delay_s=0.1))
    async with client(relay, pool_size=1) as smtp:
        sending = asyncio.create_task(send(smtp, "first@example.com"))
        await relay.wait(lambda: relay.contents == 1, "mail on the wire")
        sending.cancel()
        assert isinstance(await send(smtp, "second@example.com"), Accepted)
    assert [mail.recipient for mail in relay.accepted] == ["first@example.com", "second@example.com"]
    assert relay.connections == 1


async def test_urgent_jobs_pass_those_that_wait(relay: ScriptedRelay):
    relay.always("body", Act(delay_s=0.02))
    async with client(relay, pool_size=1) as smtp:
        first = asyncio.create_task(send(smtp, "first@example.com"))
        await relay.wait(lambda: smtp.look()[0].sending == 1, "mail on the wire")
        rest = [asyncio.create_task(send(smtp, f"rank{rank}@example.com", rank=rank)) for rank in (3, 2, 1, 0)]
        await asyncio.gather(first, *rest)
    order = [mail.recipient for mail in relay.accepted]
    assert order == ["first@example.com", *(f"rank{rank}@example.com" for rank in range(4))]


async def test_a_connection_is_kept_for_urgent_jobs(relay: ScriptedRelay):
    relay.always("body", SILENCE, to="user@example.com")
    async with client(relay, pool_size=3) as smtp:
        slow = [asyncio.create_task(send(smtp)) for _ in range(5)]
        await relay.wait(lambda: smtp.look()[0].sending == 2, "two mails on the wire")
        assert isinstance(await send(smtp, "urgent@example.com", rank=0), Accepted)
        assert (smtp.look()[0].sending, smtp.look()[0].waiting) == (2, 3)
        relay.always("body", None, to="user@example.com")
        relay.cut()
        await asyncio.gather(*slow)


async def test_a_job_whose_turn_does_not_come_lapses_at_its_deadline(relay: ScriptedRelay):
    relay.always("body", SILENCE)
    async with client(relay, pool_size=1) as smtp:
        on_wire = asyncio.create_task(send(smtp))
        await relay.wait(lambda: smtp.look()[0].sending == 1, "mail on the wire")
        begun = time.monotonic()
        assert await send(smtp, life_ms=200) == Lapsed()
        assert 0.15 < time.monotonic() - begun < 1
        relay.cut()
        assert isinstance(await on_wire, Uncertain)


async def test_a_job_past_its_deadline_is_never_offered_to_the_relay(relay: ScriptedRelay):
    async with client(relay) as smtp:
        assert await send(smtp, life_ms=0) == Lapsed()
        await send(smtp)
    assert len(relay.accepted) == 1


@pytest.mark.parametrize("step", ["mail", "rcpt", "data"])
async def test_a_code_that_expires_while_the_relay_thinks_is_not_sent(relay: ScriptedRelay, step: str):
    relay.then(step, Act(delay_s=0.5))
    async with client(relay) as smtp:
        assert await send(smtp, life_ms=250) == Lapsed()
        assert isinstance(await send(smtp), Accepted)
    assert len(relay.accepted) == 1


async def test_a_call_that_is_cancelled_while_it_waits_for_one_relay_leaves_no_trace(relay: ScriptedRelay):
    relay.always("body", SILENCE)
    async with client(relay, pool_size=1) as smtp:
        first = asyncio.create_task(send(smtp))
        await relay.wait(lambda: relay.contents == 1, "mail on the wire")
        ends = now_ms() + 60_000
        preferring = asyncio.create_task(
            smtp.send(
                Mail("user@example.com", CONTENT),
                rank=2,
                lane="due",
                expires_ms=ends,
                deadline_ms=ends,
                prefer=smtp.look()[0].name,
            )
        )
        await relay.wait(lambda: smtp.look()[0].waiting == 1, "job that waits for this relay")
        preferring.cancel()
        await asyncio.gather(preferring, return_exceptions=True)
        assert smtp.look()[0].waiting == 0
        relay.cut()
        await asyncio.gather(first, return_exceptions=True)


@pytest.mark.parametrize("keywords", [KEYWORDS, WITHOUT_PIPELINING])
async def test_a_relay_that_speaks_byte_by_byte_is_understood(keywords: tuple[str, ...]):
    async with ScriptedRelay(keywords=keywords, byte_by_byte=True) as relay, client(relay) as smtp:
        relay.always("rcpt", "550-5.1.1 no\r\n550 5.1.1 really", to="no@example.com")
        assert isinstance(await send(smtp), Accepted)
        assert isinstance(await send(smtp, "no@example.com"), Rejected)
        assert isinstance(await send(smtp), Accepted)


async def test_a_non_ascii_address_goes_out_by_smtputf8(relay: ScriptedRelay):
    async with client(relay) as smtp:
        assert isinstance(await send(smtp, "jürgen@bücher.example"), Accepted)
    assert relay.accepted[0].recipient == "jürgen@bücher.example"
    assert "SMTPUTF8" in relay.accepted[0].parameters


async def test_without_smtputf8_a_non_ascii_domain_is_encoded_and_a_local_part_refused():
    async with ScriptedRelay(keywords=("PIPELINING",)) as relay, client(relay) as smtp:
        assert isinstance(await send(smtp, "user@bücher.example"), Accepted)
        refused = await send(smtp, "jürgen@example.com")
        assert isinstance(refused, Rejected)
        assert str(refused.reply).startswith("553 5.6.7 ")
        assert isinstance(await send(smtp), Accepted)
    assert relay.accepted[0].recipient == "user@xn--bcher-kva.example"
    assert relay.commands().count("MAIL") == 2


async def test_no_address_shows_in_an_outcome(relay: ScriptedRelay):
    relay.then("rcpt", "550 5.1.1 <user@example.com>: user unknown")
    async with client(relay) as smtp:
        assert "user@" not in str(await send(smtp))


async def test_a_mail_that_is_no_longer_wanted_when_its_turn_comes_is_not_sent():
    async with ScriptedRelay() as relay, client(relay) as smtp:
        ends = now_ms() + 5_000
        outcome = await smtp.send(
            Mail("user@example.com", b"x\r\n"),
            rank=2,
            lane="jobs",
            expires_ms=ends,
            deadline_ms=ends,
            wanted=lambda: False,
        )
        assert outcome == Lapsed()
        assert "MAIL" not in relay.commands()
