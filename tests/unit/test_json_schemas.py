"""The published JSON Schemas: they agree with the worker, and version 1 stays compatible."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from otp_stream.core.address import ADDRESS_PATTERN
from otp_stream.core.code import CODE_PATTERN
from otp_stream.core.json_schemas import published
from otp_stream.core.otp_job import KeyMissingError, MalformedError, OtpJob

ROOT = Path(__file__).parents[2]
DOCUMENT: dict[str, Any] = json.loads((ROOT / "asyncapi/otp-stream.json").read_text())
SCHEMAS = {name: Draft202012Validator(schema) for name, schema in published().items()}
JOB = SCHEMAS["job-1"]
SMALLEST = {"email": "user@example.com", "otp": "123456"}
VECTORS: list[dict[str, Any]] = json.loads((ROOT / "docs/sealing-vectors.json").read_text())["valid"]


def read(job: object) -> OtpJob:
    return OtpJob.from_bytes(json.dumps(job).encode())


def examples(message: str) -> list[Any]:
    return [it["payload"] for it in DOCUMENT["components"]["messages"][message].get("examples", [])]


def nodes(node: Any) -> list[Any]:
    inner = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    return [node, *(found for it in inner for found in nodes(it))]


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_published_schema_is_valid_and_names_no_host(name: str) -> None:
    schema = published()[name]
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"urn:otp-stream:schema:{name.replace('-', ':')}"
    for reference in re.findall(r'"\$ref": "(.*?)"', json.dumps(schema)):
        assert reference.removeprefix("#/$defs/") in schema["$defs"]


def test_every_example_of_the_document_is_valid() -> None:
    messages = DOCUMENT["components"]["messages"]
    for name, message in messages.items():
        if name != "malformedDeadLetter":
            schema = {"$ref": message["payload"]["$ref"], "components": DOCUMENT["components"]}
            assert examples(name), name
            for example in examples(name):
                Draft202012Validator(schema).validate(example)
    for event in examples("jobEvent"):
        SCHEMAS["event-1"].validate(event)
    for job in examples("otpJob"):
        JOB.validate(job)


def test_no_schema_of_the_document_hinders_a_generator() -> None:
    for node in nodes(DOCUMENT["components"]):
        if isinstance(node, dict):
            assert not node.keys() & {"anyOf", "oneOf", "allOf"}, node
            assert node.get("default", "") is not None, node
    for schema in DOCUMENT["components"]["schemas"].values():
        assert "title" not in nodes(schema)[0]
        assert all("title" not in it for it in schema.get("properties", {}).values())
        for name, field in schema.get("properties", {}).items():
            assert "$ref" in field or field["type"] in {"string", "integer", "number"}, name
            if re.search("milliseconds|With `retrying`: the wait", field.get("description", "")):
                assert field["format"] == "int64", name


def test_the_yaml_document_has_no_anchors() -> None:
    assert not re.search(r"[:-] [&*]id\d", (ROOT / "asyncapi/otp-stream.yaml").read_text())


VALID: list[Any] = [
    {"otp": "  123456 "}, {"otp": "a-b_c!"}, {"otp": "12345678" * 8}, {"otp": "пароль"},
    {"email": " user@example.com\n"}, {"email": "foo.@docomo.ne.jp"}, {"email": "Ü@EXAMPLE.com."},
    {"email": "user@bücher.example"}, {"timestamp": 1672531200000}, {"retryCount": 1000}, {"jobId": "x" * 200},
    {"priority": "low"}, {"metadata": {}}, {"unknown": {"a": [1]}},
    {"metadata": {"expiryMinutes": 0.5, "locale": "de-AT", "timeZone": "Europe/Berlin", "template": "welcome"}},
    {"metadata": {"userName": "", "purpose": "login", "tenant": "shop-17", "own": [1, {"a": None}]}},
    {"metadata": {"request": {"place": "Berlin", "device": "x" * 200, "own": 1}}},
]  # fmt: skip


@pytest.mark.parametrize("fields", VALID, ids=str)
def test_what_the_schema_accepts_is_accepted_with_nothing_ignored(fields: dict[str, Any]) -> None:
    job = SMALLEST | fields
    JOB.validate(job)
    assert read(job).lenient == ()


MALFORMED: list[Any] = [
    {}, [], "text", None, {"email": "user@example.com"}, {"otp": "123456"},
    *({**SMALLEST, "otp": it} for it in (123456, "123", "1" * 65, "12 456", "123\n456", "", None, ["123456"], True)),
    *({**SMALLEST, "otp": it} for it in ("1234\ufffd6", "12\u200b3456", "12\x7f3456", "12\xa03456", "12\x003456")),
    *({**SMALLEST, "email": it} for it in (
        "user", "user@", "@example.com", "a@b@c.de", "a b@c.de", "a@b.de,c@d.de", "<a@b.de>", "a\r\n@b.de", "", None, 1,
        "a\u202e@b.de", "a\ufffd@b.de", "x" * 65 + "@b.de", "a@" + "b" * 253, "a@.", "a@...", 'a"@b.de', "a@b\\.de",
        "a\u037eb@c.de",
    )),
    *({"email": "user@example.com", "otpSealed": it} for it in (1, "", "abc", "a.b.c.d.e", "a..b..d", None)),
]  # fmt: skip


@pytest.mark.parametrize("body", MALFORMED, ids=lambda it: ascii(it)[:70])
def test_what_the_worker_refuses_as_malformed_is_refused_by_the_schema(body: object) -> None:
    assert not JOB.is_valid(body)
    with pytest.raises(MalformedError):
        read(body)


LENIENT: list[Any] = [
    {"retryCount": "1"}, {"retryCount": -1}, {"retryCount": 1001}, {"jobId": 7}, {"jobId": "x" * 201},
    {"jobId": "a\nb"}, {"timestamp": 1672531200}, {"timestamp": "1672531200000"}, {"timestamp": 1e16},
    {"timestamp": -1}, {"priority": "HIGH"}, {"priority": 1}, {"metadata": []}, {"metadata": "text"},
    *({"metadata": it} for it in (
        {"expiryMinutes": "15"}, {"expiryMinutes": 0}, {"expiryMinutes": 525601}, {"locale": "German!"},
        {"template": "a b"}, {"timeZone": "x y"}, {"request": "Berlin"}, {"request": {"place": 1}},
        {"request": {"device": "x" * 201}}, {"userName": 7}, {"purpose": ["login"]},
    )),
]  # fmt: skip


@pytest.mark.parametrize("fields", LENIENT, ids=lambda it: ascii(it)[:70])
def test_what_the_worker_coerces_or_ignores_is_not_valid_by_the_schema(fields: dict[str, Any]) -> None:
    job = SMALLEST | fields
    assert read(job).lenient
    assert not JOB.is_valid(job)


@given(
    email=st.from_regex(ADDRESS_PATTERN, alphabet=st.characters(codec="ascii")),
    otp=st.from_regex(CODE_PATTERN, alphabet=st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"])),
)
def test_any_address_and_code_that_the_schema_accepts_are_accepted(email: str, otp: str) -> None:
    job = {"email": email, "otp": otp}
    if JOB.is_valid(job):
        read(job)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda it: it["about"])
def test_the_schema_accepts_sealed_codes(vector: dict[str, Any]) -> None:
    job = {"email": "user@example.com", "otpSealed": vector["otpSealed"]}
    JOB.validate(job)
    with pytest.raises(KeyMissingError):
        read(job)


def test_version_1_stays_as_it_was_published() -> None:
    """A field may be added. To remove or require one, or to change its type, publish version 2."""
    job, event = published()["job-1"], published()["event-1"]
    assert job["required"] == ["email"]
    assert (job["if"], job["then"]) == ({"not": {"required": ["otpSealed"]}}, {"required": ["otp"]})
    assert set(event["required"]) >= {"outcome", "jobId", "attempt", "at"}
    integers = {"attempt", "at", "delayMs", "retryAt", "replyCode", "allowedAt"}
    texts = {"jobId", "recipient", "template", "tenant", "relay", "switchedFrom", "error"}
    types = {name: it.get("type") for name, it in event["properties"].items()}
    assert types.items() >= (dict.fromkeys(integers, "integer") | dict.fromkeys(texts, "string")).items()
    assert set(event["$defs"]["Outcome"]["enum"]) >= {
        "sent", "duplicate", "superseded", "malformed", "key_missing", "expired", "rejected", "retries_exhausted",
        "throttled", "crashed", "retrying",
    }  # fmt: skip
