"""Tenants with different senders share a relay: what it refuses to one of them delays no other."""

import asyncio
import random
from collections import Counter
from typing import Any, Self

import pytest
from smtp_relay import CLOSE, CONTENT, KEYWORDS, RESET, Act, ScriptedRelay, client, config, now_ms, send

from otp_stream.core.mail import Mail
from otp_stream.core.outcome import Accepted, Outcome, RecipientUnavailable, TimedOut, Unavailable, Uncertain
from otp_stream.core.state import RelayState
from otp_stream.relay import RelayLimits, RelayRetiredError, SmtpRelay, availability
from otp_stream.relay.circuit_breaker import Pauses

A, B = "bounces@shop-a.example", "bounces@shop-b.example"
NOT_OWNED = f"553 5.7.1 <{A}>: Sender address rejected: not owned by user mailer"
NO_REASON = "550 5.7.1 not here"
LIMITED = "450 4.7.1 Sender rate limit exceeded, try again later"


class Shop:
    """A client of one relay, or of several in order of preference.

    The clock of its pauses stands still until the test moves it, unless it `runs`.
    """

    def __init__(self, *relays: ScriptedRelay, runs: bool = False, **changes: Any) -> None:
        self.ahead_ms, began_ms = 0, now_ms()
        self.changes: list[RelayState] = []
        first, *others = [config(relay, **{"shared": True, **changes}) for relay in relays]
        self.smtp = SmtpRelay(
            first,
            fallbacks=others,
            on_circuit_breaker=self.changes.append,
            steady_ms=lambda: (now_ms() if runs else began_ms) + self.ahead_ms,
            fraction=lambda: 0.0,
        )
        self.tasks: list[asyncio.Task[Any]] = []

    def send(self, tenant: str, to: str = "user@example.com", **settings: Any) -> asyncio.Task[Outcome]:
        """Start one call of `send`."""
        sender = {"a": A, "b": B}[tenant]
        task = asyncio.create_task(send(self.smtp, to, tenant=tenant, sender=sender, **settings))
        self.tasks.append(task)
        return task

    def deliver(self, tenant: str, to: str = "user@example.com") -> asyncio.Task[int]:
        """Do as delivery does: send again for as long as the outcome is `Unavailable`. Returns how often it was."""

        async def repeat() -> int:
            held = 0
            while isinstance(outcome := await self.send(tenant, to), Unavailable):
                held += 1
            assert isinstance(outcome, Accepted)
            return held

        task = asyncio.create_task(repeat())
        self.tasks.append(task)
        return task

    async def accepted(self, tenant: str, count: int = 1) -> None:
        """Send mails, and check that all are accepted."""
        outcomes = await asyncio.gather(*(self.send(tenant, f"u{at}@example.com") for at in range(count)))
        assert {type(outcome) for outcome in outcomes} == {Accepted}

    async def refused(self, tenant: str, to: str = "user@example.com", reason: str = "sender_refused") -> None:
        """Send a mail whose sender is refused, or limited."""
        outcome = await self.send(tenant, to)
        assert isinstance(outcome, Unavailable)
        assert outcome.reason == reason

    @property
    def refusals(self) -> int:
        """How many calls of `send` had the outcome `Unavailable`."""
        return sum(isinstance(task.result(), Unavailable) for task in self.tasks if task.done())

    def suspended(self, number: int = 0) -> list[str]:
        return list(self.smtp.state()[number].suspended)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.smtp.close(grace_s=0.2)


@pytest.fixture(params=[KEYWORDS, (*KEYWORDS, "CHUNKING"), ()], ids=["DATA", "BDAT", "one by one"])
async def relay(request: pytest.FixtureRequest):
    async with ScriptedRelay(keywords=request.param) as relay:
        yield relay


@pytest.fixture
async def second():
    async with ScriptedRelay() as relay:
        yield relay


