"""The job as producers write it, and what the worker makes of it."""

import contextlib
import json
import time
from typing import Any

import pytest
from calls import counted
from hypothesis import given
from hypothesis import strategies as st

from otp_stream.core.job import Job, Lane, Replay, rank
from otp_stream.core.lenient import LENIENT_FIELDS
from otp_stream.core.otp_job import MAX_BODY_BYTES, MalformedError, OtpJob

SEEN = 1_700_000_000_000
SMALLEST = {"email": "user@example.com", "otp": "123456"}


def read(**fields: Any) -> OtpJob:
    return OtpJob.from_bytes(json.dumps(SMALLEST | fields).encode())


def error(*, strict: bool = False, **fields: Any) -> str:
    with pytest.raises(MalformedError) as caught:
        OtpJob.from_bytes(json.dumps(SMALLEST | fields).encode(), strict=strict)
    return str(caught.value)


def job_of(lane: Lane = "jobs", *, minutes: float = 15, replay: Replay | None = None, **fields: Any) -> Job:
    return Job.from_request(
        read(**fields), job_id="j", lane=lane, first_seen_ms=SEEN, attempts_made=0, default_expiry_minutes=minutes,
        replay=replay,
    )  # fmt: skip


def test_the_smallest_job_takes_every_default() -> None:
    job = read()
    assert (job.retry_count, job.job_id, job.timestamp, job.priority) == (0, None, None, "normal")
    assert job.metadata.template == "otp"


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("empty", [None, ""])
def test_null_and_an_empty_string_mean_absent(empty: str | None, *, strict: bool) -> None:
    def read_with(**fields: Any) -> OtpJob:
        return OtpJob.from_bytes(json.dumps(SMALLEST | fields).encode(), strict=strict)

    job = read_with(retryCount=empty, jobId=None, timestamp=empty, priority=empty, metadata=empty)
    assert job == read()
    assert (job.retry_count, job.timestamp, job.priority, job.lenient) == (0, None, "normal", ())
    names = ("template", "locale", "expiryMinutes", "timeZone", "request")
    metadata = read_with(metadata=dict.fromkeys(names, empty)).metadata
    assert metadata == read().metadata
    assert (metadata.template, metadata.request) == ("otp", None)


def test_unknown_keys_are_kept_out_of_the_way_and_metadata_keeps_its_own() -> None:
    job = read(colour="blue", metadata={"orderNumber": 7, "userName": "John"})
    carried = Job.from_request(
        job, job_id="j", lane="jobs", first_seen_ms=SEEN, attempts_made=0, default_expiry_minutes=15
    )
    assert carried.request.metadata.__pydantic_extra__ == {"orderNumber": 7}
    assert not hasattr(job, "colour")


@pytest.mark.parametrize(
    ("timestamp", "minutes", "expiry_ms"),
    [
        (SEEN, 15, SEEN + 15 * 60_000),
        (SEEN - 14 * 60_000, 15, SEEN + 60_000),
        (SEEN + 4_000, 15, SEEN + 4_000 + 15 * 60_000),
        (SEEN + 3_600_000, 15, SEEN + 15 * 60_000),
        (None, 0.5, SEEN + 30_000),
    ],
)
def test_a_mail_shows_the_same_expiry_in_each_copy(timestamp: int | None, minutes: float, expiry_ms: int) -> None:
    job = job_of(timestamp=timestamp, metadata={"expiryMinutes": minutes})
    assert (job.shown_expiry_ms, job.lifetime_ms) == (expiry_ms, minutes * 60_000)


def test_a_copy_that_is_seen_later_shows_the_same_expiry() -> None:
    asked = read(timestamp=SEEN + 41_000)  # our clock is a little behind the producer's
    first, again = (
        Job.from_request(asked, job_id="j", lane="jobs", first_seen_ms=seen, attempts_made=0, default_expiry_minutes=15)
        for seen in (SEEN + 39_000, SEEN + 60_000)
    )
    assert first.shown_expiry_ms == again.shown_expiry_ms


