"""Workers log the records of commands, and few of those that no command has signed."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from otp_stream.broker.audit_queue import AuditCollector
from otp_stream.broker.headers import sign

KEY = b"k" * 32


def record(action: str, *, signed: bool) -> Any:
    body, headers = json.dumps({"action": action}).encode(), dict[str, Any]({"x-otp-audit": "1"})
    if signed:
        sign(headers, body, KEY)
    return SimpleNamespace(body=body, headers=headers, user_id=None, ack_now=lambda: None)


def test_a_flood_of_unverified_records_is_counted_and_hides_no_verified_one(capsys: pytest.CaptureFixture[str]) -> None:
    it = AuditCollector("otp.audit", [KEY])
    for _ in range(200):
        it._handle(record("forged", signed=False))  # pyright: ignore[reportPrivateUsage]
        it._handle(record("forget", signed=True))  # pyright: ignore[reportPrivateUsage]
    logged = capsys.readouterr().out
    assert logged.count("action=forged") == 50
    assert logged.count("action=forget") == 200
    assert it._unverified.take_left_out() == 150  # pyright: ignore[reportPrivateUsage]
