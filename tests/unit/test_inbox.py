"""The inbox of the demo shows what any program sends to it."""

import email
import email.policy
from datetime import UTC, datetime

import pytest

from otp_stream.embedded.inbox import Received


@pytest.mark.parametrize("encoding", ["8bit", "quoted-printable"])
@pytest.mark.parametrize("charset", ["x-unknown", "klingon\\", '"a b"'])
def test_a_mail_with_an_unknown_charset_is_shown_with_replacement_characters(charset: str, encoding: str) -> None:
    text = "caf\xe9 123456" if encoding == "8bit" else "caf=E9 123456"
    content = f"Content-Type: text/plain; charset={charset}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n{text}\r\n"
    message = email.message_from_bytes(content.encode("latin-1"), policy=email.policy.default)
    received = Received(1, "user@example.com", datetime.now(UTC), message)
    assert received.part("plain").strip() == "caf\ufffd 123456"
    assert received.part("html") == ""
