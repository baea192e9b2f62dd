"""Tenants whose sender a relay refuses."""

import asyncio
from collections.abc import Callable
from time import monotonic

import pytest

from otp_stream.core.mail import Mail
from otp_stream.core.outcome import Accepted, Deferred, Outcome, Reply, Stage, Unavailable, Uncertain
from otp_stream.relay.availability import Availability
from otp_stream.relay.pending_send import PendingSend
from otp_stream.relay.relay_choice import RelayChoice
from otp_stream.relay.send_queue import SendQueue
from otp_stream.relay.senders import Senders
from otp_stream.relay.slowness import Slowness

MakeMail = Callable[..., PendingSend]
ACCEPTED = Accepted(Reply(250, None, "ok", "body"))


@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def mail(loop: asyncio.AbstractEventLoop):
    def mail(tenant: str, to: str = "u@example.com") -> PendingSend:
        return PendingSend(Mail(to, b"", tenant=tenant), 2, "jobs", 9_000, 9_000, loop.create_future())

    return mail


def refusal(stage: Stage = "rcpt") -> Unavailable:
    return Unavailable("sender_refused", "553 no", Reply(553, None, "no", stage))


def suspended(mail: MakeMail, *tenants: str) -> Senders:
    senders = Senders(lambda: 0.0)
    for tenant in tenants:
        assert senders.refused(mail(tenant), "553 no", 0, at_mail=False)
    return senders


def test_a_tenant_is_suspended_until_a_probe_is_accepted(mail: MakeMail):
    senders = suspended(mail, "a")
    assert (senders.suspended, senders.due, senders.errors()) == ({"a"}, set(), {"a": "553 no"})
    senders.half_open(4_999)
    assert not senders.due
    senders.half_open(5_000)
    assert senders.due == {"a"}
    probe = mail("a")
    senders.probe_started(probe)
    assert (senders.suspended, senders.due, senders.probing) == ({"a"}, set(), True)
    assert not senders.mail_ended(mail("a"), ACCEPTED, 5_100)  # another one was in flight
    assert senders.suspended == {"a"}
    assert senders.mail_ended(probe, ACCEPTED, 5_100)
    assert not senders
    assert not senders.suspended


def test_pauses_grow_up_to_a_minute(mail: MakeMail):
    senders, now, pauses = suspended(mail, "a"), 0, []
    for _ in range(6):
        due = next(ms for ms in range(0, 70_000, 1_000) if senders.half_open(now + ms) or senders.due)
        pauses.append(due)
        now += due
        probe = mail("a")
        senders.probe_started(probe)
        assert senders.refused(probe, "553 still no", now, at_mail=False)
    assert pauses == [5_000, 10_000, 20_000, 40_000, 60_000, 60_000]
    assert senders.errors() == {"a": "553 still no"}


def test_mails_that_were_in_flight_do_not_prolong_the_pause(mail: MakeMail):
    senders = suspended(mail, "a")
    assert not senders.refused(mail("a"), "553 no", 4_000, at_mail=False)
    senders.half_open(5_000)
    assert senders.due == {"a"}


@pytest.mark.parametrize("outcome", [Uncertain("lost", "mx:25"), Unavailable("unreachable", "lost")])
def test_a_probe_without_a_result_makes_the_next_mail_the_probe(mail: MakeMail, outcome: Outcome):
    senders = suspended(mail, "a")
    senders.half_open(5_000)
    probe = mail("a")
    senders.probe_started(probe)
    assert not senders.mail_ended(probe, outcome, 5_000)
    assert (senders.suspended, senders.due, senders.probing) == ({"a"}, {"a"}, False)


def test_a_probe_without_a_reply_makes_another_mail_the_probe_too(mail: MakeMail):
    senders = suspended(mail, "a")
    senders.half_open(5_000)
    slow, other = mail("a", "u@slow.example"), mail("a")
    senders.probe_started(slow)
    senders.replace_slow_probes(10, 5_000)
    assert not senders.due
    senders.replace_slow_probes(-1, 5_000)
    assert senders.due == {"a"}
    assert senders.failed(mail("a", "x@slow.example")) is not None
    senders.probe_started(other)
    assert senders.mail_ended(slow, ACCEPTED, 5_100)
    assert not senders.suspended
    assert not senders.mail_ended(other, ACCEPTED, 5_200)


def test_any_reply_about_the_mail_shows_that_the_sender_is_accepted(mail: MakeMail):
    senders = suspended(mail, "a")
    senders.half_open(5_000)
    probe = mail("a")
    senders.probe_started(probe)
    assert senders.mail_ended(probe, Deferred(Reply(450, "4.2.0", "later", "rcpt")), 5_000)
    assert not senders.suspended


