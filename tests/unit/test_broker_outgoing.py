"""What is published in a job's place."""

import json
from typing import Any

import pytest
from aio_pika import IncomingMessage
from aiormq.abc import DeliveredMessage
from calls import counted
from deliveries import BODY as OF_DELIVERY
from deliveries import Deliveries, MadeIds
from pamqp import encode
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from otp_stream.broker import outgoing
from otp_stream.broker.headers import sign, verified
from otp_stream.broker.job_message import JobMessage, Reader
from otp_stream.broker.message import LARGEST_HEADER
from otp_stream.core.decision import Dead
from otp_stream.core.job import Lane, Replay
from otp_stream.core.messaging import Destination
from otp_stream.core.otp_job import MAX_BODY_BYTES, OtpJob
from otp_stream.core.sealing_keys import keys_of, new_jwk

BODY = b'{"email": "user@example.com", "otp": "123456", "x": [1, {"y": null}], "retryCount": 0}'


KEY = bytes(32)


def received(body: bytes = BODY, lane: Lane = "jobs", *, redelivered: bool = False, **properties: Any) -> JobMessage:
    deliver = Basic.Deliver("tag", 1, redelivered, "", "jobs")
    header = ContentHeader(body_size=len(body), properties=Basic.Properties(**properties))
    delivered = DeliveredMessage(delivery=deliver, header=header, body=body, channel=None)  # type: ignore[arg-type]
    message = IncomingMessage(delivered)
    return JobMessage(message, lane, Destination("jobs"), 1_000, message.headers if lane == "due" else None)


def test_a_retry_carries_count_id_and_first_sight_and_every_key_of_the_producer() -> None:
    message = outgoing.retry(received(headers={"tenant": "t1"}), job_id="j", attempts_made=2)
    assert json.loads(message.body) == json.loads(BODY) | {"retryCount": 2}
    assert message.headers == {"tenant": "t1", "x-otp-attempt": 2, "x-otp-job-id": "j", "x-otp-first-seen": 1_000}
    assert message.delivery_mode == 2


def test_that_the_relay_may_have_it_is_kept_until_the_end_and_believed_only_from_us() -> None:
    first = outgoing.retry(received(), job_id="j", attempts_made=1, uncertain="relay:25")
    assert first.headers["x-otp-uncertain"] == "relay:25"
    due = received(lane="due", headers=first.headers)
    assert outgoing.retry(due, job_id="j", attempts_made=2).headers["x-otp-uncertain"] == "relay:25"
    theirs = received(headers={"x-otp-uncertain": "relay:25"})
    assert "x-otp-uncertain" not in outgoing.retry(theirs, job_id="j", attempts_made=1).headers


def test_a_replay_is_kept_until_the_end_and_believed_only_from_us() -> None:
    theirs = received(headers={"x-otp-replayed-at": 5_000, "x-otp-replayed-by": "mallory", "x-otp-fresh": "yes"})
    assert theirs.replay is None
    assert not _OF_REPLAY & set(outgoing.retry(theirs, job_id="j", attempts_made=1).headers)
    raw = received(headers={"x-otp-reason": "rejected", "x-otp-job-id": "j", "x-otp-uncertain": "relay:25", "n": 1}).raw
    message = outgoing.replayed(raw, Replay(5_000, "ops@host", fresh=True), known=True, ours=raw.headers)
    assert message.headers == {
        "n": 1, "x-otp-job-id": "j", "x-otp-attempt": 0,
        "x-otp-replayed-at": 5_000, "x-otp-replayed-by": "ops@host", "x-otp-fresh": "yes",
    }  # fmt: skip
    due = received(lane="due", headers=message.headers)
    assert due.replay == Replay(5_000, "ops@host", fresh=True)
    for again in (
        outgoing.retry(due, job_id="j", attempts_made=1),
        outgoing.dead_letter(due, Dead("rejected", "550 no", 1), job_id="j", died_ms=6_000),
    ):
        assert set(again.headers) >= _OF_REPLAY


