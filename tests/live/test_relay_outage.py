"""The relay is down, full or strict for a while: jobs wait behind the gate, and none is lost."""

import asyncio
import time
from itertools import pairwise

import pytest
from smtp_relay import CLOSE, CONTENT, Act, ScriptedRelay, client, config, now_ms, send

from otp_stream.core.mail import Mail
from otp_stream.core.outcome import Accepted, Deferred, Lapsed, Outcome, Rejected, Unavailable
from otp_stream.core.state import RelayState
from otp_stream.relay import RelayLimits, SmtpRelay


class Changes(list[RelayState]):
    """Every state that `on_gate` was told."""

    def gates(self) -> list[str]:
        return [state.gate for state in self]


async def deliver(smtp: SmtpRelay, to: str = "user@example.com", **settings: int) -> tuple[Outcome, int]:
    """Do as delivery does: call again for as long as the relay is unavailable; return how often it was."""
    held = 0
    async with asyncio.timeout(20):
        while isinstance(outcome := await send(smtp, to, **settings), Unavailable):
            held += 1
    return outcome, held


@pytest.fixture
async def relay():
    async with ScriptedRelay() as relay:
        yield relay


async def test_while_the_relay_is_down_jobs_wait_and_then_all_are_sent(relay: ScriptedRelay):
    changes = Changes()
    await relay.stop()
    smtp = SmtpRelay(config(relay, pool_size=4), on_gate=changes.append, fraction=lambda: 0.0)
    jobs = [asyncio.create_task(deliver(smtp, f"u{at}@example.com")) for at in range(50)]
    await relay.wait(lambda: changes.gates().count("closed") >= 2, "second failed probe")
    await relay.wait(lambda: smtp.look()[0].waiting == 50, "all jobs behind the gate")
    assert smtp.look()[0].trouble == "unreachable"
    assert not any(job.done() for job in jobs)
    await relay.start()
    ended = await asyncio.gather(*jobs)
    assert all(isinstance(outcome, Accepted) for outcome, _ in ended)
    # only the one whose probe failed, or who found the relay gone, was told so
    assert sum(held for _, held in ended) == changes.gates().count("closed")
    assert len({mail.recipient for mail in relay.accepted}) == len(relay.accepted) == 50
    assert changes.gates()[-2:] == ["half_open", "open"]
    state = smtp.look()[0]
    assert (state.gate, state.trouble, state.error, state.probe_ms, state.waiting) == ("open", None, None, None, 0)
    await smtp.close()


async def test_pauses_between_probes_grow(relay: ScriptedRelay):
    changes = Changes()
    await relay.stop()
    smtp = SmtpRelay(config(relay), on_gate=changes.append, fraction=lambda: 0.0)
    job = asyncio.create_task(deliver(smtp))
    await relay.wait(lambda: changes.gates().count("closed") >= 2, "second failed probe")
    closed = [state for state in changes if state.gate == "closed"]
    assert [state.probe_ms - state.since_ms for state in closed if state.probe_ms] == [1000, 2000]
    assert all(later.since_ms >= earlier.since_ms for earlier, later in pairwise(changes))
    job.cancel()
    await smtp.close()


async def test_one_probe_goes_out_before_the_rest(relay: ScriptedRelay):
    relay.then("mail", Act("421 4.3.0 down", then="close"))
    relay.always("body", Act(delay_s=0.1))
    async with client(relay, pool_size=4) as smtp:
        assert isinstance(await send(smtp), Unavailable)
        jobs = [asyncio.create_task(send(smtp)) for _ in range(6)]
        await relay.wait(lambda: smtp.look()[0].gate == "half_open" and smtp.look()[0].sending > 0, "probe on the wire")
        assert (smtp.look()[0].sending, smtp.look()[0].waiting) == (1, 5)
        await asyncio.gather(*jobs)
        assert smtp.look()[0].gate == "open"


