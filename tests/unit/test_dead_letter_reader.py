"""Dead letters as they are read and replayed: headers that a worker signed, and those that anyone else wrote."""

import json
from typing import Any

import pytest
from deliveries import Deliveries

from otp_stream.broker.headers import sign, verified
from otp_stream.broker.message import LARGEST_HEADER, Delivered
from otp_stream.broker.topology import Topology
from otp_stream.clock import now_ms
from otp_stream.core.backoff import Backoff
from otp_stream.core.dead_letter_filter import DeadLetterFilter
from otp_stream.core.masking import keyed_hash
from otp_stream.dead_letters import DeadLetterQueue
from otp_stream.dead_letters.reader import _code_in

KEY, OLD = b"k" * 32, b"o" * 32
BODY = json.dumps({"email": "user@example.com", "otp": "123456", "jobId": "j-1", "timestamp": 1_000}).encode()
QUEUE = DeadLetterQueue(lambda: "amqp://localhost/", Topology("jobs", "otp", Backoff(1000, 30000, 3)), 15, KEY, (OLD,))
READER = QUEUE.reader
HEADERS = {
    "x-otp-reason": "rejected", "x-otp-error": "550 5.1.1 mailbox unknown (to RCPT)", "x-otp-attempt": 1,
    "x-otp-job-id": "ours", "x-otp-first-seen": 2_000, "x-otp-died-at": 3_000,
}  # fmt: skip


def message(headers: dict[str, Any], body: bytes = BODY, key: bytes | None = None) -> Delivered:
    headers = dict(headers)
    if key is not None:
        sign(headers, body, key)
    return Deliveries().delivered(body, headers=headers)


@pytest.mark.parametrize("key", [KEY, OLD])
def test_headers_that_a_worker_signed_are_shown_unchanged(key: bytes) -> None:
    dead_letter = READER.read(
        message(HEADERS | {"x-delivery-count": 3, "x-death": [{"count": 1}]}, key=key)
    ).dead_letter
    assert (dead_letter.verified, dead_letter.job_id, dead_letter.reason, dead_letter.code) == (
        True,
        "ours",
        "rejected",
        "550",
    )
    assert dead_letter.error == HEADERS["x-otp-error"]


def test_a_recipient_whose_domain_contains_the_code_is_not_shown_and_can_be_selected() -> None:
    body = json.dumps({"email": "user@123456.example", "otp": "123456", "jobId": "j-1"}).encode()
    dead_letter = READER.read(message(HEADERS, body, KEY)).dead_letter
    assert "123456" not in repr(dead_letter)
    assert (dead_letter.is_job, dead_letter.domain) == (True, "")
    assert DeadLetterFilter.parse(["domain="], 0).matches(dead_letter)


def test_a_message_that_the_broker_dead_lettered_without_our_headers_is_not_called_forged() -> None:
    dead_letter = READER.read(message({"x-death": [{"count": 1}]})).dead_letter
    assert (dead_letter.verified, dead_letter.job_id, dead_letter.reason) == (True, "j-1", "crashed")


def test_a_message_with_headers_too_large_to_read_is_not_shown_as_dead_lettered_by_the_broker() -> None:
    dead_letter = READER.read(message({"padding": "x" * LARGEST_HEADER})).dead_letter
    assert (dead_letter.verified, dead_letter.job_id, dead_letter.reason) == (False, "j-1", "unknown")
    assert dead_letter.error == "the headers are too large to read"


def test_a_workers_headers_are_read_even_if_the_others_are_too_large() -> None:
    dead_letter = READER.read(message(HEADERS | {"padding": "x" * LARGEST_HEADER}, key=KEY)).dead_letter
    assert (dead_letter.verified, dead_letter.job_id, dead_letter.reason) == (True, "ours", "rejected")


def test_a_dead_letter_of_a_previous_version_has_its_cause() -> None:
    dead_letter = READER.read(message(HEADERS)).dead_letter
    assert (dead_letter.verified, dead_letter.job_id, dead_letter.reason, dead_letter.code, dead_letter.attempt) == (
        False, "j-1", "rejected", "550", 1,
    )  # fmt: skip
    assert dead_letter.error == HEADERS["x-otp-error"]
    made = "f0e1d2c3b4a5968778695a4b3c2d1e0f"
    assert READER.read(message(HEADERS | {"x-otp-job-id": made})).dead_letter.job_id == made


@pytest.mark.parametrize(
    "forged",
    [
        {"x-otp-job-id": "j" * 5_000 + "123456"},
        {"x-otp-job-id": "\x1b[2J\nuser@example.com"},
        {"x-otp-job-id": 7},
        {"x-otp-reason": "code 123456"},
        {"x-otp-reason": ["rejected"]},
        {"x-otp-error": "the code is 123456 for user@example.com " + "x" * 10_000},
        {"x-otp-error": "550 no (222333) victim@example.org \x1b[31m"},
        {"x-otp-error": {"code": "123456"}},
        {"x-otp-attempt": -2_000},
        {"x-otp-attempt": 10**15},
        {"x-otp-attempt": "123456"},
        {"x-otp-died-at": 10**18, "x-otp-first-seen": -1},
        {"x-otp-replayed-at": 5, "x-otp-replayed-by": "123456 user@example.com"},
        {"x-otp-mac": "0" * 32},
        {"x-otp-mac": bytearray(b"\xff")},
    ],
)
@pytest.mark.parametrize("key", [None, b"mallory" * 4])
def test_unsigned_headers_are_shown_sanitized(forged: dict[str, Any], key: bytes | None) -> None:
    headers = {name: value for name, value in (HEADERS | forged).items() if key is None or isinstance(value, str | int)}
    dead_letter = READER.read(message(headers, key=key)).dead_letter
    assert not dead_letter.verified
    assert dead_letter.job_id == "j-1"
    assert dead_letter.reason in ("rejected", "unknown", "crashed")
    assert 0 <= dead_letter.attempt <= 1_001
    assert len(dead_letter.error) <= 300
    shown = str(dead_letter)
    for secret in ("123456", "222333", "user@", "victim@"):
        assert secret not in shown
    assert shown.isprintable()


