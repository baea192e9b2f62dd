"""Limits of one sender, and of a whole relay."""

import pytest

from otp_stream.core.outcome import Stage
from otp_stream.relay.reply import to_reply, unavailable_reason
from otp_stream.relay.sender_limits import ThrottledSenders, may_limit_sender

SENDER = "a@shop-a.example"


def is_of_sender(stage: Stage, line: str) -> bool:
    code, _, text = line.partition(" ")
    reply = to_reply((int(code), text), stage, sender=SENDER, login="mailer@example.com")
    assert unavailable_reason(reply) == "throttled"
    return may_limit_sender(reply, SENDER)


@pytest.mark.parametrize(
    ("stage", "line"),
    [
        ("mail", "450 4.7.1 Sender rate limit exceeded, try again later"),
        ("mail", "450 4.7.1 Too many messages, slow down"),
        ("mail", "421 4.7.0 a@shop-a.example has sent too many messages"),
        ("mail", "451 4.7.1 a@shop-a.example has exceeded its hourly limit"),
        ("mail", "550 5.7.1 Quota of this account's sender: sender limit exceeded"),
        ("rcpt", "450 4.7.1 <a@shop-a.example>: Sender address rejected: Policy rejection: Message quota exceeded"),
        ("rcpt", "550 Domain shop-a.example has exceeded the max emails per hour (150/150 (100%)) allowed"),
        ("rcpt", "450 4.7.1 Sender's daily quota exceeded"),
        ("body", "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded"),
        ("body", "451 4.7.1 Too many messages from this sender"),
        ("body", "550 5.7.1 a@shop-a.example daily sending quota exceeded"),
    ],
)
def test_a_reply_to_mail_or_one_that_names_the_sender_may_be_about_it_alone(stage: Stage, line: str) -> None:
    assert is_of_sender(stage, line)


@pytest.mark.parametrize(
    ("stage", "line"),
    [
        ("mail", "421 4.7.0 Too many messages"),
        ("mail", "421 4.7.0 relay.shop-a.example Error: too many connections from 192.0.2.1"),
        ("mail", "450 4.7.0 Too many connections, slow down"),
        ("mail", "450 4.7.1 Error: too much mail from 192.0.2.1"),
        ("mail", "450 4.7.1 Error: too much mail from [IPv6:2001:db8::1]"),
        ("mail", "452 4.3.1 Insufficient system storage"),
        ("mail", "451 4.3.2 rate limit exceeded"),
        ("mail", "450 4.4.5 Server busy"),
        ("mail", "450 4.7.1 mailer@example.com: login rate limit exceeded"),
        ("mail", "454 Your account has exceeded its quota"),
        ("rcpt", "450 4.7.1 Rate limit exceeded"),
        ("body", "454 Throttling failure: Maximum sending rate exceeded."),
        ("body", "550 5.4.5 Daily user sending limit exceeded."),
        ("body", "421 4.7.28 Gmail has detected an unusual rate of unsolicited mail."),
    ],
)
def test_a_limit_of_the_login_the_host_or_the_relay_is_about_all_senders(stage: Stage, line: str) -> None:
    assert not is_of_sender(stage, line)


def test_a_relay_throttles_all_mail_if_it_throttles_two_senders_within_five_seconds() -> None:
    throttled = ThrottledSenders()
    assert not throttled.are_several("a", 0)
    assert not throttled.are_several("a", 4_000)
    assert not throttled.are_several("b", 9_000)
    assert throttled.are_several("a", 13_999)
    assert not throttled.are_several("c", 19_000)