_OF_REPLAY = {"x-otp-replayed-at", "x-otp-replayed-by", "x-otp-fresh"}


def test_a_body_at_the_limit_does_not_outgrow_it_by_being_counted() -> None:
    frame = b'{"email":"user@example.com","otp":"123456","x":"%s"}'
    body = frame % (b"a" * (MAX_BODY_BYTES - len(frame) + 2))
    assert len(body) == MAX_BODY_BYTES
    message = outgoing.retry(received(body), job_id="j", attempts_made=1)
    assert message.body == body


def test_a_dead_letter_keeps_the_body_and_replaces_older_reasons() -> None:
    came = received(headers={"x-otp-reason": "expired", "x-death": [{"count": 3}], "x-first-death-queue": "q", "n": 1})
    dead = Dead("rejected", "550 no", 1)
    message = outgoing.dead_letter(came, dead, job_id="j", died_ms=2_000)
    assert message.body == BODY
    assert message.headers == {
        "n": 1,
        "x-otp-attempt": 1,
        "x-otp-job-id": "j",
        "x-otp-first-seen": 1_000,
        "x-otp-reason": "rejected",
        "x-otp-error": "550 no",
        "x-otp-died-at": 2_000,
    }


def test_headers_that_would_route_copies_elsewhere_are_left_out() -> None:
    message = outgoing.unchanged(received(headers={"CC": ["other"], "BCC": ["third"], "n": 1}).raw)
    assert message.headers == {"n": 1}


@pytest.mark.parametrize(
    "theirs",
    [
        {"long": "x" * 130_000, "n": 5},
        {"table": {"x": "x" * 100_000}, "n": 5},
        {f"h{it:04}": "\N{GRINNING FACE}" * 900 for it in range(40)} | {"n": 5},
        {f"h{it:04}": it for it in range(9_000)},
        {"x" * 120 + str(it): [None] for it in range(1_000)} | {"n": 5},
    ],
)
def test_headers_that_would_not_fit_into_a_frame_are_left_out_and_ours_are_kept(theirs: dict[str, Any]) -> None:
    dead = Dead("malformed", "no", 0)
    dead_letter = outgoing.dead_letter(received(headers=theirs), dead, job_id="j", died_ms=1)
    again = outgoing.unchanged(received(headers=theirs | {"x-otp-attempt": 1}).raw)
    assert again.headers["x-otp-attempt"] == 1
    assert dead_letter.headers["x-otp-reason"] == "malformed"
    assert any(name in dead_letter.headers for name in ("n", "h0001"))
    for copy in (dead_letter, again):
        assert len(encode.field_table(copy.headers)) <= LARGEST_HEADER - 4_000


def test_a_header_whose_name_is_too_long_is_left_out_and_logged_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "pamqp")  # a worker's log, which another test may have configured, silences it
    long, longest = "code 739154\n\x1b[2J" + "n" * 120, "\N{GRINNING FACE}" * 32
    message = outgoing.unchanged(received(headers={long: 1, longest: 2, longest + "x": 3, "\ud800": 4}).raw)
    assert {2} <= set(message.headers.values()) <= {2, 4}
    assert encode.field_table({longest: 2})
    assert not caplog.records


def test_the_headers_of_a_copy_can_be_read_again_whatever_a_tracer_adds() -> None:
    came = received(headers={"baggage": "b" * 8_192} | {f"h{it:02}": "x" * 900 for it in range(14)})
    for copy in (
        outgoing.retry(came, job_id="j", attempts_made=1),
        outgoing.dead_letter(came, Dead("malformed", "no", 0), job_id="j", died_ms=1),
    ):
        sign(copy.headers, copy.body, KEY)
        copy.headers["traceparent"] = "00-" + "a" * 52
        copy.headers["x-death"] = [{"queue": "q" * 200, "exchange": "e" * 200, "routing-keys": ["k" * 200]}] * 3
        again = Deliveries().delivered(copy.body, headers=copy.headers)
        assert not again.headers_unread
        assert again.headers["h00"] == "x" * 900
        ours = verified(again.headers, again.body, [KEY])
        assert ours is not None
        assert ours["x-otp-job-id"] == "j"


