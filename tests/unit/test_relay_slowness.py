"""When a relay is slow, and how many first tries it gets: by numbers alone."""

import asyncio

import pytest

from otp_stream.core.mail import Mail
from otp_stream.relay.outlier import FORGET_S, OutlierDetector
from otp_stream.relay.pending_send import PendingSend
from otp_stream.relay.slowness import Slowness
from otp_stream.relay.step_times import LONGEST_S, SHORTEST_S, StepTime

NOW = 1_000.0


def detector_after(*sends: bool) -> OutlierDetector:
    detector = OutlierDetector()
    for slow in sends:
        detector.record(NOW, slow=slow)
    return detector


# the usual time of a step


def test_a_step_that_is_usually_fast_is_waited_for_briefly():
    step = StepTime(SHORTEST_S)
    for _ in range(1_000):
        step.add(0.02, NOW)
    assert step.patience_s == SHORTEST_S


def test_a_step_that_usually_takes_a_second_is_waited_for_four_times_as_long():
    step = StepTime(SHORTEST_S)
    for _ in range(49):
        step.add(0.9, NOW)
    assert step.patience_s == SHORTEST_S
    step.add(0.9, NOW)
    assert step.patience_s == 4.0


def test_no_step_is_waited_for_longer_than_ten_seconds():
    step = StepTime(SHORTEST_S)
    for _ in range(50):
        step.add(60.0, NOW)
    assert step.patience_s == LONGEST_S


def test_one_slow_reply_in_twenty_is_not_the_usual_time():
    step = StepTime(LONGEST_S)
    for number in range(60):
        step.add(30.0 if number % 20 == 19 else 0.1, NOW)
    assert step.patience_s == SHORTEST_S


def test_a_relay_that_gets_slower_within_minutes_is_still_compared_with_its_usual_times():
    step = StepTime(LONGEST_S)
    for _ in range(100):
        step.add(0.1, NOW)
    for number in range(1, 300):
        step.add(0.02 * number, NOW + number)
    assert step.patience_s == SHORTEST_S


def test_a_relay_that_has_been_slower_for_hours_is_compared_with_its_new_times():
    step = StepTime(SHORTEST_S)
    for hour in range(4):
        for _ in range(200):
            step.add(0.1 if hour == 0 else 0.9, NOW + hour * 3_600)
    assert step.patience_s == 4.0


# the share of first tries


def test_a_relay_without_slow_sends_gets_every_first_try():
    detector = detector_after(*[False] * 60)
    assert not detector.is_outlier
    assert (detector.sends, detector.slow_sends) == (50, 0)


@pytest.mark.parametrize("sends", [[True, True], [*[False] * 45, *[True] * 5]])
def test_few_slow_sends_change_nothing(sends: list[bool]):
    assert detector_after(*sends).share == 1.0


@pytest.mark.parametrize("sends", [[True] * 3, [*[False] * 50, *[True] * 6]])
def test_more_slow_sends_than_one_in_ten_reduce_the_share(sends: list[bool]):
    detector = detector_after(*sends)
    assert detector.is_outlier
    assert detector.share == 0.4


def test_the_share_falls_while_one_send_in_five_is_slow():
    detector = detector_after(*[number % 5 == 0 for number in range(400)])
    assert detector.share < 0.1


def test_the_share_returns_while_one_send_in_twenty_is_slow():
    detector = detector_after(*[True] * 50)
    for number in range(400):
        detector.record(NOW, slow=number % 20 == 0)
    assert not detector.is_outlier


def test_a_relay_that_is_always_slow_still_gets_some_first_tries():
    detector = detector_after(*[True] * 500)
    tries = 0
    for _ in range(1_000):
        detector.passed_over()
        if detector.may_try(NOW, 30.0):
            detector.tried(NOW)
            tries += 1
    assert 3 <= tries <= 6


def test_an_idle_relay_gets_a_first_try_after_a_while():
    detector = detector_after(*[True] * 500)
    assert not detector.may_try(NOW + 29, 30.0)
    assert detector.may_try(NOW + 31, 30.0)
    detector.tried(NOW + 31)
    assert not detector.may_try(NOW + 32, 30.0)


def test_a_relay_that_is_fast_again_gets_every_first_try_after_fifty_sends():
    detector = detector_after(*[True] * 500, *[False] * 50)
    assert not detector.is_outlier


def test_after_a_long_time_without_sends_nothing_is_known():
    detector = detector_after(*[True] * 500)
    assert not detector.expire(NOW + FORGET_S)
    assert detector.expire(NOW + FORGET_S + 1)
    assert not detector.is_outlier


