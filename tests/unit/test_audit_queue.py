"""The fields of a log line from an audit record, which anyone who may publish to its queue can write."""

import json
from typing import Any

import pytest

from otp_stream.broker.audit_queue import _MARK, AuditCollector
from otp_stream.broker.headers import sign

KEY = b"k" * 32


def fields(body: bytes, *, key: bytes | None = None) -> dict[str, Any]:
    headers: dict[str, Any] = {_MARK: "1"}
    if key is not None:
        sign(headers, body, key)
    return AuditCollector("otp.audit", [KEY]).fields(body, headers, "ada")


@pytest.mark.parametrize("name", ["\uff56erified", "Verified", "verified_", "role", "user", "event", "message"])
def test_an_unverified_record_has_no_field_that_could_mislead(name: str) -> None:
    body = json.dumps({"action": "dead.drop", name: True, "verified": True, "rabbitmq_user": "guest"}).encode()
    unverified = {"action": "dead.drop", "verified": False, "rabbitmq_user": "ada"}
    assert fields(body) == fields(body, key=b"o" * 32) == unverified


def test_a_verified_record_keeps_the_fields_of_a_later_version() -> None:
    body = json.dumps({"action": "dead.drop", "later": 1, "\uff56erified": False}).encode()
    assert fields(body, key=KEY) == {"action": "dead.drop", "later": 1, "verified": True, "rabbitmq_user": "ada"}


@pytest.mark.parametrize("key", [KEY, None])
@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"9" * 400, b"[1e999]", b'{"a": -1e999}'])
def test_a_number_that_json_cannot_have_is_a_text(number: bytes, key: bytes | None) -> None:
    found = fields(b'{"count": %s}' % number, key=key)
    assert isinstance(found["count"], str)
    json.dumps(found, allow_nan=False)


def test_usual_values_are_unchanged() -> None:
    body = json.dumps({"count": 9, "at": None, "raw": True, "fresh": 0.5, "target": "all"}).encode()
    values = {"count": 9, "at": None, "raw": True, "fresh": 0.5, "target": "all"}
    assert fields(body) == values | {"verified": False, "rabbitmq_user": "ada"}