def test_ours_and_the_brokers_count_are_read_where_all_headers_are_too_large() -> None:
    headers: dict[str, Any] = {"x-otp-attempt": 2, "x-otp-job-id": "j", "x-otp-first-seen": 1_700_000_000_000, "h": 1}
    sign(headers, OF_DELIVERY, KEY)
    came = Deliveries().delivered(headers=headers | {"x-delivery-count": 3, "padding": "x-otp-attempt" * 2_000})
    assert came.headers_unread
    ours = verified(came.headers, came.body, [KEY])
    assert ours == {"x-otp-attempt": 2, "x-otp-job-id": "j", "x-otp-first-seen": 1_700_000_000_000}
    assert (came.headers["x-delivery-count"], "padding" in came.headers, "h" in came.headers) == (3, False, False)


def test_properties_go_along_but_for_user_and_expiration() -> None:
    came = received(content_type="text/plain", message_id="m", correlation_id="c", user_id="guest", expiration="60000")
    message = outgoing.unchanged(came.raw)
    assert (message.content_type, message.message_id, message.correlation_id) == ("text/plain", "m", "c")
    assert message.user_id is None
    assert message.expiration is None


def test_a_header_that_cannot_be_written_again_does_not_hold_the_job() -> None:
    came = received(headers={"good": "x"})
    came.raw.headers["odd"] = {"deep": object()}  # type: ignore[assignment]
    assert outgoing.unchanged(came.raw).headers == {"good": "x"}


async def job_id(came: JobMessage, reader: Reader | None = None) -> str:
    reader = reader or Reader(15, b"k" * 32, MadeIds())
    return await reader.job_id(came, OtpJob.from_bytes(came.raw.body))


async def test_a_producers_id_is_taken() -> None:
    assert await job_id(received(b'{"email": "user@example.com", "otp": "123456", "jobId": "j-1"}')) == "j-1"


@pytest.mark.parametrize("content", [b', "timestamp": 1700000000000}', b"}"])
async def test_while_the_key_is_changed_an_id_stays_the_same_at_every_step(content: bytes) -> None:
    old, new, made = b"o" * 32, b"n" * 32, MadeIds()
    steps = [Reader(15, old, made, (new,)), Reader(15, new, made, (old,)), Reader(15, new, made)]
    body = b'{"email": "user@example.com", "otp": "123456"' + content
    ids = [await job_id(received(body, redelivered=True), reader) for reader in steps[:2]]
    assert ids[0] == ids[1]
    other = body.replace(b"123456", b"654321")
    later, earlier = [await job_id(received(other, redelivered=True), steps[at]) for at in (1, 0)]
    assert later == earlier
    assert await job_id(received(other, redelivered=True), steps[2]) == later


@pytest.mark.parametrize(
    ("body", "properties"),
    [
        (b'{"email": "user@example.com", "otp": "123456", "timestamp": 1700000000000}', {}),
        (b'{"email": "user@example.com", "otp": "123456"}', {"message_id": "m-1"}),
    ],
)
async def test_a_job_without_an_id_has_one_by_its_content_for_every_worker(
    body: bytes, properties: dict[str, Any]
) -> None:
    first, second = [await job_id(received(body, **properties)) for _ in range(2)]
    assert first == second
    assert "123456" not in first
    assert await job_id(received(body, **properties), Reader(15, b"other" * 8, MadeIds())) != first


async def test_asking_again_with_nothing_to_distinguish_the_two_makes_two_jobs() -> None:
    body = b'{"email": "user@example.com", "otp": "123456"}'
    made = MadeIds()
    reader = Reader(15, b"k" * 32, made)
    first, second = await job_id(received(body), reader), await job_id(received(body), reader)
    assert first != second
    other_worker = Reader(15, b"k" * 32, made)
    assert await job_id(received(body, redelivered=True), other_worker) == second
    assert not [it for it in made.ids if "123456" in it or "user" in it]


