"""A recipient, or a domain with any number of addresses, whose mail alone is refused does not stop all other mail."""

import asyncio
from collections import deque

from otp_stream.core.mail import Mail
from otp_stream.relay.failed_recipients import FailedRecipients
from otp_stream.relay.pending_send import PendingSend


def pending(recipient: str) -> PendingSend:
    loop = asyncio.new_event_loop()
    try:
        return PendingSend(Mail(recipient, b""), 2, "jobs", 9_000, 9_000, loop.create_future())
    finally:
        loop.close()


def opened_and_closed(recipients: FailedRecipients, opener: str, closer: str, now_ms: int = 0) -> None:
    recipients.add_failed(opener)
    recipients.opened_breaker(opener)
    recipients.closed_breaker(closer, now_ms)
    recipients.forget_failed(breaker_is_closed=True)


def test_a_domain_is_at_fault_although_each_of_its_addresses_opens_the_breaker_once() -> None:
    recipients = FailedRecipients()
    opened_and_closed(recipients, "a1@Odd.example", "u@good.example")
    assert not recipients.is_at_fault("a2@odd.example")
    opened_and_closed(recipients, "a2@odd.example", "u@good.example")
    assert recipients.is_at_fault("a3@odd.example")
    assert not recipients.is_at_fault("u@good.example")
    assert recipients.is_at_fault("a@sub.odd.example")


def test_a_subdomain_is_not_another_domain_but_that_of_another_registrant_is() -> None:
    recipients = FailedRecipients()
    for opener in ("a@s1.odd.co.uk", "a@s2.odd.co.uk"):
        opened_and_closed(recipients, opener, "u@good.example")
    assert recipients.is_at_fault("a@odd.co.uk")
    assert recipients.is_at_fault("a@deep.s3.odd.co.uk")
    assert not recipients.is_at_fault("a@good.co.uk")


def test_a_domain_is_not_at_fault_for_what_another_of_its_addresses_disproves() -> None:
    recipients = FailedRecipients()
    for _ in range(2):
        opened_and_closed(recipients, "odd@big.example", "u@big.example")
    assert recipients.is_at_fault("odd@big.example")
    assert not recipients.is_at_fault("u@big.example")


def test_each_accepted_mail_takes_one_offence_from_its_domain() -> None:
    recipients = FailedRecipients()
    for number in range(3):
        opened_and_closed(recipients, f"a{number}@odd.example", "u@good.example")
    recipients.accepted("b@odd.example")
    assert recipients.is_at_fault("c@odd.example")
    recipients.accepted("b@odd.example")
    assert not recipients.is_at_fault("c@odd.example")
    for number in range(3):
        recipients.accepted(f"a{number}@odd.example")
    assert not recipients.is_at_fault("a0@odd.example")


def refused(recipients: FailedRecipients, recipient: str, now_ms: int, *, probe: bool) -> int | None:
    sign = recipients.is_sign_of_outage(recipient, now_ms, probe=probe)
    recipients.add_failed(recipient)
    return recipients.pause_ms(now_ms, sign=sign, probe=probe)


def after_two_false_alarms() -> FailedRecipients:
    recipients = FailedRecipients()
    assert refused(recipients, "a@odd0.example", 0, probe=False) is None
    for number in range(2):
        opened_and_closed(recipients, f"a@odd{number}.example", "u@good.example", now_ms=number * 1_000)
    return recipients


def test_after_two_false_alarms_within_an_hour_a_probe_decides_without_a_pause() -> None:
    recipients = after_two_false_alarms()
    assert not recipients.is_sign_of_outage("a@odd3.example", 2_000, probe=False)
    assert refused(recipients, "a@odd3.example", 2_000, probe=False) == 0
    assert refused(recipients, "a@odd3.example", 3_600_000, probe=False) is None


def test_a_refused_probe_for_a_recipient_that_is_blamed_proves_no_outage() -> None:
    recipients = after_two_false_alarms()
    assert {refused(recipients, "b@odd1.example", 2_000, probe=True) for _ in range(20)} == {1_000}
    assert refused(recipients, "a@odd9.example", 2_000, probe=False) == 0


def test_refused_probes_for_several_other_domains_prove_an_outage() -> None:
    recipients = after_two_false_alarms()
    pauses = [refused(recipients, f"u@good{number}.example", 2_000, probe=True) for number in range(3)]
    assert pauses == [0, 0, None]
    assert refused(recipients, "u@good9.example", 2_000, probe=False) is None


def test_the_probe_is_for_a_domain_that_has_not_failed_or_else_for_a_recipient_that_has_not() -> None:
    recipients = FailedRecipients()
    recipients.add_failed("a1@odd.example")
    first, others, good = pending("a1@odd.example"), [pending(f"a{it}@odd.example") for it in (2, 3)], pending("u@b.c")
    for waiting, chosen in (([*others, good], good), (others, others[0]), ([], first)):
        queue, back = deque(waiting), list[PendingSend]()
        probe = recipients.choose_probe(first, lambda it=queue: it.popleft() if it else None, back.append)
        assert probe is chosen
        assert {*back, *queue} == {first, *waiting} - {probe}