@pytest.mark.parametrize(("renews", "alive_from_ms"), [(True, SEEN + 60_000), (False, SEEN - 5000)])
def test_a_replay_counts_as_the_last_request_and_renews_the_code_only_if_asked_to(
    *, renews: bool, alive_from_ms: int
) -> None:
    replay = Replay(at_ms=SEEN + 60_000, by="operator", fresh=renews)
    job = job_of(timestamp=SEEN - 5000, replay=replay, metadata={"expiryMinutes": 2})
    assert (job.requested_ms, job.made_ms, job.expires_ms) == (SEEN + 60_000, SEEN - 5000, alive_from_ms + 120_000)
    assert job.lifetime_ms == 120_000
    assert job.replay is replay
    assert job_of(timestamp=SEEN - 5000).requested_ms == SEEN - 5000


def test_a_job_keeps_what_is_known_of_its_earlier_attempts() -> None:
    request = read()
    job = Job.from_request(
        request, job_id="j", lane="due", first_seen_ms=SEEN, attempts_made=2, default_expiry_minutes=15, suspect=True,
        uncertain="relay:25", tenant="shop", moves=2,
    )  # fmt: skip
    assert (job.id, job.request, job.lane, job.first_seen_ms, job.attempts_made) == ("j", request, "due", SEEN, 2)
    assert (job.suspect, job.uncertain, job.replay, job.tenant, job.moves) == (True, "relay:25", None, "shop", 2)
    new = job_of()
    assert (new.suspect, new.uncertain, new.replay, new.tenant, new.moves) == (False, None, None, "", 0)


def test_a_template_name_that_contains_the_code_is_not_shown() -> None:
    assert read(metadata={"template": "welcome"}).shown_template == "welcome"
    assert read(metadata={"template": "otp-123456"}).shown_template == "***"


@pytest.mark.parametrize("otp", ["1234", " 123456 ", "a" * 64, "Ab-9_x", "12\u00e934"])
def test_codes_are_trimmed_and_taken(otp: str) -> None:
    assert read(otp=otp).otp == otp.strip()


@pytest.mark.parametrize("otp", ["123", "a" * 65, "12 34", "12\n34", "12\u200034", "12\x0034", "", "    "])
def test_what_is_no_code_is_named_and_not_quoted(otp: str) -> None:
    message = error(otp=otp)
    assert message.startswith("otp: must have 4 to 64 characters")


@pytest.mark.parametrize("email", ["user@example.com", "foo.@docomo.ne.jp", "A+b@x.y", "ünï@example.com", " u@x.y "])
def test_addresses_that_exist_are_taken(email: str) -> None:
    assert read(email=email).email == email.strip()


@pytest.mark.parametrize(
    ("email", "wire"),
    [
        ("u@straße.example", "u@xn--strae-oqa.example"),
        ("u@STRAẞE.example", "u@xn--strae-oqa.example"),
        ("u@faß.de", "u@xn--fa-hia.de"),
        ("u@κλαρα-σωλις.ευ", "u@xn----ylba7abgd9bnh0e.xn--qxa6a"),
        ("u@نامه\u200cای.com", "u@xn--mgba3gch31f060k.com"),
        ("u@BÜCHER.example", "u@xn--bcher-kva.example"),
        ("u@bu\u0308cher.example", "u@xn--bcher-kva.example"),
        ("u@ｅｘａｍｐｌｅ．com", "u@example.com"),
        ("u@ⓔⓧample。com。", "u@example.com"),
        ("u@\ufb01rst.com", "u@first.com"),
        ("User@EXAMPLE.com", "User@example.com"),
        ("u@example.com.", "u@example.com"),
        ("u@b\u00fccher.example.\u00ad.", "u@xn--bcher-kva.example"),
        ("u@XN--STRAE-OQA.example", "u@xn--strae-oqa.example"),
        ("ju\u0308rgen@example.com", "j\u00fcrgen@example.com"),
    ],
)
def test_an_address_is_read_in_the_form_in_which_it_goes_over_the_wire(email: str, wire: str) -> None:
    assert read(email=email).email == wire
    assert read(email=wire).email == wire


