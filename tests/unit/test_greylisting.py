"""Which replies ask for the same mail later, in the words of real relays."""

import pytest

from otp_stream.core.backoff import Backoff
from otp_stream.core.decision import Dead, Retry, decide
from otp_stream.core.greylisting import asks_for_later, is_greylisting, names_unknown_sender
from otp_stream.core.outcome import Deferred, Reply, Uncertain

GREYLISTING = [
    "450 4.2.0 <u@x.example>: Recipient address rejected: Greylisted, see http://postgrey.schweikert.ch/help/x.html",
    "450 4.7.1 <u@x.example>: Recipient address rejected: Greylisting in effect, please come back later",
    "451 4.7.1 Greylisting in action, please come back in 00:05:00",
    "451 4.7.1 Greylisted, please try again in 300 seconds",
    "451 4.7.1 Please try again later",
    "450 4.2.0 Greylisted. Try again in 5 minutes.",
    "450 4.7.1 Message has been temporarily deferred by SQLgrey",
    "451 Resources temporarily unavailable. Please try again later [#4.16.5] (graylist)",
    "451 you are being graylisted, retry in a few minutes",
    "451 Grey listed, please try again later",
    "450 Requested mail action not taken: temporarily deferred, try again later",
    "451 Temporarily rejected, please retry later",
    "421 4.7.1 Intentional policy rejection, please try again later",
    "421 4.7.0 Try again later, closing connection",
    "451 4.7.1 Sorry, the service is currently unavailable. Please come back later.",
    "450 4.7.0 Recipient temporarily deferred, not yet authorized to deliver mail from this host",
    "450 4.2.0 Mail from unknown triplet deferred",
    "451 This is your first contact with this server, please try again",
    "450 4.1.1 <u@x.example>: Recipient address rejected: unverified address: Address verification in progress",
    "451 DT:SPM Please try again later",
    "421 Service not available, try again later",
    "450 Please wait 60 seconds",
    "451 GLD: deferred",
    "451 4.7.650 greylist",
    "451 Internal resources are temporarily unavailable - https://x.example#451",
    "451 Temporary rejection",
    "451 temporary deferral",
    "450 Temporary delay",
    "451 temporary refusal",
    "450 wait 300s",
    "450 wait 5 min",
    "450 please be patient and wait for 300 seconds",
    "450 wait another 5 minutes",
    "450 wait 00:05:00",
    "450 delay of 300 seconds",
    "451 retry timeout not reached for host",
    "450 retry time not reached for host mx.example.com",
    "451 Retry interval has not yet elapsed",
    "451 You came back too soon",
    "451 too early",
    "451 4.7.1 Sender not yet known",
    "451 sender not known yet",
    "451 Unknown sender, try again later",
    "451 host never seen before",
    "450 First-time sender, delaying",
    "400 Greylisted",
    "499 Greylisted",
    "450 4.2.4 Please try again later",
]  # fmt: skip
FAILURES = [
    "451 4.3.0 Temporary lookup failure",
    "451 4.3.0 Error: queue file write error",
    "451 4.3.0 later",
    "451 later",
    "451 4.3.2 Please try again later",
    "451 Temporary local problem - please try later",
    "451 Requested action aborted: local error in processing",
    "451 4.4.3 Temporary server error. Please try again later",
    "452 4.2.2 The email account that you tried to reach is over quota. Please try again later",
    "452 4.3.1 Insufficient system storage, please try again later",
    "452 4.2.2 Mailbox full",
    "450 4.2.2 Mailbox full, try again later",
    "450 4.2.1 Mailbox disabled",
    "450 4.1.8 <a@b.example>: Sender address rejected: Domain not found",
    "451 4.3.5 Server configuration error",
    "452 4.5.3 Too many recipients",
    "454 4.7.0 Temporary authentication failure",
    "454 TLS not available due to temporary reason",
    "450 4.7.0 rate limit exceeded, try again later",
    "421 4.7.28 Our system has detected an unusual rate of mail, try again later",
    "421 4.3.2 System not accepting network messages",
    "450 Mailbox unavailable",
    "451 Unable to complete command, DNS not available or timed out, try again later",
    "451 Temporary rejection: mailbox full",
    "451 temporary server rejection",
    "451 connection timeout",
    "451 retry time not reached for any host",
    "451 too soon, rate limit",
    "451 unknown host, DNS lookup failed",
    "450 4.4.1 Please try again later",
    "450 4.5.0 Please try again later",
    "450 4.6.0 Please try again later",
    "450 4.2.1 Please try again later",
    "450 4.2.2 Please try again later",
    "450 4.2.3 Please try again later",
    "452 Please try again later",
    "500 Greylisted",
    "550 5.7.1 Greylisted",
    "399 Greylisted",
    "250 2.0.0 deferred",
]  # fmt: skip


