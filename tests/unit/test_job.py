"""The job as producers write it, and what the worker makes of it."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otp_stream.core.job import MAX_BODY_BYTES, MalformedError, OtpJob, carry, rank

SEEN = 1_700_000_000_000
SMALLEST = {"email": "user@example.com", "otp": "123456"}


def read(**fields: Any) -> OtpJob:
    return OtpJob.from_bytes(json.dumps(SMALLEST | fields).encode())


def error(**fields: Any) -> str:
    with pytest.raises(MalformedError) as caught:
        read(**fields)
    return str(caught.value)


def test_the_smallest_job_takes_every_default() -> None:
    job = read()
    assert (job.retry_count, job.job_id, job.timestamp, job.priority) == (0, None, None, "normal")
    assert job.metadata.template == "otp"


def test_null_means_absent() -> None:
    job = read(retryCount=None, jobId=None, timestamp=None, priority=None, metadata=None)
    assert job == read()
    assert read(metadata={"template": None, "locale": None}).metadata.template == "otp"


def test_unknown_keys_are_kept_out_of_the_way_and_metadata_keeps_its_own() -> None:
    job = read(colour="blue", metadata={"orderNumber": 7, "userName": "John"})
    carried = carry(job, job_id="j", lane="jobs", first_seen_ms=SEEN, attempts_made=0, default_expiry_minutes=15)
    data = carried.template_data()
    assert (data["orderNumber"], data["userName"], data["otp"], data["expiryMinutes"]) == (7, "John", "123456", 15)


@pytest.mark.parametrize("otp", ["1234", " 123456 ", "a" * 64, "Ab-9_x", "12\u00e934"])
def test_codes_are_trimmed_and_taken(otp: str) -> None:
    assert read(otp=otp).otp == otp.strip()


@pytest.mark.parametrize("otp", ["123", "a" * 65, "12 34", "12\n34", "12\u200034", "12\x0034", "", "    "])
def test_what_is_no_code_is_named_and_not_quoted(otp: str) -> None:
    told = error(otp=otp)
    assert told.startswith("otp: must have 4 to 64 characters")


@pytest.mark.parametrize("email", ["user@example.com", "foo.@docomo.ne.jp", "a+b@x.y", "ünï@exämple.com", " u@x.y "])
def test_addresses_that_exist_are_taken(email: str) -> None:
    assert read(email=email).email == email.strip()


@pytest.mark.parametrize(
    "email", ["", "user", "a@b@c", "a b@c.d", "a@b.c\r\nBcc: x@y.z", "a@b.c>", "<a@b.c>", "a,b@c.d", "x" * 250 + "@b.c"]
)
def test_what_is_no_address_is_named_and_not_quoted(email: str) -> None:
    told = error(email=email)
    assert told.startswith("email: must be one e-mail address")
    assert "Bcc" not in told


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"otp": 123456}, "otp: must be a string, in quotes"),
        ({"email": 7}, "email: must be a string, in quotes"),
        ({"retryCount": "1"}, "retryCount: must be a whole number, without quotes"),
        ({"retryCount": -1}, "retryCount: Input should be greater than or equal to 0"),
        ({"timestamp": 1.5}, "timestamp: must be a whole number, without quotes"),
        ({"priority": "urgent"}, "priority: Input should be 'low', 'normal' or 'high'"),
        ({"metadata": []}, "metadata: must be a JSON object"),
        ({"metadata": {"expiryMinutes": 0}}, "metadata.expiryMinutes: Input should be greater than 0"),
        ({"metadata": {"template": "../etc"}}, "metadata.template: must consist of 1 to 64 letters"),
        ({"jobId": "x" * 201}, "jobId: must have at most 200 printable characters"),
        ({"jobId": "a\r\nb"}, "jobId: must have at most 200 printable characters"),
    ],
)
def test_each_bad_field_is_named_with_its_cure(fields: dict[str, Any], told: str) -> None:
    assert error(**fields).startswith(told)


@pytest.mark.parametrize(
    ("said", "meant"),
    [("de", "de"), ("de_AT", "de_AT"), ("en_US.UTF-8", "en_US"), ("", None), ("../etc", None), (7, None), ("1", None)],
)
def test_a_language_that_cannot_be_read_is_none(said: object, meant: str | None) -> None:
    assert read(metadata={"locale": said}).metadata.locale == meant


def test_metadata_that_is_nearly_right_is_taken() -> None:
    metadata = read(metadata={"expiryMinutes": "15", "purpose": 7, "template": "", "userName": 5}).metadata
    assert (metadata.expiry_minutes, metadata.purpose, metadata.template) == (15, "7", "otp")
    assert error(metadata={"expiryMinutes": "soon"}).startswith("metadata.expiryMinutes: must be a number")
    assert error(metadata={"expiryMinutes": True}).startswith("metadata.expiryMinutes: must be a number")


def test_a_byte_order_mark_is_no_fault() -> None:
    assert OtpJob.from_bytes(b"\xef\xbb\xbf" + json.dumps(SMALLEST).encode()) == read()


def test_all_bad_fields_are_named_at_once() -> None:
    with pytest.raises(MalformedError, match=r"email: is required; otp: must be a string"):
        OtpJob.from_bytes(b'{"otp": 1}')


def test_a_body_beyond_the_limit_is_not_even_read() -> None:
    with pytest.raises(MalformedError, match=f"body: {MAX_BODY_BYTES + 1} bytes, at most {MAX_BODY_BYTES}"):
        OtpJob.from_bytes(b" " * (MAX_BODY_BYTES + 1))


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_are_a_job_or_malformed(body: bytes) -> None:
    with contextlib.suppress(MalformedError):
        OtpJob.from_bytes(body)


@given(st.text(min_size=1, max_size=80), st.text(min_size=1, max_size=80))
def test_no_error_quotes_what_it_was_given(email: str, otp: str) -> None:
    secret = f"SECRET{otp}"
    body = {"email": email, "otp": [secret], "priority": secret, "metadata": secret}
    with pytest.raises(MalformedError) as caught:
        OtpJob.from_bytes(json.dumps(body).encode())
    assert "SECRET" not in str(caught.value)
    assert "SECRET99" not in repr(read(otp="SECRET99"))


@pytest.mark.parametrize(
    ("timestamp", "made", "ahead"),
    [(None, SEEN, 0), (SEEN - 5000, SEEN - 5000, 0), (SEEN + 60_000, SEEN, 60_000), (0, 0, 0)],
    ids=["absent", "past", "future", "epoch"],
)
def test_a_producers_clock_counts_only_up_to_the_first_sight(timestamp: int | None, made: int, ahead: int) -> None:
    job = carry(
        read(timestamp=timestamp, metadata={"expiryMinutes": 2}),
        job_id="j", lane="jobs", first_seen_ms=SEEN, attempts_made=0, default_expiry_minutes=15,
    )  # fmt: skip
    assert (job.made_ms, job.expires_ms, job.clock_ahead_ms) == (made, made + 120_000, ahead)


def test_ranks_put_the_high_lane_before_every_priority() -> None:
    assert [rank("high", "low"), rank("jobs", "high"), rank("due", "normal"), rank("jobs", "low")] == [0, 1, 2, 3]
