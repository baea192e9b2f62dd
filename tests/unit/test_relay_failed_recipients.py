"""A recipient, or a domain with any number of addresses, whose mail alone is refused does not stop all other mail."""

import asyncio

import pytest

from otp_stream.core.mail import Mail
from otp_stream.relay.failed_recipients import FailedRecipients
from otp_stream.relay.pending_send import PendingSend


def pending(recipient: str) -> PendingSend:
    loop = asyncio.new_event_loop()
    try:
        return PendingSend(Mail(recipient, b""), 2, "jobs", 9_000, 9_000, loop.create_future())
    finally:
        loop.close()


def opened(recipients: FailedRecipients, opener: str, now_ms: int = 0) -> None:
    assert recipients.failed(opener, now_ms)
    recipients.opened_breaker(opener, now_ms, at_mail=False)


def opened_and_closed(recipients: FailedRecipients, opener: str, closer: str, now_ms: int = 0) -> None:
    opened(recipients, opener, now_ms)
    recipients.accepted(closer, now_ms)
    recipients.closed_breaker(closer, now_ms)


def after_two_false_alarms(now_ms: int = 0) -> FailedRecipients:
    recipients = FailedRecipients()
    for number in range(2):
        opened_and_closed(recipients, f"a@odd{number}.example", "u@good.example", now_ms)
    return recipients


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


def test_an_accepted_mail_ends_the_blame_of_its_recipient_and_domain() -> None:
    recipients = FailedRecipients()
    for _ in range(2):
        opened_and_closed(recipients, "a@odd.example", "u@good.example")
    recipients.accepted("b@odd.example", 0)
    assert recipients.is_at_fault("a@odd.example")
    recipients.accepted("a@odd.example", 0)
    assert not recipients.is_at_fault("a@odd.example")


def test_a_domain_whose_mail_is_accepted_between_its_failures_is_not_at_fault() -> None:
    recipients = FailedRecipients()
    for number in range(9):
        opened_and_closed(recipients, f"a{number}@big.example", "u@good.example", now_ms=number * 3_600_000)
        recipients.accepted("u@big.example", number * 3_600_000)
        assert not recipients.is_at_fault("x@big.example")


def test_after_two_false_alarms_within_an_hour_a_domain_that_fails_opens_no_breaker() -> None:
    recipients = after_two_false_alarms()
    assert not recipients.failed("a@odd3.example", 10_000)
    assert recipients.failed("a@odd3.example", 3_600_000)


def test_after_false_alarms_three_domains_within_five_seconds_show_that_the_relay_fails() -> None:
    recipients = after_two_false_alarms()
    for number in range(9):
        assert not recipients.failed(f"u@slow{number}.example", 10_000 + number * 2_500)
    assert [recipients.failed(f"u@d{number}.example", 50_000) for number in (1, 1, 2, 3, 1)] == [False] * 3 + [True] * 2


def test_if_the_relay_fails_for_three_domains_none_is_at_fault() -> None:
    recipients = FailedRecipients()
    for _ in range(2):
        opened_and_closed(recipients, "u@d0.example", "u@good.example")
    for number in (1, 2):
        recipients.failed(f"u@d{number}.example", 10)
    assert not recipients.is_at_fault("u@d0.example")


def test_after_false_alarms_mail_for_a_domain_that_failed_waits_for_five_seconds() -> None:
    recipients = after_two_false_alarms()
    recipients.failed("a@odd.example", 10_000)
    odd, good = pending("x@odd.example"), pending("x@good.example")
    assert recipients.choose_next([odd, good], 14_999) is good
    assert recipients.choose_next([odd], 14_999) is None
    assert recipients.choose_next([odd, good], 15_000) is odd


def test_the_wait_of_a_domain_doubles_up_to_half_a_minute_until_its_mail_is_accepted_after_it() -> None:
    recipients = after_two_false_alarms()
    now_ms, waits = 10_000, list[int]()
    for _ in range(5):
        recipients.failed("a@odd.example", now_ms)
        recipients.failed("b@odd.example", now_ms)  # it was in flight
        recipients.accepted("b@odd.example", now_ms)
        waits.append(next(ms for ms in range(0, 60_000, 1_000) if not recipients.waits("x@odd.example", now_ms + ms)))
        now_ms += waits[-1]
    assert waits == [5_000, 10_000, 20_000, 30_000, 30_000]
    recipients.accepted("b@odd.example", now_ms)
    recipients.failed("a@odd.example", now_ms)
    assert not recipients.waits("x@odd.example", now_ms + 5_000)


def test_mail_that_is_at_fault_does_not_wait_because_it_delays_no_other() -> None:
    recipients = FailedRecipients()
    for _ in range(2):
        opened_and_closed(recipients, "a@odd.example", "u@good.example", 10_000)
    odd = pending("x@odd.example")
    assert recipients.choose_next([odd], 10_001) is odd


