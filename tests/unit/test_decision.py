"""The one decision: what an attempt met becomes the job's settlement."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otp_stream.core.admission import Limit, Refusal, SentBefore, Superseded, Throttled, Unknown
from otp_stream.core.backoff import Backoff
from otp_stream.core.decision import Ack, Dead, Hold, Park, Retry, admit, decide, refuse
from otp_stream.core.outcome import (
    Accepted,
    Crashed,
    Deferred,
    Outcome,
    RecipientUnavailable,
    Rejected,
    Reply,
    Route,
    TimedOut,
    Unavailable,
    Uncertain,
    with_route,
    without_secrets,
)

BACKOFF = Backoff(1000, 30000, 3)
NOW, EXPIRES = 1_000_000, 1_900_000
LATER = Reply(451, "4.3.0", "later", "rcpt")


def judge(outcome: Outcome, *, attempts_made: int = 0, now_ms: int = NOW, expires_ms: int = EXPIRES) -> object:
    return decide(
        outcome, attempts_made=attempts_made, now_ms=now_ms, expires_ms=expires_ms, backoff=BACKOFF, fraction=0.5
    )


@pytest.mark.parametrize(
    ("outcome", "settlement"),
    [
        (Accepted(Reply(250, None, "ok", "body")), Ack("sent")),
        (Rejected(Reply(550, "5.1.1", "no", "rcpt")), Dead("rejected", "550 5.1.1 no (to RCPT)", 1)),
        (Crashed("template otp/body.txt: x"), Dead("crashed", "template otp/body.txt: x", 0)),
        (Deferred(LATER), Retry(1150, 1, "451 4.3.0 later (to RCPT)")),
        (RecipientUnavailable("lost"), Retry(1150, 1, "lost; the relay takes other mail")),
        (Uncertain("lost", "relay:25"), Retry(1150, 1, "lost", uncertain="relay:25")),
        (Unavailable("unreachable", "refused"), Hold()),
        (TimedOut(), Park(5200)),
        (TimedOut(briefly=True), Park(1300)),
    ],
)
def test_a_first_attempt(outcome: Outcome, settlement: object) -> None:
    assert judge(outcome) == settlement


@pytest.mark.parametrize("attempts_made", [0, 3])
@pytest.mark.parametrize(
    "outcome",
    [
        Accepted(Reply(250, None, "ok", "body")),
        Rejected(Reply(550, "5.1.1", "no", "rcpt")),
        Deferred(LATER),
        RecipientUnavailable("lost"),
        Uncertain("lost", "relay:25"),
    ],
)
def test_a_settlement_names_the_relay(outcome: Outcome, attempts_made: int) -> None:
    route = Route("fallback:25", switched_from="relay:25")
    settlement = judge(with_route(outcome, Route("fallback:25"), "relay:25"), attempts_made=attempts_made)
    assert isinstance(settlement, Ack | Retry | Dead)
    assert settlement.route == route


def test_a_mail_that_returned_to_its_relay_was_not_switched() -> None:
    outcome = with_route(Accepted(Reply(250, None, "ok", "body")), Route("relay:25"), "relay:25")
    assert isinstance(outcome, Accepted)
    assert outcome.route == Route("relay:25")


@pytest.mark.parametrize("outcome", [Crashed("x"), TimedOut(), Unavailable("unreachable", "refused")])
def test_without_a_reply_there_is_no_route(outcome: Outcome) -> None:
    assert with_route(outcome, Route("relay:25"), None) is outcome


@pytest.mark.parametrize("outcome", [Deferred(LATER), RecipientUnavailable("lost"), Uncertain("lost", "relay:25")])
def test_the_last_attempt_exhausts(outcome: Outcome) -> None:
    retry = judge(outcome, attempts_made=2)
    assert isinstance(retry, Retry)
    assert (retry.delay_ms, retry.attempt) == (4600, 3)
    settlement = judge(outcome, attempts_made=3)
    assert isinstance(settlement, Dead)
    assert (settlement.reason, settlement.attempt) == ("retries_exhausted", 4)


def test_a_mail_that_the_relay_may_have_is_not_sent_again_where_that_is_not_wanted() -> None:
    settlement = decide(
        Uncertain("lost", "relay:25"),
        attempts_made=0,
        now_ms=NOW,
        expires_ms=EXPIRES,
        backoff=BACKOFF,
        fraction=0.0,
        may_resend=False,
    )
    assert isinstance(settlement, Dead)
    assert (settlement.reason, settlement.attempt) == ("retries_exhausted", 1)
    assert "may have taken it" in settlement.error


@pytest.mark.parametrize("outcome", [Deferred(LATER), RecipientUnavailable(str(LATER), LATER)])
def test_a_retry_and_a_dead_letter_carry_the_reply_as_the_relay_gave_it(outcome: Outcome) -> None:
    for settlement in (judge(outcome), judge(outcome, attempts_made=3), judge(outcome, expires_ms=NOW + 1)):
        assert isinstance(settlement, Retry | Dead)
        assert settlement.reply == LATER


def test_a_wait_that_would_outlive_the_code_is_not_begun() -> None:
    assert isinstance(judge(Deferred(LATER), expires_ms=NOW + 1151), Retry)
    dead = judge(Deferred(LATER), expires_ms=NOW + 1150)
    assert isinstance(dead, Dead)
    assert (dead.reason, dead.attempt) == ("expired", 1)
    assert "451 4.3.0 later" in dead.error


@pytest.mark.parametrize("outcome", [Unavailable("unreachable", "refused"), TimedOut()])
def test_a_job_behind_the_circuit_breaker_dies_with_its_code_and_no_attempt_counted(outcome: Outcome) -> None:
    dead = judge(outcome, attempts_made=1, now_ms=EXPIRES)
    assert isinstance(dead, Dead)
    assert (dead.reason, dead.attempt) == ("expired", 1)


def test_a_job_is_put_aside_for_no_longer_than_its_code_lives() -> None:
    assert judge(TimedOut(), expires_ms=NOW + 5200) == Park(4800)
    assert judge(TimedOut(), expires_ms=NOW + 1151) == Park(1150)
    dead = judge(TimedOut(), expires_ms=NOW + 1150)
    assert isinstance(dead, Dead)
    assert (dead.reason, dead.attempt) == ("expired", 0)


def test_a_job_that_is_no_longer_sent_keeps_the_last_error_or_states_why() -> None:
    assert judge(Deferred(LATER), attempts_made=3) == Dead("retries_exhausted", "451 4.3.0 later (to RCPT)", 4)
    assert judge(TimedOut(), now_ms=EXPIRES) == Dead("expired", "the code expired 0 ms ago", 0)
    error = "it was not sent in time, and the code expires before another wait ends"
    assert judge(TimedOut(), attempts_made=1, now_ms=EXPIRES - 1) == Dead("expired", error, 1)


@pytest.mark.parametrize(
    ("refusal", "now_ms", "settlement"),
    [
        (SentBefore(), NOW, Ack("duplicate")),
        (Superseded(), NOW, Ack("superseded")),
        (
            Throttled(Limit("recipient", 5, 600_000), 1_700_000_000_000),
            NOW,
            Dead(
                "throttled",
                "over RECIPIENT_LIMIT=5/10m: allowed again at 2023-11-14T22:13:20Z",
                2,
                allowed_ms=1_700_000_000_000,
            ),
        ),
        (Unknown(), NOW, Park(5200)),
        (Unknown(), EXPIRES + 7, Dead("expired", "the code expired 7 ms ago", 2)),
    ],
)
def test_a_job_that_may_not_be_attempted_costs_no_attempt(refusal: Refusal, now_ms: int, settlement: object) -> None:
    found = refuse(refusal, attempts_made=2, now_ms=now_ms, expires_ms=EXPIRES, backoff=BACKOFF)
    assert found == settlement


def test_a_delay_beyond_every_wait_queue_takes_the_longest_one() -> None:
    assert BACKOFF.wait_ms(BACKOFF.retry_delays_ms[-1] + 1) == BACKOFF.retry_delays_ms[-1]


def test_an_expired_job_is_not_admitted() -> None:
    assert admit(now_ms=EXPIRES - 1, expires_ms=EXPIRES, attempts_made=0) is None
    assert admit(now_ms=EXPIRES, expires_ms=EXPIRES, attempts_made=2) == Dead("expired", "the code expired 0 ms ago", 2)


def test_what_a_relay_quotes_is_blotted_out() -> None:
    redacted = without_secrets(Rejected(Reply(550, None, "<u@x.y> 123456\r\nno", "rcpt")), "123456", "u@x.y")
    assert redacted == Rejected(Reply(550, None, "<***> *** no", "rcpt"))
    assert without_secrets(Uncertain("lost 123456", "relay:25"), "123456") == Uncertain("lost ***", "relay:25")
    assert without_secrets(TimedOut(), "123456") == TimedOut()
    quoting = RecipientUnavailable("wait 123456", Reply(450, None, "wait 123456", "rcpt"))
    redacted = without_secrets(quoting, "123456")
    assert redacted == RecipientUnavailable("wait ***")
    assert getattr(redacted, "reply", None) == Reply(450, None, "wait ***", "rcpt")


@given(
    base=st.integers(1, 100_000),
    factor=st.integers(1, 100),
    retries=st.integers(0, 20),
    made=st.integers(0, 20),
    fraction=st.floats(0, 1, exclude_max=True),
)
def test_a_wait_is_never_short_and_late_by_less_than_a_tenth(
    base: int, factor: int, retries: int, made: int, fraction: float
) -> None:
    backoff = Backoff(base, base * factor, retries)
    delay = backoff.delay_ms(made, fraction)
    step = base * 2**made
    assert min(step, backoff.cap_ms) - 1 <= delay <= min(step * 1.3 + 1, backoff.cap_ms)
    if made < retries:
        wait = backoff.wait_ms(delay)
        assert wait in backoff.retry_delays_ms
        assert delay <= wait <= delay * 1.1 + 250
        assert wait <= delay * 1.1 + 52  # the broker may be late as well
    assert len(backoff.retry_delays_ms) <= 3 * max(retries, 1)


def test_the_default_settings_take_eight_wait_queues_and_retries_spread_over_them() -> None:
    backoff = Backoff(1_000, 30_000, 3)
    assert backoff.waits_ms == (1_150, 1_300, 2_200, 2_400, 2_600, 4_400, 4_800, 5_200)
    for retries_made, waits in enumerate(((1_150, 1_300), (2_200, 2_400, 2_600), (4_400, 4_800, 5_200))):
        used = [backoff.wait_ms(backoff.delay_ms(retries_made, fraction / 600)) for fraction in range(600)]
        assert set(used) == set(waits)
        assert all(abs(used.count(wait) - 600 / len(waits)) <= 2 for wait in waits)


def test_the_wait_queues_of_earlier_versions_are_known() -> None:
    assert Backoff(1_000, 30_000, 2).earlier_retry_delays_ms == (1075, 1150, 1225, 1300, 2150, 2300, 2450, 2600)
