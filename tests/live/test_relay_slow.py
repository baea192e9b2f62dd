"""A slow relay and its fallback: which mails change the relay, and which stay."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from smtp_relay import CONTENT, KEYWORDS, SILENCE, Act, ScriptedRelay, config, now_ms

from otp_stream.core.mail import Mail
from otp_stream.core.outcome import Accepted, Outcome, Rejected, Route, Unavailable
from otp_stream.core.state import RelayState
from otp_stream.relay import SmtpRelay, step_times

PATIENCE_S = 0.8


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_times, "SHORTEST_S", PATIENCE_S)


class Pair:
    """Two relays, and our side of both."""

    def __init__(self, first: ScriptedRelay, second: ScriptedRelay, **changes: Any) -> None:
        self.first, self.second = first, second
        self.changes: list[RelayState] = []
        self.smtp = SmtpRelay(
            config(first, **changes), fallbacks=(config(second, **changes),), on_slowness=self.changes.append
        )

    @property
    def names(self) -> tuple[str, str]:
        return f"127.0.0.1:{self.first.port}", f"127.0.0.1:{self.second.port}"

    async def send(
        self, name: str, *, domain: str = "example.com", prefer: str | None = None, rank: int = 0
    ) -> Outcome:
        return await send(self.smtp, f"{name}@{domain}", prefer, rank)

    def recipients(self) -> tuple[list[str], list[str]]:
        """Return who got mail over the first relay, and who over the second."""
        first, second = ([mail.recipient.partition("@")[0] for mail in it.accepted] for it in (self.first, self.second))
        return first, second

    async def make_first_slow(self) -> None:
        """Let mail to several domains stall at the first relay, until that is known to be slow."""
        self.first.always("rcpt", SILENCE)
        await asyncio.gather(*(self.send(f"slow{at}", domain=f"d{at}.example") for at in range(3)))
        self.first.always("rcpt", None)
        assert self.smtp.state()[0].slow


async def send(smtp: SmtpRelay, to: str, prefer: str | None = None, rank: int = 0) -> Outcome:
    ends = now_ms() + 60_000
    mail = Mail(to, CONTENT)
    async with asyncio.timeout(50):
        return await smtp.send(mail, rank=rank, lane="jobs", expires_ms=ends, deadline_ms=ends, prefer=prefer)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with ScriptedRelay() as first, ScriptedRelay() as second:
        pair = Pair(first, second, pool_size=10)
        yield pair
        await pair.smtp.close(grace_s=0.2)


@pytest.mark.parametrize("step", ["mail", "rcpt", "data"])
@pytest.mark.parametrize("pipelining", [True, False])
async def test_a_mail_whose_content_has_not_been_sent_leaves_a_slow_relay(pair: Pair, step: str, *, pipelining: bool):
    if not pipelining:
        pair.first.keywords = ()
    assert isinstance(await pair.send("before"), Accepted)
    pair.first.then(step, SILENCE)
    outcome = await pair.send("one")
    assert isinstance(outcome, Accepted)
    assert outcome.route == Route(pair.names[1], switched_from=pair.names[0])
    assert pair.recipients() == (["before"], ["one"])
    assert pair.smtp.state()[0].switches == {step: 1}
    assert pair.first.contents == 1


async def test_an_outcome_names_its_relay(pair: Pair):
    outcome = await pair.send("one")
    assert isinstance(outcome, Accepted)
    assert outcome.route == Route(pair.names[0])


async def test_a_mail_whose_content_has_been_sent_stays(pair: Pair):
    pair.first.then("body", Act(delay_s=4 * PATIENCE_S))
    outcome = await pair.send("one")
    assert isinstance(outcome, Accepted)
    assert outcome.route == Route(pair.names[0])
    assert pair.recipients() == (["one"], [])


async def test_a_content_is_not_sent_with_its_envelope_so_that_a_mail_may_leave():
    async with ScriptedRelay(keywords=(*KEYWORDS, "CHUNKING")) as first, ScriptedRelay() as second:
        pair = Pair(first, second, pool_size=10)
        for at in range(4):  # first it is learned that BDAT and PIPELINING work
            assert isinstance(await pair.send(f"u{at}"), Accepted)
        first.then("rcpt", SILENCE)
        outcome = await pair.send("one")
        assert isinstance(outcome, Accepted)
        assert outcome.route == Route(pair.names[1], switched_from=pair.names[0])
        assert pair.recipients() == (["u0", "u1", "u2", "u3"], ["one"])
        await pair.smtp.close(grace_s=0.2)


async def test_no_mail_of_a_backlog_is_sent_twice_if_contents_are_sent_with_their_envelopes():
    async with ScriptedRelay(keywords=(*KEYWORDS, "CHUNKING")) as first, ScriptedRelay() as second:
        pair = Pair(first, second, pool_size=2)
        first.always("body", Act(delay_s=0.02))
        sending = [asyncio.create_task(pair.send(f"u{at}", domain=f"d{at % 5}.example")) for at in range(60)]
        await first.wait(lambda: len(first.accepted) >= 30, "half of the mails")
        first.every(5, "rcpt", Act(delay_s=2 * PATIENCE_S))
        assert all(isinstance(outcome, Accepted) for outcome in await asyncio.gather(*sending))
        assert sorted(mail for mails in pair.recipients() for mail in mails) == sorted(f"u{at}" for at in range(60))
        await pair.smtp.close(grace_s=0.2)


async def test_a_mail_that_the_slow_relay_may_have_stays(pair: Pair):
    pair.first.then("rcpt", Act(delay_s=4 * PATIENCE_S))
    assert isinstance(await pair.send("copy", prefer=pair.names[0]), Accepted)
    assert pair.recipients() == (["copy"], [])


async def test_a_mail_whose_recipient_is_refused_stays(pair: Pair):
    pair.first.then("rcpt", "550 5.1.1 no such user")
    pair.first.then("data", Act("554 5.5.1 no valid recipients", delay_s=4 * PATIENCE_S))
    assert isinstance(await pair.send("one"), Rejected)
    assert pair.second.connections == 0


async def test_without_another_relay_a_slow_mail_stays():
    async with ScriptedRelay() as relay:
        smtp = SmtpRelay(config(relay))
        for step in ("greeting", "mail", "rcpt", "data", "body"):
            relay.then(step, Act(delay_s=2 * PATIENCE_S))
        outcome = await send(smtp, "one@example.com")
        assert isinstance(outcome, Accepted)
        assert relay.connections == 1
        assert smtp.state()[0].slow is False
        await smtp.close(grace_s=0.2)


async def test_a_mail_changes_its_relay_once_if_both_are_slow(pair: Pair):
    for relay in (pair.first, pair.second):
        relay.always("rcpt", Act(delay_s=3 * PATIENCE_S))
    assert isinstance(await pair.send("one"), Accepted)
    assert pair.recipients() == ([], ["one"])
    assert pair.second.commands().count("MAIL") == 1


async def test_while_both_are_slow_mails_stay_at_the_first(pair: Pair):
    for relay in (pair.first, pair.second):
        relay.always("rcpt", Act(delay_s=2 * PATIENCE_S))
    await asyncio.gather(*(pair.send(f"u{at}", domain=f"d{at}.example") for at in range(4)))
    first, second = pair.smtp.state()
    assert (first.slow, second.slow) == (True, True)
    assert first.first_tries == 1
    switches = first.switches
    await asyncio.gather(*(pair.send(f"v{at}", domain=f"d{at}.example") for at in range(4)))
    assert pair.smtp.state()[0].switches == switches
    assert len(pair.first.accepted) >= 3  # the second relay may get one as a probe


async def test_a_mail_that_waits_for_a_slow_connection_goes_to_the_other_relay(pair: Pair):
    pair.first.always("greeting", SILENCE)
    outcome = await pair.send("one")
    assert isinstance(outcome, Accepted)
    assert outcome.route == Route(pair.names[1], switched_from=pair.names[0])
    assert pair.smtp.state()[0].switches == {"connect": 1}


async def test_a_slow_relay_gets_few_first_tries(pair: Pair):
    await pair.make_first_slow()
    pair.first.always("rcpt", SILENCE)
    begun = pair.first.commands().count("MAIL")
    for at in range(60):
        assert isinstance(await pair.send(f"u{at}", domain=f"d{at}.example"), Accepted)
    assert pair.first.commands().count("MAIL") - begun <= 6
    assert pair.smtp.state()[0].first_tries < 0.1


async def test_a_relay_that_is_fast_again_gets_every_first_try(pair: Pair):
    await pair.make_first_slow()
    sent = 0
    while pair.smtp.state()[0].slow:
        sent += 1
        assert sent < 5_000
        assert isinstance(await pair.send(f"u{sent}"), Accepted)
    taken = len(pair.second.accepted)
    for at in range(20):
        assert isinstance(await pair.send(f"v{at}"), Accepted)
    assert len(pair.second.accepted) == taken
    await pair.first.wait(lambda: len(pair.changes) == 2, "second report")
    assert [change.slow for change in pair.changes] == [True, False]


async def test_a_domain_that_is_slow_at_one_relay_is_sent_through_the_other(pair: Pair):
    pair.first.always("rcpt", SILENCE, to="@slow.example")
    for at in range(10):
        assert isinstance(await pair.send(f"other{at}"), Accepted)
    await asyncio.gather(*(pair.send(f"slow{at}", domain="slow.example") for at in range(4)))
    state = pair.smtp.state()[0]
    assert (state.slow, state.slow_domains) == (False, ("slow.example",))
    begun = pair.first.commands().count("MAIL")
    for at in range(10):
        assert isinstance(await pair.send(f"later{at}", domain="slow.example"), Accepted)
    assert pair.first.commands().count("MAIL") == begun
    assert isinstance(await pair.send("other"), Accepted)
    assert pair.recipients()[0] == [*(f"other{at}" for at in range(10)), "other"]


async def test_mails_wait_for_no_busy_relay_while_its_connection_for_urgent_mails_is_idle(pair: Pair):
    for at in range(50):  # from then on, it is known how long a reply to a content takes
        assert isinstance(await pair.send(f"u{at}"), Accepted)
    pair.first.always("body", SILENCE, to="@slow.example")
    others = [asyncio.create_task(pair.send(f"slow{at}", domain="slow.example", rank=2)) for at in range(9)]
    await pair.first.wait(lambda: pair.smtp.state()[0].sending == 9, "nine mails on connections")
    assert isinstance(await pair.send("urgent"), Accepted)
    first = pair.smtp.state()[0]
    assert (first.connections, first.saturated) == (10, True)
    waiting = asyncio.create_task(pair.send("one", rank=2))
    while not waiting.done():
        # the replies to these show that the relay is not stalled
        assert isinstance(await pair.send("urgent"), Accepted)
        await asyncio.sleep(0.1)
    outcome = await waiting
    assert isinstance(outcome, Accepted)
    assert outcome.route == Route(pair.names[1])
    assert set(pair.recipients()[0][50:]) == {"urgent"}
    for other in others:
        other.cancel()


async def test_mails_wait_for_no_relay_whose_connections_are_busy_and_that_accepts_no_more(pair: Pair):
    pair.first.always("body", Act(delay_s=0.05))
    for _ in range(13):
        await asyncio.gather(*(pair.send(f"u{at}") for at in range(4)))
    opened = pair.smtp.state()[0].connections
    assert opened == 4
    pair.first.always("greeting", Act("421 4.7.0 too many connections", then="close"))
    pair.first.always("body", SILENCE, to="@slow.example")
    slow = [asyncio.create_task(pair.send(f"slow{at}", domain="slow.example", rank=2)) for at in range(opened - 1)]
    await pair.first.wait(lambda: pair.smtp.state()[0].sending == opened - 1, "mails on all connections but one")
    # one connection sends a mail in a tenth of a second: it would need six seconds
    pair.first.always("body", Act(delay_s=0.1))
    outcomes = await asyncio.gather(*(pair.send(f"v{at}", rank=2) for at in range(60)))
    routes = [it.route for it in outcomes if isinstance(it, Accepted)]
    assert len(routes) == 60
    assert routes.count(Route(pair.names[1])) > 30
    for other in slow:
        other.cancel()


async def test_a_mail_returns_if_the_other_relay_is_down(pair: Pair):
    await pair.second.stop()
    pair.first.then("rcpt", SILENCE)
    assert isinstance(await pair.send("one"), Unavailable)  # it is sent again, as after each `Unavailable`
    assert isinstance(await pair.send("one"), Accepted)
    assert pair.recipients() == (["one"], [])
    # from now on it is known that the other one takes no mail
    pair.first.then("rcpt", Act(delay_s=3 * PATIENCE_S))
    connections = pair.first.connections
    assert isinstance(await pair.send("two"), Accepted)
    assert pair.first.connections == connections


async def test_a_probe_without_a_reply_opens_the_circuit_breaker_again(pair: Pair):
    await pair.first.stop()
    assert not isinstance(await pair.send("none"), Accepted)
    await pair.first.start()
    pair.first.always("mail", SILENCE)
    sent = 0
    while not pair.smtp.state()[0].switches:
        sent += 1
        assert sent < 500
        assert isinstance(await pair.send(f"u{sent}"), Accepted)
        await asyncio.sleep(0.02)
    state = pair.smtp.state()[0]
    assert (state.circuit_breaker, state.error) == ("open", "no reply in time")
    assert len(pair.second.accepted) == sent


async def test_a_relay_that_loses_pipelined_commands_gets_the_next_mail_one_command_at_a_time(pair: Pair):
    pair.first.then("mail", SILENCE)  # before pipelining has ever worked
    assert isinstance(await pair.send("one"), Accepted)
    assert isinstance(await pair.send("two"), Accepted)
    assert pair.recipients() == (["two"], ["one"])


async def test_a_suspended_process_moves_no_mail(pair: Pair):
    assert isinstance(await pair.send("before"), Accepted)
    release = asyncio.Event()
    pair.first.then("rcpt", Act(until=release))
    sending = asyncio.create_task(pair.send("one"))
    await pair.first.wait(lambda: pair.first.held == 1, "mail at the first relay")
    release.set()
    time.sleep(1.5)  # noqa: ASYNC251 - it is the process that does nothing
    assert isinstance(await sending, Accepted)
    assert pair.recipients() == (["before", "one"], [])
    assert pair.smtp.state()[0].slow_sends == 0


async def test_a_fallback_at_its_rate_limit_gets_no_more_mail_than_it_can_send():
    async with ScriptedRelay() as first, ScriptedRelay() as second:
        pair = Pair(first, second, pool_size=20, rate=4.0)
        first.always("rcpt", Act(delay_s=3.0))
        sending = [asyncio.create_task(pair.send(f"u{at}", domain=f"d{at}.example")) for at in range(12)]
        assert all(isinstance(outcome, Accepted) for outcome in await asyncio.gather(*sending))
        assert len(first.accepted) + len(second.accepted) == 12
        assert pair.smtp.state()[1].waiting == 0
        await pair.smtp.close(grace_s=0.2)