@pytest.mark.parametrize(
    "domain", ["💩.la", "ex\u200dample.com", "x＠y.com", "a_b.bücher.de", "xn--straße.de", "ü..com", "-ü.de", "ü" * 80]
)
def test_a_domain_that_idna_2008_does_not_allow_is_malformed(domain: str) -> None:
    message = error(email=f"u@{domain}")
    assert message == "email: must have a domain that IDNA 2008 allows"


def test_what_becomes_too_long_or_no_address_in_its_wire_form_is_malformed() -> None:
    assert error(email="x" * 64 + "@" + ".".join(["ü" * 20] * 8)).startswith("email: must be one e-mail address")
    assert error(email="a\u037eb@example.com").startswith("email: must be one e-mail address")
    assert error(email="u@.").startswith("email: must be one e-mail address")


@pytest.mark.parametrize(
    "email",
    [
        "",
        "user",
        "a@b@c",
        "a b@c.d",
        "a@b.c\r\nBcc: x@y.z",
        "a@b.c>",
        "<a@b.c>",
        "a,b@c.d",
        "x" * 250 + "@b.c",
        "x" * 64 + "@" + "y" * 190,
    ],
)
def test_what_is_no_address_is_named_and_not_quoted(email: str) -> None:
    message = error(email=email)
    assert message.startswith("email: must be one e-mail address")
    assert "Bcc" not in message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"otp": 123456}, "otp: must be a string, in quotes"),
        ({"email": 7}, "email: must be a string, in quotes"),
        ({"retryCount": "1"}, "retryCount: must be a whole number, without quotes"),
        ({"retryCount": -1}, "retryCount: Input should be greater than or equal to 0"),
        ({"timestamp": 1.5}, "timestamp: must be a whole number, without quotes"),
        ({"priority": "urgent"}, "priority: Input should be 'low', 'normal' or 'high'"),
        ({"metadata": []}, "metadata: must be a JSON object"),
        ({"metadata": {"expiryMinutes": 0}}, "metadata.expiryMinutes: Input should be greater than 0"),
        ({"metadata": {"template": "../etc"}}, "metadata.template: must consist of 1 to 64 letters"),
        ({"metadata": {"locale": "../etc"}}, "metadata.locale: must be a language such as de or de-AT"),
        ({"metadata": {"timeZone": "../etc"}}, (
            "metadata.timeZone: must be the IANA name of a time zone, such as Europe/Berlin"
        )),
        ({"metadata": {"request": {"place": 7}}}, (
            "metadata.request: place must be a string of 200 characters or fewer"
        )),
        ({"metadata": {"request": {"device": "x" * 201}}}, "metadata.request: device must be a string of 200"),
        ({"jobId": "x" * 201}, "jobId: must have at most 200 printable characters"),
        ({"jobId": "a\r\nb"}, "jobId: must have at most 200 printable characters"),
    ],
)  # fmt: skip
def test_a_strict_reader_names_each_bad_field_with_its_fix(fields: dict[str, Any], message: str) -> None:
    assert error(strict=True, **fields).startswith(message)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("de", "de"), ("de_AT", "de_AT"), ("en_US.UTF-8", "en_US"), ("", None), ("../etc", None), (7, None), ("1", None)],
)
def test_a_language_that_cannot_be_read_is_none(written: object, meant: str | None) -> None:
    assert read(metadata={"locale": written}).metadata.locale == meant


def noted(job: OtpJob) -> dict[str, str]:
    return dict(job.lenient)


def test_a_job_as_documented_needs_no_lenience() -> None:
    full = read(
        retryCount=1, jobId="j", timestamp=SEEN, priority="low",
        metadata={"userName": "J", "expiryMinutes": 0.5, "locale": "de-AT", "template": "t", "purpose": "p"},
    )  # fmt: skip
    assert full.lenient == read().lenient == ()


