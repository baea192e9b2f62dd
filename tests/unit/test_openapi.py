"""The OpenAPI document of the intake agrees with itself, and with what the intake reads."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from starlette.requests import Request

from otp_stream.intake import openapi
from otp_stream.intake.problem import ProblemError
from otp_stream.intake.requests import idempotency_key

DOCUMENT = openapi("1.0")
(KEY,) = DOCUMENT["paths"]["/v1/jobs"]["post"]["parameters"]


def nodes(it: Any) -> Iterator[dict[str, Any]]:
    """Yield each object in the document."""
    if isinstance(it, dict):
        yield it
    for child in it.values() if isinstance(it, dict) else it if isinstance(it, list) else ():
        yield from nodes(child)


def test_each_example_matches_its_schema() -> None:
    examples = [(it["example"], it["schema"]) for it in nodes(DOCUMENT) if {"example", "schema"} <= it.keys()]
    schemas = DOCUMENT["components"]["schemas"]
    examples += [(example, it) for it in schemas.values() for example in it.get("examples", ())]
    assert len(examples) >= 2
    for example, schema in examples:
        Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(example)


def test_each_reference_has_a_target() -> None:
    for it in nodes(DOCUMENT):
        if isinstance(reference := it.get("$ref"), str):
            target = DOCUMENT
            for name in reference.removeprefix("#/").split("/"):
                target = target[name]


def read(key: str) -> str | None:
    return idempotency_key(Request({"type": "http", "headers": [(b"idempotency-key", key.encode("latin-1"))]}))


@given(st.from_regex(re.compile(KEY["schema"]["pattern"], re.ASCII), fullmatch=True).filter(lambda it: len(it) <= 255))
def test_each_key_of_the_documented_form_is_read(key: str) -> None:
    assert read(key)


@pytest.mark.parametrize("key", ["", '""', "\u00e9", "a\tb", "k" * 256])
def test_a_key_that_is_refused_is_not_of_the_documented_form(key: str) -> None:
    schema = KEY["schema"]
    assert list(Draft202012Validator(schema).iter_errors(key))
    with pytest.raises(ProblemError, match="idempotency-key: "):
        read(key)