@pytest.mark.parametrize("value", ["3", True, None, b"3", 1.5])
def test_a_count_that_is_no_number_is_as_good_as_none(value: Any) -> None:
    came = received(lane="due", headers={"x-otp-attempt": value})
    assert (
        came.attempts_made(OtpJob.from_bytes(b'{"email": "user@example.com", "otp": "123456", "retryCount": 2}')) == 2
    )


def test_a_throttled_dead_letter_states_when_it_would_be_allowed() -> None:
    for allowed_ms in (5_000, None):
        dead = Dead("throttled", "over a limit", 0, allowed_ms)
        dead_letter = outgoing.dead_letter(received(), dead, job_id="j", died_ms=1)
        assert dead_letter.headers.get("x-otp-allowed-at") == allowed_ms


def test_first_sight_and_that_the_relay_may_have_it_are_kept_until_the_end() -> None:
    came = received(lane="due", headers={"x-otp-uncertain": "relay:25", "x-otp-first-seen": 7, "x-otp-job-id": "j"})
    retried = outgoing.retry(came, job_id="j", attempts_made=1)
    assert retried.headers["x-otp-uncertain"] == "relay:25"
    assert retried.headers["x-otp-first-seen"] == 7
    dead_letter = outgoing.dead_letter(came, Dead("rejected", "550 no", 1), job_id="j", died_ms=9)
    assert dead_letter.headers["x-otp-first-seen"] == 7


@pytest.mark.parametrize(
    "rest",
    [
        rb'"x": "\ud800"',
        rb'"metadata": {"userName": "Ann \ud83d"}',
        b'"metadata": {"userName": "J\xf6rg"}',
        b'"x": NaN',
    ],
)
def test_a_body_that_was_read_leniently_is_the_same_job_in_its_retry(rest: bytes) -> None:
    body = b'{"email": "user@example.com", "otp": "123456", ' + rest + b"}"
    message = outgoing.retry(received(body), job_id="j", attempts_made=1)
    assert OtpJob.from_bytes(message.body).retry_count == 1
    assert OtpJob.from_bytes(message.body).metadata == OtpJob.from_bytes(body).metadata


def test_a_body_that_cannot_be_written_again_is_retried_as_it_came() -> None:
    body = b'{"email": "user@example.com", "otp": "123456", "x": %b}' % (b"9" * 6000)
    assert outgoing.retry(received(body), job_id="j", attempts_made=1).body == body


def test_every_property_of_a_producer_goes_along() -> None:
    properties: dict[str, Any] = {
        "content_type": "text/plain", "content_encoding": "identity", "correlation_id": "c", "reply_to": "r",
        "message_id": "m", "message_type": "t", "app_id": "a", "priority": 3,
    }  # fmt: skip
    came = received(**properties, expiration="60000", user_id="guest")
    for message in (
        outgoing.unchanged(came.raw),
        outgoing.retry(came, job_id="j", attempts_made=1),
        outgoing.dead_letter(came, Dead("rejected", "550 no", 1), job_id="j", died_ms=1),
        outgoing.replayed(came.raw, Replay(5_000, "ops", fresh=False), known=True, ours={}),
    ):
        kept = {("message_type" if it == "type" else it): getattr(message, it) for it in _PROPERTIES}
        assert kept == properties
        assert (message.delivery_mode, message.expiration, message.user_id) == (2, None, None)


_PROPERTIES = (
    "content_type", "content_encoding", "correlation_id", "reply_to", "message_id", "type", "app_id", "priority",
)  # fmt: skip


def test_a_replay_counts_from_zero_where_its_body_is_a_job_and_leaves_any_other_body_alone() -> None:
    came = received(b'{"retryCount": 3}', headers={"x-otp-attempt": 4})
    replay = Replay(5_000, "ops", fresh=False)
    assert json.loads(outgoing.replayed(came.raw, replay, known=True, ours={}).body) == {"retryCount": 0}
    message = outgoing.replayed(received(b"no job").raw, replay, known=False, ours={})
    assert message.body == b"no job"
    assert "x-otp-fresh" not in message.headers
    assert outgoing.replayed(came.raw, replay, known=True, ours={}).headers["x-otp-attempt"] == 0


