"""What may be shown of a person and a code."""

import json

import pytest

from otp_stream.broker.arrival import said_job_id
from otp_stream.core.letter import outline
from otp_stream.core.masking import hidden, mask_address, scrub, suspects, tells


@pytest.mark.parametrize(
    ("address", "shown"), [("user@example.com", "u***@example.com"), ("@x", "***@x"), ("nobody", "***"), ("", "***")]
)
def test_an_address_is_masked(address: str, shown: str) -> None:
    assert mask_address(address) == shown


def test_secrets_are_blotted_out_and_lines_joined() -> None:
    assert scrub("550 <u@x.y>\r\n 123456", "u@x.y", "123456", "") == "550 <***> ***"
    assert len(scrub("x" * 1000)) == 300


def test_no_terminal_obeys_what_a_relay_says() -> None:
    assert scrub("550 \x1b[2J\x9b31mgone\x00 \u202etxt") == "550 \ufffd[2J\ufffd31mgone\ufffd \ufffdtxt"


def test_a_hidden_name_is_equal_for_equal_names_and_nothing_stays_nothing() -> None:
    assert hidden("123456", b"k") == hidden("123456", b"k") != hidden("123456", b"other")
    assert "123456" not in hidden("123456", b"k")
    assert hidden("", b"k") == ""
    assert len(hidden("\ud800", b"k")) == 32


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("login-user@example.com-7", True),
        ("LOGIN-USER@EXAMPLE.COM", True),
        ("otp:123456", True),
        ("123456", True),
        ("9123456", False),  # by chance, within a longer number
        ("otp123456", True),
        ("a123456b", True),
        ("a1b2c3", False),
    ],
)
def test_an_id_that_tells_a_secret_is_seen(text: str, *, told: bool) -> None:
    assert tells(text, "user@example.com", "123456") is told


@pytest.mark.parametrize(
    ("body", "job_id", "shown"),
    [
        ({"email": "nobody", "otp": 123456}, "login-17", True),
        ({"email": "nobody", "otp": 123456}, "login-123456", False),
        ({"email": "nobody", "otp": " abcdef "}, "x-abcdef", False),
        ({"to": "grace@x.example", "code": "482913"}, "otp:482913", False),
        ({"to": "grace@x.example"}, "grace%40x.example", False),
        ({"otp": ["482913"]}, "l-482913", False),
        ({"otp": {"value": [["482913"]]}}, "l-482913", False),
        ({"otp": "482913 482913"}, "l-482913", False),
        ({"timestamp": 1672531200000, "otp": 5}, "login-1672531200000", True),
        ({"metadata": {"purpose": "login"}}, "login-4711", True),
        ({}, "somebody@x.example", False),
    ],
)
def test_an_id_of_what_is_no_job_is_shown_only_where_it_can_tell_nothing(
    body: dict[str, object], job_id: str, *, shown: bool
) -> None:
    said = said_job_id(json.dumps(body | {"jobId": job_id}).encode())
    assert said == (job_id if shown else None)


def test_a_body_that_is_nested_without_end_is_looked_at_all_the_same() -> None:
    deep: object = "482913"
    for _ in range(5000):
        deep = [deep]
    assert list(suspects({"a": deep, "priority": "12345"}, apart={"priority"})) == ["482913"]
    assert outline(b'{"jobId":' + b"[" * 900 + b"]" * 900 + b"}") is not None


def test_an_address_is_found_in_an_id_that_was_written_for_a_url() -> None:
    assert tells("user%40example.com-1", "user@example.com", "")
