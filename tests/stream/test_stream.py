"""The application on FastStream's in-memory broker: how each job ends, without RabbitMQ."""

import asyncio
import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from deliveries import searched
from in_memory import SECRET_KEY, Start, Stream
from smtp_relay import Act

from otp_stream.core.otp_job import OtpJob

JOB: dict[str, Any] = {"email": "user@example.com", "otp": "123456", "jobId": "j-1"}
TRACE_PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def job(**changes: Any) -> dict[str, Any]:
    return JOB | changes


def ms_ago(seconds: float) -> int:
    return round((time.time() - seconds) * 1000)


# sent


async def test_a_typed_job_is_sent(stream: Stream) -> None:
    await stream.publish(OtpJob(email="user@example.com", otp="123456"))
    (mail,) = stream.relay.accepted
    assert mail.recipient == "user@example.com"
    assert b"123456" in mail.content
    assert stream.outcomes == ["sent"]


async def test_a_job_as_other_languages_publish_it_is_sent(stream: Stream) -> None:
    await stream.publish(json.dumps(JOB).encode())
    assert stream.recipients == ["user@example.com"]


@pytest.mark.parametrize("queue", ["service_send_otp", "service_send_otp.high", "otp.retry.due"])
async def test_each_lane_leads_to_the_same_handler(stream: Stream, queue: str) -> None:
    await stream.publish(JOB, queue)
    assert stream.recipients == ["user@example.com"]


async def test_the_event_of_a_job_names_its_id_and_neither_code_nor_address(stream: Stream) -> None:
    await stream.publish(JOB)
    (event,) = stream.events
    assert (event["outcome"], event["jobId"], event["attempt"], event["template"]) == ("sent", "j-1", 1, "otp")
    assert "123456" not in str(event)
    assert "user@" not in str(event)


async def test_without_events_none_is_published(start_stream: Start) -> None:
    stream = await start_stream(events=False)
    await stream.publish(JOB)
    assert stream.recipients == ["user@example.com"]
    assert stream.events == []


async def test_a_job_that_was_sent_is_not_sent_again(stream: Stream) -> None:
    await stream.publish(JOB)
    await stream.publish(JOB, "service_send_otp.high")
    assert stream.recipients == ["user@example.com"]
    assert stream.outcomes == ["sent", "duplicate"]


async def test_another_code_under_the_same_id_is_another_job(stream: Stream) -> None:
    await stream.publish(JOB)
    await stream.publish(job(otp="654321"))
    assert stream.outcomes == ["sent", "sent"]


async def test_the_template_and_the_language_of_a_job_are_used(stream: Stream) -> None:
    await stream.publish(job(metadata={"template": "otp", "locale": "de"}))
    (mail,) = stream.relay.accepted
    assert b'<html lang=3D"de"' in mail.content


async def test_of_the_jobs_that_wait_the_high_lane_goes_first(start_stream: Start) -> None:
    stream = await start_stream(smtp_pool_size=1)
    hold = asyncio.Event()
    stream.relay.then("body", Act(until=hold))
    async with asyncio.TaskGroup() as publishing:
        publishing.create_task(stream.publish(job(jobId="first", email="first@example.com")))
        await stream.relay.wait(lambda: stream.relay.held == 1, "mail in flight")
        publishing.create_task(stream.publish(job(jobId="second", email="second@example.com")))
        publishing.create_task(stream.publish(job(jobId="third", email="third@example.com")))
        publishing.create_task(stream.publish(job(jobId="urgent", email="urgent@example.com"), "service_send_otp.high"))
        async with asyncio.timeout(5):
            while sum(lane.state.unacked for lane in stream.broker.lanes) < 4:  # noqa: ASYNC110 - a plain number
                await asyncio.sleep(0.001)
        hold.set()
    assert stream.recipients[0] == "first@example.com"
    assert stream.recipients.index("urgent@example.com") < stream.recipients.index("third@example.com")


async def test_a_publisher_that_is_cancelled_cancels_no_job(stream: Stream) -> None:
    hold = asyncio.Event()
    stream.relay.then("body", Act(until=hold))
    publishing = asyncio.create_task(stream.publish(JOB))
    await stream.relay.wait(lambda: stream.relay.held == 1, "mail in flight")
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    hold.set()
    await stream.relay.wait_accepted(1)


# retried