def test_nothing_that_the_broker_wrote_goes_along() -> None:
    written = {
        "x-death": [{"count": 1}], "x-first-death-queue": "q", "x-first-death-reason": "expired",
        "x-first-death-exchange": "", "x-last-death-queue": "q", "x-last-death-reason": "rejected",
        "x-delivery-count": 2, "x-acquired-count": 2, "CC": ["other"], "BCC": ["third"],
    }  # fmt: skip
    came = received(headers={**written, "n": 1})
    for message in (
        outgoing.unchanged(came.raw),
        outgoing.retry(came, job_id="j", attempts_made=1),
        outgoing.dead_letter(came, Dead("rejected", "550 no", 1), job_id="j", died_ms=1),
        outgoing.replayed(came.raw, Replay(5_000, "ops", fresh=False), known=True, ours={}),
    ):
        assert not written.keys() & message.headers.keys()
        assert message.headers["n"] == 1


PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("name", "value", "kept", "kept_of_no_job"),
    [
        ("traceparent", PARENT, True, True),
        ("traceparent", f"{PARENT}-x", False, False),
        ("traceparent", "job-7", False, False),
        ("traceparent", b"00", False, False),
        ("traceparent", None, False, False),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d00123456-00f067aa0ba902b7-01", False, True),
        ("tracestate", "vendor=1", True, False),
        ("tracestate", "v=" + "x" * 510, True, False),
        ("tracestate", "v=" + "x" * 511, False, False),
        ("tracestate", "v\u00e9=1", False, False),
        ("tracestate", "v=123456", False, False),
    ],
)
def test_a_trace_header_that_no_tracer_wrote_or_that_contains_a_secret_is_dropped(
    name: str, value: object, *, kept: bool, kept_of_no_job: bool
) -> None:
    for job, expected in ((OtpJob.from_bytes(BODY), kept), (None, kept_of_no_job)):
        came = received(headers={name: value, "n": 1})
        came.hide_in_trace(job)
        assert came.raw.headers == ({name: value, "n": 1} if expected else {"n": 1})


@pytest.mark.parametrize("body", [BODY, b""])
def test_baggage_is_dropped_without_work(body: bytes) -> None:
    came = received(headers={"baggage": ",".join(f"k{it}=%41{it}" for it in range(700)), "n": 1})
    job = OtpJob.from_bytes(body) if body else None
    _, calls = counted(lambda: came.hide_in_trace(job))
    assert calls < 100
    assert (came.raw.headers, came.carrier()) == ({"n": 1}, {})


def test_few_headers_are_searched_for_a_code_that_is_sealed_and_all_others_are_dropped() -> None:
    keys = keys_of(new_jwk("oct"))
    headers = {"long": "%41" * 2_000, "n": 1, "code": "123456"} | {f"h{it}": "x" * 90 for it in range(100)}
    message = outgoing.dead_letter(received(headers=headers), Dead("rejected", "no", 1), job_id="j", died_ms=1)
    finished, calls = counted(lambda: outgoing.finished(message, keys, None, "123456"))
    kept = {name for name in finished.headers if not name.startswith("x-otp-")}
    assert kept == {"n", *(f"h{it}" for it in range(10))}
    assert calls < 40_000


@pytest.mark.parametrize("odd", ["\ufdfa" * 8_192, r"\u0041" * 1_365, "%25252541" + "a" * 8_180])
def test_odd_trace_headers_are_judged_without_work_for_each_character(odd: str) -> None:
    came = received(headers=dict.fromkeys(("traceparent", "tracestate"), odd))
    job = OtpJob.from_bytes(b'{"email": "aaaa@example.com", "otp": "123456"}')
    _, calls = counted(lambda: came.hide_in_trace(job))
    assert calls < 40_000
    assert came.raw.headers == {}
