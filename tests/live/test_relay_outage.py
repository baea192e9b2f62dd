"""The relay is down, full or strict for a while: jobs wait behind the circuit breaker, and none is lost."""

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from event_loop import rounds
from patience import deadline
from smtp_relay import (
    ACCEPTS,
    CLOSE,
    CONTENT,
    ENDED,
    SILENCE,
    Act,
    ManualConnection,
    ManualRelay,
    ScriptedRelay,
    client,
    config,
    envelope,
    now_ms,
    send,
)

from otp_stream.core.mail import Mail
from otp_stream.core.outcome import Accepted, Outcome, RecipientUnavailable, Rejected, TimedOut, Unavailable, Uncertain
from otp_stream.core.state import RelayState
from otp_stream.relay import RelayLimits, RelayRetiredError, SmtpRelay, availability
from otp_stream.relay import pipeline as pipeline_module
from otp_stream.relay.circuit_breaker import Pauses
from otp_stream.relay.handshake import Handshake

pytestmark = [pytest.mark.waits, pytest.mark.usefixtures("never_suspended")]


class Changes(list[RelayState]):
    """Every state that was passed to `on_circuit_breaker`."""

    def breakers(self) -> list[str]:
        return [state.circuit_breaker for state in self]


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
    smtp = SmtpRelay(config(relay, pool_size=4), on_circuit_breaker=changes.append, fraction=lambda: 0.0)
    jobs = [asyncio.create_task(deliver(smtp, f"u{at}@example.com")) for at in range(50)]
    await relay.wait(lambda: changes.breakers().count("open") >= 2, "second failed probe")
    await relay.wait(lambda: smtp.state()[0].waiting == 50, "all jobs behind the circuit breaker")
    assert smtp.state()[0].reason == "unreachable"
    assert not any(job.done() for job in jobs)
    await relay.start()
    ended = await asyncio.gather(*jobs)
    assert all(isinstance(outcome, Accepted) for outcome, _ in ended)
    # only the one whose probe failed, or that found the relay gone, got `Unavailable`
    assert sum(held for _, held in ended) == changes.breakers().count("open")
    assert len({mail.recipient for mail in relay.accepted}) == len(relay.accepted) == 50
    assert changes.breakers()[-2:] == ["half_open", "closed"]
    state = smtp.state()[0]
    assert (state.circuit_breaker, state.reason, state.error, state.probe_ms, state.waiting) == (
        "closed",
        None,
        None,
        None,
        0,
    )
    await smtp.close()


