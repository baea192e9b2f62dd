"""Metadata with so many values that a prefetch window of such jobs would fill the memory."""

import json
from typing import Any

import pytest

from otp_stream.core.lenient import Lenience
from otp_stream.core.metadata import MAX_VALUES
from otp_stream.core.otp_job import MalformedError, OtpJob

MANY = [{"": {}}] * 6_000
REQUEST = {"place": "Berlin", "device": "Firefox"}


def body(metadata: dict[str, Any], **fields: Any) -> bytes:
    job = {"email": "ada@example.com", "otp": "493817", "metadata": metadata} | fields
    return json.dumps(job, separators=(",", ":")).encode()


def extra(job: OtpJob) -> dict[str, Any]:
    return job.metadata.__pydantic_extra__ or {}


def test_a_job_with_too_many_values_is_read_without_those_that_are_too_many() -> None:
    job = OtpJob.from_bytes(
        body({"a": 1, "userName": "Ada", "locale": "de", "x": MANY, "timeZone": "Europe/Berlin", "z": [2]})
    )
    assert (job.email, job.otp, job.metadata.user_name, job.metadata.locale) == (
        "ada@example.com", "493817", "Ada", "de",
    )  # fmt: skip
    assert job.metadata.time_zone == "Europe/Berlin"
    assert extra(job) == {"a": 1, "z": [2]}
    assert job.lenient == (Lenience("metadata", "ignored"),)
    assert job.metadata.model_fields_set == {"user_name", "locale", "time_zone"}


def test_a_request_with_too_many_values_keeps_what_the_e_mails_show() -> None:
    job = OtpJob.from_bytes(body({"request": REQUEST | {"x": MANY}, "tenant": MANY[:10]}))
    assert (job.metadata.request, job.metadata.tenant) == (REQUEST, MANY[:10])
    job = OtpJob.from_bytes(body({"request": REQUEST, "tenant": MANY}))
    assert (job.metadata.request, job.metadata.tenant) == (REQUEST, None)


@pytest.mark.parametrize("number", range(MAX_VALUES - 7, MAX_VALUES + 1))
def test_a_request_of_any_size_costs_no_job_its_tenant(number: int) -> None:
    job = OtpJob.from_bytes(body({"request": {"x": [1000] * number}, "tenant": "shop-17"}))
    assert job.metadata.tenant == "shop-17"


@pytest.mark.parametrize("fields", [{}, {"timestamp": "1672531200000"}], ids=["as documented", "leniently"])
@pytest.mark.parametrize("name", ["cls", "self", "_fields_set", "key"])
def test_of_very_many_keys_the_first_are_kept(name: str, fields: dict[str, Any]) -> None:
    job = OtpJob.from_bytes(body({name: 0} | {f"k{number}": 0 for number in range(5_000)}, **fields))
    assert len(extra(job)) == MAX_VALUES // 2
    assert list(extra(job))[:2] == [name, "k0"]
    assert Lenience("metadata", "ignored") in job.lenient


def test_texts_count_as_one_value_however_long_they_are() -> None:
    metadata = {"text": "," * 50_000, "list": list(range(MAX_VALUES - 5))}
    job = OtpJob.from_bytes(body(metadata))
    assert (extra(job), job.lenient) == (metadata, ())


def test_to_a_person_who_types_metadata_too_many_values_are_reported() -> None:
    with pytest.raises(MalformedError, match="metadata: must have at most 1000 values"):
        OtpJob.from_bytes(body({"x": MANY}), strict=True)