@pytest.mark.parametrize(
    ("field", "value", "meant", "what"),
    [
        ("retryCount", 0.0, 0, "coerced"),
        ("retryCount", "0", 0, "coerced"),
        ("retryCount", " 2 ", 2, "coerced"),
        ("retryCount", "1000", 1000, "coerced"),
        ("retryCount", 1001, 0, "ignored"),
        ("retryCount", -1, 0, "ignored"),
        ("retryCount", 10**9, 0, "ignored"),
        ("retryCount", True, 0, "ignored"),
        ("retryCount", [1], 0, "ignored"),
        ("retryCount", float("nan"), 0, "ignored"),
        ("jobId", 4711, "4711", "coerced"),
        ("jobId", 4711.0, "4711", "coerced"),
        ("jobId", 4711.5, "4711.5", "coerced"),
        ("jobId", "x" * 200 + "\n", "x" * 200, "coerced"),
        ("jobId", "\n", None, "ignored"),
        ("jobId", "a\n", "a", "coerced"),
        ("jobId", "a\r\nb", None, "ignored"),
        ("jobId", "x" * 201, None, "ignored"),
        ("jobId", False, None, "ignored"),
        ("jobId", {"id": 1}, None, "ignored"),
        ("timestamp", 1672531200000.0, 1672531200000, "coerced"),
        ("timestamp", 1672531200000.9, 1672531200000, "coerced"),
        ("timestamp", "1672531200000", 1672531200000, "coerced"),
        ("timestamp", "2023-01-01T00:00:00.000Z", 1672531200000, "coerced"),
        ("timestamp", "2023-01-01T01:00:00+01:00", 1672531200000, "coerced"),
        ("timestamp", 1672531200, 1672531200000, "seconds"),
        ("timestamp", 1672531200.25, 1672531200250, "seconds"),
        ("timestamp", "1672531200", 1672531200000, "seconds"),
        ("timestamp", 1672531200000000, 1672531200000, "microseconds"),
        ("timestamp", 1672531200000000000, 1672531200000, "nanoseconds"),
        ("timestamp", 10**9 - 1, None, "ignored"),
        ("timestamp", 10**9, 10**12, "seconds"),
        ("timestamp", 10**10 - 1, 10**13 - 1000, "seconds"),
        ("timestamp", 10**10, None, "ignored"),
        ("timestamp", 10**12 - 1, None, "ignored"),
        ("timestamp", float(10**12), 10**12, "coerced"),
        ("timestamp", 10**13, None, "ignored"),
        ("timestamp", 10**15, 10**12, "microseconds"),
        ("timestamp", 10**16, None, "ignored"),
        ("timestamp", 0, None, "ignored"),
        ("timestamp", -5, None, "ignored"),
        ("timestamp", "yesterday", None, "ignored"),
        ("timestamp", "2026-11-28", None, "ignored"),
        ("timestamp", "20261128", None, "ignored"),
        ("timestamp", "0001-01-01T00:00:00Z", None, "ignored"),
        ("timestamp", "0001-01-01T00:00:00+14:00", None, "ignored"),
        ("timestamp", "9999-12-31T23:59:59-14:00", None, "ignored"),
        ("timestamp", "1970-01-01T00:00:00Z", None, "ignored"),
        ("timestamp", "2026-11-28 14:20:00", None, "ignored"),
        ("timestamp", "2026-11-28T14:20:00", None, "ignored"),
        ("timestamp", 12345, None, "ignored"),
        ("timestamp", 53231.7, None, "ignored"),
        ("timestamp", 817_000_000, None, "ignored"),
        ("timestamp", 817_000_000_000, None, "ignored"),
        ("timestamp", 133_900_000_000_000_000, None, "ignored"),
        ("timestamp", 639_000_000_000_000_000, None, "ignored"),
        ("timestamp", True, None, "ignored"),
        ("timestamp", 10**30, None, "ignored"),
        ("timestamp", float("inf"), None, "ignored"),
        ("priority", "HIGH", "high", "coerced"),
        ("priority", " Low ", "low", "coerced"),
        ("priority", "urgent", "normal", "ignored"),
        ("priority", 5, "normal", "ignored"),
        ("priority", None, "normal", None),
        ("metadata", [], OtpJob(**SMALLEST).metadata, "ignored"),
        ("metadata", ["x"], OtpJob(**SMALLEST).metadata, "ignored"),
        ("metadata", "x", OtpJob(**SMALLEST).metadata, "ignored"),
        ("metadata", False, OtpJob(**SMALLEST).metadata, "ignored"),
        ("timestamp", "", None, None),
    ],
)
def test_an_optional_field_never_costs_the_code(field: str, value: object, meant: object, what: str | None) -> None:
    job = read(**{field: value})
    assert getattr(job, {"retryCount": "retry_count", "jobId": "job_id"}.get(field, field)) == meant
    assert noted(job) == ({field: what} if what else {})