class Clock:
    """The clock of the pauses, moved by the test."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def __call__(self) -> int:
        return now_ms() + self.ahead_ms


async def refused(relay: ScriptedRelay, clock: Clock, jobs: int) -> tuple[SmtpRelay, list[asyncio.Task[Any]]]:
    """Return a client whose login was refused until its pauses are a minute long, and the jobs that wait."""
    relay.login = ("mailer", "right")
    changes = Changes()
    logs_in = config(relay, user="mailer", password="wrong")
    smtp = SmtpRelay(logs_in, on_circuit_breaker=changes.append, steady_ms=clock, fraction=lambda: 0.0)
    waiting = [asyncio.create_task(deliver(smtp, f"u{at}@example.com")) for at in range(jobs)]
    for refusals in range(1, 6):
        await relay.wait(lambda refusals=refusals: changes.breakers().count("open") == refusals, f"refusal {refusals}")
        clock.ahead_ms += 60_000 if refusals < 5 else 0
    state = smtp.state()[0]
    assert (state.probe_ms or 0) - state.since_ms == 60_000
    clock.ahead_ms += 6_000
    return smtp, waiting


async def test_a_requested_probe_lets_jobs_go_at_once(relay: ScriptedRelay):
    clock = Clock()
    smtp, jobs = await refused(relay, clock, 20)
    before = relay.connections
    [still] = await smtp.probe()
    assert (still.result, still.relay.reason) == ("refused", "login_refused")
    assert relay.connections == before + 1
    [again] = await smtp.probe()
    assert again.result == "too_soon"
    assert 0 < again.again_in_ms <= 5_000
    assert relay.connections == before + 1
    relay.login = ("mailer", "wrong")  # it is repaired
    clock.ahead_ms += 5_000
    [probed] = await smtp.probe(relay_name(relay))
    assert probed.result == "accepted"
    assert {type(outcome) for outcome, _ in await asyncio.gather(*jobs)} == {Accepted}
    assert [it.result for it in await smtp.probe()] == ["not_needed"]
    assert await smtp.probe("other.example:25") == []
    await smtp.close()


async def test_one_probe_at_a_time_however_many_are_requested(relay: ScriptedRelay):
    smtp, jobs = await refused(relay, Clock(), 20)
    relay.login = ("mailer", "wrong")
    free = asyncio.Event()
    relay.then("body", Act(until=free))
    before, known = relay.connections, len(relay.accepted)
    requested = [asyncio.create_task(smtp.probe()) for _ in range(10)]
    await relay.wait(lambda: "DATA" in relay.commands(before + 1), "the probe")
    requested += [asyncio.create_task(smtp.probe()) for _ in range(10)]
    [unanswered] = await smtp.probe(wait_s=0.1)
    assert unanswered.result == "no_answer"
    assert (relay.connections, len(relay.accepted)) == (before + 1, known)
    free.set()
    assert {it.result for probed in await asyncio.gather(*requested) for it in probed} == {"accepted"}
    await asyncio.gather(*jobs)
    await smtp.close()


async def test_where_no_job_waits_a_requested_probe_connects_and_logs_in(relay: ScriptedRelay):
    clock = Clock()
    smtp, [job] = await refused(relay, clock, 1)
    job.cancel()
    await asyncio.gather(job, return_exceptions=True)
    [still] = await smtp.probe()
    assert still.result == "refused"
    relay.login = ("mailer", "wrong")
    clock.ahead_ms += 6_000
    [probed] = await smtp.probe()
    assert (probed.result, probed.relay.circuit_breaker) == ("connected", "half_open")
    connections = relay.connections
    assert [it.result for it in await smtp.probe()] == ["connected"]
    assert relay.connections == connections
    assert isinstance(await send(smtp), Accepted)
    assert smtp.state()[0].circuit_breaker == "closed"
    await smtp.close()


def relay_name(relay: ScriptedRelay) -> str:
    return f"127.0.0.1:{relay.port}"


async def test_pauses_between_probes_grow(relay: ScriptedRelay):
    changes = Changes()
    await relay.stop()
    smtp = SmtpRelay(config(relay), on_circuit_breaker=changes.append, fraction=lambda: 0.0)
    job = asyncio.create_task(deliver(smtp))
    await relay.wait(lambda: changes.breakers().count("open") >= 2, "second failed probe")
    opened = [state for state in changes if state.circuit_breaker == "open"][:2]
    assert [state.probe_ms - state.since_ms for state in opened if state.probe_ms] == [1000, 2000]
    assert all(later.since_ms >= earlier.since_ms for earlier, later in pairwise(changes))
    job.cancel()
    await smtp.close()


async def test_one_probe_goes_out_before_the_rest(relay: ScriptedRelay):
    relay.then("mail", Act("421 4.3.0 down", then="close"))
    free = asyncio.Event()
    relay.then("body", Act(until=free))
    async with client(relay, pool_size=4) as smtp:
        assert isinstance(await send(smtp), Unavailable)
        jobs = [asyncio.create_task(send(smtp)) for _ in range(6)]
        await relay.wait(lambda: relay.held == 1, "probe on the wire")
        state = smtp.state()[0]
        assert (state.circuit_breaker, state.sending, state.waiting) == ("half_open", 1, 5)
        free.set()
        await asyncio.gather(*jobs)
        assert smtp.state()[0].circuit_breaker == "closed"


async def test_a_probe_that_is_refused_for_its_recipient_opens_the_breaker(relay: ScriptedRelay):
    relay.then("mail", CLOSE)
    relay.always("rcpt", "550 5.1.1 no", to="no@example.com")
    async with client(relay) as smtp:
        assert isinstance(await send(smtp), Unavailable)
        assert isinstance(await send(smtp, "no@example.com"), Rejected)
        assert smtp.state()[0].circuit_breaker == "closed"


async def test_one_mail_that_breaks_connections_does_not_keep_the_circuit_breaker_open(relay: ScriptedRelay):
    relay.always("rcpt", CLOSE, to="poison@example.com")
    async with client(relay, pool_size=2) as smtp:
        poison = asyncio.create_task(deliver(smtp, "poison@example.com", rank=0))
        await relay.wait(lambda: smtp.state()[0].circuit_breaker == "open", "open circuit breaker")
        # it is the most urgent, and yet another goes first
        outcome, _ = await deliver(smtp, "good@example.com", rank=3)
        assert isinstance(outcome, Accepted)
        poison.cancel()


async def test_the_mail_that_opened_the_circuit_breaker_is_sent_after_the_probe(relay: ScriptedRelay):
    relay.then("rcpt", CLOSE, to="suspect@example.com")
    async with client(relay, pool_size=2) as smtp:
        suspect = asyncio.create_task(deliver(smtp, "suspect@example.com", rank=0))
        await relay.wait(lambda: smtp.state()[0].circuit_breaker == "open", "open circuit breaker")
        assert isinstance((await deliver(smtp, "good@example.com", rank=3))[0], Accepted)
        assert isinstance((await suspect)[0], Accepted)
    assert [mail.recipient for mail in relay.accepted] == ["good@example.com", "suspect@example.com"]


async def test_throttling_holds_all_back_and_keeps_the_connection(relay: ScriptedRelay):
    relay.then("body", "454 Throttling failure: Maximum sending rate exceeded.")
    async with client(relay, pool_size=1) as smtp:
        begun = time.monotonic()
        outcome = await send(smtp)
        assert isinstance(outcome, Unavailable)
        assert outcome.reason == "throttled"
        assert isinstance(await send(smtp), Accepted)
        assert time.monotonic() - begun >= 1.9
        assert relay.connections == 1


async def test_a_relay_that_takes_mail_on_a_new_connection_only_is_probed_over_one(relay: ScriptedRelay):
    # Postfix's postscreen refuses all mail of a client that it has tested until the client connects again
    together = asyncio.Event()
    relay.then("body", *[Act(until=together)] * 4)
    async with client(relay, pool_size=4) as smtp:
        jobs = [asyncio.create_task(send(smtp, f"u{at}@example.com", rank=0)) for at in range(4)]
        await relay.wait(lambda: relay.contents == 4, "four mails on the wire")
        together.set()
        await asyncio.gather(*jobs)
        relay.then("rcpt", "450 4.3.2 Service currently unavailable")
        outcome, held = await deliver(smtp)
        assert isinstance(outcome, Accepted)
        assert held == 1
        assert smtp.state()[0].slowed is False
    assert relay.accepted[-1].connection == 5


async def test_mails_in_flight_finish_when_the_circuit_breaker_opens(relay: ScriptedRelay):
    free = asyncio.Event()
    relay.always("body", Act(until=free), to="slow@example.com")
    relay.always("body", "454 Throttling failure: slow down", to="fast@example.com")
    async with client(relay, pool_size=4) as smtp:
        slow = [asyncio.create_task(send(smtp, "slow@example.com")) for _ in range(2)]
        await relay.wait(lambda: relay.held == 2, "two mails on the wire")
        assert isinstance(await send(smtp, "fast@example.com"), Unavailable)
        assert smtp.state()[0].circuit_breaker == "open"
        free.set()
        assert all(isinstance(outcome, Accepted) for outcome in await asyncio.gather(*slow))
        assert smtp.state()[0].circuit_breaker != "closed"


async def test_a_relay_that_takes_fewer_connections_than_we_want_is_used_with_those(relay: ScriptedRelay):
    changes = Changes()
    relay.always("body", Act(delay_s=0.02))
    relay.then("greeting", Act(), Act())
    relay.always("greeting", Act("432 4.3.2 Concurrent connections limit exceeded", then="close"))
    smtp = SmtpRelay(config(relay, pool_size=10), on_circuit_breaker=changes.append)
    # the first two are set up one after another, so that both succeed
    await send(smtp)
    await asyncio.gather(send(smtp), send(smtp, rank=0))
    outcomes = await asyncio.gather(*(send(smtp) for _ in range(40)))
    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    assert changes == []
    assert smtp.state()[0].connections == 2
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
    assert time.monotonic() - begun < 12  # over three connections, they would take 20 s


async def test_jobs_time_out_behind_an_open_breaker(relay: ScriptedRelay):
    await relay.stop()
    async with client(relay) as smtp:
        assert isinstance(await send(smtp), Unavailable)
        # the next probe, a second after the failure, would end it as `Unavailable`
        assert await send(smtp, life_ms=200) == TimedOut()
        assert smtp.state()[0].waiting == 0


async def test_the_circuit_breaker_becomes_half_open_although_no_job_waits(relay: ScriptedRelay):
    await relay.stop()
    changes = Changes()
    smtp = SmtpRelay(config(relay), on_circuit_breaker=changes.append)
    assert isinstance(await send(smtp), Unavailable)
    await relay.wait(lambda: smtp.state()[0].circuit_breaker == "half_open", "half-open circuit breaker")
    await relay.start()
    assert isinstance(await send(smtp), Accepted)
    assert changes.breakers() == ["open", "half_open", "closed"]
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
    [state] = smtp.state()
    assert state == RelayState(name=f"127.0.0.1:{relay.port}", since_ms=state.since_ms, size=20)
    await smtp.close()
    assert relay.connections == 0


@pytest.mark.parametrize(
    ("fault", "code"), [(Act("421 4.3.0 try later"), 421), (Act("450 4.7.1 rate limit exceeded"), 450), (CLOSE, None)]
)
async def test_a_fault_of_one_recipient_alone_does_not_keep_the_breaker(
    relay: ScriptedRelay, fault: Act, code: int | None
):
    relay.always("rcpt", fault, to="odd@example.com")
    changes = Changes()
    smtp = SmtpRelay(config(relay, pool_size=3), on_circuit_breaker=changes.append, fraction=lambda: 0.0)
    odd = asyncio.create_task(deliver(smtp, "odd@example.com"))
    others = 0
    while not odd.done():
        assert isinstance((await deliver(smtp, f"u{others}@example.com"))[0], Accepted)
        others += 1
    outcome, held = await odd
    assert isinstance(outcome, RecipientUnavailable)
    assert (outcome.reply.code if outcome.reply else None) == code
    assert held == changes.breakers().count("open") == 2
    assert isinstance(
        (await deliver(smtp, "odd@example.com"))[0], RecipientUnavailable
    )  # its next attempt disturbs no other mail
    assert changes.breakers().count("open") == 2
    relay.always("rcpt", None, to="odd@example.com")
    assert isinstance((await deliver(smtp, "odd@example.com"))[0], Accepted)
    await smtp.close()


@pytest.mark.parametrize("fault", [Act("450 4.7.1 rate limit exceeded"), Act("550 5.7.1 your account is suspended")])
async def test_a_fault_of_one_domain_alone_does_not_keep_the_breaker(
    relay: ScriptedRelay, fault: Act, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Pauses, "next_ms", lambda *_: 1)
    odd = [f"a{number}@odd.example" for number in range(20)]
    for recipient in odd:
        relay.always("rcpt", fault, to=recipient)
    changes = Changes()
    smtp = SmtpRelay(config(relay, pool_size=1), on_circuit_breaker=changes.append)
    sends = [asyncio.create_task(deliver(smtp, recipient)) for recipient in odd]
    while not all(task.done() for task in sends):
        assert isinstance((await deliver(smtp))[0], Accepted)
    assert {type(outcome) for outcome, _ in await asyncio.gather(*sends)} == {RecipientUnavailable}
    assert changes.breakers().count("open") == 2
    await smtp.close()


def addresses_of_subdomains(relay: ScriptedRelay, fault: Act) -> list[str]:
    """Return one address of each of an attacker's subdomains, whose mail is refused."""
    refused = [f"a@s{number}.odd.example" for number in range(20)]
    for recipient in refused:
        relay.always("rcpt", fault, to=recipient)
    return refused


