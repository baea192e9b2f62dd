"""SMTP transactions, tested over real sockets."""

import asyncio
import time
from functools import partial

import pytest
from event_loop import rounds
from smtp_relay import (
    ACCEPTS,
    CLOSE,
    CONTENT,
    ENDED,
    KEYWORDS,
    LONE_DOT,
    RESET,
    SILENCE,
    Act,
    ManualConnection,
    ManualRelay,
    ScriptedRelay,
    client,
    envelope,
    now_ms,
    send,
)

from otp_stream.core.mail import Mail
from otp_stream.core.outcome import Accepted, Deferred, Outcome, Rejected, TimedOut, Unavailable, Uncertain
from otp_stream.relay import RelayLimits
from otp_stream.relay import pipeline as pipeline_module
from otp_stream.relay.circuit_breaker import Pauses

pytestmark = pytest.mark.usefixtures("never_suspended")

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
        state = smtp.state()[0]
        assert (state.replies, state.sending, state.waiting) == ({"250": 60}, 0, 0)


async def test_the_next_envelope_goes_out_behind_the_content():
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def read(end: bytes, *replies: bytes) -> None:
            await reader.readuntil(end)
            writer.write(b"".join(reply + b"\r\n" for reply in replies))

        writer.write(b"220 relay.example\r\n")
        await read(b"\r\n", b"250-relay.example", b"250 PIPELINING")
        await read(b"DATA\r\n", b"250 ok", b"250 ok", b"354 go ahead")
        await read(b"\r\n.\r\n")
        # the relay does not reply to the first mail before it has the envelope of the second
        await read(b"DATA\r\n", b"250 first", b"250 ok", b"250 ok", b"354 go ahead")
        await read(b"\r\n.\r\n", b"250 second")
        await read(b"QUIT\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    relay = ScriptedRelay(port=server.sockets[0].getsockname()[1])
    async with server, client(relay, pool_size=1) as smtp, asyncio.timeout(10):
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
        assert isinstance(second, Accepted | Unavailable)  # the 421 has opened the circuit breaker
    assert [mail.recipient for mail in relay.accepted].count("second@example.com") <= 1


async def test_no_mail_waits_long_behind_another(relay: ScriptedRelay):
    relay.always("body", SILENCE, to="slow@example.com")
    async with client(relay, pool_size=3) as smtp:
        slow = asyncio.create_task(send(smtp, "slow@example.com"))
        others = await asyncio.gather(*(send(smtp, f"u{at}@example.com") for at in range(30)))
        assert all(isinstance(outcome, Accepted) for outcome in others)
        assert smtp.state()[0].waiting == 0
        relay.cut()
        assert isinstance(await slow, Uncertain)


async def test_no_envelope_is_sent_ahead_where_the_relay_is_slow(relay: ScriptedRelay):
    free = asyncio.Event()
    relay.then("body", Act(delay_s=0.3), Act(until=free))
    async with client(relay, pool_size=1) as smtp:
        assert isinstance(await send(smtp, "first@example.com"), Accepted)
        rest = [asyncio.create_task(send(smtp, f"u{at}@example.com")) for at in range(3)]
        await relay.wait(lambda: relay.contents == 2, "second mail on the wire")
        urgent = asyncio.create_task(send(smtp, "urgent@example.com", rank=0))
        await relay.wait(lambda: smtp.state()[0].waiting == 3, "the urgent one behind the rest")
        free.set()
        await asyncio.gather(urgent, *rest)
    assert relay.accepted[2].recipient == "urgent@example.com"


async def test_a_mail_sent_ahead_is_checked_once_more_before_its_content_is_sent(relay: ScriptedRelay):
    free = asyncio.Event()
    relay.then("mail", Act(), Act(until=free))
    wanted = True
    async with client(relay, pool_size=1) as smtp:
        first = asyncio.create_task(send(smtp, "first@example.com"))
        second = asyncio.create_task(send(smtp, "second@example.com", wanted=lambda: wanted))
        await relay.wait(lambda: relay.commands().count("MAIL") == 2, "second envelope")
        wanted = False
        free.set()
        assert isinstance(await first, Accepted)
        assert isinstance(await second, TimedOut)
    assert [mail.recipient for mail in relay.accepted] == ["first@example.com"]


async def test_dots_and_long_content_arrive_unchanged(relay: ScriptedRelay):
    content = b".\r\n..\r\n.first\r\nmid.\r\n" + b".line of text\r\n" * 20_000 + b".\r\n"
    async with client(relay) as smtp:
        assert isinstance(await send(smtp, content=content), Accepted)
    assert relay.accepted[0].content == content


@pytest.mark.parametrize(
    ("step", "reply", "kind"),
    [
        ("mail", "552 5.3.4 too big", Rejected),
        ("mail", "451 4.6.3 no conversion now", Deferred),
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
        assert smtp.state()[0].circuit_breaker == "closed"
    assert [mail.recipient for mail in relay.accepted] == ["second@example.com"]
    assert relay.connections == 1


@pytest.mark.parametrize("who", ["sender@example.com", "Sender@Example.com", "user@example.com"])
async def test_a_refusal_of_our_own_address_is_about_its_mail_only_where_it_is_the_recipient(
    relay: ScriptedRelay, who: str
):
    relay.then("rcpt", "550 5.1.1 <sender@example.com>: User unknown")
    async with client(relay, pool_size=1) as smtp:
        outcome = await send(smtp, who)
        if who == "user@example.com":
            assert isinstance(outcome, Unavailable)
            assert outcome.reason == "sender_refused"
        else:
            assert isinstance(outcome, Rejected)
            assert smtp.state()[0].circuit_breaker == "closed"


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
        assert "after its content was sent" in outcome.error
        assert isinstance(await send(smtp), Accepted)
        assert len(relay.accepted) == 2


async def test_silence_after_the_final_dot_is_uncertain(relay: ScriptedRelay):
    relay.then("body", SILENCE)
    async with client(relay, limits=RelayLimits(body_s=0.2)) as smtp:
        outcome = await send(smtp)
        assert isinstance(outcome, Uncertain)
        assert "no reply in time" in outcome.error


@pytest.mark.parametrize("behind", ["", "what?", "250-x\r\n251 y"])
async def test_garbage_behind_an_acceptance_does_not_undo_it(relay: ScriptedRelay, behind: str):
    relay.then("body", Act(f"250 2.0.0 queued\r\n{behind}", keep=True))
    async with client(relay) as smtp:
        assert isinstance(await send(smtp), Accepted)
    assert len(relay.accepted) == 1


async def test_garbage_after_the_final_dot_is_uncertain(relay: ScriptedRelay):
    relay.then("body", "what a nice mail")
    async with client(relay) as smtp:
        assert isinstance(await send(smtp), Uncertain)


@pytest.mark.parametrize("fault", [CLOSE, RESET, SILENCE, Act("garbage"), Act("250-"), Act("334 hm")])
@pytest.mark.parametrize("step", ["mail", "rcpt", "data"])
async def test_a_fresh_connection_lost_before_the_final_dot_makes_the_relay_unavailable(
    relay: ScriptedRelay, step: str, fault: Act
):
    relay.then(step, fault)
    limits = RelayLimits(mail_s=0.2, rcpt_s=0.2, data_s=0.2)
    async with client(relay, limits=limits) as smtp:
        outcome = await send(smtp)
        assert isinstance(outcome, Unavailable)
        assert outcome.reason == "unreachable"
        assert smtp.state()[0].circuit_breaker == "open"
    assert relay.accepted == []


@pytest.mark.parametrize(
    "fault", [CLOSE, RESET, SILENCE, Act("421 4.4.2 timeout", then="close"), Act("garbage", then="close")]
)
async def test_a_connection_that_went_stale_costs_a_reconnect_and_no_job(relay: ScriptedRelay, fault: Act):
    limits = RelayLimits(mail_s=1.0) if fault is SILENCE else RelayLimits()
    async with client(relay, limits=limits) as smtp:
        assert isinstance(await send(smtp), Accepted)
        relay.then("mail", fault)
        assert isinstance(await send(smtp), Accepted)
        assert smtp.state()[0].circuit_breaker == "closed"
    assert relay.connections == 2


async def test_idle_connections_that_the_relay_cuts_cost_no_job(relay: ScriptedRelay):
    async with client(relay, pool_size=5) as smtp:
        await asyncio.gather(*(send(smtp) for _ in range(20)))
        relay.cut()
        outcomes = await asyncio.gather(*(send(smtp) for _ in range(20)))
        assert all(isinstance(outcome, Accepted) for outcome in outcomes)
        assert len(relay.accepted) == 40


async def test_a_mail_that_breaks_idle_connections_breaks_two_at_most(relay: ScriptedRelay):
    together = asyncio.Event()
    relay.always("body", Act(until=together))
    relay.always("rcpt", CLOSE, to="poison@example.com")
    async with client(relay, pool_size=4) as smtp:
        jobs = [asyncio.create_task(send(smtp, f"u{at}@example.com", rank=0)) for at in range(4)]
        await relay.wait(lambda: relay.contents == 4, "four mails on the wire")
        together.set()
        await asyncio.gather(*jobs)
        assert isinstance(await send(smtp, "poison@example.com"), Unavailable)
        assert smtp.state()[0].connections == 2


async def test_421_on_an_idle_connection_closes_it(relay: ScriptedRelay):
    async with client(relay) as smtp:
        await send(smtp)
        [session] = relay._sessions.values()
        await session.reply("421 4.4.2 idle for too long")
        await relay.wait(lambda: smtp.state()[0].connections == 0, "end of the connection")
        assert isinstance(await send(smtp), Accepted)


@pytest.mark.parametrize("step", ["rcpt", "data", "body"])
async def test_421_during_a_mail_makes_the_relay_unavailable(relay: ScriptedRelay, step: str):
    async with client(relay) as smtp:
        await send(smtp)
        relay.then(step, Act("421 4.3.0 shutting down", then="close"))
        outcome = await send(smtp)
        assert isinstance(outcome, Unavailable)
        assert outcome.error == f"421 4.3.0 shutting down (to {step.upper()})"
        assert smtp.state()[0].circuit_breaker == "open"
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
async def test_idle_and_old_connections_end_with_quit(relay: ScriptedRelay, limits: RelayLimits):
    async with client(relay, limits=limits) as smtp:
        await send(smtp)
        await relay.wait(lambda: relay.open_connections == 0, "end of the connection")
        assert relay.commands(1)[-1] == "QUIT"
        assert isinstance(await send(smtp), Accepted)


async def test_closing_lets_mail_in_flight_finish(relay: ScriptedRelay):
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
        await relay.wait(lambda: smtp.state()[0].waiting == 1, "waiting job")
        begun = time.monotonic()
        await smtp.close(grace_s=0.2)
        assert time.monotonic() - begun < 8
        assert isinstance(await on_wire, Uncertain)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(asyncio.CancelledError):
            await send(smtp)


@pytest.mark.parametrize("step", ["mail", "rcpt", "data"])
async def test_a_mail_whose_connection_breaks_during_a_stop_ends_with_the_stop(relay: ScriptedRelay, step: str):
    async with client(relay, pool_size=1) as smtp:
        assert isinstance(await send(smtp), Accepted)
        stopping = asyncio.Event()
        relay.then(step, Act("", until=stopping, then="close"))
        sending = asyncio.create_task(send(smtp))
        await relay.wait(lambda: relay.commands().count("MAIL") == 2, "mail on the wire")
        smtp.finish()
        stopping.set()
        await asyncio.wait({sending}, timeout=8)
        assert sending.cancelled()
        assert (smtp.state()[0].sending, smtp.state()[0].waiting) == (0, 0)


async def test_a_cancelled_send_that_waits_leaves_the_queue(relay: ScriptedRelay):
    free = asyncio.Event()
    relay.then("body", Act(until=free))
    async with client(relay, pool_size=1) as smtp:
        first = asyncio.create_task(send(smtp, "first@example.com"))
        await relay.wait(lambda: relay.contents == 1, "mail on the wire")
        second = asyncio.create_task(send(smtp, "second@example.com"))
        await relay.wait(lambda: smtp.state()[0].waiting == 1, "waiting job")
        second.cancel()
        free.set()
        assert isinstance(await send(smtp, "third@example.com"), Accepted)
        assert isinstance(await first, Accepted)
        assert second.cancelled()
    assert [mail.recipient for mail in relay.accepted] == ["first@example.com", "third@example.com"]


async def test_a_cancelled_send_whose_content_is_sent_is_completed(relay: ScriptedRelay):
    free = asyncio.Event()
    relay.then("body", Act(until=free))
    async with client(relay, pool_size=1) as smtp:
        sending = asyncio.create_task(send(smtp, "first@example.com"))
        await relay.wait(lambda: relay.contents == 1, "mail on the wire")
        sending.cancel()
        free.set()
        assert isinstance(await send(smtp, "second@example.com"), Accepted)
    assert [mail.recipient for mail in relay.accepted] == ["first@example.com", "second@example.com"]
    assert relay.connections == 1


async def test_urgent_jobs_pass_those_that_wait(relay: ScriptedRelay):
    free = asyncio.Event()
    relay.then("body", Act(until=free))
    async with client(relay, pool_size=1) as smtp:
        first = asyncio.create_task(send(smtp, "first@example.com"))
        await relay.wait(lambda: relay.contents == 1, "mail on the wire")
        rest = [asyncio.create_task(send(smtp, f"rank{rank}@example.com", rank=rank)) for rank in (3, 2, 1, 0)]
        await relay.wait(lambda: smtp.state()[0].waiting == 4, "four waiting jobs")
        free.set()
        await asyncio.gather(first, *rest)
    order = [mail.recipient for mail in relay.accepted]
    assert order == ["first@example.com", *(f"rank{rank}@example.com" for rank in range(4))]


async def test_a_connection_is_kept_for_urgent_jobs(relay: ScriptedRelay):
    relay.always("body", SILENCE, to="user@example.com")
    async with client(relay, pool_size=3) as smtp:
        slow = [asyncio.create_task(send(smtp)) for _ in range(5)]
        await relay.wait(lambda: smtp.state()[0].sending == 2, "two mails on the wire")
        assert isinstance(await send(smtp, "urgent@example.com", rank=0), Accepted)
        state = smtp.state()[0]
        assert (state.sending, state.waiting, state.connections, state.saturated) == (2, 3, 3, True)
        relay.always("body", None, to="user@example.com")
        relay.cut()
        await asyncio.gather(*slow)


async def test_a_job_without_a_connection_times_out_at_its_deadline(relay: ScriptedRelay):
    relay.always("body", SILENCE)
    async with client(relay, pool_size=1) as smtp:
        on_wire = asyncio.create_task(send(smtp))
        await relay.wait(lambda: smtp.state()[0].sending == 1, "mail on the wire")
        begun = time.monotonic()
        assert await send(smtp, life_ms=200) == TimedOut()
        assert 0.15 < time.monotonic() - begun < 8
        relay.cut()
        assert isinstance(await on_wire, Uncertain)


async def test_a_job_past_its_deadline_is_never_offered_to_the_relay(relay: ScriptedRelay):
    async with client(relay) as smtp:
        assert await send(smtp, life_ms=0) == TimedOut()
        await send(smtp)
    assert len(relay.accepted) == 1


@pytest.mark.parametrize("step", ["mail", "rcpt", "data"])
async def test_a_code_that_expires_while_the_relay_delays_is_not_sent(relay: ScriptedRelay, step: str):
    relay.then(step, Act(delay_s=0.5))
    async with client(relay) as smtp:
        assert await send(smtp, life_ms=250) == TimedOut()
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
                prefer=smtp.state()[0].name,
            )
        )
        await relay.wait(lambda: smtp.state()[0].waiting == 1, "job that waits for this relay")
        preferring.cancel()
        await asyncio.gather(preferring, return_exceptions=True)
        assert smtp.state()[0].waiting == 0
        relay.cut()
        await asyncio.gather(first, return_exceptions=True)


@pytest.mark.parametrize("keywords", [KEYWORDS, WITHOUT_PIPELINING])
async def test_a_relay_that_speaks_byte_by_byte_is_understood(keywords: tuple[str, ...]):
    async with ScriptedRelay(keywords=keywords, byte_by_byte=True) as relay, client(relay) as smtp:
        relay.always("rcpt", "550-5.1.1 no\r\n550 5.1.1 really", to="no@example.com")
        assert isinstance(await send(smtp), Accepted)
        assert isinstance(await send(smtp, "no@example.com"), Rejected)
        assert isinstance(await send(smtp), Accepted)


async def test_a_non_ascii_local_part_goes_out_by_smtputf8(relay: ScriptedRelay):
    async with client(relay) as smtp:
        assert isinstance(await send(smtp, "jürgen@bücher.example"), Accepted)
    assert relay.accepted[0].recipient == "jürgen@xn--bcher-kva.example"
    assert "SMTPUTF8" in relay.accepted[0].parameters


async def test_a_non_ascii_domain_alone_does_not_ask_for_smtputf8(relay: ScriptedRelay):
    async with client(relay) as smtp:
        assert isinstance(await send(smtp, "user@straße.example"), Accepted)
    assert relay.accepted[0].recipient == "user@xn--strae-oqa.example"
    assert "SMTPUTF8" not in relay.accepted[0].parameters


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


async def test_a_mail_that_is_no_longer_wanted_when_a_connection_is_free_is_not_sent():
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
        assert outcome == TimedOut()
        assert "MAIL" not in relay.commands()


# every byte that a relay reads of a mail whose recipient it refused


@pytest.fixture(params=[False, True], ids=["in one segment", "byte by byte"])
async def manual(request: pytest.FixtureRequest):
    async with ManualRelay(byte_by_byte=request.param) as relay:
        yield relay


@pytest.mark.parametrize(
    ("replies", "last", "kind", "shown"),
    [
        (["250 ok", "550 5.1.1 no"], "554 5.5.1 no valid recipients", Rejected, "550 5.1.1 no (to RCPT)"),
        (["250 ok", "550 5.1.1 no"], "250 2.0.0 queued", Rejected, "550 5.1.1 no (to RCPT)"),
        (["250 ok", "450 4.2.0 later"], "554 5.5.1 no valid recipients", Deferred, "450 4.2.0 later (to RCPT)"),
        (["250 ok", "450 4.2.0 later"], "250 2.0.0 queued", Deferred, "450 4.2.0 later (to RCPT)"),
        (["250-ok", "250 ok", "550-5.1.1 no", "550 5.1.1 user"], "503 no", Rejected, "550 5.1.1 no user (to RCPT)"),
    ],
)
async def test_a_relay_that_wants_content_after_a_refused_envelope_gets_a_lone_dot(
    manual: ManualRelay, replies: list[str], last: str, kind: type[Outcome], shown: str
):
    async with client(manual, pool_size=1) as smtp:
        refused = asyncio.create_task(send(smtp, "no@example.com"))
        connection = await manual.ready_connection()
        await connection.expect(envelope("no@example.com"))
        await connection.reply(*replies, "354-go", "354 ahead")
        await connection.expect_alone(LONE_DOT)
        await connection.reply(last)
        if not last.startswith("2"):
            await connection.expect_alone(b"RSET\r\n")
            await connection.reply("250 flushed")
        outcome = await refused
        assert isinstance(outcome, kind)
        assert str(outcome.reply) == shown  # type: ignore[attr-defined]
        accepted = asyncio.create_task(send(smtp))
        await connection.accept("user@example.com")
        assert isinstance(await accepted, Accepted)


@pytest.mark.parametrize("rcpt_reply", ["503 5.5.1 MAIL first", "550 5.1.1 no", "250 ok"])
@pytest.mark.parametrize(
    ("mail_reply", "kind"),
    [
        ("550 5.7.1 no", Unavailable),
        ("451 4.3.0 later", Unavailable),
        ("552 5.3.4 too big", Rejected),
        ("451 4.6.3 no conversion now", Deferred),
    ],
)
async def test_a_relay_that_wants_content_after_a_refused_sender_gets_no_dot_and_a_new_connection(
    manual: ManualRelay, mail_reply: str, kind: type[Outcome], rcpt_reply: str
):
    async with client(manual, pool_size=1) as smtp:
        refused = asyncio.create_task(send(smtp, "no@example.com"))
        connection = await manual.ready_connection()
        await connection.expect(envelope("no@example.com"))
        await connection.reply(mail_reply, rcpt_reply, "354 go ahead")
        await connection.expect_end()
        outcome = await refused
        assert isinstance(outcome, kind)
        shown = outcome.error if isinstance(outcome, Unavailable) else str(outcome.reply)  # type: ignore[attr-defined]
        assert shown == f"{mail_reply} (to MAIL)"


@pytest.mark.parametrize(
    ("replies", "kind", "shown"),
    [
        (["250 ok", "550-5.1.1 no", "550 5.1.1 user", "554 no recipients"], Rejected, "550 5.1.1 no user (to RCPT)"),
        (["250 ok", "450 4.2.0 later", "554 no recipients"], Deferred, "450 4.2.0 later (to RCPT)"),
        (["451 4.6.3 later", "503 MAIL first", "503 MAIL first"], Deferred, "451 4.6.3 later (to MAIL)"),
        (["552 5.3.4 no", "250 ok", "503 MAIL first"], Rejected, "552 5.3.4 no (to MAIL)"),
        (["250 ok", "251 will forward", "451-4.3.0 not", "451 4.3.0 now"], Deferred, "451 4.3.0 not now (to DATA)"),
    ],
)
async def test_a_relay_that_refused_data_gets_a_reset_and_no_content(
    manual: ManualRelay, replies: list[str], kind: type[Outcome], shown: str
):
    async with client(manual, pool_size=1) as smtp:
        refused = asyncio.create_task(send(smtp, "no@example.com"))
        connection = await manual.ready_connection()
        await connection.expect(envelope("no@example.com"))
        await connection.reply(*replies)
        await connection.expect_alone(b"RSET\r\n")
        outcome = await refused
        assert isinstance(outcome, kind)
        assert str(outcome.reply) == shown  # type: ignore[attr-defined]
        await connection.reply("250 flushed")
        accepted = asyncio.create_task(send(smtp))
        await connection.accept("user@example.com")
        assert isinstance(await accepted, Accepted)


async def test_the_envelope_that_was_sent_ahead_is_refused_alone(manual: ManualRelay):
    async with client(manual, pool_size=1) as smtp:
        first, second, third = (
            asyncio.create_task(send(smtp, f"{name}@example.com")) for name in ("first", "second", "third")
        )
        connection = await manual.ready_connection()
        await connection.expect(envelope("first@example.com"))
        await connection.reply(*ACCEPTS)
        await connection.expect_alone(ENDED + envelope("second@example.com"))
        await connection.reply("250 first", "250 ok", "550-5.1.1 no", "550 5.1.1 user", "354 go ahead")
        await connection.expect_alone(LONE_DOT)
        assert isinstance(await first, Accepted)
        await connection.reply("554 5.5.1 no valid recipients")
        assert str((await second).reply) == "550 5.1.1 no user (to RCPT)"  # type: ignore[union-attr]
        await connection.expect(b"RSET\r\n")
        await connection.reply("250 flushed")
        await connection.accept("third@example.com")
        assert isinstance(await third, Accepted)


async def test_the_envelope_that_was_sent_ahead_is_accepted_although_the_mail_before_it_is_refused(manual: ManualRelay):
    async with client(manual, pool_size=1) as smtp:
        first, second = (asyncio.create_task(send(smtp, f"{name}@example.com")) for name in ("first", "second"))
        connection = await manual.ready_connection()
        await connection.expect(envelope("first@example.com"))
        await connection.reply(*ACCEPTS)
        await connection.expect_alone(ENDED + envelope("second@example.com"))
        await connection.reply("552 5.3.4 too big", *ACCEPTS)
        await connection.expect_alone(ENDED)
        await connection.reply("250 second")
        assert isinstance(await first, Rejected)
        assert str((await second).reply) == "250 second (to BODY)"  # type: ignore[union-attr]


async def test_a_refused_mail_with_another_waiting_is_reset_before_the_next_envelope(manual: ManualRelay):
    async with client(manual, pool_size=1) as smtp:
        first, second = (asyncio.create_task(send(smtp, f"{name}@example.com")) for name in ("first", "second"))
        connection = await manual.ready_connection()
        await connection.expect(envelope("first@example.com"))
        await connection.reply("250 ok", "550 5.1.1 no", "554 no recipients")
        await connection.expect(b"RSET\r\n" + envelope("second@example.com"))
        await connection.reply("250 flushed", *ACCEPTS)
        await connection.expect_alone(ENDED)
        await connection.reply("250 second")
        assert isinstance(await first, Rejected)
        assert isinstance(await second, Accepted)


async def test_a_relay_that_refuses_to_reset_gets_no_content_on_that_connection(manual: ManualRelay):
    async with client(manual, pool_size=1) as smtp:
        first, second = (asyncio.create_task(send(smtp, f"{name}@example.com")) for name in ("first", "second"))
        connection = await manual.ready_connection()
        await connection.expect(envelope("first@example.com"))
        await connection.reply("250 ok", "550 5.1.1 no", "554 no recipients")
        await connection.expect(b"RSET\r\n" + envelope("second@example.com"))
        await connection.reply("502 5.5.1 what?", *ACCEPTS)
        await connection.expect_end()
        assert isinstance(await first, Rejected)
        await (await manual.ready_connection()).accept("second@example.com")
        assert isinstance(await second, Accepted)


@pytest.mark.parametrize(
    ("mail_reply", "rcpt_reply", "kind"),
    [("552 5.3.4 no", None, Rejected), ("451 4.6.3 later", None, Deferred), ("250 ok", "550 5.1.1 no", Rejected)],
)
async def test_without_pipelining_every_command_waits_for_the_reply_to_the_one_before(
    mail_reply: str, rcpt_reply: str | None, kind: type[Outcome]
):
    async with ManualRelay(pipelining=False) as relay, client(relay, pool_size=1) as smtp:
        jobs = [asyncio.create_task(send(smtp, f"u{at}@example.com")) for at in range(3)]
        connection = await relay.ready_connection()
        await connection.expect_alone(b"MAIL FROM:<sender@example.com>\r\n")
        await connection.reply(mail_reply)
        if rcpt_reply is not None:
            await connection.expect_alone(b"RCPT TO:<u0@example.com>\r\n")
            await connection.reply(rcpt_reply)
        await connection.expect_alone(b"RSET\r\n")
        await connection.reply("250 flushed")
        for name in ("u1", "u2"):
            await take_envelope(connection, f"{name}@example.com", pipelining=False)
            await connection.expect_alone(ENDED)
            await connection.reply("250 queued")
        refused, *accepted = await asyncio.gather(*jobs)
        assert isinstance(refused, kind)
        assert all(isinstance(outcome, Accepted) for outcome in accepted)


@pytest.mark.parametrize("reply", ["250 ok", "334 go ahead", "355 go ahead"])
async def test_content_is_sent_after_354_and_after_no_other_reply_to_data(relay: ScriptedRelay, reply: str):
    relay.then("data", reply)
    async with client(relay) as smtp:
        assert isinstance(await send(smtp), Unavailable)
        assert not [line for _, line in relay.log if line.startswith("Subject:")]
        assert relay.contents == 0


@pytest.mark.parametrize("step", ["mail", "rcpt"])
async def test_any_2xx_accepts_an_envelope(relay: ScriptedRelay, step: str):
    relay.then(step, "251 2.1.5 user not local; will forward")
    async with client(relay) as smtp:
        assert isinstance(await send(smtp), Accepted)


# the envelope that was sent ahead, and what happens until its content is wanted


async def ahead(manual: ManualRelay) -> ManualConnection:
    """Return a connection with the content of the first mail and the envelope of the second, neither answered."""
    connection = await manual.ready_connection()
    await connection.expect(envelope("first@example.com"))
    await connection.reply(*ACCEPTS)
    await connection.expect_alone(ENDED + envelope("second@example.com"))
    return connection


async def test_a_stop_withdraws_the_envelope_that_was_sent_ahead(manual: ManualRelay):
    async with client(manual, pool_size=1) as smtp:
        first, second = (asyncio.create_task(send(smtp, f"{name}@example.com")) for name in ("first", "second"))
        connection = await ahead(manual)
        smtp.finish()
        await connection.reply("250 first", *ACCEPTS)
        await connection.expect_end()
        assert isinstance(await first, Accepted)
        await asyncio.wait({second}, timeout=8)
        assert second.cancelled()
        assert smtp.state()[0].sending == smtp.state()[0].waiting == 0


async def test_the_content_of_a_cancelled_job_whose_envelope_was_sent_ahead_is_withheld(manual: ManualRelay):
    async with client(manual, pool_size=1) as smtp:
        first, second = (asyncio.create_task(send(smtp, f"{name}@example.com")) for name in ("first", "second"))
        connection = await ahead(manual)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        third = asyncio.create_task(send(smtp, "third@example.com"))
        await connection.reply("250 first", *ACCEPTS)
        await connection.expect_end()
        assert isinstance(await first, Accepted)
        await (await manual.ready_connection()).accept("third@example.com")
        assert isinstance(await third, Accepted)
        assert smtp.state()[0].sending == 0


async def test_a_cancelled_job_whose_envelope_was_sent_ahead_is_not_sent_when_the_connection_breaks(
    manual: ManualRelay,
):
    async with client(manual, pool_size=1) as smtp:
        first, second = (asyncio.create_task(send(smtp, f"{name}@example.com")) for name in ("first", "second"))
        connection = await ahead(manual)
        third = asyncio.create_task(send(smtp, "third@example.com"))
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        connection.close()
        assert isinstance(await first, Uncertain)
        await (await manual.ready_connection()).accept("third@example.com")
        assert isinstance(await third, Accepted)
        assert (smtp.state()[0].sending, smtp.state()[0].waiting) == (0, 0)


async def test_a_code_that_expires_after_its_envelope_was_sent_ahead_is_withheld(manual: ManualRelay):
    async with client(manual, pool_size=1) as smtp:
        first = asyncio.create_task(send(smtp, "first@example.com"))
        life_ms = 1_500
        ends = now_ms() + life_ms
        second = asyncio.create_task(send(smtp, "second@example.com", life_ms=life_ms, rank=3))
        connection = await ahead(manual)
        while now_ms() <= ends + 20:  # noqa: ASYNC110 - no event marks the expiry of a code
            await asyncio.sleep(0.01)
        await connection.reply("250 first", *ACCEPTS)
        await connection.expect_end()
        assert isinstance(await first, Accepted)
        assert await second == TimedOut()
        assert smtp.state()[0].sending == 0


@pytest.mark.parametrize("last", [None, "421 4.3.2 closing", "garbage"])
async def test_a_job_whose_envelope_was_sent_ahead_goes_over_another_connection_when_that_one_breaks(
    manual: ManualRelay, last: str | None
):
    async with client(manual, pool_size=1) as smtp:
        first, second = (asyncio.create_task(send(smtp, f"{name}@example.com")) for name in ("first", "second"))
        connection = await ahead(manual)
        if last is not None:
            await connection.reply(last)
        connection.close()
        assert isinstance(await first, Unavailable if last and "421" in last else Uncertain)
        await (await manual.ready_connection()).accept("second@example.com")
        assert isinstance(await second, Accepted)
        assert (smtp.state()[0].sending, smtp.state()[0].waiting) == (0, 0)


async def test_a_mail_that_waited_too_long_behind_another_is_withdrawn_and_its_envelope_ends_the_connection(
    manual: ManualRelay, monkeypatch: pytest.MonkeyPatch
):
    async with client(manual, pool_size=2) as smtp:
        first, second = (asyncio.create_task(send(smtp, f"{name}@example.com", rank=0)) for name in ("first", "second"))
        connections = [await manual.ready_connection(), await manual.connection()]
        await connections[0].expect(envelope("first@example.com"))
        await connections[0].reply(*ACCEPTS)
        await connections[0].expect_alone(ENDED + envelope("second@example.com"))
        monkeypatch.setattr(pipeline_module, "_FOLLOW_S", 0.0)
        await connections[1].greet()
        await connections[1].accept("second@example.com")
        assert isinstance(await second, Accepted)
        # the relay answers all at once in the end: the content must not go there a second time
        await connections[0].reply("250 first", *ACCEPTS)
        await connections[0].expect_end()
        assert isinstance(await first, Accepted)


async def test_no_mail_enters_the_transaction_of_a_withdrawn_envelope(
    manual: ManualRelay, monkeypatch: pytest.MonkeyPatch
):
    # its content would go to the recipient of the other one
    async with client(manual, pool_size=2) as smtp:
        first, second = (asyncio.create_task(send(smtp, f"{name}@example.com", rank=0)) for name in ("first", "second"))
        connections = [await manual.ready_connection(), await manual.connection()]
        await connections[0].expect(envelope("first@example.com"))
        await connections[0].reply(*ACCEPTS)
        await connections[0].expect_alone(ENDED + envelope("second@example.com"))
        monkeypatch.setattr(pipeline_module, "_FOLLOW_S", 0.0)
        await connections[1].greet()
        await connections[1].expect(envelope("second@example.com"))
        await connections[1].reply(*ACCEPTS)
        await connections[1].expect(ENDED)
        third = asyncio.create_task(send(smtp, "third@example.com", rank=0))
        async with asyncio.timeout(5):
            while smtp.state()[0].waiting != 1:  # noqa: ASYNC110 - a plain field
                await asyncio.sleep(0.005)
        await connections[0].reply("250 first", *ACCEPTS)
        await connections[0].expect_end()
        assert isinstance(await first, Accepted)
        await (await manual.ready_connection()).accept("third@example.com")
        assert isinstance(await third, Accepted)
        await connections[1].reply("250 second")
        assert isinstance(await second, Accepted)


async def test_no_envelope_is_sent_ahead_on_a_connection_that_has_had_its_number_of_mails(relay: ScriptedRelay):
    async with client(relay, pool_size=1, limits=RelayLimits(messages=2)) as smtp:
        outcomes = await asyncio.gather(*(send(smtp, f"u{at}@example.com") for at in range(5)))
        assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    assert [mail.connection for mail in relay.accepted] == [1, 1, 2, 2, 3]
    assert [relay.commands(at).count("MAIL") for at in (1, 2, 3)] == [2, 2, 1]
    assert relay.commands(1)[-1] == "QUIT"


async def test_no_envelope_is_sent_ahead_on_a_connection_that_is_too_old(relay: ScriptedRelay):
    relay.then("data", Act(delay_s=0.6))
    async with client(relay, pool_size=1, limits=RelayLimits(age_s=0.5)) as smtp:
        outcomes = await asyncio.gather(*(send(smtp, f"u{at}@example.com") for at in range(2)))
        assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    first, second = relay.accepted
    assert first.connection != second.connection
    assert relay.commands(first.connection)[-1] == "QUIT"
    assert relay.commands(first.connection).count("MAIL") == 1


async def test_an_envelope_that_is_sent_ahead_has_its_slot_of_the_rate(manual: ManualRelay):
    async with client(manual, pool_size=1, rate=1.0) as smtp:
        begun = time.monotonic()
        first, second = (asyncio.create_task(send(smtp, f"{name}@example.com")) for name in ("first", "second"))
        connection = await manual.ready_connection()
        await connection.expect(envelope("first@example.com"))
        await connection.reply(*ACCEPTS)
        await connection.expect_alone(ENDED)
        await connection.reply("250 first")
        assert isinstance(await first, Accepted)
        await connection.expect(envelope("second@example.com"))
        assert time.monotonic() - begun > 0.9
        await connection.reply(*ACCEPTS)
        await connection.expect(ENDED)
        await connection.reply("250 second")
        assert isinstance(await second, Accepted)


# relays that are out of step with an envelope: their reply is then about the session, never about a recipient


@pytest.mark.parametrize("pipelining", [True, False])
async def test_content_that_was_refused_is_followed_by_a_reset(*, pipelining: bool):
    # Postfix keeps the transaction open after a refusal by smtpd_end_of_data_restrictions
    async with ManualRelay(pipelining=pipelining) as relay, client(relay, pool_size=1) as smtp:
        refused = asyncio.create_task(send(smtp, "first@example.com"))
        connection = await relay.ready_connection()
        await take_envelope(connection, "first@example.com", pipelining=pipelining)
        await connection.expect_alone(ENDED)
        await connection.reply("554 5.7.1 content refused")
        assert isinstance(await refused, Rejected)
        await connection.expect_alone(b"RSET\r\n")
        await connection.reply("250 flushed")
        accepted = asyncio.create_task(send(smtp, "second@example.com"))
        await take_envelope(connection, "second@example.com", pipelining=pipelining)
        await connection.expect_alone(ENDED)
        await connection.reply("250 queued")
        assert isinstance(await accepted, Accepted)


async def take_envelope(connection: ManualConnection, recipient: str, *, pipelining: bool) -> None:
    if pipelining:
        await connection.expect(envelope(recipient))
        await connection.reply(*ACCEPTS)
        return
    for command, reply in zip(envelope(recipient).splitlines(keepends=True), ACCEPTS, strict=True):
        await connection.expect_alone(command)
        await connection.reply(reply)


async def test_an_envelope_that_meets_the_transaction_of_a_refused_mail_goes_over_another_connection(
    manual: ManualRelay,
):
    async with client(manual, pool_size=1) as smtp:
        first, second = (asyncio.create_task(send(smtp, f"{name}@example.com")) for name in ("first", "second"))
        connection = await ahead(manual)
        await connection.reply("554 5.7.1 content refused", "503 5.5.1 nested MAIL command", "250 ok", "354 go ahead")
        # a lone dot would send an empty mail to the second recipient
        await connection.expect_end()
        assert isinstance(await first, Rejected)
        connection = await manual.ready_connection()
        await connection.expect(envelope("second@example.com"))
        third = asyncio.create_task(send(smtp, "third@example.com"))
        async with asyncio.timeout(5):
            while smtp.state()[0].waiting != 1:  # noqa: ASYNC110 - a plain field
                await asyncio.sleep(0.005)
        await connection.reply(*ACCEPTS)
        # that was one refused content: envelopes are still sent ahead
        await connection.expect_alone(ENDED + envelope("third@example.com"))
        await connection.reply("250 second", *ACCEPTS)
        await connection.expect_alone(ENDED)
        await connection.reply("250 third")
        assert all(isinstance(outcome, Accepted) for outcome in await asyncio.gather(second, third))
        assert smtp.state()[0].circuit_breaker == "closed"


async def test_repeated_envelopes_behind_refused_mails_close_no_breaker(manual: ManualRelay):
    async with client(manual, pool_size=1) as smtp:
        refused = [asyncio.create_task(send(smtp, "first@example.com"))]
        second = asyncio.create_task(send(smtp, "second@example.com"))
        connection = await ahead(manual)
        for at in range(3):
            refused.append(asyncio.create_task(send(smtp, f"urgent{at}@example.com", rank=0)))
            await rounds()  # it is in the queue then, before the one that comes back
            await connection.reply("554 5.7.1 refused", "503 5.5.1 nested MAIL command", "250 ok", "354 go ahead")
            await connection.expect_end()
            connection = await manual.ready_connection()
            await connection.expect(envelope(f"urgent{at}@example.com"))
            await connection.reply(*ACCEPTS)
            await connection.expect_alone(ENDED + envelope("second@example.com"))
        await connection.reply("554 5.7.1 refused", *ACCEPTS)
        await connection.expect_alone(ENDED)
        await connection.reply("250 second")
        assert isinstance(await second, Accepted)
        assert all(isinstance(outcome, Rejected) for outcome in await asyncio.gather(*refused))


async def test_a_relay_that_refuses_envelopes_sent_ahead_gets_no_more_of_them(manual: ManualRelay):
    # Haraka since 3.3.4
    async with client(manual, pool_size=1) as smtp:
        jobs = [asyncio.create_task(send(smtp, f"{name}@example.com")) for name in ("first", "second", "third")]
        connection = await ahead(manual)
        await connection.reply("250 first", "503 5.5.1 pipelined after end of DATA", "503 no MAIL", "503 no MAIL")
        await connection.expect_end()
        connection = await manual.ready_connection()
        for name in ("second", "third"):
            await connection.accept(f"{name}@example.com", alone=True)
        assert all(isinstance(outcome, Accepted) for outcome in await asyncio.gather(*jobs))
        assert smtp.state()[0].circuit_breaker == "closed"


@pytest.mark.parametrize(
    "reply",
    [
        "503-5.5.1 pipelined\r\n503 5.5.1 after end of DATA",
        "554 5.5.0 Error: SMTP protocol synchronization",
        "550 5.5.1 Improper use of pipelining",
        "500 5.5.1 command unrecognized",
        "554 5.7.1 no",
        "451 4.5.0 protocol error",
        "421 4.7.0 protocol violation",
        None,
    ],
)
async def test_a_mail_whose_envelope_was_refused_ahead_is_tried_alone(manual: ManualRelay, reply: str | None):
    async with client(manual, pool_size=1) as smtp:
        first, second = (asyncio.create_task(send(smtp, f"{name}@example.com")) for name in ("first", "second"))
        connection = await ahead(manual)
        await connection.reply("250 first", *([reply] * 3 if reply else []))
        connection.close()
        await (await manual.ready_connection()).accept("second@example.com")
        assert isinstance(await first, Accepted)
        assert isinstance(await second, Accepted)
        assert smtp.state()[0].circuit_breaker == "closed"


@pytest.mark.parametrize("reply", ["554 5.5.1 what?", "421 4.7.0 protocol violation", None])
async def test_a_relay_that_refuses_every_envelope_ahead_gets_none_after_the_third(
    manual: ManualRelay, reply: str | None
):
    async with client(manual, pool_size=1) as smtp:
        jobs = [asyncio.create_task(send(smtp, f"u{at}@example.com")) for at in range(5)]
        for at in range(3):
            connection = await manual.ready_connection()
            await connection.expect(envelope(f"u{at}@example.com"))
            await connection.reply(*ACCEPTS)
            await connection.expect_alone(ENDED + envelope(f"u{at + 1}@example.com"))
            await connection.reply("250 ok", *([reply] * 3 if reply else []))
            connection.close()
        connection = await manual.ready_connection()
        for name in ("u3", "u4"):
            await connection.accept(f"{name}@example.com", alone=True)
        assert all(isinstance(outcome, Accepted) for outcome in await asyncio.gather(*jobs))
        assert smtp.state()[0].circuit_breaker == "closed"


async def test_a_relay_that_loses_an_envelope_ahead_gets_no_more_of_them(
    manual: ManualRelay, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipeline_module, "_AHEAD_S", 0.2)
    async with client(manual, pool_size=1) as smtp:
        jobs = [asyncio.create_task(send(smtp, f"{name}@example.com")) for name in ("first", "second", "third")]
        connection = await ahead(manual)
        await connection.reply("250 first")
        await connection.expect_end()
        connection = await manual.ready_connection()
        for name in ("second", "third"):
            await connection.accept(f"{name}@example.com", alone=True)
        assert all(isinstance(outcome, Accepted) for outcome in await asyncio.gather(*jobs))
        assert smtp.state()[0].circuit_breaker == "closed"


async def test_ownership_is_checked_last_before_the_content_is_sent():
    # the following mail is prepared first, and the process may be suspended in the meantime
    asked: list[int] = []

    def wanted(number: int) -> bool:
        asked.append(number)
        return True

    async with ScriptedRelay() as relay, client(relay, pool_size=1) as smtp:
        await asyncio.gather(*(send(smtp, wanted=partial(wanted, number)) for number in range(2)))
    # when it is queued, when it is taken, and before its content
    assert asked == [0, 1, 0, 1, 0, 1]


async def test_content_that_is_refused_for_the_envelope_behind_it_is_sent_alone(manual: ManualRelay):
    # Postfix replies so at END-OF-MESSAGE with reject_unauth_pipelining
    async with client(manual, pool_size=1) as smtp:
        jobs = [asyncio.create_task(send(smtp, f"{name}@example.com")) for name in ("first", "second")]
        connection = await ahead(manual)
        await connection.reply("503 5.5.0 Improper use of SMTP command pipelining", *ACCEPTS)
        await connection.expect_end()
        connection = await manual.ready_connection()
        for name in ("first", "second"):
            await connection.accept(f"{name}@example.com", alone=True)
        assert all(isinstance(outcome, Accepted) for outcome in await asyncio.gather(*jobs))
        assert smtp.state()[0].circuit_breaker == "closed"


@pytest.mark.parametrize("step", ["mail", "rcpt", "data", "body"])
@pytest.mark.parametrize(
    "act",
    [
        Act("503 5.5.1 bad sequence of commands"),
        Act("503-5.5.1 bad\r\n503 5.5.1 sequence\r\n421 4.3.2 bye", then="close"),
        Act("503", then="reset"),
        Act("554 SMTP synchronization error", then="close"),
    ],
)
async def test_a_relay_that_is_out_of_step_rejects_no_job(
    relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch, step: str, act: Act
):
    monkeypatch.setattr(Pauses, "next_ms", lambda *_: 1)
    relay.then(step, act)
    async with client(relay) as smtp:
        outcome = await send(smtp)
        assert isinstance(outcome, Unavailable)
        assert outcome.reason == "unreachable"
        assert isinstance(await send(smtp), Accepted)
    assert len(relay.accepted) == 1
    assert relay.contents == 1 + (step == "body")


@pytest.mark.parametrize("reply", ["503 5.5.1 bad sequence", "554 5.5.0 Improper use of SMTP command pipelining"])
@pytest.mark.parametrize("step", [0, 1, 2])
async def test_a_relay_that_refuses_pipelined_commands_gets_them_one_by_one(
    manual: ManualRelay, monkeypatch: pytest.MonkeyPatch, reply: str, step: int
):
    monkeypatch.setattr(Pauses, "next_ms", lambda *_: 1)
    async with client(manual, pool_size=1) as smtp:
        first = asyncio.create_task(send(smtp))
        connection = await manual.ready_connection()
        await connection.expect(envelope("user@example.com"))
        await connection.reply(*ACCEPTS[:step], *[reply] * (3 - step))
        await connection.expect_end()
        assert isinstance(await first, Unavailable)
        second = asyncio.create_task(send(smtp))
        connection = await manual.ready_connection()
        await take_envelope(connection, "user@example.com", pipelining=False)
        await connection.expect_alone(ENDED)
        await connection.reply("250 queued")
        assert isinstance(await second, Accepted)


@pytest.mark.parametrize("step", ["mail", "rcpt"])
async def test_503_that_asks_for_a_login_is_reported_as_login_refused(relay: ScriptedRelay, step: str):
    relay.then(step, "503 5.5.1 authentication required")
    async with client(relay) as smtp:
        outcome = await send(smtp)
        assert isinstance(outcome, Unavailable)
        assert outcome.reason == "login_refused"