@pytest.mark.parametrize(
    ("field", "value", "meant", "what"),
    [
        ("expiryMinutes", "15", 15, "coerced"),
        ("expiryMinutes", " 7.5 ", 7.5, "coerced"),
        ("expiryMinutes", 0, None, "ignored"),
        ("expiryMinutes", -3, None, "ignored"),
        ("expiryMinutes", "soon", None, "ignored"),
        ("expiryMinutes", True, None, "ignored"),
        ("expiryMinutes", float("nan"), None, "ignored"),
        ("expiryMinutes", 1e12, None, "ignored"),
        ("expiryMinutes", [15], None, "ignored"),
        ("expiryMinutes", "", None, None),
        ("template", "../etc", "otp", "ignored"),
        ("template", 7, "otp", "ignored"),
        ("template", ["welcome"], "otp", "ignored"),
        ("template", " welcome ", "welcome", "coerced"),
        ("template", "x" * 65, "otp", "ignored"),
        ("template", "no-such", "no-such", None),
        ("locale", "en_US.UTF-8", "en_US", "coerced"),
        ("locale", "../etc", None, "ignored"),
        ("locale", {"de": 1}, None, "ignored"),
        ("purpose", 7, "7", "coerced"),
        ("purpose", 7.5, "7.5", "coerced"),
        ("purpose", True, None, "ignored"),
        ("purpose", ["log", "in", ["x"]], "log in", "coerced"),
        ("purpose", {}, None, "ignored"),
        ("userName", {"first": "Ann", "last": "Lee"}, "Ann Lee", "coerced"),
        ("userName", [[["x"]]], None, "ignored"),
        ("userName", 5, "5", "coerced"),
        ("userName", False, None, "ignored"),
    ],
)
def test_no_known_key_of_metadata_costs_the_code(field: str, value: object, meant: object, what: str | None) -> None:
    job = read(metadata={field: value, "other": value})
    assert (
        getattr(job.metadata, {"userName": "user_name", "expiryMinutes": "expiry_minutes"}.get(field, field)) == meant
    )
    assert noted(job) == ({f"metadata.{field}": what} if what else {})


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
OPTIONAL = ("retryCount", "retry_count", "jobId", "job_id", "timestamp", "priority", "metadata", "lenient", "x")
KEYS = (
    "userName", "user_name", "expiryMinutes", "expiry_minutes", "locale", "template", "purpose", "tenant", "timeZone",
    "time_zone", "request", "x",
)  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(OPTIONAL), ANYTHING, max_size=5),
    st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=5) | st.none(),
)
def test_nothing_that_is_optional_makes_a_job_malformed(
    fields: dict[str, Any], metadata: dict[str, Any] | None
) -> None:
    given_ = fields if metadata is None else fields | {"metadata": metadata}
    job = OtpJob.from_bytes(json.dumps(SMALLEST | given_).encode())
    assert (job.email, job.otp) == (SMALLEST["email"], SMALLEST["otp"])
    assert {it.field for it in job.lenient} <= set(LENIENT_FIELDS)


def test_a_number_of_thousands_of_digits_is_ignored() -> None:
    digits = b"9" * 6000
    job = OtpJob.from_bytes(b'{"email": "u@x.y", "otp": "123456", "retryCount": %b, "x": %b}' % (digits, digits))
    assert (job.retry_count, noted(job)) == (0, {"body": "coerced", "retryCount": "ignored"})