async def test_each_mail_has_its_own_envelope_sender(relay: ScriptedRelay):
    async with client(relay, pool_size=1) as smtp:
        for tenant, sender in (("", None), ("a", A), ("b", B), ("a", A), ("", None)):
            assert isinstance(await send(smtp, tenant=tenant, sender=sender), Accepted)
    assert [mail.sender for mail in relay.accepted] == ["sender@example.com", A, B, A, "sender@example.com"]


async def test_a_reply_that_names_the_mail_s_own_sender_is_about_the_sender(relay: ScriptedRelay):
    relay.always("rcpt", f"550 5.7.1 <{A}> may not send here", by=A)
    async with client(relay) as smtp:
        outcome = await send(smtp, tenant="a", sender=A)
    assert isinstance(outcome, Unavailable)
    assert (outcome.reason, "SENDER_EMAIL" in outcome.error, A in outcome.error) == ("sender_refused", True, False)


@pytest.mark.parametrize(
    ("step", "reply"),
    [
        ("mail", NOT_OWNED),
        ("mail", NO_REASON),
        ("mail", "550 5.7.1 Sender domain is not allowed"),
        ("rcpt", NOT_OWNED),
        ("data", NOT_OWNED),
        ("body", NOT_OWNED),
        ("body", "550 5.7.60 SMTP; Client does not have permissions to send as this sender"),
    ],
)
async def test_a_refused_sender_delays_its_own_tenant_only(relay: ScriptedRelay, step: str, reply: str):
    if step == "data" and "CHUNKING" in relay.keywords:
        step = "body"  # BDAT has no DATA
    async with Shop(relay, pool_size=2) as shop:
        await shop.accepted("b")
        await shop.accepted("a")
        relay.always(step, reply, by=A)
        await shop.refused("a")
        await shop.accepted("b")
        assert relay.open_connections == relay.connections  # the session of the others goes on
        waiting = [shop.deliver("a", f"w{at}@example.com") for at in range(20)]
        await shop.accepted("b", 50)
        assert shop.suspended() == ["a"]
        assert shop.smtp.state()[0].suspended["a"].startswith(reply[:3])
        assert (shop.changes, shop.smtp.state()[0].waiting) == ([], 20)
        refusals = shop.refusals
        # one mail is the probe, and the next pause is longer
        for pause_ms in (5_000, 10_000):
            shop.ahead_ms += pause_ms
            refusals += 1
            await relay.wait(lambda refusals=refusals: shop.refusals == refusals, "probe")
            await asyncio.sleep(0.25)
            assert shop.refusals == refusals
        relay.always(step, None, by=A)
        shop.ahead_ms += 20_000
        await asyncio.gather(*waiting)
        assert (shop.suspended(), shop.changes) == ([], [])
        assert sum(mail.sender == A for mail in relay.accepted) == 21


@pytest.mark.parametrize(
    ("step", "reply"),
    [
        ("mail", LIMITED),
        ("mail", "450 4.7.1 Too many messages, try again later"),
        ("mail", f"451 4.7.1 {A} has exceeded its hourly limit"),
        ("rcpt", f"450 4.7.1 <{A}>: Sender address rejected: Policy rejection: Message quota exceeded"),
        ("rcpt", "550 Domain shop-a.example has exceeded the max emails per hour (150/150 (100%)) allowed"),
        ("body", f"451 4.3.2 sender {A} thread limit exceeded"),
        ("body", f"550 5.7.1 {A} daily sending quota exceeded"),
    ],
)
async def test_a_limit_on_one_sender_delays_its_own_tenant_only(relay: ScriptedRelay, step: str, reply: str):
    async with Shop(relay, pool_size=2) as shop:
        await shop.accepted("b", 50)
        await shop.accepted("a")
        relay.always(step, reply, by=A)
        await shop.refused("a", reason="throttled")
        waiting = [shop.deliver("a", f"w{at}@example.com") for at in range(20)]
        await shop.accepted("b", 50)
        assert shop.suspended() == ["a"]
        assert shop.smtp.state()[0].suspended["a"].startswith(reply[:3])
        assert shop.smtp.state()[0].waiting == 20
        refusals = shop.refusals
        for pause_ms in (2_000, 4_000):
            shop.ahead_ms += pause_ms
            refusals += 1
            await relay.wait(lambda refusals=refusals: shop.refusals == refusals, "probe")
            await shop.accepted("b", 20)
            assert shop.refusals == refusals
        # neither the circuit breaker nor the rate of the relay has changed
        state = shop.smtp.state()[0]
        assert (shop.changes, state.slowed, state.rate) == ([], False, None)
        relay.always(step, None, by=A)
        shop.ahead_ms += 8_000
        await asyncio.gather(*waiting)
        assert (shop.suspended(), shop.changes) == ([], [])
        assert sum(mail.sender == A for mail in relay.accepted) == 21