async def test_a_probe_that_is_refused_for_its_recipient_opens_the_gate(relay: ScriptedRelay):
    relay.then("mail", CLOSE)
    relay.always("rcpt", "550 5.1.1 no", to="no@example.com")
    async with client(relay) as smtp:
        assert isinstance(await send(smtp), Unavailable)
        assert isinstance(await send(smtp, "no@example.com"), Rejected)
        assert smtp.look()[0].gate == "open"


async def test_one_mail_that_breaks_connections_does_not_keep_the_gate_shut(relay: ScriptedRelay):
    relay.always("rcpt", CLOSE, to="poison@example.com")
    async with client(relay, pool_size=2) as smtp:
        poison = asyncio.create_task(deliver(smtp, "poison@example.com", rank=0))
        await relay.wait(lambda: smtp.look()[0].gate == "closed", "closed gate")
        # it is the most urgent, and yet another goes first
        outcome, _ = await deliver(smtp, "good@example.com", rank=3)
        assert isinstance(outcome, Accepted)
        poison.cancel()


async def test_throttling_holds_all_back_and_keeps_the_connection(relay: ScriptedRelay):
    relay.then("body", "454 Throttling failure: Maximum sending rate exceeded.")
    async with client(relay, pool_size=1) as smtp:
        outcome = await send(smtp)
        assert isinstance(outcome, Unavailable)
        assert outcome.trouble == "throttled"
        begun = time.monotonic()
        assert isinstance(await send(smtp), Accepted)
        assert time.monotonic() - begun >= 1.9
        assert relay.connections == 1


async def test_mails_on_the_wire_finish_when_the_gate_closes(relay: ScriptedRelay):
    relay.always("body", Act(delay_s=0.2), to="slow@example.com")
    relay.always("body", "454 Throttling failure: slow down", to="fast@example.com")
    async with client(relay, pool_size=4) as smtp:
        slow = [asyncio.create_task(send(smtp, "slow@example.com")) for _ in range(2)]
        await relay.wait(lambda: relay.commands().count("DATA") == 2, "two mails on the wire")
        assert isinstance(await send(smtp, "fast@example.com"), Unavailable)
        assert smtp.look()[0].gate == "closed"
        assert all(isinstance(outcome, Accepted) for outcome in await asyncio.gather(*slow))
        assert smtp.look()[0].gate == "closed"


async def test_a_relay_that_takes_fewer_connections_than_we_want_is_used_with_those(relay: ScriptedRelay):
    changes = Changes()
    relay.always("body", Act(delay_s=0.02))
    relay.then("greeting", Act(), Act())
    relay.always("greeting", Act("432 4.3.2 Concurrent connections limit exceeded", then="close"))
    smtp = SmtpRelay(config(relay, pool_size=10), on_gate=changes.append)
    # the first two are set up one after another, so that both come through
    await send(smtp)
    await asyncio.gather(send(smtp), send(smtp, rank=0))
    outcomes = await asyncio.gather(*(send(smtp) for _ in range(40)))
    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    assert changes == []
    assert smtp.look()[0].connections == 2
    assert relay.connections < 20
    await smtp.close()


async def test_no_more_than_a_few_connections_are_set_up_at_a_time(relay: ScriptedRelay):
    relay.always("greeting", Act(delay_s=0.1))
    async with client(relay, pool_size=20, limits=RelayLimits(handshakes=3)) as smtp:
        jobs = [asyncio.create_task(send(smtp)) for _ in range(30)]
        await relay.wait(lambda: relay.connections > 0, "first connection")
        assert relay.connections <= 3
        await asyncio.gather(*jobs)


async def test_a_willing_relay_gets_as_many_connections_again_as_it_has(relay: ScriptedRelay):
    relay.always("greeting", Act(delay_s=0.1))
    relay.always("body", Act(delay_s=0.3))
    begun = time.monotonic()
    async with client(relay, pool_size=60, limits=RelayLimits(handshakes=3)) as smtp:
        jobs = [asyncio.create_task(send(smtp, rank=0)) for _ in range(200)]
        for before, after in ((0, 3), (3, 6), (6, 12), (12, 24)):
            await relay.wait(lambda after=after: relay.connections >= after, f"{after} connections")
            assert relay.connections <= max(2 * after, 6), before
        await asyncio.gather(*jobs)
    assert time.monotonic() - begun < 10