async def test_a_deferred_job_goes_to_a_wait_queue_with_the_attempt_counted(stream: Stream) -> None:
    stream.relay.then("rcpt", "451 4.3.0 try later")
    await stream.publish(job(colour="blue"), headers={"traceparent": TRACE_PARENT, "x-death": "old"})
    (retry,) = stream.retries
    assert json.loads(retry.body) == job(colour="blue", retryCount=1)
    assert retry.headers["x-otp-attempt"] == 1
    assert retry.headers["x-otp-job-id"] == "j-1"
    assert retry.headers["traceparent"] == TRACE_PARENT
    assert "x-death" not in retry.headers
    (event,) = stream.events
    assert (event["outcome"], event["replyCode"], event["replyClass"]) == ("retrying", 451, "system")


async def test_a_retry_whose_wait_is_over_is_sent(stream: Stream) -> None:
    stream.relay.then("rcpt", "451 4.3.0 try later")
    await stream.publish(JOB)
    (retry,) = stream.retries
    await stream.publish(retry.body, "otp.retry.due", headers=retry.headers)
    assert stream.outcomes == ["retrying", "sent"]
    assert stream.events[-1]["attempt"] == 2


async def test_each_wait_is_longer_until_the_last_attempt_leaves_a_dead_letter(start_stream: Start) -> None:
    stream = await start_stream(max_retries=2)
    stream.relay.always("rcpt", "451 4.3.0 try later")
    await stream.publish(JOB)
    await stream.publish(stream.retries[0].body, "otp.retry.due", headers=stream.retries[0].headers)
    await stream.publish(stream.retries[1].body, "otp.retry.due", headers=stream.retries[1].headers)
    first, second = (int(event["delayMs"]) for event in stream.events[:2])
    assert 1000 <= first < second
    (dead_letter,) = stream.dead
    assert dead_letter.headers["x-otp-reason"] == "retries_exhausted"
    assert dead_letter.headers["x-otp-attempt"] == 3


async def test_the_count_of_a_producer_is_continued(start_stream: Start) -> None:
    stream = await start_stream(max_retries=3)
    stream.relay.then("rcpt", "451 4.3.0 try later")
    await stream.publish(job(retryCount=3))
    assert stream.outcomes == ["retries_exhausted"]


async def test_a_retry_that_cannot_end_before_the_code_expires_is_not_made(stream: Stream) -> None:
    stream.relay.then("rcpt", "451 4.3.0 try later")
    await stream.publish(job(timestamp=ms_ago(59.5), metadata={"expiryMinutes": 1}))
    assert stream.outcomes == ["expired"]
    assert stream.retries == []


@pytest.mark.parametrize("queue", ["service_send_otp", "otp.retry.due"])
async def test_our_headers_are_trusted_only_with_our_signature(stream: Stream, queue: str) -> None:
    stream.relay.then("rcpt", "451 4.3.0 try later")
    await stream.publish(JOB, queue, headers={"x-otp-attempt": 3, "x-otp-job-id": "other", "x-otp-first-seen": 1})
    (retry,) = stream.retries
    assert retry.headers["x-otp-attempt"] == 1
    assert retry.headers["x-otp-job-id"] == "j-1"
    assert retry.headers["x-otp-first-seen"] > 1


# dead-lettered


async def test_a_rejected_job_leaves_a_dead_letter_with_its_original_body(stream: Stream) -> None:
    stream.relay.then("rcpt", "550 5.1.1 no such user")
    body = json.dumps(JOB, indent=3).encode()
    await stream.publish(body)
    (dead_letter,) = stream.dead
    assert dead_letter.body == body
    assert dead_letter.headers["x-otp-reason"] == "rejected"
    assert dead_letter.headers["x-otp-error"] == "550 5.1.1 no such user (to RCPT)"
    assert dead_letter.headers["x-otp-attempt"] == 1
    assert dead_letter.headers["x-otp-reply-code"] == 550
    assert dead_letter.headers["x-otp-died-at"] >= dead_letter.headers["x-otp-first-seen"]
    (event,) = stream.events
    assert (event["outcome"], event["replyCode"], event["replyClass"]) == ("rejected", 550, "address")