async def test_a_sender_whose_limit_is_a_rate_gets_what_the_relay_lets_through(relay: ScriptedRelay):
    async with Shop(relay, pool_size=4) as shop:
        waiting = [shop.deliver("a", f"w{at}@example.com") for at in range(60)]
        for accepted in range(10, 70, 10):
            relay.then("mail", *[Act()] * 10, by=A)
            relay.always("mail", LIMITED, by=A)
            shop.ahead_ms += 2_000
            await relay.wait(lambda count=accepted: sum(it.sender == A for it in relay.accepted) >= count, "mails of a")
            await shop.accepted("b", 10)
        await asyncio.gather(*waiting)
        assert (shop.changes, shop.smtp.state()[0].slowed) == ([], False)


async def test_if_a_second_sender_is_throttled_the_relay_throttles(relay: ScriptedRelay):
    relay.always("mail", LIMITED)
    async with Shop(relay) as shop:
        await shop.refused("a", reason="throttled")
        assert shop.changes == []
        await shop.refused("b", reason="throttled")
        assert [(it.circuit_breaker, it.reason) for it in shop.changes] == [("open", "throttled")]
        # the probe gets the same reply, and the next pause is longer: 4 s
        probe = shop.send("b")
        shop.ahead_ms += 2_000
        assert isinstance(await probe, Unavailable)
        assert [it.circuit_breaker for it in shop.changes] == ["open", "half_open", "open"]
        relay.always("mail", None)
        shop.ahead_ms += 3_900
        last = [shop.deliver(tenant) for tenant in "ab"]
        await relay.wait(lambda: shop.smtp.state()[0].waiting == 2, "two waiting mails")
        assert shop.smtp.state()[0].circuit_breaker == "open"
        shop.ahead_ms += 100
        await asyncio.gather(*last)
        assert (shop.suspended(), shop.changes[-1].circuit_breaker) == ([], "closed")


async def test_a_limit_of_another_sender_a_while_ago_is_not_one_of_the_relay(relay: ScriptedRelay):
    relay.always("mail", LIMITED)
    async with Shop(relay) as shop:
        await shop.refused("a", reason="throttled")
        shop.ahead_ms += 5_000
        await shop.refused("b", reason="throttled")
        assert (shop.suspended(), shop.changes) == (["a", "b"], [])


@pytest.mark.parametrize(
    ("step", "reply"),
    [
        ("mail", "421 4.7.0 relay.example Error: too many messages"),
        ("mail", "450 4.7.1 Error: too much mail from 192.0.2.1"),
        ("mail", "450 4.7.0 Too many connections, slow down"),
        ("mail", "451 4.3.2 rate limit exceeded"),
        ("mail", "452 4.3.1 Insufficient system storage"),
        ("body", "454 Throttling failure: Maximum sending rate exceeded."),
    ],
)
async def test_a_limit_that_names_no_sender_is_about_the_relay(relay: ScriptedRelay, step: str, reply: str):
    relay.then(step, reply, by=A)
    async with Shop(relay) as shop:
        assert isinstance(await shop.send("a"), Unavailable)
        assert [it.circuit_breaker for it in shop.changes] == ["open"]
        assert shop.suspended() == []


@pytest.mark.parametrize("shared", [False, True])
async def test_where_all_mail_has_one_sender_its_limit_is_one_of_the_relay(relay: ScriptedRelay, *, shared: bool):
    relay.always("mail", LIMITED, by=A)
    async with Shop(relay, shared=shared) as shop:
        shop.smtp.use_senders({A})
        await shop.refused("a", reason="throttled")
        assert [it.reason for it in shop.changes] == ["throttled"]
        assert shop.suspended() == []