def reply(line: str) -> Reply:
    code, _, rest = line.partition(" ")
    first, _, text = rest.partition(" ")
    enhanced = first if first.count(".") == 2 and first.replace(".", "").isdigit() else None
    return Reply(int(code), enhanced, text if enhanced else rest, "rcpt")


@pytest.mark.parametrize("line", GREYLISTING)
def test_a_reply_that_asks_for_the_mail_later_is_greylisting(line: str) -> None:
    assert is_greylisting(reply(line))


@pytest.mark.parametrize("line", FAILURES)
def test_a_reply_that_reports_a_failure_is_not(line: str) -> None:
    assert not is_greylisting(reply(line))


@pytest.mark.parametrize(
    ("text", "later"),
    [
        ("Please try again later", True),
        ("Greylisted, because our system does not know you", True),
        ("Too many connections, try again later", False),
        ("Mailbox unavailable", False),
    ],
)
def test_a_text_asks_for_the_mail_later_unless_it_reports_a_failure(text: str, *, later: bool) -> None:
    assert asks_for_later(text) is later


@pytest.mark.parametrize(
    ("text", "named"), [("Sender not yet seen", True), ("Unknown sender domain, try later", False), ("", False)]
)
def test_a_text_names_a_sender_that_the_relay_does_not_know_yet(text: str, *, named: bool) -> None:
    assert names_unknown_sender(text) is named


BACKOFF = Backoff(1000, 30_000, 3, retry_greylisted=True)
GREY, FAILED = Deferred(reply(GREYLISTING[0])), Deferred(reply(FAILURES[0]))
LIFE_MS = 15 * 60_000


def judge(outcome: Deferred | Uncertain, attempts_made: int, now_ms: int, backoff: Backoff = BACKOFF) -> object:
    return decide(
        outcome, attempts_made=attempts_made, now_ms=now_ms, expires_ms=LIFE_MS, backoff=backoff, fraction=0.0
    )


def test_a_greylisted_mail_is_tried_again_until_its_code_expires() -> None:
    now_ms, waits = 0, list[int]()
    while isinstance(settlement := judge(GREY, len(waits), now_ms), Retry):
        assert settlement.attempt == len(waits) + 1
        waits.append(settlement.delay_ms)
        now_ms += BACKOFF.wait_ms(settlement.delay_ms)
    assert waits[:5] == [1000, 2000, 4000, 30_000, 30_000]
    assert set(waits[3:]) == {30_000}
    assert LIFE_MS - 30_000 <= now_ms < LIFE_MS
    assert isinstance(settlement, Dead)
    assert settlement.reason == "expired"


def test_what_is_no_greylisting_exhausts_its_retries_as_documented() -> None:
    for outcome in (FAILED, Uncertain("lost", "relay:25")):
        settlement = judge(outcome, 3, 0)
        assert isinstance(settlement, Dead)
        assert (settlement.reason, settlement.attempt) == ("retries_exhausted", 4)


def test_greylisting_can_be_counted_like_any_failure() -> None:
    settlement = judge(GREY, 3, 0, Backoff(1000, 30_000, 3))
    assert isinstance(settlement, Dead)
    assert settlement.reason == "retries_exhausted"


@pytest.mark.parametrize("retries", [0, 1, 3, 10])
def test_the_wait_between_greylisted_attempts_has_a_queue_of_its_length(retries: int) -> None:
    backoff = Backoff(1000, 30_000, retries, retry_greylisted=True)
    assert backoff.wait_ms(30_000) == 30_000 == backoff.waits_ms[-1]
    assert set(backoff.retry_delays_ms) <= set(backoff.waits_ms)
