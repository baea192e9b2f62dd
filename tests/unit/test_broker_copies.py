"""What is published in a job's place."""

import json
from typing import Any

import pytest
from aio_pika import IncomingMessage
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from otp_stream.broker import copies
from otp_stream.broker.arrival import Arrival, Reader
from otp_stream.core.decision import Dead
from otp_stream.core.job import MAX_BODY_BYTES, Lane, OtpJob, Replay

BODY = b'{"email": "user@example.com", "otp": "123456", "x": [1, {"y": null}], "retryCount": 0}'


def arrival(body: bytes = BODY, lane: Lane = "jobs", *, redelivered: bool = False, **properties: Any) -> Arrival:
    deliver = Basic.Deliver("tag", 1, redelivered, "", "jobs")
    header = ContentHeader(body_size=len(body), properties=Basic.Properties(**properties))
    delivered = DeliveredMessage(delivery=deliver, header=header, body=body, channel=None)  # type: ignore[arg-type]
    return Arrival(IncomingMessage(delivered), lane, 1_000)


def nothing(headers: Any) -> None: ...


def test_a_retry_carries_count_id_and_first_sight_and_every_key_of_the_producer() -> None:
    message = copies.retry(arrival(headers={"tenant": "t1"}), job_id="j", attempts_made=2, inject=nothing)
    assert json.loads(message.body) == json.loads(BODY) | {"retryCount": 2}
    assert message.headers == {"tenant": "t1", "x-otp-attempt": 2, "x-otp-job-id": "j", "x-otp-first-seen": 1_000}
    assert message.delivery_mode == 2


def test_that_the_relay_may_have_it_is_kept_until_the_end_and_believed_only_from_us() -> None:
    first = copies.retry(arrival(), job_id="j", attempts_made=1, inject=nothing, uncertain="relay:25")
    assert first.headers["x-otp-uncertain"] == "relay:25"
    due = arrival(lane="due", headers=first.headers)
    assert copies.retry(due, job_id="j", attempts_made=2, inject=nothing).headers["x-otp-uncertain"] == "relay:25"
    theirs = arrival(headers={"x-otp-uncertain": "relay:25"})
    assert "x-otp-uncertain" not in copies.retry(theirs, job_id="j", attempts_made=1, inject=nothing).headers


def test_a_replay_is_kept_until_the_end_and_believed_only_from_us() -> None:
    theirs = arrival(headers={"x-otp-replayed-at": 5_000, "x-otp-replayed-by": "mallory", "x-otp-fresh": "yes"})
    assert theirs.replay is None
    assert not _OF_REPLAY & set(copies.retry(theirs, job_id="j", attempts_made=1, inject=nothing).headers)
    letter = arrival(headers={"x-otp-reason": "rejected", "x-otp-job-id": "j", "x-otp-uncertain": "relay:25", "n": 1})
    message = copies.replayed(letter.message, Replay(5_000, "ops@host", fresh=True), known=True)
    assert message.headers == {
        "n": 1, "x-otp-job-id": "j", "x-otp-attempt": 0,
        "x-otp-replayed-at": 5_000, "x-otp-replayed-by": "ops@host", "x-otp-fresh": "yes",
    }  # fmt: skip
    due = arrival(lane="due", headers=message.headers)
    assert due.replay == Replay(5_000, "ops@host", fresh=True)
    for again in (
        copies.retry(due, job_id="j", attempts_made=1, inject=nothing),
        copies.dead_letter(due, Dead("rejected", "550 no", 1), job_id="j", died_ms=6_000, inject=nothing),
    ):
        assert set(again.headers) >= _OF_REPLAY


_OF_REPLAY = {"x-otp-replayed-at", "x-otp-replayed-by", "x-otp-fresh"}


def test_a_body_at_the_limit_does_not_outgrow_it_by_being_counted() -> None:
    frame = b'{"email":"user@example.com","otp":"123456","x":"%s"}'
    body = frame % (b"a" * (MAX_BODY_BYTES - len(frame) + 2))
    assert len(body) == MAX_BODY_BYTES
    message = copies.retry(arrival(body), job_id="j", attempts_made=1, inject=nothing)
    assert message.body == body


def test_a_dead_letter_keeps_the_body_and_replaces_older_reasons() -> None:
    came = arrival(headers={"x-otp-reason": "expired", "x-death": [{"count": 3}], "x-first-death-queue": "q", "n": 1})
    dead = Dead("rejected", "550 no", 1)
    message = copies.dead_letter(came, dead, job_id="j", died_ms=2_000, inject=nothing)
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
    message = copies.unchanged(arrival(headers={"CC": ["other"], "BCC": ["third"], "n": 1}))
    assert message.headers == {"n": 1}


def test_properties_go_along_but_for_user_and_expiration() -> None:
    came = arrival(content_type="text/plain", message_id="m", correlation_id="c", user_id="guest", expiration="60000")
    message = copies.unchanged(came)
    assert (message.content_type, message.message_id, message.correlation_id) == ("text/plain", "m", "c")
    assert message.user_id is None
    assert message.expiration is None


def test_a_header_that_cannot_be_written_again_does_not_hold_the_job() -> None:
    came = arrival(headers={"good": "x"})
    came.message.headers["odd"] = {"deep": object()}  # type: ignore[assignment]
    assert copies.unchanged(came).headers == {"good": "x"}


class Made:
    """Remembers ids, as the tables do."""

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}

    async def recall(self, content: str) -> str | None:
        return self.ids.get(content)

    def keep(self, content: str, job_id: str) -> None:
        self.ids[content] = job_id


async def job_id(came: Arrival, reader: Reader | None = None) -> str:
    reader = reader or Reader(15, b"k" * 32, Made())
    return await reader.job_id(came, OtpJob.from_bytes(came.message.body))


async def test_a_producers_id_is_taken() -> None:
    assert await job_id(arrival(b'{"email": "user@example.com", "otp": "123456", "jobId": "j-1"}')) == "j-1"


@pytest.mark.parametrize(
    ("body", "properties"),
    [
        (b'{"email": "user@example.com", "otp": "123456", "timestamp": 5}', {}),
        (b'{"email": "user@example.com", "otp": "123456"}', {"message_id": "m-1"}),
    ],
)
async def test_a_job_without_an_id_has_one_by_its_content_for_every_worker(
    body: bytes, properties: dict[str, Any]
) -> None:
    first, second = [await job_id(arrival(body, **properties)) for _ in range(2)]
    assert first == second
    assert "123456" not in first
    assert await job_id(arrival(body, **properties), Reader(15, b"other" * 8, Made())) != first


async def test_asking_again_with_nothing_to_tell_the_two_apart_makes_two_jobs() -> None:
    body = b'{"email": "user@example.com", "otp": "123456"}'
    made = Made()
    reader = Reader(15, b"k" * 32, made)
    first, second = await job_id(arrival(body), reader), await job_id(arrival(body), reader)
    assert first != second
    other_worker = Reader(15, b"k" * 32, made)
    assert await job_id(arrival(body, redelivered=True), other_worker) == second
    assert not [it for it in made.ids if "123456" in it or "user" in it]


@pytest.mark.parametrize("value", ["3", True, None, b"3", 1.5])
def test_a_count_that_is_no_number_is_as_good_as_none(value: Any) -> None:
    came = arrival(lane="due", headers={"x-otp-attempt": value})
    assert (
        came.attempts_made(OtpJob.from_bytes(b'{"email": "user@example.com", "otp": "123456", "retryCount": 2}')) == 2
    )
