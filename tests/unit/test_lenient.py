"""How JSON with mistakes is read, at the limits."""

import json
import math
from typing import Any

import pytest

from otp_stream.core.lenient import read_leniently, unreadable
from otp_stream.core.lenient_json import BOM, loads

OBJECT = b'{"a": '


def levels(value: Any) -> int:
    """Return how deep lists are nested in the first item of each."""
    depth = 0
    while isinstance(value, list):
        depth += 1
        value = value[0] if value else None
    return depth


@pytest.mark.parametrize(("nested", "read"), [(1, 1), (199, 199), (200, 200), (201, 200), (5_000, 200)])
def test_200_levels_of_nesting_are_read(nested: int, read: int) -> None:
    assert levels(loads(b"[" * nested + b"7" + b"]" * nested)) == read
    assert levels(loads(OBJECT + b"[" * (nested - 1) + b"7" + b"]" * (nested - 1) + b"}")["a"]) == read - 1


def test_what_is_beside_deep_nesting_is_read_as_it_is() -> None:
    deep = b"[" * 201 + b"1" + b"]" * 201
    found = loads(b'{"before": [1, "]["], "deep": [%b, "a\\\\", %b], "after": {"b": "{\xc3\xa9"}}' % (deep, deep))
    assert (found["before"], found["after"]) == ([1, "]["], {"b": "{\u00e9"})
    first, between, last = found["deep"]
    assert (levels(first), between, levels(last)) == (198, "a\\", 198)


@pytest.mark.parametrize("body", [b"[" * 201, b"[" * 250 + b"]" * 49, b"[" * 250 + b"]" * 251, b"]" * 300])
def test_brackets_without_a_partner_are_no_json(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"line 1|Extra data"):
        loads(body)


@pytest.mark.parametrize("before", [b"", b" \n", BOM, BOM + b" "])
def test_a_body_that_is_no_object_is_named_whatever_precedes_it(before: bytes) -> None:
    assert unreadable(before) == "is empty"
    assert unreadable(before + b"[1]") == "is a list: publish one message for each job, a JSON object"
    assert unreadable(before + b"{}") is None


@pytest.mark.parametrize(("digits", "read"), [(300, 10**299), (301, math.inf), (5_000, math.inf)])
def test_a_number_of_more_than_300_digits_is_infinite(digits: int, read: float) -> None:
    assert read_leniently(b'{"n": 1%b}' % (b"0" * (digits - 1))).fields == {"n": read}


@pytest.mark.parametrize(
    ("field", "value", "read"),
    [
        ("userName", ["x"] * 21, " ".join("x" * 20)),
        ("userName", {"a": "Ann", "b": None, "c": 7, "d": ["no"], "e": {"no": 1}}, "Ann 7"),
        ("userName", [], None),
        ("expiryMinutes", "525600", 525_600),
        ("expiryMinutes", "525601", None),
        ("expiryMinutes", "0.5", 0.5),
        ("expiryMinutes", "0", None),
        ("locale", " de-AT!", "de-AT"),
        ("timeZone", " Europe/Berlin ", "Europe/Berlin"),
        ("timeZone", ["UTC"], None),
        ("request", {"place": ["Berlin", "Germany"], "device": True, "x": 1},
            {"place": "Berlin Germany", "device": None, "x": 1}),
        ("request", {"place": "x" * 201}, {"place": "x" * 200}),
        ("request", "Berlin", None),
    ],
)  # fmt: skip
def test_metadata_is_coerced_to_what_the_templates_expect(field: str, value: object, read: object) -> None:
    job = read_leniently(json.dumps({"metadata": {field: value}}).encode())
    assert job.fields["metadata"] == {field: read}
    assert [tuple(it) for it in job.found] == [(f"metadata.{field}", "ignored" if read is None else "coerced")]


def test_a_field_is_read_under_the_name_that_has_a_value() -> None:
    body: dict[str, Any] = {"retryCount": "", "retry_count": "2", "jobId": "a", "job_id": "b", "priority": None}
    job = read_leniently(json.dumps(body).encode())
    assert job.fields == {"retry_count": 2, "jobId": "a", "job_id": "b", "priority": None}
    assert [tuple(it) for it in job.found] == [("retryCount", "coerced")]
    empty = read_leniently(b'{"retryCount": null, "retry_count": "", "jobId": 1672531200}')
    assert [tuple(it) for it in empty.found] == [("jobId", "coerced")]


def test_original_values_are_kept_for_the_templates_of_the_producer() -> None:
    metadata = {"timeZone": 2, "request": "mine", "locale": 7, "userName": "Ann"}
    job = read_leniently(json.dumps({"metadata": metadata}).encode())
    assert job.original_metadata == {"timeZone": 2, "request": "mine"}
    assert read_leniently(b'{"metadata": {"timeZone": "UTC"}}').original_metadata == {}