def addresses_that_are_accepted_in_turn(relay: ScriptedRelay, fault: Act) -> list[str]:
    """Return addresses of an attacker's domain: mail to every second one is refused."""
    recipients = [f"a{number}@odd.example" for number in range(40)]
    for recipient in recipients[1::2]:
        relay.always("rcpt", fault, to=recipient)
    return recipients


@pytest.mark.parametrize("fault", [Act("450 4.7.1 rate limit exceeded"), Act("550 5.7.1 your account is suspended")])
@pytest.mark.parametrize("recipients_of", [addresses_of_subdomains, addresses_that_are_accepted_in_turn])
async def test_replies_of_one_attacker_have_all_others_wait_twice_and_then_a_second_at_most(
    relay: ScriptedRelay, fault: Act, recipients_of: Callable[[ScriptedRelay, Act], list[str]]
):
    recipients = recipients_of(relay, fault)
    now = 0
    smtp = SmtpRelay(config(relay, pool_size=1), fraction=lambda: 0.0, steady_ms=lambda: now)
    sends: list[asyncio.Task[tuple[Outcome, int]]] = []
    pauses: list[int] = []
    for recipient in recipients:
        sends.append(asyncio.create_task(deliver(smtp, recipient)))
        other = asyncio.create_task(deliver(smtp))
        while not other.done():
            await asyncio.sleep(0.01)
            if (state := smtp.state()[0]).circuit_breaker == "open" and state.probe_ms is not None:
                pauses.append(state.probe_ms - now)
                now = max(now, state.probe_ms)  # the pause ends now
        assert isinstance(other.result()[0], Accepted)
    assert sum(pause_ms > 1_000 for pause_ms in pauses) == 2
    for send_of_attacker in sends:
        send_of_attacker.cancel()
    await smtp.close()


@pytest.mark.parametrize("alarms", [0, 1, 2, 3])
async def test_a_code_for_another_domain_does_not_wait_for_the_pause_of_domains_that_are_refused(
    relay: ScriptedRelay, alarms: int
):
    now = 0
    smtp = SmtpRelay(config(relay, pool_size=1), fraction=lambda: 0.0, steady_ms=lambda: now)
    odd = [f"a{number}@odd{number % 3}.example" for number in range(9)]
    for recipient in odd:
        relay.always("rcpt", "450 4.7.1 rate limit exceeded", to=recipient)
    for alarm in range(alarms):
        now += 60_000
        refused = [asyncio.create_task(send(smtp, recipient)) for recipient in odd[:3]]
        others = [asyncio.create_task(deliver(smtp, f"u{alarm}@good.example"))]
        while not others[0].done():
            await asyncio.sleep(0.01)
            now += 10
        await asyncio.gather(*others)
        for task in refused:
            task.cancel()
    now += 60_000
    attacks = [asyncio.create_task(deliver(smtp, recipient)) for recipient in odd]
    # at a clock that stands still, no probe is sent
    await relay.wait(lambda: smtp.state()[0].circuit_breaker == "open", "open circuit breaker")
    begun, before = now, len(relay.accepted)
    code = asyncio.create_task(deliver(smtp, "u@good.example"))
    while not code.done():
        await asyncio.sleep(0.01)
        now += 10
    assert isinstance((await code)[0], Accepted)
    assert now - begun <= 1_000
    assert len(relay.accepted) == before + 1
    for attack in attacks:
        attack.cancel()
    await smtp.close()