def test_a_recipient_that_suspends_its_tenant_twice_is_at_fault(mail: MakeMail):
    senders = Senders(lambda: 0.0)
    for now in (0, 10_000):
        assert not senders.is_at_fault(mail("a", "odd@example.com"), refusal())
        assert senders.refused(mail("a", "odd@example.com"), "553 no", now, at_mail=False)
        assert senders.failed(mail("a", "odd@example.com")) is not None
        assert senders.failed(mail("a", "good@example.org")) is None
        senders.half_open(now + 5_000)
        probe = mail("a", "good@example.org")
        senders.probe_started(probe)
        assert senders.mail_ended(probe, ACCEPTED, now + 5_000)
    assert senders.is_at_fault(mail("a", "odd@example.com"), refusal())
    assert not senders.is_at_fault(mail("a", "odd@example.com"), refusal("mail"))  # names no recipient
    assert not senders.is_at_fault(mail("a", "good@example.org"), refusal())
    assert not senders.is_at_fault(mail("b", "odd@example.com"), refusal())
    for _ in range(2):
        assert not senders.mail_ended(mail("a", "odd@example.com"), ACCEPTED, 20_000)
    assert not senders.is_at_fault(mail("a", "odd@example.com"), refusal())


def test_after_false_alarms_a_probe_decides_without_a_pause_whether_the_sender_is_refused(mail: MakeMail):
    senders, now = Senders(lambda: 0.0), 0
    for number in range(4):
        assert senders.refused(mail("a", f"a{number}@s{number}.odd{number}.example"), "553 no", now, at_mail=False)
        senders.half_open(now)
        assert bool(senders.due) == (number >= 2)
        now += 5_000
        senders.half_open(now)
        probe = mail("a", "good@example.org")
        senders.probe_started(probe)
        assert senders.mail_ended(probe, ACCEPTED, now)
    assert senders.refused(mail("a", "good@example.org"), "553 no", now, at_mail=True)
    senders.half_open(now)
    assert not senders.due


def test_a_mail_for_another_domain_is_an_early_probe_unless_mail_from_is_refused(mail: MakeMail):
    senders, waiting = Senders(lambda: 0.0), [mail("a", "u@good.example"), mail("b", "u@good.example")]
    for tenant in "ab":
        assert senders.refused(mail(tenant, "a@odd.example"), "553 no", 0, at_mail=tenant == "b")
    senders.half_open(99, waiting=waiting)
    assert not senders.due
    senders.half_open(100, waiting=[mail("a", "b@odd.example")])
    assert not senders.due
    senders.half_open(100, waiting=waiting)
    assert senders.due == {"a"}


def test_a_requested_probe_and_another_login_shorten_the_pause(mail: MakeMail):
    senders, now = suspended(mail, "a", "b"), 0
    for pause_ms in (5_000, 10_000, 20_000):
        now += pause_ms
        senders.half_open(now)
        for tenant in "ab":
            probe = mail(tenant)
            senders.probe_started(probe)
            senders.refused(probe, "553 no", now, at_mail=False)
    assert senders.next_probe_ms() == now + 5_000
    senders.half_open(now + 4_999, requested=True)
    assert senders.state == "open"
    senders.half_open(now + 5_000, requested=True)
    assert (senders.state, senders.next_probe_ms(), senders.due) == ("half_open", None, {"a", "b"})
    again = suspended(mail, "a")
    again.retry(100)
    again.half_open(100)
    assert again.due == {"a"}


def test_a_relay_that_is_not_shared_suspends_no_tenant(mail: MakeMail):
    relay = Availability("mx:25", 0, lambda: 0.0)
    assert relay.judge(mail("a"), refusal(), 0).changed
    assert (relay.breaker.state, relay.senders.suspended) == ("open", set())


def test_a_lost_connection_is_about_the_relay_whatever_the_reason(mail: MakeMail):
    relay = Availability("mx:25", 0, lambda: 0.0, shared=True)
    assert relay.judge(mail("a"), Unavailable("sender_refused", "554 no mail from this host"), 0).changed
    assert (relay.breaker.state, relay.senders.suspended) == ("open", set())


class Choice:
    """Relays in order of preference, and the choice between them."""

    def __init__(self, count: int) -> None:
        self.queue = SendQueue()
        self.relays = [Availability(f"mx{at}:25", 0, lambda: 0.0, Slowness(), shared=True) for at in range(count)]
        self.choice = RelayChoice(self.relays, self.queue, lambda _: 0)

    def tenants(self) -> list[frozenset[str] | None]:
        return [self.choice.tenants(relay) for relay in self.relays]