@pytest.mark.parametrize(
    ("job_id", "body"),
    [
        ("a" * 13 + "0123456" + "b" * 12, BODY),
        (b"123456".hex() + "0" * 20, BODY),
        ("0" * 26 + "123456", b'{"email": "nobody", "otp": "123456", "jobId": "j-1"}'),
    ],
)
def test_an_id_that_only_looks_like_a_generated_one_reveals_no_code(job_id: str, body: bytes) -> None:
    assert READER.read(message(HEADERS | {"x-otp-job-id": job_id}, body)).dead_letter.job_id == "j-1"


def test_a_forged_first_seen_time_does_not_extend_a_codes_lifetime() -> None:
    body = json.dumps({"email": "user@example.com", "otp": "123456"}).encode()
    found = READER.read(message({"x-otp-first-seen": 250_000_000_000_000, "x-otp-died-at": 1_000}, body))
    assert found.dead_letter.first_seen_ms is not None
    assert found.dead_letter.first_seen_ms < 10_000_000_000_000
    # and a dead letter without a first-seen time counts from its death
    found = READER.read(message({"x-otp-reason": "rejected", "x-otp-died-at": 1_000}, body))
    assert found.dead_letter.is_expired(10_000_000)


def test_a_replay_is_signed_and_carries_nothing_that_was_forged() -> None:
    forged = {
        "x-otp-job-id": "another", "x-otp-attempt": -7, "x-otp-fresh": "yes", "x-otp-uncertain": "relay",
        "x-otp-new": 1, "x-otp-first-seen": 2_000, "tenant": "t1",
    }  # fmt: skip
    copy = QUEUE.replay_message(READER.read(message(forged)), by="ops", fresh=False)
    ours = verified(copy.headers, copy.body, [KEY])
    assert ours is not None
    assert ours.keys() == {"x-otp-attempt", "x-otp-first-seen", "x-otp-replayed-at", "x-otp-replayed-by"}
    assert (ours["x-otp-attempt"], ours["x-otp-first-seen"], copy.headers["tenant"]) == (0, 2_000, "t1")


def test_a_replay_of_a_signed_dead_letter_keeps_its_id_and_is_signed_with_the_new_key() -> None:
    copy = QUEUE.replay_message(READER.read(message(HEADERS, key=OLD)), by="ops", fresh=True)
    ours = verified(copy.headers, copy.body, [KEY])
    assert ours is not None
    assert (ours["x-otp-job-id"], ours["x-otp-first-seen"], ours["x-otp-fresh"]) == ("ours", 2_000, "yes")
    assert "x-otp-reason" not in ours


@pytest.mark.parametrize(
    ("job_id", "found", "kept"),
    [
        ("j-1", "3b0cf1", None),
        ("j-1", "j-1", "j-1"),
        ("user@example.com-1", "3b0cf1", None),
        ("user@example.com-1", keyed_hash("user@example.com-1", OLD), keyed_hash("user@example.com-1", OLD)),
        (None, "3b0cf1", "3b0cf1"),
    ],
)
def test_a_replayed_job_that_was_not_read_before_gets_the_id_that_its_other_copies_have(
    job_id: str | None, found: str, kept: str | None
) -> None:
    body = json.dumps({"email": "user@example.com", "otp": "123456", "jobId": job_id}).encode()
    missing = HEADERS | {"x-otp-reason": "key_missing", "x-otp-job-id": found}
    copy = QUEUE.replay_message(READER.read(message(missing, body, KEY)), by="ops", fresh=False)
    assert (copy.headers.get("x-otp-job-id"), copy.headers["x-otp-first-seen"]) == (kept, 2_000)
    assert verified(copy.headers, copy.body, [KEY]) is not None


def test_in_an_unsigned_error_reply_codes_stay_and_possible_secrets_are_redacted() -> None:
    error = "550 5.7.1 relay 550-5.7.26 says 22 33 44, dXNlckBleGFtcGxlLmNvbQ== 12 34 56 222333 Victim@example.org"
    dead_letter = READER.read(message(HEADERS | {"x-otp-error": error})).dead_letter
    assert dead_letter.error == "550 5.7.1 relay 550-5.7.26 says *** , ***== *** *** ***"
    assert dead_letter.code == "550"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("550 5.1.1 no such user (to RCPT)", "550"),
        ("the code expires before the next try; last: 451 4.3.0 later (to DATA)", "451"),
        ("the code expired 5000 ms ago", ""),
        ("over RECIPIENT_LIMIT=250/10m: allowed again", ""),
        ("otp: must be a string, in quotes", ""),
    ],
)
def test_without_a_header_the_reply_code_is_read_from_the_error(error: str, code: str) -> None:
    assert _code_in(error) == code


@pytest.mark.parametrize(("expiration", "kept"), [(None, None), (str(400 * 86_400_000), 400 * 86_400.0)])
def test_a_command_with_a_shorter_retention_than_the_workers_deletes_no_dead_letter(
    expiration: str | None, kept: float | None
) -> None:
    headers = dict(HEADERS | {"x-otp-died-at": now_ms() - 30 * 86_400_000})
    sign(headers, BODY, KEY)
    copy = QUEUE.renewed(READER.read(Deliveries().delivered(BODY, headers=headers, expiration=expiration)))
    assert copy.expiration == kept