async def test_a_tenant_that_waits_occupies_no_connection(relay: ScriptedRelay):
    relay.always("mail", NOT_OWNED, by=A)
    async with Shop(relay, pool_size=20) as shop:
        await shop.refused("a")
        for at in range(50):
            shop.send("a", f"w{at}@example.com")
        await relay.wait(lambda: shop.smtp.state()[0].waiting == 50, "50 waiting mails")
        connections = relay.connections
        await asyncio.sleep(0.3)
        assert relay.connections == connections
        shop.ahead_ms += 5_000
        await relay.wait(lambda: relay.commands().count("MAIL") == 2, "probe")
        await asyncio.sleep(0.3)
        assert relay.commands().count("MAIL") == 2
        assert relay.connections <= connections + 1


async def test_where_the_relay_is_not_shared_a_refused_sender_is_about_all_mail(relay: ScriptedRelay):
    relay.always("mail", NOT_OWNED, by=A)
    async with Shop(relay, shared=False) as shop:
        await shop.refused("a")
        assert [state.circuit_breaker for state in shop.changes] == ["open"]
        assert shop.suspended() == []


async def test_jobs_of_a_suspended_tenant_time_out(relay: ScriptedRelay):
    relay.always("mail", NOT_OWNED, by=A)
    async with Shop(relay) as shop:
        await shop.refused("a")
        assert await shop.send("a", life_ms=200) == TimedOut()
        wanted = True
        unwanted = shop.send("a", wanted=lambda: wanted)
        await relay.wait(lambda: shop.smtp.state()[0].waiting == 1, "waiting mail")
        wanted = False
        shop.smtp.recheck()
        assert await unwanted == TimedOut()


async def test_a_throttle_and_a_refused_login_are_about_the_relay(relay: ScriptedRelay):
    relay.then("mail", "530 5.7.0 Authentication required", by=A)
    async with Shop(relay) as shop:
        assert isinstance(await shop.send("a"), Unavailable)
        assert [state.reason for state in shop.changes] == ["login_refused"]
        shop.ahead_ms += 6_000
        await shop.accepted("b")
        relay.then("body", "454 Throttling failure: Maximum sending rate exceeded.", by=A)
        assert isinstance(await shop.send("a"), Unavailable)
        assert (shop.changes[-1].reason, shop.suspended()) == ("throttled", [])


async def test_a_probe_of_the_relay_whose_sender_is_refused_shows_that_the_relay_replies(relay: ScriptedRelay):
    async with Shop(relay) as shop:
        relay.then("mail", "530 5.7.0 Authentication required")
        assert isinstance(await shop.send("b"), Unavailable)
        relay.always("mail", NOT_OWNED, by=A)
        first = shop.send("a")
        await relay.wait(lambda: shop.smtp.state()[0].waiting == 1, "waiting mail")
        shop.ahead_ms += 5_000
        assert isinstance(await first, Unavailable)
        assert [state.circuit_breaker for state in shop.changes] == ["open", "half_open", "closed"]
        assert shop.suspended() == ["a"]
        await shop.accepted("b")
        # only a mail of the suspended tenant is there as the probe of the relay
        relay.then("mail", "530 5.7.0 Authentication required")
        assert isinstance(await shop.send("b"), Unavailable)
        second = shop.send("a")
        await relay.wait(lambda: shop.smtp.state()[0].waiting == 1, "waiting mail")
        relay.always("mail", None, by=A)
        shop.ahead_ms += 6_000
        assert isinstance(await second, Accepted)
        assert (shop.suspended(), shop.smtp.state()[0].circuit_breaker) == ([], "closed")


