"""From a queue at a real RabbitMQ to a relay's 250, and every other end a job can take."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping
from email import message_from_bytes, policy

import pytest
from conftest import Stage
from rabbitmq import until
from smtp_relay import CLOSE, Act, Received
from worker import CODE, Worker, job

BAD: dict[str, tuple[bytes, dict[str, object], str]] = {
    "no JSON": (b"\xff\xfe otp 739154", {}, "body: "),
    "no object": (b'["739154"]', {}, "body: "),
    "code as a number": (b'{"email": "user@example.com", "otp": 739154}', {}, "otp: must be a string"),
    "no address": (b'{"otp": "739154"}', {}, "email: is required"),
    "two addresses": (job("a@example.com, b@example.com"), {}, "email: must be one e-mail address"),
    "line break in the address": (job("a@example.com\r\nRCPT TO:<b@example.com>"), {}, "email: must be one"),
    "too large": (job(metadata={"x": "y" * 70_000}), {}, "body: "),
    "too deep": (b'{"metadata": ' + b"[" * 30_000, {}, "body: "),
}
TIMES = {"x-otp-first-seen", "x-otp-died-at"}


def code_in(mail: Received) -> bool:
    message = message_from_bytes(mail.content, policy=policy.default)
    return all(CODE in message.get_body((kind,)).get_content() for kind in ("plain", "html"))


async def test_a_job_that_was_waiting_before_the_first_start_is_sent(stage: Stage) -> None:
    await stage.rabbit.declare()
    await stage.rabbit.publish(job(metadata={"userName": "John Doe"}))
    await stage.run()
    await stage.relay.wait_accepted(1)
    (mail,) = stage.relay.accepted
    assert (mail.sender, mail.recipient) == ("no-reply@example.com", "user@example.com")
    assert code_in(mail)
    await until(lambda: _settled(stage.workers[0], "sent", 1), "settlement")
    await stage.rabbit.wait_depth(0)


async def test_a_producer_may_declare_its_plain_queue_after_the_worker_made_it(stage: Stage) -> None:
    await stage.run()
    await stage.rabbit.declare()
    await stage.rabbit.publish(job())
    await stage.relay.wait_accepted(1)


@pytest.mark.parametrize("arguments", [{"x-queue-type": "quorum"}, {"x-max-priority": 5}, {"x-message-ttl": 60000}])
async def test_a_queue_that_exists_with_arguments_is_used_with_them(stage: Stage, arguments: dict[str, object]) -> None:
    await stage.rabbit.declare(**arguments)
    await stage.run()
    await stage.rabbit.publish(job())
    await stage.relay.wait_accepted(1)


async def test_any_content_type_is_read_as_json(stage: Stage) -> None:
    await stage.run()
    kinds = (None, "text/plain", "application/json; charset=utf-8", "Application/JSON", "application/x-nonsense")
    for number, kind in enumerate(kinds):
        await stage.rabbit.publish(job(f"u{number}@example.com"), content_type=kind, reply_to=stage.rabbit.queue)
    await stage.relay.wait_accepted(len(kinds))
    await until(lambda: _settled(stage.workers[0], "sent", len(kinds)), "settlements")
    await stage.rabbit.wait_depth(0)  # a foreign reply_to got no reply


@pytest.mark.parametrize("name", BAD)
async def test_a_message_that_is_no_job_is_dead_lettered_with_its_unchanged_body(stage: Stage, name: str) -> None:
    body, headers, error = BAD[name]
    worker = await stage.run(LOG_LEVEL="debug")
    await stage.rabbit.publish(body, headers=headers)
    (dead_letter,) = await stage.rabbit.dead()
    assert dead_letter.body == body
    assert dead_letter.headers["x-otp-reason"] == "malformed"
    assert str(dead_letter.headers["x-otp-error"]).startswith(error)
    assert dead_letter.headers["x-otp-attempt"] == 0
    # a time in milliseconds may contain the digits of the code
    assert CODE not in str({name: it for name, it in dead_letter.headers.items() if name not in TIMES})
    for name_, value in headers.items():
        assert dead_letter.headers[name_] == value
    await stage.rabbit.publish(job())  # the worker continues
    await stage.relay.wait_accepted(1)
    assert CODE not in worker.log_without_fractions


async def test_a_body_that_is_not_quite_json_is_sent_after_a_retry_too(stage: Stage) -> None:
    names = (
        b"Ann\nLee",
        rb"O\'Brien",
        b"J\xf6rg",
        rb"\ud83d",
        b'", "deep": ' + b"[" * 5_000 + b"]" * 5_000 + b', "x": "',
    )
    address = "u{}@example.com"
    worker = await stage.run(BASE_DELAY_MS="100")
    for number, name in enumerate(names):
        stage.relay.then("rcpt", "451 4.3.0 later", to=address.format(number))
        body = job(f"\u200e{address.format(number)} ", metadata={"userName": "?"}).replace(b"?", name)
        await stage.rabbit.publish(body)
    await stage.relay.wait_accepted(len(names))
    assert sorted(it.recipient for it in stage.relay.accepted) == [address.format(it) for it in range(len(names))]
    await _has_counted(worker, 'otp_lenient_total{field="body"}', len(names))


async def test_a_deferred_job_is_delivered_once_and_no_sooner_than_by_the_formula(stage: Stage) -> None:
    stage.relay.then("rcpt", "451 4.3.0 later", "451 4.3.0 later")
    worker = await stage.run(BASE_DELAY_MS="1000", MAX_RETRIES="3")
    began = time.monotonic()
    await stage.rabbit.publish(job(jobId="j-1"))
    await stage.relay.wait_accepted(1)
    took_s = stage.relay.accepted[0].at - began
    assert took_s >= 1 + 2
    await worker.wait_log('"event":"job sent"')  # and all lines before it
    retries = [line for line in worker.lines if line["event"] == "job will be retried"]
    assert [line["attempt"] for line in retries] == [1, 2]
    assert 1000 <= retries[0]["delay_ms"] <= 1300
    assert 2000 <= retries[1]["delay_ms"] <= 2600
    asked_s = sum(line["delay_ms"] for line in retries) / 1000
    assert asked_s <= took_s
    await until(lambda: _settled(worker, "sent", 1), "settlement")
    assert len(stage.relay.accepted) == 1


async def test_a_rejected_recipient_is_dead_after_one_attempt(stage: Stage) -> None:
    stage.relay.always("rcpt", "550 5.1.1 no such user", to="nobody@example.com")
    await stage.run()
    body = job("nobody@example.com", jobId="j-1", timestamp=time.time_ns() // 1_000_000)
    await stage.rabbit.publish(body, headers={"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"})
    (dead_letter,) = await stage.rabbit.dead()
    headers = dead_letter.headers
    assert dead_letter.body == body
    assert headers["x-otp-reason"] == "rejected"
    assert headers["x-otp-error"] == "550 5.1.1 no such user (to RCPT)"
    assert headers["x-otp-attempt"] == 1
    assert headers["x-otp-job-id"] == "j-1"
    assert headers["x-otp-first-seen"] <= headers["x-otp-died-at"]
    assert str(headers["traceparent"]).startswith("00-" + "1" * 32)
    assert stage.relay.commands().count("RCPT") == 1


async def test_retries_end_in_the_dead_queue_with_the_body_in_step(stage: Stage) -> None:
    stage.relay.always("rcpt", "451 4.3.0 never")
    await stage.run(MAX_RETRIES="2", BASE_DELAY_MS="100")
    await stage.rabbit.publish(job(colour="blue"))
    (dead_letter,) = await stage.rabbit.dead()
    assert dead_letter.headers["x-otp-reason"] == "retries_exhausted"
    assert dead_letter.headers["x-otp-attempt"] == 3
    assert json.loads(dead_letter.body) == json.loads(job(colour="blue")) | {"retryCount": 2}
    assert stage.relay.commands().count("RCPT") == 3


async def test_a_mail_that_is_greylisted_for_longer_than_the_retries_last_is_delivered(stage: Stage) -> None:
    stage.relay.then("rcpt", *["450 4.2.0 <u@example.com>: Recipient address rejected: Greylisted"] * 5)
    worker = await stage.run(BASE_DELAY_MS="100", MAX_DELAY_MS="200")
    await stage.rabbit.publish(job())
    await stage.relay.wait_accepted(1, timeout=40)
    await until(lambda: _settled(worker, "sent", 1), "settlement")
    assert stage.relay.commands().count("RCPT") == 6


async def test_a_code_or_recipient_under_a_known_id_is_another_job_and_is_sent(stage: Stage) -> None:
    worker = await stage.run()
    for email, otp in (("user@example.com", CODE), ("user@example.com", "222222"), ("two@example.com", CODE)):
        await stage.rabbit.publish(job(email, otp=otp, jobId="user-17"))
        await stage.rabbit.publish(job(email, otp=otp, jobId="user-17"))
    await until(lambda: _settled(worker, "sent", 3), "settlement")
    await until(lambda: _settled(worker, "duplicate", 3), "settlement")
    assert len(stage.relay.accepted) == 3
    await worker.wait_log("jobId was used before")
    assert len([line for line in worker.lines if "jobId was used before" in line["event"]]) == 1


@pytest.mark.parametrize("name", ["traceparent", "tracestate", "baggage"])
async def test_a_trace_header_of_the_wrong_type_costs_no_code(stage: Stage, name: str) -> None:
    await stage.run()
    await stage.rabbit.publish(job(), headers={name: bytearray(b"00-1")})
    await stage.relay.wait_accepted(1)


async def test_a_producers_retry_count_seeds_the_attempts(stage: Stage) -> None:
    stage.relay.always("rcpt", "451 4.3.0 never")
    await stage.run(MAX_RETRIES="2")
    await stage.rabbit.publish(job(retryCount=2))
    (dead_letter,) = await stage.rabbit.dead()
    assert dead_letter.headers["x-otp-attempt"] == 3
    assert stage.relay.commands().count("RCPT") == 1


async def test_an_expired_code_is_never_sent(stage: Stage) -> None:
    await stage.run()
    now_ms = time.time_ns() // 1_000_000
    await stage.rabbit.publish(job(timestamp=now_ms - 61_000, metadata={"expiryMinutes": 1}))
    (dead_letter,) = await stage.rabbit.dead()
    assert dead_letter.headers["x-otp-reason"] == "expired"
    assert dead_letter.headers["x-otp-attempt"] == 0
    assert "RCPT" not in stage.relay.commands()


async def test_no_retry_is_scheduled_past_the_codes_expiry(stage: Stage) -> None:
    stage.relay.always("rcpt", "451 4.3.0 later")
    await stage.run(BASE_DELAY_MS="30000", MAX_DELAY_MS="30000")
    await stage.rabbit.publish(job(timestamp=time.time_ns() // 1_000_000, metadata={"expiryMinutes": 0.2}))
    (dead_letter,) = await stage.rabbit.dead()
    assert dead_letter.headers["x-otp-reason"] == "expired"
    assert dead_letter.headers["x-otp-attempt"] == 1


async def test_a_code_that_expires_behind_the_opened_breaker_is_dead_in_time(stage: Stage) -> None:
    stage.relay.always("greeting", CLOSE)
    worker = stage.worker()
    await worker.start()
    await stage.rabbit.publish(job(timestamp=time.time_ns() // 1_000_000, metadata={"expiryMinutes": 0.05}))
    (dead_letter,) = await stage.rabbit.dead()
    assert dead_letter.headers["x-otp-reason"] == "expired"
    assert dead_letter.headers["x-otp-attempt"] == 0


async def test_an_optional_field_that_is_wrong_costs_no_code_and_is_counted(stage: Stage) -> None:
    worker = await stage.run()
    seconds = time.time_ns() // 1_000_000_000
    await stage.rabbit.publish(
        job("a@example.com", retryCount="0", jobId=4711, priority="urgent", metadata=[]),
        job("b@example.com", timestamp=seconds, metadata={"expiryMinutes": 0, "purpose": True}),
        job("c@example.com", metadata={"userName": "Ann \ud83d"}),
    )
    await stage.relay.wait_accepted(3)
    fields = ("retryCount", "jobId", "priority", "metadata", "timestamp", "metadata.expiryMinutes", "body")
    for field in fields:
        await _has_counted(worker, f'otp_lenient_total{{field="{field}"}}', 1)
    await worker.wait_log("not as documented", times=len(fields))
    lines = {line["field"]: line["what"] for line in worker.lines if "not as documented" in line["event"]}
    assert lines["timestamp"] == "in seconds instead of milliseconds, read as such"
    assert lines["priority"] == "ignored"


async def test_a_clock_that_runs_ahead_does_not_prolong_a_code_and_is_reported(stage: Stage) -> None:
    worker = await stage.run()
    await stage.rabbit.publish(job(timestamp=time.time_ns() // 1_000_000 + 3_600_000))
    await stage.relay.wait_accepted(1)
    await _has_counted(worker, "otp_clock_ahead_total", 1)
    await worker.wait_log("clock is ahead")
    (line,) = [line for line in worker.lines if "clock is ahead" in line["event"]]
    assert 3_590_000 < line["ahead_ms"] <= 3_600_000


async def test_a_job_id_that_was_sent_is_not_sent_again(stage: Stage) -> None:
    worker = await stage.run()
    await stage.rabbit.publish(job(jobId="j-1"), job(jobId="j-1"), job(jobId="j-2"))
    await until(lambda: _settled(worker, "duplicate", 1), "duplicate")
    await until(lambda: _settled(worker, "sent", 2), "two sent")
    assert len(stage.relay.accepted) == 2


async def test_a_template_that_fails_is_crashed_once(stage: Stage) -> None:
    folder = stage.folder / "templates" / "otp"
    folder.mkdir(parents=True)
    (folder / "body.txt").write_text("{{ otp }} for {{ orderNumber }}")
    await stage.run(TEMPLATES_DIR=str(folder.parent))
    await stage.rabbit.publish(job(), job(metadata={"orderNumber": "A-1"}))
    (dead_letter,) = await stage.rabbit.dead()
    assert dead_letter.headers["x-otp-reason"] == "crashed"
    assert "'orderNumber' is undefined" in str(dead_letter.headers["x-otp-error"])
    await stage.relay.wait_accepted(1)
    assert b"739154 for A-1" in stage.relay.accepted[0].content


async def test_a_relay_that_is_closed_for_a_while_costs_no_job_and_no_attempt(stage: Stage) -> None:
    worker = await stage.run()
    await stage.relay.stop()
    await stage.rabbit.publish(*(job(f"u{n}@example.com") for n in range(50)))
    await worker.wait_log("circuit breaker open")

    async def reported() -> bool:
        status, body = await worker.get("/readyz")
        return status == 503 and "circuit breaker open" in body

    await until(reported, "the circuit breaker on /readyz")
    await stage.rabbit.wait_depth(0)  # they wait in the worker
    await stage.relay.start()
    await stage.relay.wait_accepted(50, timeout=30)
    await until(lambda: _settled(worker, "sent", 50), "settlements")
    assert all(line["attempt"] == 1 for line in worker.lines if line["event"] == "job sent")
    assert await stage.rabbit.depth(f"{stage.rabbit.prefix}.dead") == 0
    assert len({mail.recipient for mail in stage.relay.accepted}) == len(stage.relay.accepted) == 50


async def test_a_thousand_jobs_with_mixed_outcomes_each_end_in_exactly_one_way(stage: Stage) -> None:
    def answer(number: int) -> tuple[str, str]:
        return {0: ("nobody", "rejected"), 1: ("never", "retries_exhausted"), 2: ("bad", "malformed")}.get(
            number % 10, ("user", "sent")
        )

    now_ms = time.time_ns() // 1_000_000
    bodies: list[bytes] = []
    for number in range(1000):
        kind, _ = answer(number)
        address = f"{kind}{number}@example.com"
        match kind:
            case "nobody":
                stage.relay.always("rcpt", "550 5.1.1 no", to=address)
            case "never":
                stage.relay.always("rcpt", "451 4.3.0 later", to=address)
            case "user" if number % 10 == 3:
                stage.relay.then("rcpt", "451 4.3.0 later", to=address)  # once
            case _:
                pass
        expired = number % 10 == 4
        made_ms = now_ms - 3_600_000 if expired else now_ms
        bodies.append(b"{}" if kind == "bad" else job(address, jobId=f"j{number}", timestamp=made_ms))
    worker = await stage.run(BASE_DELAY_MS="100", MAX_RETRIES="2")
    await stage.rabbit.publish(*bodies)
    wanted = {"sent": 600, "expired": 100, "rejected": 100, "retries_exhausted": 100, "malformed": 100}

    def copies() -> int:
        """Return how many messages exist twice at most: RabbitMQ may confirm the first one too late."""
        return worker.log.count('"event":"publish not confirmed"')

    def is_as_wanted(found: Mapping[str, int], wanted: Mapping[str, int]) -> bool:
        more = Counter(found)
        more.subtract(wanted)
        return min(more.values()) >= 0 and more.total() <= copies()

    async def counted() -> bool:
        return is_as_wanted((await worker.health())["outcomes"], wanted)

    await until(counted, f"{wanted}, got {(await worker.health())['outcomes']}", 60)
    dead_letters = await stage.rabbit.dead(400)
    reasons = Counter(str(it.headers["x-otp-reason"]) for it in dead_letters)
    assert is_as_wanted(reasons, {k: v for k, v in wanted.items() if k != "sent"})
    ids = [it.headers["x-otp-job-id"] for it in dead_letters if it.headers["x-otp-reason"] != "malformed"]
    sent = [mail.recipient for mail in stage.relay.accepted]
    assert len(set(sent)) == len(sent) == 600
    assert len(set(ids)) == 300
    assert len(ids) <= 300 + copies()
    stats = (await worker.health())["stats"]
    assert stats.keys() == {"processedJobs", "failedJobs", "retriedJobs", "startTime", "lastProcessedAt"}
    for name, count in {"processedJobs": 600, "failedJobs": 400, "retriedJobs": 300}.items():
        assert count <= stats[name] <= count + copies(), name


async def test_the_high_lane_overtakes_a_backlog(stage: Stage) -> None:
    await stage.rabbit.declare()
    await stage.rabbit.publish(*(job(f"low{n}@example.com", priority="low") for n in range(500)))
    arrived = asyncio.Event()
    stage.relay.then("body", *[Act()] * 40, *[Act(until=arrived)] * 100)
    worker = await stage.run(SMTP_POOL_SIZE="20")
    await stage.relay.wait_accepted(40)
    before = len(stage.relay.accepted)
    await stage.rabbit.publish(job("urgent@example.com"), to=f"{stage.rabbit.queue}.high")
    await _has_counted(worker, 'otp_jobs_unacked{lane="high"}', 1)
    arrived.set()
    await stage.relay.wait(lambda: any(m.recipient == "urgent@example.com" for m in stage.relay.accepted), "urgent", 20)
    after = next(n for n, mail in enumerate(stage.relay.accepted) if mail.recipient == "urgent@example.com")
    assert after - before <= 3 * 20  # a few turns of each connection, of the 500 that were there first


async def test_within_the_prefetch_count_high_goes_before_normal_before_low(stage: Stage) -> None:
    await stage.relay.stop()
    worker = await stage.run(SMTP_POOL_SIZE="1")
    order = ["low", "normal", "high"] * 10
    await stage.rabbit.publish(*(job(f"{p}{n}@example.com", priority=p) for n, p in enumerate(order)))

    async def held() -> bool:
        return await worker.metric('otp_jobs_unacked{lane="jobs"}') == len(order)

    await until(held, "all jobs in flight")
    await stage.relay.start()
    await stage.relay.wait_accepted(len(order), timeout=30)
    got = [mail.recipient[0] for mail in stage.relay.accepted]
    assert sorted(got[1:], key="hnl".index) == got[1:]  # the first may be the probe that met the closed relay


async def test_events_report_every_outcome_without_code_and_address(stage: Stage) -> None:
    stage.relay.then("rcpt", "451 4.3.0 later")
    await stage.run(BASE_DELAY_MS="100")
    queue = await stage.rabbit.channel.declare_queue(exclusive=True)
    await queue.bind(f"{stage.rabbit.prefix}.events", "otp.#")
    await stage.rabbit.publish(job(jobId="j-1"), b"nonsense")
    events = await stage.rabbit.take(queue.name, 3)
    outcomes = {(event.routing_key, json.loads(event.body)["outcome"]) for event in events}
    assert outcomes == {("otp.retrying", "retrying"), ("otp.sent", "sent"), ("otp.malformed", "malformed")}
    assert not any(CODE in str(event.body) or "user@" in str(event.body) for event in events)


async def _settled(worker: Worker, ending: str, count: int) -> bool:
    return await worker.metric(f'otp_jobs_total{{outcome="{ending}"}}') == count


async def _has_counted(worker: Worker, line: str, count: float) -> None:
    """Wait for a value of a metric."""

    async def has() -> bool:
        return await worker.metric(line) == count

    await until(has, f"{line} {count}")


async def test_two_workers_share_a_queue(stage: Stage) -> None:
    first, second = stage.worker(PREFETCH_COUNT="5"), stage.worker(PREFETCH_COUNT="5")
    await asyncio.gather(first.start(), second.start())
    both = asyncio.Event()
    stage.relay.always("body", Act(until=both))
    await stage.rabbit.publish(*(job(f"u{n}@example.com") for n in range(60)))

    def shares() -> list[int]:
        return [len([line for line in worker.lines if line["event"] == "job started"]) for worker in (first, second)]

    async def held() -> bool:
        return shares() == [5, 5]

    await until(held, "five jobs in each worker")
    both.set()
    await stage.relay.wait_accepted(60, timeout=20)

    async def all_logged() -> bool:
        return sum(shares()) == 60

    await until(all_logged, "the start of each job, once")


async def test_with_a_prefetch_count_of_1_one_recipient_does_not_stop_all_mail(stage: Stage) -> None:
    stage.relay.always("rcpt", "450 4.7.1 rate limit exceeded", to="odd@example.com")
    worker = await stage.run(PREFETCH_COUNT="1")
    await stage.rabbit.publish(job("odd@example.com", jobId="odd"))
    await worker.wait_log("circuit breaker open")
    await stage.rabbit.publish(*(job(f"u{at}@example.net", jobId=f"u{at}") for at in range(3)))
    await stage.relay.wait_accepted(3, 30)
    stage.relay.always("rcpt", None, to="odd@example.com")
    await stage.relay.wait_accepted(4, 60)
    await until(lambda: _settled(worker, "sent", 4), "settlement")


@pytest.mark.parametrize("prefetch", [1, 6])
async def test_mails_that_are_refused_for_several_domains_do_not_fill_a_worker(stage: Stage, prefetch: int) -> None:
    for number in range(3):
        stage.relay.always("rcpt", "450 4.7.1 rate limit exceeded", to=f"@odd{number}.example")
    worker = await stage.run(PREFETCH_COUNT=str(prefetch), MAX_RETRIES="1")
    await stage.rabbit.publish(*(job(f"a{at}@odd{at % 3}.example", jobId=f"a{at}") for at in range(30)))
    await worker.wait_log("circuit breaker open")
    await stage.rabbit.publish(*(job(f"u@good{at}.example", jobId=f"u{at}") for at in range(10)))
    await stage.relay.wait_accepted(10, 30)
    assert {mail.recipient for mail in stage.relay.accepted} == {f"u@good{at}.example" for at in range(10)}
