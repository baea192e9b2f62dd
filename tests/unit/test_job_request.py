"""When and where a code was requested: `metadata.timeZone` and `metadata.request`, also of another form."""

import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mails import identity

from otp_stream.core.dead_letter import outline
from otp_stream.core.job import Job
from otp_stream.core.metadata import Metadata
from otp_stream.core.otp_job import MalformedError, OtpJob
from otp_stream.mail.language import Language
from otp_stream.mail.sanitized import TEXT_LIMIT, safe_text
from otp_stream.mail.template_data import template_data

SMALLEST = {"email": "user@example.com", "otp": "123456"}
REQUEST = {"place": "Berlin, Germany", "device": "Firefox on Windows"}


def body(metadata: dict[str, Any]) -> bytes:
    return json.dumps(SMALLEST | {"metadata": metadata}).encode()


def read(**metadata: Any) -> OtpJob:
    return OtpJob.from_bytes(body(metadata))


def noted(job: OtpJob) -> dict[str, str]:
    return dict(job.lenient)


def given_to_template(request: OtpJob) -> dict[str, Any]:
    job = Job.from_request(
        request, job_id="j", lane="jobs", first_seen_ms=1, attempts_made=0, default_expiry_minutes=15
    )
    return template_data(job, Language("en"), identity())


def test_a_job_as_documented_needs_no_lenience() -> None:
    job = read(timeZone="America/Argentina/Buenos_Aires", request=REQUEST | {"ip": "192.0.2.1"})
    assert job.lenient == ()
    assert job.metadata.time_zone == "America/Argentina/Buenos_Aires"
    assert job.metadata.request == REQUEST | {"ip": "192.0.2.1"}
    assert OtpJob.from_bytes(body({"request": REQUEST, "timeZone": "UTC"}), strict=True).metadata.request == REQUEST


@pytest.mark.parametrize("empty", [None, ""])
def test_an_empty_value_counts_as_absent(empty: object) -> None:
    job = read(timeZone=empty, request=empty)
    assert (job.metadata.time_zone, job.metadata.request, job.lenient) == (None, None, ())
    job = read(request={"place": empty, "device": empty})
    assert (job.metadata.request, job.lenient) == ({"place": empty, "device": empty}, ())


@pytest.mark.parametrize(
    ("written", "meant", "what"),
    [
        (" Europe/Berlin\n", "Europe/Berlin", "coerced"),
        ("Etc/GMT+5", "Etc/GMT+5", None),
        ("Mars/Phobos", "Mars/Phobos", None),
        ("+02:00", None, "ignored"),
        ("W. Europe Standard Time", None, "ignored"),
        ("../../etc/passwd", None, "ignored"),
        ("/etc/localtime", None, "ignored"),
        ("Europe/Berlin\r\nBcc: x", None, "ignored"),
        ("x" * 10_000, None, "ignored"),
        (120, None, "ignored"),
        (["UTC"], None, "ignored"),
        ({"name": "UTC", "deep": [[{}]]}, None, "ignored"),
        (False, None, "ignored"),
    ],
)
def test_an_invalid_time_zone_is_ignored(written: object, meant: str | None, what: str | None) -> None:
    for name in ("timeZone", "time_zone"):
        job = read(**{name: written})
        assert job.metadata.time_zone == meant
        assert noted(job) == ({"metadata.timeZone": what} if what else {})
        shown = safe_text(written, TEXT_LIMIT) if isinstance(written, str) else written
        assert given_to_template(job)[name] == shown


