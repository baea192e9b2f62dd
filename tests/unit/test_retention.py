"""How long dead letters are kept, and what a sweep does with each of them."""

import json

import pytest
from deliveries import Deliveries
from sweeps import CODE, DAY, KEY, MINUTE, Queue, dead_letter, swept

from otp_stream.broker.headers import verified
from otp_stream.broker.message import Delivered
from otp_stream.clock import now_ms
from otp_stream.core.retention import Retention, read_period
from otp_stream.dead_letters import StoredDeadLetter
from otp_stream.dead_letters.reader import Reader


@pytest.mark.parametrize(
    ("text", "period_ms"),
    [
        ("7d", 7 * DAY),
        ("12h", DAY // 2),
        ("90m", 90 * MINUTE),
        ("1s", 1_000),
        ("off", None),
        ("OFF", None),
        ("0", None),
        ("366d", 366 * DAY),
    ],
)
def test_a_period_is_read(text: str, period_ms: int | None) -> None:
    assert read_period(text) == period_ms


@pytest.mark.parametrize(
    "text", ["", "7", "d", "-1d", "0d", "7 d", "1.5h", "7w", "٧d", "367d", "9" * 5_000 + "d", "on"]
)
def test_a_period_that_cannot_be_read_is_refused_with_the_fix(text: str) -> None:
    with pytest.raises(ValueError, match="off"):
        read_period(text)


def test_a_dead_letter_is_kept_for_the_rest_of_the_retention() -> None:
    retention = Retention(DAY)
    assert retention.left_ms(1_000, 1_000) == DAY
    assert retention.left_ms(1_000, 1_000 + DAY - 1) == 1
    assert retention.left_ms(1_000, 1_000 + DAY) == retention.left_ms(1_000, 9 * DAY) == 0
    assert retention.left_ms(50 * DAY, 1_000) == DAY  # a clock that is ahead
    assert Retention(None).left_ms(1_000, 9 * DAY) is None


async def test_a_code_that_is_still_valid_stays() -> None:
    action, _, sweep = await swept(dead_letter(died=MINUTE))
    assert action == "kept"
    due_ms = sweep.swept.next_ms
    assert due_ms is not None
    assert 13 * MINUTE < due_ms - now_ms() <= 14 * MINUTE


async def test_an_expired_code_is_erased_and_the_dead_letter_keeps_its_signature_and_retention() -> None:
    message = dead_letter(died=16 * MINUTE)
    action, copy, _ = await swept(message)
    assert action == "erased"
    assert copy is not None
    ours = verified(copy.headers, copy.body, [KEY])
    assert ours is not None
    assert {name: ours[name] for name in ("x-otp-reason", "x-otp-died-at", "x-otp-job-id")} == {
        name: message.headers[name] for name in ("x-otp-reason", "x-otp-died-at", "x-otp-job-id")
    }
    assert abs(ours["x-otp-code-erased"] - now_ms()) < 10_000
    assert isinstance(copy.expiration, float)
    assert 7 * 86_400 - 16 * 60 - 10 < copy.expiration <= 7 * 86_400 - 16 * 60
    sent = f"{copy.body!r}{copy.headers}{copy.properties}"
    assert CODE not in sent
    assert copy.headers["traceparent"]
    assert copy.delivery_mode == 2


async def test_an_erased_dead_letter_is_shown_without_code_and_is_not_erased_again() -> None:
    _, copy, _ = await swept(dead_letter(died=16 * MINUTE))
    assert copy is not None
    again = Deliveries().delivered(copy.body, headers=dict(copy.headers))
    action, _, sweep = await swept(again)
    assert action == "kept"
    read = sweep.dead_letters.reader.read(again)
    assert (read.dead_letter.recipient, read.dead_letter.job_id, read.dead_letter.reason) == (
        "a***@example.com",
        "j-1",
        "rejected",
    )
    assert read.dead_letter.erased_ms is not None
    assert read.dead_letter.verified
    assert read.dead_letter.is_expired(now_ms())


async def test_codes_stay_if_they_are_to_be_kept() -> None:
    assert (await swept(dead_letter(died=16 * MINUTE), Retention(keeps_codes=True)))[0] == "kept"


async def test_a_replay_with_a_fresh_lifetime_keeps_the_code_until_that_ends() -> None:
    replayed = {"x-otp-replayed-by": "ops", "x-otp-fresh": "yes"}
    recent = dead_letter(died=40 * MINUTE, **replayed, **{"x-otp-replayed-at": now_ms() - MINUTE})
    assert (await swept(recent))[0] == "kept"
    early = dead_letter(died=40 * MINUTE, **replayed, **{"x-otp-replayed-at": now_ms() - 16 * MINUTE})
    assert (await swept(early))[0] == "erased"


@pytest.mark.parametrize(
    "body",
    [
        b"no json 4938170625",
        b'{"to": "ada@example.com", "code": "4938170625"}',
        b"\xff\xfe4938170625",
        rb'{"email": "\ud800a@example.com", "code": "4938170625"}',
        b"eyJhbGciOiJkaXIifQ..a.b.4938170625",
    ],
)
async def test_a_malformed_body_is_replaced_by_its_structure_after_the_default_lifetime(body: bytes) -> None:
    assert (await swept(dead_letter(died=14 * MINUTE, body=body)))[0] == "kept"
    action, copy, sweep = await swept(dead_letter(died=16 * MINUTE, body=body, **{"x-otp-reason": "malformed"}))
    assert action == "erased"
    assert copy is not None
    assert CODE not in f"{copy.body!r}{copy.headers}{copy.properties}"
    assert b"ada@" not in copy.body
    assert json.loads(copy.body)["originalSize"] == len(body)
    again = Deliveries().delivered(copy.body, headers=dict(copy.headers))
    assert (await swept(again))[0] == "kept"
    assert sweep.dead_letters.reader.read(again).dead_letter.reason == "malformed"


@pytest.mark.parametrize("key", [None, b"mallory" * 4])
async def test_a_forged_erasure_keeps_no_code(key: bytes | None) -> None:
    for fields in ({"to": "ada@example.com", "code": CODE}, {"email": "ada@example.com", "code": CODE}):
        forged = dead_letter(died=16 * MINUTE, body=json.dumps(fields).encode(), key=key, **{"x-otp-code-erased": 1})
        action, copy, _ = await swept(forged)
        assert action == "erased"
        assert copy is not None
        assert CODE.encode() not in copy.body
        again = Deliveries().delivered(copy.body, headers=dict(copy.headers))
        assert (await swept(again))[0] == "kept"


async def test_an_error_in_one_dead_letter_does_not_end_the_sweep() -> None:
    class Broken(Reader):
        def read(self, message: Delivered) -> StoredDeadLetter:
            raise KeyError(CODE)

    _, _, sweep = await swept(dead_letter())
    fake = Queue()
    action = await sweep._handle(fake, Broken(15, KEY), dead_letter(died=DAY))  # type: ignore[arg-type] - the fake has what it uses
    assert (action, fake.replaced) == ("kept", [])
    assert (sweep.swept.unhandled, sweep.swept.error) == (1, "KeyError")


async def test_a_signature_is_never_added_to_headers_that_no_worker_signed() -> None:
    for key in (None, b"mallory" * 4):
        action, copy, sweep = await swept(dead_letter(died=16 * MINUTE, key=key, **{"x-otp-error": f"code {CODE}"}))
        assert action == "erased"
        assert copy is not None
        assert verified(copy.headers, copy.body, [KEY]) is None
        assert CODE not in f"{copy.body!r}{copy.headers}"
        again = Deliveries().delivered(copy.body, headers=dict(copy.headers))
        assert (await swept(again))[0] == "kept"
        assert not sweep.dead_letters.reader.read(again).dead_letter.verified


async def test_a_dead_letter_of_unknown_age_gets_the_time_at_which_it_was_first_seen_and_is_erased_later() -> None:
    body = json.dumps({"email": "ada@example.com", "otp": CODE}).encode()
    action, copy, sweep = await swept(Deliveries().delivered(body, headers={"x-death": [{"count": 1}]}))
    assert action == "copied"
    assert copy is not None
    assert copy.body == body
    ours = verified(copy.headers, copy.body, [KEY])
    assert ours is not None
    assert abs(ours["x-otp-first-seen"] - now_ms()) < 10_000
    seen = Deliveries().delivered(copy.body, headers=dict(copy.headers))
    assert (await swept(seen))[0] == "kept"
    read = sweep.dead_letters.reader.read(seen).dead_letter
    assert (read.reason, read.verified) == ("crashed", True)


async def test_a_dead_letter_of_unknown_age_whose_timestamp_is_old_is_erased_at_once() -> None:
    body = json.dumps({"email": "ada@example.com", "otp": CODE, "timestamp": now_ms() - DAY}).encode()
    action, copy, sweep = await swept(Deliveries().delivered(body))
    assert action == "erased"
    assert copy is not None
    read = sweep.dead_letters.reader.read(Deliveries().delivered(copy.body, headers=dict(copy.headers)))
    assert (read.dead_letter.verified, read.since_ms is not None) == (True, True)


async def test_a_dead_letter_that_is_too_old_is_deleted_even_if_codes_are_kept() -> None:
    for retention in (Retention(), Retention(keeps_codes=True)):
        action, copy, _ = await swept(dead_letter(died=8 * DAY), retention)
        assert (action, copy) == ("too_old", None)
    assert (await swept(dead_letter(died=8 * DAY), Retention(None, keeps_codes=True)))[0] == "kept"


async def test_the_retention_of_a_replayed_job_that_the_broker_dead_lettered_begins_with_its_replay() -> None:
    replayed = {"x-otp-reason": None, "x-otp-died-at": None, "x-otp-replayed-by": "ops"}
    recent = dead_letter(died=8 * DAY, **replayed, **{"x-otp-replayed-at": now_ms() - MINUTE})
    assert (await swept(recent))[0] == "erased"
    early = dead_letter(died=9 * DAY, **replayed, **{"x-otp-replayed-at": now_ms() - 8 * DAY})
    assert (await swept(early))[0] == "too_old"


async def test_a_time_in_the_future_keeps_a_dead_letter_no_longer_than_the_retention() -> None:
    action, copy, _ = await swept(dead_letter(died=-400 * DAY, minutes=0.001, deliveries=10))
    assert action == "copied"
    assert copy is not None
    assert isinstance(copy.expiration, float)
    assert copy.expiration <= 7 * 86_400


async def test_a_dead_letter_that_was_requeued_often_is_renewed_with_the_rest_of_its_retention() -> None:
    message = dead_letter(died=5 * MINUTE, deliveries=10, expiration=str(7 * DAY))
    action, copy, _ = await swept(message)
    assert action == "copied"
    assert copy is not None
    assert copy.body == message.body
    assert "x-delivery-count" not in copy.headers
    assert isinstance(copy.expiration, float)
    assert 7 * 86_400 - 5 * 60 - 10 < copy.expiration <= 7 * 86_400 - 5 * 60


async def test_a_dead_letter_that_rabbitmq_does_not_delete_in_time_makes_another_sweep_due() -> None:
    kept = Retention(DAY, keeps_codes=True)
    for expiration, due in ((None, True), (str(7 * DAY), True), (str(DAY), False)):
        _, _, sweep = await swept(dead_letter(died=MINUTE, expiration=expiration), kept)
        assert (sweep.swept.next_ms is not None) is due