@pytest.mark.parametrize("empty", [None, ""])
@pytest.mark.parametrize("job_id", [5, "5"])
def test_a_field_that_is_empty_by_one_name_is_read_by_the_other(empty: object, job_id: object) -> None:
    metadata = {"expiryMinutes": empty, "expiry_minutes": 5, "userName": empty, "user_name": "Ann"}
    body = SMALLEST | {"jobId": empty, "job_id": job_id, "retryCount": empty, "retry_count": 2, "metadata": metadata}
    job = OtpJob.from_bytes(json.dumps(body).encode())
    assert (job.job_id, job.retry_count, job.metadata.expiry_minutes, job.metadata.user_name) == ("5", 2, 5, "Ann")
    assert OtpJob.from_bytes(json.dumps(body | {"jobId": "6"}).encode()).job_id == "6"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        (rb"Ann \ud83d", "Ann \ufffd"),
        (rb"\ude00 Ann", "\ufffd Ann"),
        (rb"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        (rb"\ud83d\\ude00", "\ufffd\\ude00"),
        (rb"\\ud83d \ud83d", "\\ud83d \ufffd"),
        (b"Ann \xed\xa0\xbd", "Ann \ufffd\ufffd\ufffd"),
        (b"J\xf6rg", "J\ufffdrg"),
        (rb"O\'Brien", "O\ufffd'Brien"),
        (rb"C:\x \u12 \\x", "C:\ufffdx \ufffd12 \\x"),
        (b"Ann\nLee\t\0", "Ann\nLee\t\0"),
    ],
)
def test_a_text_that_no_json_has_costs_no_one_the_code(name: bytes, meant: str) -> None:
    job = OtpJob.from_bytes(b'{"email": "u@x.y", "otp": "123456", "metadata": {"userName": "' + name + b'"}}')
    assert (job.metadata.user_name, noted(job)) == (meant, {"body": "coerced"})


@pytest.mark.parametrize("field", ["email", "otp"])
@pytest.mark.parametrize("broken", [rb"\ud83d", b"\xf6", "\ufffd".encode(), rb"\x", rb"\u1z"])
def test_an_address_or_a_code_with_a_lost_character_is_malformed(field: str, broken: bytes) -> None:
    body = json.dumps({"email": "!u@x.y", "otp": "!123456"} | {field: f"?{SMALLEST[field]}"}).encode()
    with pytest.raises(MalformedError, match=f"^{field}: must"):
        OtpJob.from_bytes(body.replace(b"?", broken).replace(b"!", b""))


@pytest.mark.parametrize("depth", [201, 990, 1_000, 7_000])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"]\\"":', "}")])
def test_what_is_nested_too_deep_is_left_out_and_the_code_is_sent(depth: int, begin: str, end: str) -> None:
    deep = begin * depth + "1" + end * depth
    for field in ("x", "jobId", "metadata"):
        fields = {"email": "u@x.y", field: "?", "otp": "123456", "z": "[[{"}
        job = OtpJob.from_bytes(json.dumps(fields).replace('"?"', deep).encode())
        assert (job.email, job.otp, noted(job)["body"]) == ("u@x.y", "123456", "coerced")


def test_what_is_beside_a_part_that_is_nested_too_deep_is_read() -> None:
    deep = "[" * 150 + "[" * 60 + "]" * 60 + ',{"a":' + "[" * 60 + "]" * 60 + "}" + "]" * 150
    body = '{"email": "u@x.y", "metadata": {"deep": ' + deep + ', "userName": "Ann"}, "otp": "123456"}'
    job = OtpJob.from_bytes(body.encode())
    assert (job.email, job.otp, job.metadata.user_name) == ("u@x.y", "123456", "Ann")