async def test_no_header_of_a_dead_letter_holds_code_or_address(stream: Stream) -> None:
    stream.relay.then("rcpt", "550 5.1.1 user@example.com has no code 123456")
    await stream.publish(JOB, headers={"tracestate": "code=123456"}, message_id="123456")
    (dead_letter,) = stream.dead
    assert "123456" not in searched(dead_letter.headers)
    assert "user@example.com" not in str(dead_letter.headers)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"\xff\xfe", "body"),
        (b"[]", "body"),
        (b'{"email": "user@example.com"}', "otp"),
        (b'{"otp": "123456"}', "email"),
        (b'{"email": "user@example.com", "otp": 123456}', "otp"),
        (b'{"email": "user", "otp": "123456"}', "email"),
        (b"[" * 50_000, "body"),
        (b" " * 70_000, "body"),
    ],
    ids=["empty", "no text", "list", "no code", "no address", "code as a number", "no domain", "deep", "large"],
)
async def test_a_malformed_message_is_dead_lettered_unchanged(stream: Stream, body: bytes, field: str) -> None:
    await stream.publish(body)
    (dead_letter,) = stream.dead
    assert dead_letter.body == body
    assert dead_letter.headers["x-otp-reason"] == "malformed"
    assert dead_letter.headers["x-otp-error"].startswith(f"{field}: ")
    assert "123456" not in searched(dead_letter.headers)
    assert stream.outcomes == ["malformed"]
    assert stream.recipients == []


@pytest.mark.parametrize("field", ["jobId", "retryCount", "priority", "timestamp", "expiryMinutes", "metadata"])
async def test_an_optional_field_of_the_wrong_type_costs_no_code(stream: Stream, field: str) -> None:
    await stream.publish(job(**{field: ["wrong"]}))
    assert stream.outcomes == ["sent"]


async def test_a_traceparent_of_the_wrong_type_costs_no_code(stream: Stream) -> None:
    await stream.publish(JOB, headers={"traceparent": b"00"})
    assert stream.outcomes == ["sent"]


async def test_an_expired_job_is_not_sent(stream: Stream) -> None:
    await stream.publish(job(timestamp=ms_ago(3600)))
    assert stream.outcomes == ["expired"]
    assert stream.dead[0].headers["x-otp-reason"] == "expired"
    assert stream.recipients == []


async def test_a_job_with_an_unknown_template_crashes_and_names_it(stream: Stream) -> None:
    await stream.publish(job(metadata={"template": "no-such"}))
    (dead_letter,) = stream.dead
    assert dead_letter.headers["x-otp-reason"] == "crashed"
    assert "no-such" in dead_letter.headers["x-otp-error"]


async def test_over_a_limit_the_dead_letter_has_the_time_when_the_next_code_is_allowed(start_stream: Start) -> None:
    stream = await start_stream(recipient_limit="1/10m")
    await stream.publish(job(jobId="one"))
    await stream.publish(job(jobId="two"))
    assert stream.outcomes == ["sent", "throttled"]
    allowed = datetime.fromtimestamp(stream.dead[0].headers["x-otp-allowed-at"] / 1000, UTC)
    # the time is counted in slices of a hundredth
    assert 500 < (allowed - datetime.now(UTC)).total_seconds() <= 610


async def test_a_newer_code_supersedes_an_older_one(start_stream: Start) -> None:
    stream = await start_stream(supersede="latest")
    await stream.publish(job(jobId="new", otp="222222", timestamp=ms_ago(1)))
    await stream.publish(job(jobId="old", otp="111111", timestamp=ms_ago(30)))
    assert stream.outcomes == ["sent", "superseded"]
    assert len(stream.relay.accepted) == 1


async def test_headers_signed_by_another_worker_with_the_same_key_are_trusted(start_stream: Start) -> None:
    one, other = await start_stream(), await start_stream(max_retries=1)
    one.relay.then("rcpt", "451 4.3.0 try later")
    await one.publish(JOB)
    other.relay.then("rcpt", "451 4.3.0 try later")
    await other.publish(one.retries[0].body, "otp.retry.due", headers=one.retries[0].headers)
    assert other.outcomes == ["retries_exhausted"]


async def test_a_job_whose_headers_were_signed_with_another_key_is_a_new_job(start_stream: Start) -> None:
    one, other = await start_stream(), await start_stream(max_retries=1, secret_key=SECRET_KEY[::-1])
    one.relay.then("rcpt", "451 4.3.0 try later")
    await one.publish(job(retryCount=0))
    other.relay.then("rcpt", "451 4.3.0 try later")
    body = json.loads(one.retries[0].body) | {"retryCount": 0}
    await other.publish(body, "otp.retry.due", headers=one.retries[0].headers)
    assert other.outcomes == ["retrying"]