@pytest.mark.parametrize("step", ["RCPT", "DATA"])
async def test_a_relay_that_refuses_mail_for_every_domain_gets_less_and_less_of_it(relay: ScriptedRelay, step: str):
    relay.always("rcpt" if step == "RCPT" else "body", "452 4.3.1 Insufficient system storage")
    async with client(relay, pool_size=1) as smtp:
        begun = time.monotonic()
        jobs = [asyncio.create_task(deliver(smtp, f"u{number}@d{number}.example")) for number in range(30)]
        await relay.wait(lambda: relay.commands().count(step) == 9, "mails for nine domains")
        # the second may have been sent behind the first one
        assert time.monotonic() - begun > sum(range(2, 9)) / 10 - 0.1
        relay.always("rcpt" if step == "RCPT" else "body", None)
        outcomes = await asyncio.gather(*jobs)
    assert {type(outcome) for outcome, _ in outcomes} == {Accepted}
    assert len(relay.accepted) == 30


@pytest.mark.parametrize("step", ["rcpt", "body"])
async def test_a_probe_without_a_reply_keeps_others_waiting_for_seconds_only(
    relay: ScriptedRelay, step: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(availability, "STALLED_S", 0.3)
    relay.then("mail", Act("421 4.3.0 down", then="close"))
    free = asyncio.Event()
    relay.always(step, Act(until=free), to="slow@odd.example")
    async with client(relay, pool_size=4) as smtp:
        assert isinstance(await send(smtp), Unavailable)
        probe = asyncio.create_task(send(smtp, "slow@odd.example"))
        await relay.wait(lambda: relay.held == 1, "the probe")
        assert isinstance(await send(smtp), Accepted)
        assert smtp.state()[0].circuit_breaker == "closed"
        free.set()
        assert isinstance(await probe, Accepted)


async def test_a_slow_reply_to_a_probe_closes_the_breaker(relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(availability, "STALLED_S", 0.1)
    relay.then("mail", Act("421 4.3.0 down", then="close"))
    relay.then("body", Act(delay_s=0.6))
    async with client(relay, pool_size=2) as smtp:
        assert isinstance(await send(smtp), Unavailable)
        assert isinstance(await send(smtp), Accepted)
        assert smtp.state()[0].circuit_breaker == "closed"


async def test_a_lost_probe_of_an_attacker_is_no_outage_after_false_alarms(relay: ScriptedRelay):
    now = 0
    relay.always("body", CLOSE, to="@lost.example")
    smtp = SmtpRelay(config(relay, pool_size=1), fraction=lambda: 0.0, steady_ms=lambda: now)
    pauses: list[int] = []
    attacks: list[asyncio.Task[Outcome]] = []
    for number in range(12):
        if number % 2 == 0:  # every second mail is accepted
            relay.always("rcpt", "450 4.7.1 rate limit exceeded", to=f"a{number}@odd.example")
        attacks.append(asyncio.create_task(send(smtp, f"a{number}@odd.example", rank=0)))
        lost = [asyncio.create_task(send(smtp, f"a{number}{at}@lost.example", rank=0)) for at in range(4)]
        attacks += lost
        other = asyncio.create_task(deliver(smtp))
        while not other.done():
            await asyncio.sleep(0.01)
            if (state := smtp.state()[0]).circuit_breaker == "open" and state.probe_ms is not None:
                pauses.append(state.probe_ms - now)
                now = max(now, state.probe_ms)
    assert sum(pause_ms > 1_000 for pause_ms in pauses) <= 2
    for attack in attacks:
        attack.cancel()
    await smtp.close()


async def test_after_false_alarms_an_outage_is_noticed_and_costs_no_attempt(relay: ScriptedRelay):
    fault = Act("550 5.7.1 your account is suspended")
    odd = [f"a@odd{number}.example" for number in range(4)]
    for recipient in odd:
        relay.always("rcpt", fault, to=recipient)
    now, pauses = 0, list[int]()
    smtp = SmtpRelay(config(relay, pool_size=1), fraction=lambda: 0.0, steady_ms=lambda: now)

    async def until_done(*tasks: "asyncio.Task[tuple[Outcome, int]]", tries: int) -> None:
        nonlocal now
        before = len(pauses)
        while not all(task.done() for task in tasks) and len(pauses) - before < tries:
            await asyncio.sleep(0.01)
            if (state := smtp.state()[0]).circuit_breaker == "open" and state.probe_ms is not None:
                if state.probe_ms > now:
                    pauses.append(state.probe_ms - now)
                now = max(now, state.probe_ms)

    attacks = [asyncio.create_task(deliver(smtp, recipient)) for recipient in odd[:2]]
    for _ in range(6):
        other = asyncio.create_task(deliver(smtp))
        await until_done(other, tries=10)
    for attack in attacks:
        attack.cancel()
    pauses.clear()
    relay.always("rcpt", fault)
    jobs = [asyncio.create_task(deliver(smtp, f"u@good{number}.example")) for number in range(10)]
    await until_done(*jobs, tries=5)
    assert [job.result() for job in jobs if job.done()] == []
    assert pauses == [5_000, 10_000, 20_000, 40_000, 60_000]
    relay.always("rcpt", None)
    await until_done(*jobs, tries=5)
    assert {type(outcome) for outcome, _ in await asyncio.gather(*jobs)} == {Accepted}
    await smtp.close()


async def test_a_fault_of_every_mail_is_not_blamed_on_one_recipient(relay: ScriptedRelay):
    relay.always("rcpt", "421 4.3.0 try later", to="odd@example.com")
    async with client(relay, pool_size=3) as smtp:
        odd = asyncio.create_task(deliver(smtp, "odd@example.com"))
        while not odd.done():
            await deliver(smtp)
        assert isinstance((await odd)[0], RecipientUnavailable)
        # MAIL names no recipient; on an old connection a 421 is only its end
        relay.then("mail", "421 4.3.0 down", "421 4.3.0 down")
        assert isinstance(await send(smtp, "odd@example.com"), Unavailable)
        assert await send(smtp, "odd@example.com") == TimedOut(briefly=True)  # it is the probe
        await deliver(smtp)
        assert isinstance(await send(smtp, "odd@example.com"), RecipientUnavailable)


async def test_mails_that_all_fail_do_not_take_the_probes_from_another(
    relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Pauses, "next_ms", lambda *_: 1)
    for number in range(5):
        relay.always("rcpt", "421 4.3.0 try later", to=f"bad{number}@example.com")
    async with client(relay, pool_size=1) as smtp:
        # they are more urgent
        bad = [asyncio.create_task(deliver(smtp, f"bad{number}@example.com", rank=1)) for number in range(5)]
        await relay.wait(lambda: smtp.state()[0].circuit_breaker == "open", "open circuit breaker")
        good, _ = await deliver(smtp, "good@example.com", rank=3)
        assert isinstance(good, Accepted)
        for task in bad:
            task.cancel()


async def test_no_circuit_breaker_shows_what_a_relay_quotes(relay: ScriptedRelay):
    relay.then("body", "421 4.7.0 too many messages like 'Your code is 739154' for user@example.com")
    changes = Changes()
    smtp = SmtpRelay(config(relay), on_circuit_breaker=changes.append)
    ends = now_ms() + 60_000
    mail = Mail("user@example.com", CONTENT, secrets=("739154", "user@example.com"))
    outcome = await smtp.send(mail, rank=2, lane="jobs", expires_ms=ends, deadline_ms=ends)
    assert isinstance(outcome, Unavailable)
    assert "too many messages" in str(changes[-1].error)
    assert "739154" not in str(changes)
    await smtp.close()


async def test_no_circuit_breaker_shows_what_a_relay_quotes_in_a_reply_that_does_not_fit(relay: ScriptedRelay):
    relay.then("mail", Act("421 4.3.0 down", then="close"))
    relay.then("body", "354 more than 'Your code is 739154' for user@example.com?")
    changes = Changes()
    smtp = SmtpRelay(config(relay), on_circuit_breaker=changes.append, fraction=lambda: 0.0)
    mail = Mail("user@example.com", CONTENT, secrets=("739154", "user@example.com"))
    ends = now_ms() + 60_000
    assert isinstance(await smtp.send(mail, rank=2, lane="jobs", expires_ms=ends, deadline_ms=ends), Unavailable)
    assert isinstance(await smtp.send(mail, rank=2, lane="jobs", expires_ms=ends, deadline_ms=ends), Uncertain)
    assert changes.breakers() == ["open", "half_open", "open"]
    assert "more than" in str(changes[-1].error)
    assert "739154" not in str(changes)
    assert "user@" not in str(changes)
    await smtp.close()


# no envelope is sent ahead while the circuit breaker is not closed


def begin(smtp: SmtpRelay, name: str, rank: int = 0) -> asyncio.Task[Outcome]:
    return asyncio.create_task(send(smtp, f"{name}@example.com", rank=rank))


async def at_data(relay: ManualRelay, smtp: SmtpRelay, name: str) -> tuple[asyncio.Task[Outcome], ManualConnection]:
    """Return a mail whose relay is to answer its envelope, and its connection."""
    job = begin(smtp, name)
    connection = await relay.ready_connection()
    await connection.expect(envelope(f"{name}@example.com"))
    return job, connection


async def test_no_envelope_is_sent_ahead_while_the_circuit_breaker_is_open():
    async with ManualRelay() as relay, client(relay, pool_size=3) as smtp:
        slow, connection = await at_data(relay, smtp, "slow")
        failing, other = await at_data(relay, smtp, "failing")
        await other.reply("421 4.3.0 down")
        assert isinstance(await failing, Unavailable)
        assert smtp.state()[0].circuit_breaker == "open"
        waiting = begin(smtp, "waiting")
        await until(lambda: smtp.state()[0].waiting == 1, "job that waits")
        await connection.reply(*ACCEPTS)
        await connection.expect_alone(ENDED)
        await connection.reply("250 queued")
        assert isinstance(await slow, Accepted)
        # the connection is still good: it takes the probe
        await connection.accept("waiting@example.com", alone=True)
        assert isinstance(await waiting, Accepted)
        assert smtp.state()[0].circuit_breaker == "closed"


async def test_the_probe_is_not_sent_ahead_behind_a_mail_from_before_the_circuit_breaker_opened():
    async with ManualRelay() as relay, client(relay, pool_size=3) as smtp:
        slow, connection = await at_data(relay, smtp, "slow")
        failing, other = await at_data(relay, smtp, "failing")
        await other.reply("421 4.3.0 down")
        assert isinstance(await failing, Unavailable)
        await until(lambda: smtp.state()[0].circuit_breaker == "half_open", "half-open circuit breaker")
        probe = begin(smtp, "probe")
        third = await relay.connection()
        await connection.reply(*ACCEPTS)
        await connection.expect_alone(ENDED)
        # the relay has not answered the old mail, and the probe goes out over another connection
        await third.greet()
        await third.accept("probe@example.com", alone=True)
        assert isinstance(await probe, Accepted)
        assert smtp.state()[0].circuit_breaker == "closed"
        assert not slow.done()
        await connection.reply("250 queued")
        assert isinstance(await slow, Accepted)


async def test_no_envelope_is_sent_ahead_behind_the_probe():
    async with ManualRelay() as relay, client(relay, pool_size=1) as smtp:
        failing, connection = await at_data(relay, smtp, "failing")
        await connection.reply("421 4.3.0 down")
        assert isinstance(await failing, Unavailable)
        probe, waiting = begin(smtp, "probe"), begin(smtp, "waiting", rank=3)
        connection = await relay.ready_connection()
        await connection.expect(envelope("probe@example.com"))
        assert smtp.state()[0].circuit_breaker == "half_open"
        await connection.reply(*ACCEPTS)
        await connection.expect_alone(ENDED)
        await connection.reply("250 queued")
        assert isinstance(await probe, Accepted)
        await connection.accept("waiting@example.com", alone=True)
        assert isinstance(await waiting, Accepted)


async def test_a_probe_that_may_have_been_taken_is_uncertain_and_opens_the_circuit_breaker_again():
    async with ManualRelay() as relay, client(relay, pool_size=1) as smtp:
        failing, connection = await at_data(relay, smtp, "failing")
        await connection.reply("421 4.3.0 down")
        assert isinstance(await failing, Unavailable)
        probe = begin(smtp, "probe")
        connection = await relay.ready_connection()
        await connection.expect(envelope("probe@example.com"))
        await connection.reply(*ACCEPTS)
        await connection.expect_alone(ENDED)
        connection.close()
        assert isinstance(await probe, Uncertain)
        assert smtp.state()[0].circuit_breaker == "open"
        await until(lambda: smtp.state()[0].circuit_breaker == "half_open", "half-open circuit breaker")
        again = begin(smtp, "again")
        connection = await relay.ready_connection()
        await connection.accept("again@example.com", alone=True)
        assert isinstance(await again, Accepted)


@pytest.mark.parametrize("ending", ["cancelled", "unwanted"])
async def test_a_withdrawn_probe_is_replaced_by_the_next_job(relay: ScriptedRelay, ending: str):
    relay.then("mail", Act("421 4.3.0 down", then="close"))
    async with client(relay, pool_size=2) as smtp:
        assert isinstance(await send(smtp), Unavailable)
        wanted = True
        release = asyncio.Event()
        relay.then("data", Act(until=release), to="probe@example.com")
        probe = asyncio.create_task(send(smtp, "probe@example.com", wanted=lambda: wanted))
        await relay.wait(lambda: relay.commands().count("MAIL") == 2, "probe on the wire")
        wanted = False
        if ending == "cancelled":
            probe.cancel()
        release.set()
        async with asyncio.timeout(10):
            assert isinstance(await send(smtp, "next@example.com"), Accepted)
        assert smtp.state()[0].circuit_breaker == "closed"
        await asyncio.gather(probe, return_exceptions=True)
    assert [mail.recipient for mail in relay.accepted] == ["next@example.com"]


async def test_one_probe_goes_out_although_more_connections_are_idle(relay: ScriptedRelay):
    together = asyncio.Event()
    relay.always("body", Act(until=together))
    async with client(relay, pool_size=4) as smtp:
        jobs = [begin(smtp, f"u{at}") for at in range(3)]
        await relay.wait(lambda: relay.contents == 3, "three mails on the wire")
        together.set()
        await asyncio.gather(*jobs)
        # an answer in the middle of a mail is about the relay, on whatever connection
        relay.then("rcpt", Act("421 4.3.0 down", then="close"))
        assert isinstance(await send(smtp), Unavailable)
        assert smtp.state()[0].connections == 2
        await until(lambda: smtp.state()[0].circuit_breaker == "half_open", "half-open circuit breaker")
        release = asyncio.Event()
        relay.always("body", Act(until=release))
        jobs = [begin(smtp, f"v{at}") for at in range(5)]
        await relay.wait(lambda: relay.contents == 4, "probe on the wire")
        assert (smtp.state()[0].sending, smtp.state()[0].waiting) == (1, 4)
        release.set()
        assert all(isinstance(outcome, Accepted) for outcome in await asyncio.gather(*jobs))


async def test_a_mail_from_before_the_circuit_breaker_opened_does_not_close_it(relay: ScriptedRelay):
    release = asyncio.Event()
    relay.then("body", Act(until=release), to="slow@example.com")
    relay.then("mail", Act(), Act("421 4.3.0 down", then="close"))
    async with client(relay, pool_size=3) as smtp:
        slow = begin(smtp, "slow")
        await relay.wait(lambda: relay.contents == 1, "mail on the wire")
        assert isinstance(await send(smtp, "failing@example.com", rank=0), Unavailable)
        release.set()
        assert isinstance(await slow, Accepted)
        assert smtp.state()[0].circuit_breaker == "open"


async def until(condition: Callable[[], bool], what: str) -> None:
    ends = deadline(20)
    while not condition():
        assert time.monotonic() < ends, f"no {what}"
        await asyncio.sleep(0.005)


# a relay and its fallback


class Pair:
    """Two relays, and our side of both."""

    def __init__(self, first: ScriptedRelay, second: ScriptedRelay, **changes: Any) -> None:
        self.first, self.second = first, second
        self.smtp = SmtpRelay(config(first, **changes), fallbacks=(config(second, **changes),), fraction=lambda: 0.0)

    async def send(self, name: str, *, prefer: ScriptedRelay | None = None, life_ms: int = 60_000) -> Outcome:
        ends = now_ms() + life_ms
        mail = Mail(f"{name}@example.com", CONTENT)
        named = None if prefer is None else f"127.0.0.1:{prefer.port}"
        async with asyncio.timeout(10):
            return await self.smtp.send(mail, rank=0, lane="jobs", expires_ms=ends, deadline_ms=ends, prefer=named)

    def recipients(self) -> tuple[list[str], list[str]]:
        """Return who got mail over the first relay, and who over the second."""
        first, second = ([mail.recipient.partition("@")[0] for mail in it.accepted] for it in (self.first, self.second))
        return first, second


@pytest.fixture
async def pair(relay: ScriptedRelay):
    async with ScriptedRelay() as second:
        pair = Pair(relay, second, pool_size=2)
        yield pair
        await pair.smtp.close(grace_s=0.2)


async def test_the_fallback_gets_nothing_while_the_first_relay_takes_mail(pair: Pair):
    pair.first.always("body", Act(delay_s=0.02))
    await asyncio.gather(*(pair.send(f"u{at}") for at in range(20)))
    assert len(pair.first.accepted) == 20
    assert pair.second.connections == 0


async def test_the_fallback_sends_while_the_first_relay_is_down_and_no_longer(pair: Pair):
    await pair.first.stop()
    assert isinstance(await pair.send("one"), Unavailable)
    assert isinstance(await pair.send("two"), Accepted)
    await until(lambda: pair.smtp.state()[0].circuit_breaker == "half_open", "half-open circuit breaker")
    await pair.first.start()
    sent = 0
    while (
        pair.smtp.state()[0].circuit_breaker != "closed"
    ):  # the fallback sends until a job finds the first relay connected
        sent += 1
        assert sent < 500
        assert isinstance(await pair.send(f"meanwhile{sent}"), Accepted)
    assert isinstance(await pair.send("three"), Accepted)
    first, second = pair.recipients()
    assert first == [f"meanwhile{sent}", "three"]
    assert second == ["two", *(f"meanwhile{at}" for at in range(1, sent))]


async def test_a_mail_that_the_fallback_may_have_goes_to_the_fallback_again(pair: Pair):
    assert isinstance(await pair.send("copy", prefer=pair.second), Accepted)
    assert isinstance(await pair.send("other"), Accepted)
    assert pair.recipients() == (["other"], ["copy"])


async def test_a_mail_that_a_relay_may_have_goes_elsewhere_while_that_one_is_down(pair: Pair):
    await pair.second.stop()
    assert isinstance(await pair.send("first try", prefer=pair.second), Unavailable)
    assert pair.smtp.state()[1].circuit_breaker == "open"
    assert isinstance(await pair.send("copy", prefer=pair.second), Accepted)
    assert pair.recipients() == (["copy"], [])


async def test_mails_that_wait_for_one_relay_move_to_the_other_when_that_one_is_down(pair: Pair):
    release = asyncio.Event()
    pair.second.always("body", Act("421 4.3.0 down", until=release, then="close"))
    on_wire = [asyncio.create_task(pair.send(f"wire{at}", prefer=pair.second)) for at in range(2)]
    await pair.second.wait(lambda: pair.second.contents == 2, "two mails on the wire")
    waiting = [asyncio.create_task(pair.send(f"waiting{at}", prefer=pair.second)) for at in range(3)]
    await until(lambda: pair.smtp.state()[1].waiting == 3, "three jobs for the second relay")
    release.set()
    assert all(isinstance(outcome, Accepted) for outcome in await asyncio.gather(*waiting))
    assert {type(outcome) for outcome in await asyncio.gather(*on_wire)} == {Unavailable}
    assert sorted(pair.recipients()[0]) == ["waiting0", "waiting1", "waiting2"]


async def test_the_fallback_takes_over_from_a_relay_that_gives_no_answer(pair: Pair, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(availability, "STALLED_S", 0.3)
    pair.first.always("body", SILENCE)
    stuck = [asyncio.create_task(pair.send(f"stuck{at}")) for at in range(2)]
    await pair.first.wait(lambda: pair.first.contents == 2, "two mails on the wire")
    # one waits for that relay alone, one for any
    named = asyncio.create_task(pair.send("named", prefer=pair.first))
    assert isinstance(await pair.send("any"), Accepted)
    assert isinstance(await named, Accepted)
    assert isinstance(await pair.send("later", prefer=pair.first), Accepted)
    assert pair.smtp.state()[0].stalled
    assert pair.recipients()[1] == ["any", "named", "later"] or sorted(pair.recipients()[1]) == [
        "any",
        "later",
        "named",
    ]
    pair.first.cut()
    assert all(isinstance(outcome, Uncertain) for outcome in await asyncio.gather(*stuck))


async def test_a_code_that_waits_for_one_relay_times_out_and_is_rechecked_like_any(pair: Pair):
    pair.second.always("body", SILENCE)
    on_wire = [asyncio.create_task(pair.send(f"wire{at}", prefer=pair.second)) for at in range(2)]
    await pair.second.wait(lambda: pair.second.contents == 2, "two mails on the wire")
    begun = now_ms()
    assert await pair.send("late", prefer=pair.second, life_ms=300) == TimedOut()
    assert now_ms() - begun < 8_000
    ends, wanted = now_ms() + 60_000, True
    rechecked = asyncio.create_task(
        pair.smtp.send(
            Mail("rechecked@example.com", CONTENT), rank=0, lane="jobs", expires_ms=ends, deadline_ms=ends,
            wanted=lambda: wanted, prefer=f"127.0.0.1:{pair.second.port}",
        )
    )  # fmt: skip
    await until(lambda: pair.smtp.state()[1].waiting == 1, "job for the second relay")
    wanted = False
    pair.smtp.recheck()
    await rounds()
    assert rechecked.done()
    assert await rechecked == TimedOut()
    stopped = asyncio.create_task(pair.send("stopped", prefer=pair.second))
    await until(lambda: pair.smtp.state()[1].waiting == 1, "job for the second relay")
    pair.smtp.finish()
    await asyncio.wait({stopped}, timeout=8)
    assert stopped.cancelled()
    pair.second.cut()
    await asyncio.gather(*on_wire)


async def test_a_newer_code_ends_the_wait_of_an_older_one_at_once(relay: ScriptedRelay):
    await relay.stop()
    async with client(relay) as smtp:
        assert isinstance(await send(smtp), Unavailable)
        wanted = True
        older = asyncio.create_task(send(smtp, wanted=lambda: wanted))
        await until(lambda: smtp.state()[0].waiting == 1, "job that waits")
        wanted = False
        smtp.recheck()
        await rounds()
        assert older.done()
        assert await older == TimedOut()


async def test_a_relay_of_two_connections_stays_available_on_a_cold_start(relay: ScriptedRelay):
    changes = Changes()
    relay.then("greeting", Act(delay_s=0.2), Act())
    relay.always("greeting", Act("421 4.3.0 no more connections", then="close"))
    relay.always("body", Act(delay_s=0.02))
    smtp = SmtpRelay(config(relay, pool_size=10), on_circuit_breaker=changes.append)
    outcomes = await asyncio.gather(*(send(smtp, f"u{at}@example.com") for at in range(30)))
    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    assert changes == []
    await smtp.close()


async def test_a_wrong_password_makes_one_failed_login_at_a_time():
    async with (
        ScriptedRelay(login=("otp", "right"), mechanisms="LOGIN") as relay,
        client(relay, pool_size=10, user="otp", password="wrong") as smtp,
    ):
        jobs = [asyncio.create_task(send(smtp, f"u{at}@example.com")) for at in range(10)]
        await relay.wait(lambda: smtp.state()[0].circuit_breaker == "open", "open circuit breaker")
        assert relay.commands().count("AUTH") == 1
        for job in jobs:
            job.cancel()


@pytest.mark.parametrize(
    "reply", ["421 4.7.0 too many invalid recipients", "421 4.7.0 Error: too many errors", "421 bye"]
)
async def test_the_end_of_a_session_after_refused_recipients_costs_no_job(relay: ScriptedRelay, reply: str):
    changes = Changes()
    smtp = SmtpRelay(config(relay, pool_size=1), on_circuit_breaker=changes.append)
    for at in range(3):
        relay.then("rcpt", "550 5.1.1 no such user")
        assert isinstance(await send(smtp, f"no{at}@example.com"), Rejected)
    relay.then("rcpt", Act(reply, then="close"))
    assert isinstance(await send(smtp), Accepted)
    assert (changes, relay.connections) == ([], 2)
    await smtp.close()


@pytest.mark.parametrize("step", ["mail", "rcpt", "data", "body"])
@pytest.mark.parametrize(
    "act",
    [
        Act("421 4.7.0 too many messages in this connection", then="close"),
        Act("452 4.5.3 Too many messages in this session"),
        Act("451 4.7.1 too many messages per connection", then="close"),
        Act("550 5.7.0 Message limit per session reached"),
    ],
)
async def test_a_session_limit_costs_no_job(relay: ScriptedRelay, step: str, act: Act):
    changes = Changes()
    smtp = SmtpRelay(config(relay, pool_size=1), on_circuit_breaker=changes.append)
    assert isinstance(await send(smtp), Accepted)
    relay.then(step, act)
    assert isinstance(await send(smtp), Accepted)
    assert (changes, relay.connections, len(relay.accepted)) == ([], 2, 2)
    await smtp.close()


async def test_the_session_limit_of_opensmtpd_costs_no_job_and_opens_the_circuit_breaker_in_a_new_session(
    relay: ScriptedRelay,
):
    limit, changes = "452 4.5.3 Too many recipients: Too many messages sent", Changes()
    smtp = SmtpRelay(config(relay, pool_size=1), on_circuit_breaker=changes.append)
    assert isinstance(await send(smtp), Accepted)
    relay.then("mail", limit)
    assert isinstance(await send(smtp), Accepted)
    assert (changes, relay.connections, len(relay.accepted)) == ([], 2, 2)
    relay.then("mail", limit, limit)
    outcome = await send(smtp)
    assert isinstance(outcome, Unavailable)
    assert (outcome.reason, relay.connections) == ("throttled", 3)
    await smtp.close()


async def test_a_session_limit_at_the_first_mail_makes_the_relay_unavailable(relay: ScriptedRelay):
    relay.then("rcpt", "452 4.5.3 Too many messages in this session")
    async with client(relay) as smtp:
        assert isinstance(await send(smtp), Unavailable)


async def test_a_probe_goes_over_a_new_connection_where_postscreen_wants_one(relay: ScriptedRelay):
    release = asyncio.Event()
    relay.then("body", Act(until=release), Act(until=release))
    async with client(relay, pool_size=3) as smtp:
        first = [asyncio.create_task(send(smtp, f"u{at}@example.com")) for at in range(2)]
        await relay.wait(lambda: relay.contents == 2, "two mails on the wire")
        release.set()
        await asyncio.gather(*first)
        connections = relay.connections
        relay.then("rcpt", "450 4.3.2 Service currently unavailable")
        assert isinstance(await send(smtp), Unavailable)
        assert isinstance(await send(smtp), Accepted)
        assert relay.accepted[-1].connection == connections + 1


async def test_a_probe_that_is_throttled_is_followed_by_one_on_a_new_connection(relay: ScriptedRelay):
    async with client(relay, pool_size=1) as smtp:
        assert isinstance(await send(smtp), Accepted)
        relay.then("rcpt", "450 4.7.0 rate limit exceeded", "450 4.7.0 rate limit exceeded")
        assert isinstance(await send(smtp), Unavailable)
        assert await send(smtp) == TimedOut(briefly=True)  # another job may be the next probe
        assert isinstance(await send(smtp), Accepted)
        assert [mail.connection for mail in relay.accepted] == [1, 2]


@pytest.mark.parametrize(
    "reply", ["451 4.4.2 Timeout - closing connection", "451 4.7.0 Timeout waiting for client input"]
)
async def test_an_idle_close_with_451_charges_nothing(relay: ScriptedRelay, reply: str):
    changes = Changes()
    smtp = SmtpRelay(config(relay, pool_size=1), on_circuit_breaker=changes.append)
    assert isinstance(await send(smtp), Accepted)
    relay.then("mail", Act(reply, then="close"))
    assert isinstance(await send(smtp), Accepted)
    [session] = relay._sessions.values()
    await session.reply(reply)
    await relay.wait(lambda: smtp.state()[0].connections == 0, "end of the connection")
    assert isinstance(await send(smtp), Accepted)
    assert changes == []
    await smtp.close()


@pytest.mark.parametrize("answered", [0, 1, 2])
async def test_a_relay_that_loses_pipelined_commands_gets_them_one_by_one(
    monkeypatch: pytest.MonkeyPatch, answered: int
):
    monkeypatch.setattr(pipeline_module, "_UNPROVEN_S", 0.2)
    async with ManualRelay() as relay, client(relay, pool_size=2) as smtp:
        jobs = [begin(smtp, "first")]
        lossy = await relay.ready_connection()
        await lossy.expect(envelope("first@example.com"))
        await lossy.reply(*ACCEPTS[:answered])
        await lossy.expect_end()
        connection = await relay.ready_connection()
        for name in ("first", "second"):
            await connection.expect_alone(b"MAIL FROM:<sender@example.com>\r\n")
            await connection.reply("250 ok")
            await connection.expect_alone(f"RCPT TO:<{name}@example.com>\r\n".encode())
            await connection.reply("250 ok")
            await connection.expect_alone(b"DATA\r\n")
            await connection.reply("354 ok")
            await connection.expect_alone(ENDED)
            await connection.reply("250 ok")
            assert isinstance(await jobs[-1], Accepted)
            if name == "first":
                jobs.append(begin(smtp, "second"))
        assert smtp.state()[0].circuit_breaker == "closed"


async def test_a_relay_that_loses_mail_alone_gets_commands_one_by_one():
    async with ManualRelay() as relay, client(relay, pool_size=1) as smtp:
        job = begin(smtp, "first")
        lossy = await relay.ready_connection()
        await lossy.expect(envelope("first@example.com"))
        await lossy.reply("503 5.5.1 MAIL first", "503 5.5.1 MAIL first")
        await lossy.expect_end()
        assert isinstance(await job, Unavailable)
        job = begin(smtp, "first")
        connection = await relay.ready_connection()
        await connection.expect_alone(b"MAIL FROM:<sender@example.com>\r\n")
        job.cancel()


async def test_a_relay_that_once_answered_pipelined_commands_may_take_its_time(monkeypatch: pytest.MonkeyPatch):
    async with ScriptedRelay() as relay, client(relay, pool_size=1) as smtp:
        assert isinstance(await send(smtp), Accepted)
        monkeypatch.setattr(pipeline_module, "_UNPROVEN_S", 0.2)
        relay.then("rcpt", Act(delay_s=0.6))
        assert isinstance(await send(smtp), Accepted)
        assert relay.connections == 1


async def test_an_error_of_ours_while_connecting_opens_the_circuit_breaker_and_is_logged(
    relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
):
    attempts: list[Handshake] = []

    async def fail(handshake: Handshake, _: object) -> None:
        attempts.append(handshake)
        raise ValueError("secret")

    monkeypatch.setattr(Handshake, "open", fail)
    logged: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
    async with client(relay) as smtp:
        assert await send(smtp) == Unavailable("unreachable", "error of otp-stream: ValueError")
        assert len(attempts) == 1
        assert smtp.state()[0].circuit_breaker == "open"
        assert smtp._upstreams[0].availability.owed == 0
    await until(lambda: bool(logged), "logged error")
    assert [str(context["exception"]) for context in logged] == ["secret"]


@pytest.mark.parametrize("moment", ["before it begins", "while it waits"])
async def test_a_cancelled_connection_attempt_owes_no_reply(relay: ScriptedRelay, moment: str):
    relay.always("greeting", SILENCE)
    smtp = SmtpRelay(config(relay), fallbacks=[config(relay, group="second")])
    upstream = smtp._upstreams[0]
    slowness = upstream.availability.slowness
    assert slowness is not None
    sending = begin(smtp, "user")
    if moment == "before it begins":
        await until(lambda: upstream.pool.opening == 1, "attempt to connect")
    else:
        await relay.wait(lambda: relay.connections == 1, "connection")
        assert upstream.availability.owed == 1
    smtp.retire()
    await until(lambda: not upstream.pool.opening, "end of the attempt")
    assert upstream.availability.owed == 0
    assert not slowness.only_connects(1)
    assert isinstance((await asyncio.gather(sending, return_exceptions=True))[0], RelayRetiredError)
    await smtp.close()