@pytest.mark.parametrize(
    ("written", "meant", "what"),
    [
        ("Berlin", None, "ignored"),
        (7, None, "ignored"),
        (True, None, "ignored"),
        (["Berlin", {"a": 1}], None, "ignored"),
        ({}, {}, None),
        ({"path": "/login", "deep": {"a": [{"b": None}]}}, {"path": "/login", "deep": {"a": [{"b": None}]}}, None),
        ({"place": "x" * 201, "a": 1}, {"place": "x" * 200, "a": 1}, "coerced"),
        ({"place": {"city": "Berlin", "country": "DE"}}, {"place": "Berlin DE"}, "coerced"),
        ({"device": ["Firefox", 140]}, {"device": "Firefox 140"}, "coerced"),
        ({"place": 7.5, "device": True}, {"place": "7.5", "device": None}, "coerced"),
        ({"place": 0, "device": []}, {"place": "0", "device": None}, "coerced"),
        ({"place": [[["x"]]], "device": "d"}, {"place": None, "device": "d"}, "coerced"),
    ],
)
def test_an_invalid_request_is_ignored_and_reaches_the_producers_own_template(
    written: object, meant: object, what: str | None
) -> None:
    job = read(request=written)
    assert job.metadata.request == meant
    assert noted(job) == ({"metadata.request": what} if what else {})
    assert given_to_template(job)["request"] == written


def test_a_template_is_given_the_request_and_the_zone_only_if_the_job_has_them() -> None:
    assert not {"request", "timeZone", "time_zone"} & given_to_template(read()).keys()
    data = given_to_template(read(request=REQUEST, timeZone="UTC"))
    assert (data["request"], data["timeZone"]) == (REQUEST, "UTC")


def test_original_metadata_reaches_a_render_process() -> None:
    job = pickle.loads(pickle.dumps(read(request="Berlin", timeZone=[1])))  # noqa: S301 - made here
    assert (job.metadata.request, given_to_template(job)["request"], given_to_template(job)["timeZone"]) == (
        None,
        "Berlin",
        [1],
    )


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"timeZone": "+02:00"}, "metadata.timeZone: must be the IANA name of a time zone, such as Europe/Berlin"),
        ({"timeZone": 2}, "metadata.timeZone: must be a string, in quotes"),
        ({"request": "Berlin"}, "metadata.request: must be a JSON object"),
        ({"request": {"place": 5}}, "metadata.request: place must be a string of 200 characters or fewer"),
        ({"request": {"device": "x" * 201}}, "metadata.request: device must be a string of 200 characters or fewer"),
    ],
)
def test_strict_reading_reports_the_field_and_the_fix(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(MalformedError) as caught:
        OtpJob.from_bytes(body(metadata), strict=True)
    assert str(caught.value).startswith(message)


def test_time_zone_and_request_can_be_set_in_python() -> None:
    metadata = Metadata(time_zone="Asia/Tokyo", request={"place": "Tokyo"})
    assert metadata.model_dump(by_alias=True, exclude_none=True) == {
        "template": "otp", "timeZone": "Asia/Tokyo", "request": {"place": "Tokyo"},
    }  # fmt: skip


def test_the_schema_describes_time_zone_and_request() -> None:
    known = Metadata.model_json_schema()["properties"]
    assert known["timeZone"]["examples"] == ["Europe/Berlin"]
    (request,) = (it for it in known["request"]["anyOf"] if it["type"] == "object")
    for name in REQUEST:
        assert request["properties"][name]["description"]
        assert request["properties"][name]["anyOf"][0] == {"type": "string", "maxLength": 200}


def test_an_outline_shows_that_there_was_a_request_and_not_from_where() -> None:
    shown = outline(body({"request": REQUEST, "timeZone": "Europe/Berlin"}))
    assert shown == {
        "email": "u***@example.com", "otp": "text of 6 characters",
        "metadata": {
            "request": {"place": "text of 15 characters", "device": "text of 18 characters"},
            "timeZone": "text of 13 characters",
        },
    }  # fmt: skip


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["place", "device", "x"]), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["timeZone", "time_zone", "request"]), ANYTHING))
def test_no_time_zone_or_request_makes_a_job_malformed(metadata: dict[str, Any]) -> None:
    job = read(**metadata)
    assert job.otp == "123456"
    for name in ("place", "device"):
        text = (job.metadata.request or {}).get(name)
        assert text is None or (isinstance(text, str) and len(text) <= 200)
    assert job.metadata.time_zone is None or job.metadata.time_zone.isascii()
    given_to_template(job)