def test_before_two_false_alarms_no_mail_waits_behind_a_closed_breaker() -> None:
    recipients = FailedRecipients()
    opened_and_closed(recipients, "a@odd.example", "u@good.example")
    odd, good = pending("x@odd.example"), pending("x@good.example")
    assert recipients.choose_next([odd, good], 1) is odd
    assert recipients.choose_next([], 1) is None
    assert not recipients.may_leave([odd], 1, is_open=False)


def test_mails_for_domains_that_failed_fill_a_worker_after_ten_seconds_of_an_outage() -> None:
    recipients, failed = FailedRecipients(), [pending("x@d1.example"), pending("x@d2.example")]
    opened(recipients, "u@d1.example", 0)
    opened(recipients, "u@d2.example", 6_000)
    assert not recipients.may_leave(failed, 9_999, is_open=True)
    assert recipients.may_leave(failed, 10_000, is_open=True)
    assert not recipients.may_leave([*failed, pending("u@good.example")], 10_000, is_open=True)


def test_mails_for_three_domains_that_failed_fill_a_worker_at_once() -> None:
    recipients, failed = FailedRecipients(), [pending(f"u@d{number}.example") for number in range(3)]
    for job in failed:
        opened(recipients, job.mail.recipient)
    assert recipients.may_leave(failed, 0, is_open=True)


def test_mails_for_domains_that_failed_fill_a_worker_at_once_after_false_alarms() -> None:
    recipients, odd = after_two_false_alarms(), pending("x@odd.example")
    recipients.failed("a@odd.example", 10_000)
    assert recipients.may_leave([odd], 10_000, is_open=False)
    assert not recipients.may_leave([odd], 15_000, is_open=False)
    assert not recipients.may_leave([odd], 10_000, is_open=True)  # not for a failure that a recipient may cause
    recipients.opened_breaker("a@odd.example", 10_000, at_mail=False)
    assert recipients.may_leave([odd], 10_000, is_open=True)


def test_a_domain_has_failed_until_its_mail_is_accepted_after_its_wait_or_for_an_hour() -> None:
    recipients = FailedRecipients()
    opened_and_closed(recipients, "a@odd.example", "u@good.example")
    recipients.accepted("b@odd.example", 4_999)
    assert recipients.has_failed("c@odd.example")
    recipients.accepted("b@odd.example", 5_000)
    assert not recipients.has_failed("c@odd.example")
    opened_and_closed(recipients, "a@odd.example", "u@good.example", 10_000)
    recipients.failed("a@later.example", 3_610_001)
    assert not recipients.has_failed("c@odd.example")
    assert not recipients.has_failed("u@good.example")


def test_the_probe_is_for_a_domain_that_has_not_failed_or_not_for_the_longest_time() -> None:
    recipients = FailedRecipients()
    jobs = [pending(f"u{number}@d{number % 2}.example") for number in range(4)]
    for now_ms, job in enumerate(jobs[:2]):
        opened(recipients, job.mail.recipient, now_ms)
    good = pending("u@good.example")
    assert recipients.choose_probe([*jobs, good]) is good
    assert not recipients.all_failed
    assert recipients.choose_probe(jobs) is jobs[2]  # the same domain as the first, another recipient
    assert not recipients.all_failed
    assert recipients.choose_probe(jobs[1::-1]) is jobs[0]
    assert recipients.all_failed
    assert recipients.choose_probe([]) is None


@pytest.mark.parametrize("at_mail", [False, True])
def test_the_probe_waits_a_tenth_of_a_second_for_each_domain_that_failed_if_it_is_for_another(*, at_mail: bool) -> None:
    recipients = FailedRecipients()
    failed, good = [pending(f"u@d{number}.example") for number in range(7)], pending("u@good.example")
    for now_ms, job in enumerate(failed):
        recipients.failed(job.mail.recipient, now_ms)
        recipients.opened_breaker(job.mail.recipient, now_ms, at_mail=at_mail)
    assert recipients.early_ms([*failed, good], 6) == (None if at_mail else 700)
    assert recipients.early_ms(failed, 6) is None
    assert recipients.early_ms([good], 7) is None  # it opened again because no connection was made


def test_many_recipients_take_no_more_memory() -> None:
    recipients = FailedRecipients()
    for number in range(3_000):
        opened_and_closed(recipients, f"u@d{number}.example", "u@good.example", number * 3_600_000)
        opened(recipients, f"u@e{number}.example", number * 3_600_000)
    assert len(recipients._failed) <= 1_000
    assert len(recipients._blame) <= 1_001