@pytest.mark.parametrize("piece", [r"\q", r"\u", r"\\", r"\q\\", "[],"])
def test_a_body_at_the_limit_is_read_without_work_for_each_character(piece: str) -> None:
    begin = '"[' if piece[0] == "\\" else "[" * 150 + "["
    body = '{"email": "u@x.y", "otp": "123456", "y": "\\q", "x": ' + begin
    end = '"}' if piece[0] == "\\" else "[]" + "]" * 151 + "}"
    body += piece * ((MAX_BODY_BYTES - len(body) - len(end)) // len(piece)) + end
    job, calls = counted(lambda: OtpJob.from_bytes(body.encode()))
    assert job.otp == "123456"
    assert calls < 1_000


@pytest.mark.parametrize("piece", ["[", '["', '\\"', '"[\\', "]", '{"a":'])
def test_a_nesting_that_never_ends_is_malformed_in_time(piece: str) -> None:
    body = '{"email": "u@x.y", "otp": "123456", "x": ' + "[" * 201 + piece * (60_000 // len(piece))
    began = time.process_time()
    with pytest.raises(MalformedError, match=r"^body: "):
        OtpJob.from_bytes(body.encode())
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b" \n", "body: is empty"),
        (b"\x1f\x8b\x08\0", "body: is compressed by gzip: publish"),
        (json.dumps(SMALLEST).encode("utf-16"), "body: is not encoded as UTF-8: publish"),
        (json.dumps(SMALLEST).encode("utf-16-le"), "body: is not encoded as UTF-8: publish"),
        (json.dumps(SMALLEST).encode("utf-32-be"), "body: is not encoded as UTF-8: publish"),
        (json.dumps(json.dumps(SMALLEST)).encode(), "body: is a text: encode the job once"),
        (json.dumps([SMALLEST]).encode(), "body: is a list: publish one message for each job"),
        (b"null", "body: must be a JSON object"),
        (b"email=u%40x.y&otp=123456", "body: Invalid JSON"),
    ],
)
def test_a_body_that_is_no_json_object_is_named_for_what_it_is(body: bytes, message: str) -> None:
    for strict in (False, True):
        with pytest.raises(MalformedError, match=f"^{message}"):
            OtpJob.from_bytes(body, strict=strict)


HIDDEN = ["\u200b", "\u200e", "\u202e", "\ufeff", "\u00ad", "\u2060"]
HIDDEN_OR_JOINING = [*HIDDEN, *"\u034f\u115f\u1160\u200c\u200d\u3164\ufe0f\uffa0"]


@pytest.mark.parametrize("hidden", HIDDEN_OR_JOINING)
def test_invisible_characters_around_an_address_or_a_code_are_no_part_of_it(hidden: str) -> None:
    job = read(email=f" {hidden}u@x.y{hidden}\n", otp=f"{hidden} 123456{hidden}")
    assert (job.email, job.otp) == ("u@x.y", "123456")


@pytest.mark.parametrize("hidden", HIDDEN)
def test_invisible_characters_within_an_address_are_refused(hidden: str) -> None:
    assert error(email=f"u{hidden}v@x.y").startswith("email: must be one e-mail address")


@pytest.mark.parametrize("hidden", HIDDEN_OR_JOINING)
def test_invisible_characters_within_a_code_are_refused(hidden: str) -> None:
    assert error(otp=f"12{hidden}3456").startswith("otp: must have 4 to 64 characters")
    assert error(otp="12\U000e00413456").startswith("otp: must have 4 to 64 characters")
    assert error(otp=hidden * 4).startswith("otp: must have 4 to 64 characters")


@pytest.mark.parametrize("field", ["email", "otp"])
def test_blanks_without_end_in_an_address_or_a_code_are_refused_in_time(field: str) -> None:
    began = time.process_time()
    fields: dict[str, Any] = {field: "é" + " " * 60_000 + "x"}
    assert error(**fields).startswith(f"{field}: must")
    assert time.process_time() - began < 0.5


def test_joiners_are_letters_of_a_name() -> None:
    assert read(email="نامه\u200cای@x.y").email == "نامه\u200cای@x.y"


def test_lenience_is_no_field_that_a_producer_can_write() -> None:
    assert read(lenient=[["email", "ignored"]]).lenient == ()
    assert "lenient" not in json.dumps(OtpJob.model_json_schema())


def test_a_byte_order_mark_is_no_fault() -> None:
    assert OtpJob.from_bytes(b"\xef\xbb\xbf" + json.dumps(SMALLEST).encode()) == read()


def test_all_bad_fields_are_named_at_once() -> None:
    with pytest.raises(MalformedError, match=r"email: is required; otp: must be a string"):
        OtpJob.from_bytes(b'{"otp": 1}')