# one relay


class Relay:
    """The records of one relay, and mails with given times."""

    def __init__(self) -> None:
        self.slowness = Slowness()
        self.now = NOW

    def send(self, domain: str, *, envelope_s: float = 0.01, content_s: float = 0.01) -> None:
        pending = PendingSend(Mail(f"user@{domain}", b""), 2, "jobs", 0, 0, _FUTURE)
        pending.written = True
        pending.envelope_s, pending.step_at = envelope_s, self.now - content_s
        self.slowness.mail_ended(pending, self.now)
        self.now += 0.1

    def on_connection(self, domain: str, *, written: bool = False) -> PendingSend:
        pending = PendingSend(Mail(f"user@{domain}", b""), 2, "jobs", 0, 0, _FUTURE)
        pending.step_at, pending.written = self.now, written
        return pending


_LOOP = asyncio.new_event_loop()
_FUTURE = _LOOP.create_future()
_LOOP.close()


@pytest.fixture
def relay() -> Relay:
    return Relay()


def test_a_relay_that_is_slow_for_every_domain_is_slow(relay: Relay):
    for number in range(5):
        relay.send(f"{number}.example", envelope_s=3)
    assert relay.slowness.detector.is_outlier
    assert relay.slowness.slow_domains == ()


def test_a_relay_that_is_slow_for_one_domain_is_not_slow_for_others(relay: Relay):
    for number in range(20):
        relay.send("slow.example", envelope_s=3)
        relay.send(f"{number}.example")
    assert relay.slowness.slow_domains == ("slow.example",)
    assert not relay.slowness.detector.is_outlier
    assert relay.slowness.detector.slow_sends == 1


def test_a_domain_that_is_fast_again_is_forgotten(relay: Relay):
    for _ in range(5):
        relay.send("slow.example", envelope_s=3)
    for _ in range(60):
        relay.send("slow.example")
    assert relay.slowness.domains == {}


def test_the_number_of_remembered_domains_is_limited(relay: Relay):
    for number in range(500):
        relay.send(f"{number}.example", envelope_s=11)
    assert len(relay.slowness.domains) == 200


def test_the_last_reply_is_not_slow_before_the_usual_time_is_known(relay: Relay):
    for number in range(10):
        relay.send(f"{number}.example", content_s=4)
    assert relay.slowness.detector.slow_sends == 0


def test_the_last_reply_is_slow_if_it_takes_longer_than_usual(relay: Relay):
    for number in range(60):
        relay.send(f"{number}.example")
    for number in range(8):
        relay.send(f"{number}.example", content_s=4)
    assert relay.slowness.detector.is_outlier


def test_a_mail_is_overdue_after_two_seconds_and_counted_once(relay: Relay):
    pending = relay.on_connection("a.example")
    assert not relay.slowness.is_overdue(pending, relay.now + 1.9)
    assert relay.slowness.is_overdue(pending, relay.now + 2.1)
    for _ in range(3):
        relay.slowness.mail_is_slow(pending, relay.now + 2.1)
    relay.slowness.mail_ended(pending, relay.now + 5)
    assert (relay.slowness.detector.sends, relay.slowness.detector.slow_sends) == (1, 1)


def test_a_suspended_process_makes_no_relay_slow(relay: Relay):
    pending = relay.on_connection("a.example")
    relay.slowness.connecting(pending, relay.now)
    relay.slowness.resumed(relay.now + 300)
    assert not relay.slowness.is_overdue(pending, relay.now + 301)
    relay.slowness.check(relay.now + 301)
    relay.slowness.connected(pending, relay.now + 301, ready=True)
    relay.slowness.mail_ended(pending, relay.now + 301)
    assert relay.slowness.detector.sends == 0
    assert relay.slowness.is_overdue(pending, relay.now + 303)


def test_a_slow_connection_counts_as_one_slow_send(relay: Relay):
    for attempt in ("given up", "established"):
        relay.slowness.connecting(attempt, relay.now)
    for later in (2.1, 2.2, 2.3):
        relay.slowness.check(relay.now + later)
    relay.slowness.connected("given up", relay.now + 10, ready=False)
    relay.slowness.connected("established", relay.now + 3, ready=True)
    assert relay.slowness.detector.slow_sends == 2


def test_relays_and_domains_are_reported_when_they_change(relay: Relay):
    assert not relay.slowness.has_changed()
    for _ in range(3):
        relay.send("slow.example", envelope_s=3)
    assert relay.slowness.has_changed()
    assert not relay.slowness.has_changed()
