"""Erased dead letters: no form of the code is left, and what operators need is."""

import json
from typing import Any

import pytest

from otp_stream.core.dead_letter import outline
from otp_stream.core.erasure import body_outline, erased_job, has_no_code, read_outline, without_code
from otp_stream.core.possible_secrets import PossibleSecrets, readable_job_id

CODE = "493817"
JOB: dict[str, Any] = {"email": "ada@example.com", "otp": CODE, "jobId": "j-1", "timestamp": 1_700_000_000_000}


def erased(**fields: Any) -> dict[str, Any]:
    return json.loads(without_code(json.dumps(JOB | fields).encode(), CODE))


def test_only_the_code_is_removed_from_a_job() -> None:
    metadata = {"userName": "Ada", "template": "login", "locale": "de"}
    assert erased(metadata=metadata, extra=[1, None, True]) == {
        "email": "ada@example.com", "jobId": "j-1", "timestamp": 1_700_000_000_000, "metadata": metadata,
        "extra": [1, None, True],
    }  # fmt: skip


@pytest.mark.parametrize(
    "copy",
    [
        {"metadata": {"code": CODE, "userName": "Ada"}},
        {"metadata": {"code": int(CODE), "userName": "Ada"}},
        {"metadata": {"link": f"https://example.com/?c={CODE}", "userName": "Ada"}},
        {"metadata": {"text": "4-9-3 8 1 7", "userName": "Ada"}},
        {"metadata": {"text": "%34%39%33%38%31%37", "userName": "Ada"}},
        {"metadata": {"text": "NDkzODE3", "userName": "Ada"}},
        {"metadata": {"a": {"b": {"c": [["x", {"d": CODE}]]}}, "userName": "Ada"}},
        {"metadata": {CODE: "key", "userName": "Ada"}},
        {"metadata": {"userName": "Ada"}, "list": ["a", CODE]},
        {"metadata": {"userName": "Ada"}, "otpSealed": "eyJhbGciOiJkaXIifQ..x.y.z"},
        {"metadata": {"userName": "Ada"}, "jobId": f"login-{CODE}"},
    ],
)
def test_every_other_copy_of_the_code_is_removed_too(copy: dict[str, Any]) -> None:
    left = erased(**copy)
    text = json.dumps(left)
    assert not any(it in text for it in (CODE, "4-9-3", "%34", "NDkz", "eyJ"))
    assert left["email"] == "ada@example.com"
    assert left["metadata"]["userName"] == "Ada"


def test_the_recipient_stays_even_if_the_address_contains_the_code() -> None:
    assert erased(email=f"u{CODE}@example.com")["email"] == f"u{CODE}@example.com"


def test_a_code_that_is_spread_over_several_values_leaves_only_the_recipient() -> None:
    left = erased(metadata={"a": "493", "b": "817"})
    assert "817" not in json.dumps(left) or "493" not in json.dumps(left) or left.keys() == {"email"}


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"email": "a@b.example", "otp": "493817"}',
        b'{"email": "a@b.example",\n "otp": "493817", "x": "\n\\q"}',
    ],
)
def test_a_body_that_is_read_leniently_is_erased_too(body: bytes) -> None:
    left = without_code(body, CODE)
    assert CODE.encode() not in left
    assert (job := erased_job(left)) is not None
    assert (job.email, job.otp) == ("a@b.example", "")


def test_a_repeated_field_leaves_no_code() -> None:
    assert without_code(b'{"email":"a@b.example","otp":"111111","otp":"493817"}', CODE) == b'{"email":"a@b.example"}'


@pytest.mark.parametrize("extra", [{"x": [0] * 5_000}, {"x": [0] * 100}, {"x": "=31" * 2_000}])
def test_a_job_that_is_too_large_to_be_searched_keeps_only_its_known_fields(extra: dict[str, Any]) -> None:
    metadata = {"userName": "Ada", "template": "login", "purpose": "p" * 201, "locale": CODE, "request": {"place": "B"}}
    left = erased(metadata=metadata | {"text": f"code {CODE}"} | extra, priority="high", more=1)
    assert left == {
        "email": "ada@example.com", "jobId": "j-1", "timestamp": 1_700_000_000_000, "priority": "high",
        "metadata": {"userName": "Ada", "template": "login"},
    }  # fmt: skip