def test_a_relay_may_take_the_mails_of_tenants_that_those_before_it_refuse(mail: MakeMail):
    it = Choice(3)
    assert it.tenants() == [None, frozenset(), frozenset()]
    for relay, tenants in zip(it.relays, ("ab", "b", ""), strict=True):
        for tenant in tenants:
            relay.judge(mail(tenant), refusal(), 0)
    assert it.tenants() == [None, {"a", "b"}, {"b"}]
    for tenant in "abcc":
        it.queue.push(mail(tenant))
    assert [it.choice.count(relay) for relay in it.relays] == [(0, 2), (0, 1), (0, 1)]
    it.relays[0].breaker.open("unreachable", "down", 0)
    assert it.tenants() == [None, None, {"b"}]


def test_a_tenant_that_the_fast_relay_refuses_may_use_a_slow_one(mail: MakeMail):
    it = Choice(2)
    slow = it.relays[1].slowness
    assert slow is not None
    for _ in range(50):
        slow.detector.record(monotonic(), slow=True)
    assert slow.detector.is_outlier
    it.relays[0].judge(mail("a"), refusal(), 0)
    assert it.tenants() == [None, {"a"}]
    # and is not moved to the relay that refuses it
    assert it.choice.faster_for(it.relays[1], mail("a")) is None
    assert it.choice.faster_for(it.relays[1], mail("b")) is it.relays[0]


def test_mails_of_a_tenant_that_every_relay_refuses_are_no_backlog(mail: MakeMail):
    it = Choice(2)
    it.queue.push(mail("a"))
    assert it.choice.waits()
    it.relays[0].judge(mail("a"), refusal(), 0)
    assert it.choice.waits()
    it.relays[1].judge(mail("a"), refusal(), 0)
    assert not it.choice.waits()
    for _ in range(20):
        it.choice.tick()
    assert not it.choice.has_backlog
    it.queue.push(mail("b"))
    assert it.choice.waits()


def throttle(text: str = "450 4.7.1 rate limit", stage: Stage = "mail") -> Unavailable:
    return Unavailable("throttled", text, Reply(450, "4.7.1", text, stage))


def shared(*senders: str) -> Availability:
    relay = Availability("mx:25", 0, lambda: 0.0, shared=True, sender="own@example.com")
    if senders:
        relay.use_senders({*senders})
    return relay


def test_the_limit_of_a_sender_is_probed_every_ten_seconds_at_least(mail: MakeMail):
    relay, now, probe = shared(), 0, mail("a")
    for pause_ms in (2_000, 4_000, 8_000, 10_000, 10_000):
        assert relay.judge(probe, throttle(), now).sender_changed
        assert (relay.breaker.state, relay.senders.suspended) == ("closed", {"a"})
        now += pause_ms
        relay.half_open(now - 1)
        assert not relay.senders.due
        relay.half_open(now)
        assert relay.senders.due == {"a"}
        relay.started(probe := mail("a"))


def test_a_throttled_probe_of_a_relay_that_was_away_shows_that_it_takes_mail(mail: MakeMail):
    relay = shared()
    relay.breaker.open("unreachable", "down", 0)
    relay.half_open(1_000)
    probe = mail("a")
    probe.probe = True
    relay.started(probe)
    assert relay.judge(probe, throttle(), 1_000).changed
    assert (relay.breaker.state, relay.senders.suspended) == ("closed", {"a"})


@pytest.mark.parametrize(
    ("senders", "one"),
    [(("own@example.com",), True), (("own@example.com", "a@example.com"), False), ((), True)],
)
def test_a_limit_on_the_only_sender_is_about_all_mail(mail: MakeMail, senders: tuple[str, ...], *, one: bool):
    relay = Availability("mx:25", 0, lambda: 0.0, shared=True, sender="own@example.com")
    relay.use_senders({None, *senders})
    assert relay.judge(mail("a"), throttle(), 0).changed == one
    assert (relay.breaker.state == "open", not relay.senders.suspended) == (one, one)


def test_tenants_with_the_same_sender_are_no_two_senders(mail: MakeMail):
    relay = shared("own@example.com", "c@example.com")
    for tenant in "ab":
        assert relay.judge(mail(tenant), throttle(), 0).sender_changed
    assert (relay.breaker.state, relay.senders.suspended) == ("closed", {"a", "b"})