async def test_jobs_lapse_behind_a_closed_gate(relay: ScriptedRelay):
    await relay.stop()
    async with client(relay) as smtp:
        assert isinstance(await send(smtp), Unavailable)
        begun = now_ms()
        assert await send(smtp, life_ms=200) == Lapsed()
        assert now_ms() - begun < 900
        assert smtp.look()[0].waiting == 0


async def test_the_gate_opens_half_although_nobody_waits(relay: ScriptedRelay):
    await relay.stop()
    changes = Changes()
    smtp = SmtpRelay(config(relay), on_gate=changes.append)
    assert isinstance(await send(smtp), Unavailable)
    await relay.wait(lambda: smtp.look()[0].gate == "half_open", "half-open gate")
    await relay.start()
    assert isinstance(await send(smtp), Accepted)
    assert changes.gates() == ["closed", "half_open", "open"]
    await smtp.close()


async def test_a_relay_that_restarts_under_load_loses_no_job(relay: ScriptedRelay):
    relay.always("data", Act(delay_s=0.01))
    async with client(relay, pool_size=5) as smtp:
        jobs = [asyncio.create_task(deliver(smtp, f"u{at}@example.com")) for at in range(100)]
        await relay.wait_accepted(20)
        await relay.stop()
        await relay.start()
        ended = [outcome for outcome, _ in await asyncio.gather(*jobs)]
    accepted = {mail.recipient for mail in relay.accepted}
    assert sum(isinstance(outcome, Accepted) for outcome in ended) >= 95
    assert accepted >= {f"u{at}@example.com" for at, outcome in enumerate(ended) if isinstance(outcome, Accepted)}
    assert len(accepted) == len(relay.accepted)


async def test_nothing_connects_before_the_first_mail(relay: ScriptedRelay):
    smtp = SmtpRelay(config(relay))
    [state] = smtp.look()
    assert state == RelayState(name=f"127.0.0.1:{relay.port}", since_ms=state.since_ms, size=20)
    await smtp.close()
    assert relay.connections == 0


@pytest.mark.parametrize("fault", [Act("421 4.3.0 try later"), Act("450 4.7.1 rate limit exceeded"), CLOSE])
async def test_one_recipient_who_meets_what_nobody_else_meets_does_not_keep_the_gate(relay: ScriptedRelay, fault: Act):
    relay.always("rcpt", fault, to="odd@example.com")
    changes = Changes()
    smtp = SmtpRelay(config(relay, pool_size=3), on_gate=changes.append, fraction=lambda: 0.0)
    odd = asyncio.create_task(deliver(smtp, "odd@example.com"))
    others = 0
    while not odd.done():
        assert isinstance((await deliver(smtp, f"u{others}@example.com"))[0], Accepted)
        others += 1
    outcome, held = await odd
    assert isinstance(outcome, Deferred)
    assert "by this recipient alone" in str(outcome.reply)
    assert held == changes.gates().count("closed") == 2
    assert isinstance((await deliver(smtp, "odd@example.com"))[0], Deferred)  # its next attempt disturbs nobody
    assert changes.gates().count("closed") == 2
    relay.always("rcpt", None, to="odd@example.com")
    assert isinstance((await deliver(smtp, "odd@example.com"))[0], Accepted)
    await smtp.close()


async def test_no_gate_tells_what_a_relay_quotes(relay: ScriptedRelay):
    relay.then("body", "421 4.7.0 too many messages like 'Your code is 739154' for user@example.com")
    changes = Changes()
    smtp = SmtpRelay(config(relay), on_gate=changes.append)
    ends = now_ms() + 60_000
    mail = Mail("user@example.com", CONTENT, secrets=("739154", "user@example.com"))
    outcome = await smtp.send(mail, rank=2, lane="jobs", expires_ms=ends, deadline_ms=ends)
    assert isinstance(outcome, Unavailable)
    assert "too many messages" in str(changes[-1].error)
    assert "739154" not in str(changes)
    await smtp.close()