def chosen(recipients: FailedRecipients, *waiting: PendingSend, now_ms: int | None = None) -> PendingSend:
    """Return the probe, or with `now_ms` the next mail, and check that all others wait again."""
    queue, back = deque(waiting[1:]), list[PendingSend]()

    def take() -> PendingSend | None:
        return queue.popleft() if queue else None

    if now_ms is None:
        found = recipients.choose_probe(waiting[0], take, back.append)
    else:
        found = recipients.choose_next(waiting[0], take, back.append, now_ms)
    assert {*back, *queue} == {*waiting} - {found}
    return found


def test_the_probe_is_for_the_domain_with_most_accepted_mails_of_those_that_have_not_failed() -> None:
    recipients = FailedRecipients()
    for _ in range(3):
        recipients.accepted("u@good.example")
    recipients.accepted("a@odd1.example")
    opened_and_closed(recipients, "a@odd2.example", "u@good.example")
    first, odd1, odd2, good = (pending(f"x@{it}.example") for it in ("new", "odd1", "odd2", "good"))
    assert chosen(recipients, first, odd1, odd2, good) is good
    assert chosen(recipients, odd2, first) is first
    recipients.add_failed("u@good.example")
    assert chosen(recipients, first, odd1, odd2, good) is odd1


def test_a_domain_that_failed_is_chosen_again_after_a_hundred_accepted_mails() -> None:
    recipients = FailedRecipients()
    for _ in range(5):
        opened_and_closed(recipients, "a@odd.example", "u@good.example")
    odd, new = pending("x@odd.example"), pending("x@new.example")
    for _ in range(200):
        assert chosen(recipients, odd, new) is new
        recipients.accepted("a@odd.example")
    assert chosen(recipients, odd, new) is odd


def test_after_false_alarms_mails_for_domains_that_fail_come_last() -> None:
    recipients = after_two_false_alarms()
    odd, again, good = (pending(f"x@{it}.example") for it in ("odd0", "odd1", "good"))
    assert chosen(recipients, odd, again, good, now_ms=2_000) is good
    assert chosen(recipients, odd, again, now_ms=2_000) is odd
    assert chosen(recipients, odd, good, now_ms=3_600_000) is odd


def test_a_refused_probe_for_a_domain_that_fails_often_proves_no_outage() -> None:
    recipients = after_two_false_alarms()
    recipients.accepted("a@odd1.example")  # it is not blamed any more
    assert refused(recipients, "b@odd1.example", 2_000, probe=True) == 1_000


def test_scores_of_many_domains_take_no_more_memory_and_those_of_few_mails_are_forgotten_first() -> None:
    recipients = FailedRecipients()
    for _ in range(50):
        recipients.accepted("u@good.example")
    for number in range(3_000):
        recipients.accepted(f"u@d{number}.example")
    assert len(recipients._scores) <= 1_000
    new, good = pending("x@new.example"), pending("x@good.example")
    assert chosen(recipients, new, good) is good


def doubtful_after_accepting(mails: dict[str, int]) -> FailedRecipients:
    recipients = FailedRecipients()
    for _ in range(2):
        opened_and_closed(recipients, "u@d0.example", "u@d1.example")
    for domain, number in mails.items():
        for _ in range(number):
            recipients.accepted(f"u@{domain}")
    assert not recipients.is_sign_of_outage("u@d0.example", 10, probe=False)
    return recipients


def test_a_relay_that_throttles_mail_for_several_domains_ends_the_doubts() -> None:
    recipients = doubtful_after_accepting({})
    for number in (1, 2):
        assert not recipients.is_sign_of_outage(f"u@d{number}.example", 10, probe=False)
    assert recipients.is_sign_of_outage("u@d3.example", 10, probe=False)
    assert recipients.pause_ms(10, sign=True, probe=False) is None
    assert not recipients.is_at_fault("u@d0.example")


def test_domains_that_get_most_of_the_mail_are_not_blamed_although_all_of_them_often_fail() -> None:
    recipients = doubtful_after_accepting({"d0.example": 60, "d1.example": 60, "d2.example": 60})
    for number in (1, 2):
        for _ in range(3):
            recipients.forget_failed(breaker_is_closed=True)
            recipients.add_failed(f"u@d{number}.example")
    assert not recipients.is_sign_of_outage("u@d1.example", 10, probe=False)
    assert recipients.is_sign_of_outage("u@d2.example", 10, probe=False)


def test_several_domains_that_get_less_than_half_of_the_mail_do_not_end_the_doubts() -> None:
    recipients = doubtful_after_accepting({"good.example": 400, "d0.example": 60, "d1.example": 60, "d2.example": 60})
    for number in (1, 2):
        for _ in range(3):
            recipients.forget_failed(breaker_is_closed=True)
            recipients.add_failed(f"u@d{number}.example")
        assert not recipients.is_sign_of_outage(f"u@d{number}.example", 10, probe=False)


def test_a_domain_that_gets_much_mail_is_not_at_fault_when_it_fails_twice() -> None:
    recipients = FailedRecipients()
    for _ in range(300):
        recipients.accepted("u@big.example")
    for number in range(2):
        opened_and_closed(recipients, f"u{number}@big.example", "u@good.example")
    assert not recipients.is_at_fault("u@big.example")
    for number in range(2):
        opened_and_closed(recipients, f"u{number}@big.example", "u@good.example")
    assert recipients.is_at_fault("u@big.example")
