"""What may be shown of a person and a code."""

import pytest

from otp_stream.core.masking import hidden, mask_address, scrub, tells


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