@pytest.mark.parametrize("act", [CLOSE, RESET, Act("", then="close", keep=True)])
async def test_a_probe_without_a_result_is_followed_by_another_one(relay: ScriptedRelay, act: Act):
    relay.then("mail", NOT_OWNED, by=A)
    async with Shop(relay, pool_size=2) as shop:
        await shop.refused("a")
        relay.then("body", act, by=A)
        shop.ahead_ms += 5_000
        assert isinstance(await shop.send("a"), Uncertain | Unavailable)
        assert shop.suspended() == ["a"]
        shop.ahead_ms += 5_000  # the circuit breaker may be open
        await shop.deliver("a")
        assert shop.suspended() == []


async def test_one_recipient_whose_mail_alone_is_refused_does_not_keep_its_tenant_suspended(relay: ScriptedRelay):
    relay.always("rcpt", NOT_OWNED, to="odd@example.com")
    async with Shop(relay) as shop:

        async def send_odd() -> tuple[int, Outcome]:
            held = 0
            while isinstance(outcome := await shop.send("a", "odd@example.com", rank=0), Unavailable):
                held += 1
            return held, outcome

        odd = asyncio.create_task(send_odd())
        for _ in range(2):
            await relay.wait(lambda: shop.suspended() == ["a"], "suspended tenant")
            await relay.wait(lambda: shop.smtp.state()[0].waiting == 1, "waiting mail")
            good = shop.send("a", "good@example.com", rank=3)
            await relay.wait(lambda: shop.smtp.state()[0].waiting == 2, "two waiting mails")
            shop.ahead_ms += 60_000
            # the probe is for another recipient, although this one is more urgent
            assert isinstance(await good, Accepted)
        held, outcome = await odd
        assert held == 2
        assert isinstance(outcome, RecipientUnavailable)
        assert shop.suspended() == []
        relay.always("rcpt", None, to="odd@example.com")
        await shop.accepted("a")


async def test_with_a_fallback_the_tenant_s_mails_go_there(relay: ScriptedRelay, second: ScriptedRelay):
    relay.always("mail", NOT_OWNED, by=A)
    async with Shop(relay, second, pool_size=2) as shop:
        assert await shop.deliver("a") == 1
        await shop.accepted("a", 20)
        await shop.accepted("b", 20)
        assert {mail.sender for mail in relay.accepted} == {B}
        assert {mail.sender for mail in second.accepted} == {A}
        assert (shop.suspended(0), shop.suspended(1), shop.changes) == (["a"], [], [])
        # a mail that has to go to the first relay goes to the second one, too
        ends = now_ms() + 5_000
        mail = Mail("user@example.com", CONTENT, tenant="a", sender=A)
        outcome = await shop.smtp.send(
            mail, rank=2, lane="jobs", expires_ms=ends, deadline_ms=ends, prefer=f"127.0.0.1:{relay.port}"
        )
        assert isinstance(outcome, Accepted)
        relay.always("mail", None, by=A)
        shop.ahead_ms += 5_000
        await relay.wait(lambda: bool(shop.smtp._upstreams[0].availability.senders.due), "end of the pause")
        await shop.accepted("a")
        assert shop.suspended() == []
        before = len(second.accepted)
        await shop.accepted("a", 5)
        assert len(second.accepted) == before


async def test_a_tenant_that_every_relay_refuses_waits_for_a_probe(relay: ScriptedRelay, second: ScriptedRelay):
    for it in (relay, second):
        it.always("mail", NOT_OWNED, by=A)
    async with Shop(relay, second, pool_size=2) as shop:
        await shop.refused("a")
        await shop.refused("a")
        waiting = [shop.deliver("a", f"w{at}@example.com") for at in range(5)]
        await relay.wait(lambda: shop.smtp.state()[0].waiting == 5, "five waiting mails")
        assert (shop.suspended(0), shop.suspended(1)) == (["a"], ["a"])
        await shop.accepted("b", 20)
        choice = shop.smtp._waiting.choice
        assert choice is not None
        await asyncio.sleep(1.3)
        # what waits for the end of a suspension is no backlog, which would send other mail through a slow relay
        assert not choice.has_backlog
        assert {mail.sender for mail in relay.accepted} == {B}
        second.always("mail", None, by=A)
        shop.ahead_ms += 5_000
        await asyncio.gather(*waiting)
        assert sum(mail.sender == A for mail in second.accepted) == 5