def test_a_body_beyond_the_limit_is_not_even_read() -> None:
    with pytest.raises(MalformedError, match=f"body: {MAX_BODY_BYTES + 1} bytes; the maximum is {MAX_BODY_BYTES}"):
        OtpJob.from_bytes(b" " * (MAX_BODY_BYTES + 1))


def test_values_of_the_greatest_length_are_taken() -> None:
    assert len(read(email="x" * 64 + "@" + "y" * 189).email) == 254
    assert read(jobId="x" * 200).job_id == "x" * 200
    assert read(metadata={"template": "x" * 64}).metadata.template == "x" * 64
    body = json.dumps(SMALLEST).encode()
    assert OtpJob.from_bytes(body + b" " * (MAX_BODY_BYTES - len(body))) == read()


def test_an_error_names_eight_fields_at_most_and_none_at_length() -> None:
    bad = {"email": 1, "otp": 1, "retryCount": "x", "jobId": 1, "timestamp": "x", "priority": 1}
    metadata = {"expiryMinutes": "x", "purpose": [], "template": 1}
    assert len(error(strict=True, **bad, metadata=metadata).split("; ")) == 8
    assert error(**bad, metadata=metadata) == "email: must be a string, in quotes; otp: must be a string, in quotes"
    assert (
        error(strict=True, metadata={"template": "../x"})
        == "metadata.template: must consist of 1 to 64 letters, digits, '-' and '_'"
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[]", "body: is a list: publish one message for each job, a JSON object"),
        (b"", "body: is empty"),
        (b"{}", "email: is required; otp: is required"),
        (b'{"otp": "1 2 3 4", "email": "user"}', (
            "email: must be one e-mail address such as user@example.com, without spaces or control characters; "
            "otp: must have 4 to 64 characters, without spaces or control characters inside"
        )),
        (b" " * 65537, "body: 65537 bytes; the maximum is 65536"),
    ],
)  # fmt: skip
def test_a_message_that_is_no_job_is_refused_with_what_to_change(body: bytes, message: str) -> None:
    with pytest.raises(MalformedError) as caught:
        OtpJob.from_bytes(body)
    assert str(caught.value) == message


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_are_a_job_or_malformed(body: bytes) -> None:
    with contextlib.suppress(MalformedError):
        OtpJob.from_bytes(body)


@given(st.text(min_size=1, max_size=80), st.text(min_size=1, max_size=80))
def test_no_error_quotes_what_it_was_given(email: str, otp: str) -> None:
    secret = f"SECRET{otp}"
    body = {"email": email, "otp": [secret], "priority": secret, "metadata": secret}
    with pytest.raises(MalformedError) as caught:
        OtpJob.from_bytes(json.dumps(body).encode())
    assert "SECRET" not in str(caught.value)
    assert "SECRET99" not in repr(read(otp="SECRET99"))


@pytest.mark.parametrize(
    ("timestamp", "made", "ahead"),
    [(None, SEEN, 0), (SEEN - 5000, SEEN - 5000, 0), (SEEN + 60_000, SEEN, 60_000), (10**12, 10**12, 0)],
    ids=["absent", "past", "future", "2001"],
)
def test_a_producers_clock_counts_only_up_to_the_first_sight(timestamp: int | None, made: int, ahead: int) -> None:
    job = Job.from_request(
        read(timestamp=timestamp, metadata={"expiryMinutes": 2}),
        job_id="j", lane="jobs", first_seen_ms=SEEN, attempts_made=0, default_expiry_minutes=15,
    )  # fmt: skip
    assert (job.made_ms, job.expires_ms, job.clock_ahead_ms) == (made, made + 120_000, ahead)


def test_ranks_put_the_high_lane_before_every_priority() -> None:
    assert [rank("high", "low"), rank("jobs", "high"), rank("due", "normal"), rank("jobs", "low")] == [0, 1, 2, 3]
    assert [job_of("high").rank, job_of(priority="high").rank, job_of("due").rank, job_of(priority="low").rank] == [
        0, 1, 2, 3,
    ]  # fmt: skip