def test_a_large_body_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(PossibleSecrets, "of")
    body = json.dumps({"jobId": "j-1", "x": "\ufdfa" * 3_000}).encode()
    assert read_outline(body_outline(body)) == "too large to show"
    assert readable_job_id(body) is None


def test_an_erased_job_keeps_its_recipient_template_and_lifetime() -> None:
    job = erased_job(
        without_code(json.dumps(JOB | {"metadata": {"template": "login", "expiryMinutes": 5}}).encode(), CODE)
    )
    assert job is not None
    assert (job.email, job.job_id, job.shown_template, job.metadata.expiry_minutes) == (
        "ada@example.com",
        "j-1",
        "login",
        5,
    )


def test_of_a_job_whose_code_is_not_known_the_recipient_and_what_can_be_no_code_stays() -> None:
    metadata = {"userName": CODE, "template": "login", "expiryMinutes": 5, "link": f"https://example.com/?c={CODE}"}
    body = json.dumps({**JOB, "otp": None, "otpSealed": "eyJ", "metadata": metadata, "note": f"code {CODE}"}).encode()
    left = without_code(body, "")
    assert CODE.encode() not in left
    job = erased_job(left)
    assert job is not None
    shown = (job.email, job.job_id, job.shown_template, job.metadata.expiry_minutes, job.timestamp)
    assert shown == ("ada@example.com", "j-1", "login", 5, 1_700_000_000_000)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"no json", b"[7]", b'"493817"', b"{}", b"eyJhbGciOiJkaXIifQ",
        b'{"to": "ada@example.com", "code": "493817"}',
        b'{"jobId": "j-1", "otp": 493817, "timestamp": "x", "a": {"b": {"c": {"d": 1}}, "e@f": 2, "g@h": [3]}}',
        b'{"x": "%b"}' % (b"1" * 5_000), b'{"x": [%b1]}' % (b"1," * 1_500),
    ],
)  # fmt: skip
def test_what_was_erased_is_not_erased_again_and_what_was_not_is(body: bytes) -> None:
    assert not has_no_code(body)
    assert has_no_code(body_outline(body))
    assert has_no_code(body_outline(body, 3_000_000))
    assert not has_no_code(json.dumps({"originalSize": 7, "content": {"x": f"code {CODE}"}}).encode())
    assert not has_no_code(json.dumps({"originalSize": 7, "content": f"code {CODE}"}).encode())
    assert has_no_code(without_code(json.dumps(JOB).encode(), ""))
    assert not has_no_code(json.dumps(JOB | {"otp": None, "note": CODE}).encode())


def test_a_number_with_thousands_of_digits_costs_no_recipient() -> None:
    body = b'{"email": "ada@example.com", "otp": "493817", "x": %b}' % (b"9" * 5_000)
    assert json.loads(without_code(body, CODE)) == {"email": "ada@example.com"}


@pytest.mark.parametrize(
    "body", [b"", b"no json", b"[1]", b"7", b"null", b"\xff", b"[" * 5_000, b'{"to": "a@b.example"}']
)
def test_a_body_that_is_no_job_is_not_read_as_an_erased_one(body: bytes) -> None:
    assert erased_job(body) is None
    assert erased_job(body_outline(body)) is None


def test_of_a_malformed_body_the_structure_is_left_without_values() -> None:
    body = json.dumps({"to": "ada@example.com", "code": CODE, "metadata": {"userName": "Ada"}, "n": 493817}).encode()
    stub = body_outline(body)
    assert json.loads(stub)["originalSize"] == len(body)
    assert read_outline(stub) == outline(body)
    assert not any(it in stub for it in (CODE.encode(), b"ada@", b"Ada"))


@pytest.mark.parametrize("field", ["email", "jobId", "priority", "template", "locale", "purpose", "timestamp", "x"])
@pytest.mark.parametrize("text", [r"\ud800a@example.com", r"\udc00\ud800", r"a\u0000b", r"\u2028"])
def test_an_outline_contains_only_what_can_be_encoded_and_printed(field: str, text: str) -> None:
    stub = body_outline(b'{"%b": "%b", "\\ud800": 1}' % (field.encode(), text.encode()))
    assert stub.decode().isprintable()
    assert isinstance(read_outline(stub), dict)


def test_of_a_body_that_was_too_large_the_size_is_left() -> None:
    assert json.loads(body_outline(b"", 3_000_000)) == {"originalSize": 3_000_000, "content": "too large to keep"}