async def test_the_mails_that_wait_for_the_first_relay_alone_leave_it(
    relay: ScriptedRelay, second: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(availability, "STALLED_S", 30.0)
    held = asyncio.Event()
    relay.always("mail", Act(NOT_OWNED, until=held), by=A)
    async with Shop(relay, second, pool_size=1) as shop:
        first = shop.send("a")
        await relay.wait(lambda: relay.held == 1, "mail on the wire")
        ends = now_ms() + 20_000
        mail = Mail("user@example.com", CONTENT, tenant="a", sender=A)
        named = asyncio.create_task(
            shop.smtp.send(
                mail, rank=2, lane="jobs", expires_ms=ends, deadline_ms=ends, prefer=f"127.0.0.1:{relay.port}"
            )
        )
        await relay.wait(lambda: shop.smtp.state()[0].waiting == 1, "waiting mail")
        held.set()
        assert isinstance(await first, Unavailable)
        assert isinstance(await named, Accepted)
        assert len(second.accepted) == 1


async def test_a_requested_probe_is_sent_for_a_suspended_tenant(relay: ScriptedRelay):
    relay.always("mail", NOT_OWNED, by=A)
    async with Shop(relay, pool_size=2) as shop:
        await shop.refused("a")
        for pause_ms in (5_000, 10_000):
            shop.ahead_ms += pause_ms
            await shop.refused("a")
        waiting = shop.deliver("a")
        await relay.wait(lambda: shop.smtp.state()[0].waiting == 1, "waiting mail")
        [early] = await shop.smtp.probe()
        assert (early.result, 0 < early.again_in_ms <= 5_000) == ("too_soon", True)
        assert "refuses the sender of a: 553" in early.text
        shop.ahead_ms += 5_000
        [refused] = await shop.smtp.probe()
        assert refused.result == "refused"
        assert "refuses the sender of a: 553" in refused.text
        relay.always("mail", None, by=A)
        shop.ahead_ms += 5_000
        [accepted] = await shop.smtp.probe()
        assert accepted.result == "accepted"
        await waiting
        assert [it.result for it in await shop.smtp.probe()] == ["not_needed"]


async def test_a_requested_probe_of_a_tenant_without_jobs_is_the_next_one(relay: ScriptedRelay):
    relay.then("mail", NOT_OWNED, by=A)
    async with Shop(relay) as shop:
        await shop.refused("a")
        shop.ahead_ms += 5_000
        [probed] = await shop.smtp.probe()
        assert probed.result == "connected"
        await shop.accepted("a")
        assert shop.suspended() == []


async def test_with_another_login_suspended_tenants_are_probed_at_once(relay: ScriptedRelay):
    relay.then("mail", NOT_OWNED, by=A)
    async with Shop(relay) as shop:
        await shop.refused("a")
        shop.smtp.retry_logins()
        await shop.accepted("a")
        assert shop.suspended() == []


async def test_the_error_of_a_suspended_tenant_has_no_secrets(relay: ScriptedRelay):
    relay.always("rcpt", f"550 5.7.1 <{A}> may not send K7123456Q", by=A)
    async with Shop(relay) as shop:
        ends = now_ms() + 5_000
        mail = Mail("user@example.com", CONTENT, secrets=("K7123456Q",), tenant="a", sender=A)
        await shop.smtp.send(mail, rank=2, lane="jobs", expires_ms=ends, deadline_ms=ends)
        [error] = shop.smtp.state()[0].suspended.values()
        assert ("may not send" in error, "K7123456Q" in error, A in error) == (True, False, False)


async def test_senders_that_are_refused_behind_other_mail_do_not_end_sending_ahead():
    async with ScriptedRelay() as relay, Shop(relay, pool_size=1) as shop:
        support = shop.smtp._upstreams[0].pool.support
        relay.always("data", Act(delay_s=0.05))
        await shop.accepted("b")
        for _ in range(4):
            # behind another mail, and alone
            relay.then("mail", NO_REASON, NO_REASON, by=A)
            await asyncio.gather(shop.send("b", rank=0), shop.send("a", rank=1))
            assert shop.suspended() == ["a"]
            shop.ahead_ms += 60_000
            await shop.accepted("a")
        assert support.ahead


@pytest.mark.parametrize("shared", [False, True])
async def test_envelopes_that_are_refused_behind_other_mail_and_accepted_alone_end_sending_ahead(*, shared: bool):
    async with ScriptedRelay() as relay, Shop(relay, pool_size=1, shared=shared) as shop:
        support = shop.smtp._upstreams[0].pool.support
        relay.always("data", Act(delay_s=0.05))
        await shop.accepted("b")
        for _ in range(3):
            assert support.ahead
            relay.then("mail", NO_REASON, by=A)
            await asyncio.gather(shop.send("b", rank=0), shop.send("a", rank=1))
        assert not support.ahead
        assert shop.suspended() == []


async def test_a_retired_relay_hands_its_waiting_mails_over(relay: ScriptedRelay):
    held = asyncio.Event()
    relay.always("body", Act(until=held), to="held@example.com")
    async with Shop(relay, pool_size=3) as shop:
        await asyncio.gather(shop.send("b", rank=0), shop.send("b", rank=0), shop.send("b", rank=0))
        idle = shop.smtp.state()[0].connections
        on_wire = shop.send("a", "held@example.com")
        await relay.wait(lambda: relay.held == 1, "mail on the wire")
        relay.always("mail", NOT_OWNED, by=B)
        await shop.refused("b")
        waiting, cancelled = shop.send("b"), shop.send("b")
        await relay.wait(lambda: shop.smtp.state()[0].waiting == 2, "two waiting mails")
        shop.smtp.retire()
        cancelled.cancel()  # in the same moment: the caller's own cancellation counts
        with pytest.raises(RelayRetiredError):
            await waiting
        await asyncio.wait({cancelled})
        assert cancelled.cancelled()
        with pytest.raises(RelayRetiredError):
            await shop.send("a")
        await relay.wait(lambda: relay.commands().count("QUIT") >= idle - 1, "QUIT over idle connections")
        closing = asyncio.create_task(shop.smtp.close(grace_s=5))
        await asyncio.sleep(0.2)
        assert not closing.done()
        held.set()
        assert isinstance(await on_wire, Accepted)
        await closing
        await relay.wait(lambda: relay.commands().count("QUIT") == relay.connections, "QUIT over each connection")


async def test_a_mail_that_is_lost_at_a_retired_relay_is_handed_over(relay: ScriptedRelay):
    held = asyncio.Event()
    relay.then("rcpt", Act("", until=held, then="close"))
    async with Shop(relay, pool_size=1) as shop:
        mail = shop.send("a")
        await relay.wait(lambda: relay.held == 1, "mail on the wire")
        shop.smtp.retire()
        held.set()
        with pytest.raises(RelayRetiredError):
            await mail


async def test_a_retired_relay_still_checks_time_limits(relay: ScriptedRelay):
    relay.always("rcpt", Act("", then="hang"))
    async with Shop(relay, pool_size=1, limits=RelayLimits(mail_s=2, rcpt_s=2, data_s=2)) as shop:
        mail = shop.send("a")
        await relay.wait(lambda: "RCPT" in relay.commands(), "mail on the wire")
        shop.smtp.retire()
        closing = asyncio.create_task(shop.smtp.close(grace_s=20))
        with pytest.raises(RelayRetiredError):
            await mail
        async with asyncio.timeout(10):
            await closing


async def test_at_the_end_of_the_worker_waiting_calls_are_cancelled(relay: ScriptedRelay):
    relay.always("mail", NOT_OWNED, by=A)
    async with Shop(relay) as shop:
        await shop.refused("a")
        waiting = shop.send("a")
        await relay.wait(lambda: shop.smtp.state()[0].waiting == 1, "waiting mail")
        shop.smtp.finish()
        shop.smtp.retire()
        await asyncio.wait({waiting}, timeout=10)
        assert waiting.cancelled()


async def test_two_groups_with_the_same_host_have_different_names(relay: ScriptedRelay, second: ScriptedRelay):
    async with Shop(relay, second, group="shop-17") as shop:
        names = [f"shop-17/127.0.0.1:{it.port}" for it in (relay, second)]
        assert [state.name for state in shop.smtp.state()] == names
        second.then("body", Act("", then="close", keep=True))
        ends = now_ms() + 5_000
        mail = Mail("user@example.com", CONTENT)
        for name in (names[1], f"127.0.0.1:{second.port}"):
            outcome = await shop.smtp.send(mail, rank=2, lane="jobs", expires_ms=ends, deadline_ms=ends, prefer=name)
            if name == names[1]:
                assert isinstance(outcome, Uncertain)
                assert (outcome.relay, outcome.route and outcome.route.relay) == (name, name)
            else:
                assert isinstance(outcome, Accepted)
                assert outcome.route is not None
                assert outcome.route.relay == names[0]


FAULTS: dict[str, tuple[str | Act, ...]] = {
    "mail": (NOT_OWNED, LIMITED, NO_REASON, "450 4.7.1 sender later", "421 4.3.2 bye", CLOSE, RESET),
    "rcpt": (NOT_OWNED, "550 5.1.1 no", "450 4.2.0 later", "421 4.3.2 bye", RESET),
    "body": (NOT_OWNED, "451 4.3.0 later", "421 4.3.2 bye", Act("", then="close", keep=True), CLOSE, RESET),
}


@pytest.mark.parametrize("seed", range(4))
async def test_under_random_faults_of_one_tenant_every_mail_ends_as_the_relay_recorded(
    relay: ScriptedRelay, second: ScriptedRelay, monkeypatch: pytest.MonkeyPatch, seed: int
):
    monkeypatch.setattr(Pauses, "next_ms", lambda *_: 1)
    chance = random.Random(seed)  # noqa: S311
    relays = [relay, second] if seed >= 2 else [relay]
    for it in relays:
        it.byte_by_byte = seed % 2 == 1
        for step, acts in FAULTS.items():
            it.then(step, *(chance.choice((Act(), *acts)) for _ in range(25)), by=A)
        it.then("mail", *(chance.choice((Act(), CLOSE, "421 4.3.2 bye")) for _ in range(10)), by=B)
    people = {f"u{at}@example.com": chance.choice("ab") for at in range(220)}
    async with Shop(*relays, runs=True, pool_size=4) as shop:

        async def deliver(tenant: str, to: str) -> Outcome:
            while isinstance(outcome := await shop.send(tenant, to, rank=len(to) % 4), Unavailable):
                pass
            return outcome

        async with asyncio.timeout(100):
            results = await asyncio.gather(*(deliver(tenant, to) for to, tenant in people.items()))
        outcomes = dict(zip(people, results, strict=True))
        upstreams = shop.smtp._upstreams
        assert [(it._sending, it._ordinary) for it in upstreams] == [(0, 0)] * len(relays)
        # a connection for the last mails may still be opening
        await relay.wait(lambda: not any(it.availability.owed for it in upstreams), "end of the connections' start")
        assert not any(it.availability.senders.probing for it in shop.smtp._upstreams)
        await asyncio.gather(deliver("a", "last@example.com"), deliver("b", "last@example.com"))
        assert not any(it.availability.senders.probing for it in shop.smtp._upstreams)
    counts = Counter(mail.recipient for it in relays for mail in it.accepted)
    for person, outcome in outcomes.items():
        if isinstance(outcome, Accepted):
            assert counts[person] == 1, person
        elif not isinstance(outcome, Uncertain):
            assert counts[person] == 0, (person, outcome)
    senders = {to: {"a": A, "b": B}[tenant] for to, tenant in people.items()}
    assert all(mail.sender == senders.get(mail.recipient, mail.sender) for it in relays for mail in it.accepted)
    accepted = Counter(people[person] for person, outcome in outcomes.items() if isinstance(outcome, Accepted))
    assert min(accepted["a"], accepted["b"]) > 50
