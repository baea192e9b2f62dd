"""The worker process: how it starts, what it logs, how it stops."""

import asyncio
import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from amqp_proxy import amqp_proxy
from conftest import Stage
from rabbitmq import free_port, rabbit, until
from smtp_relay import Act
from worker import CODE, Worker, job


async def test_every_missing_or_bad_setting_is_named_at_once_and_ends_with_2(stage: Stage) -> None:
    env = {"WORKER": "true", "RABBITMQ_URL": "http://x", "PREFETCH_COUNT": "many"}
    worker = Worker(stage.folder, env)
    await worker.start(ready=False)
    assert await worker.stopped() == 2
    assert "PREFETCH_COUNT: " in worker.log
    assert "RABBITMQ_URL: must start with amqp://" in worker.log
    worker = Worker(stage.folder / "b", {"WORKER": "true", "SMTP_CA_FILE": "/nowhere.pem"})
    await worker.start(ready=False)
    assert await worker.stopped() == 2
    for name in ("SENDER_EMAIL", "SMTP_HOST", "SMTP_USER", "SMTP_PASS", "SMTP_CA_FILE"):
        assert f"{name}: " in worker.log


@pytest.mark.parametrize(
    ("options", "env"), [(("--workers", "2"), {}), (("-w3",), {}), ((), {"FASTSTREAM_WORKERS": "2"})]
)
async def test_with_several_processes_bad_settings_are_named_once_and_end_the_command(
    stage: Stage, options: tuple[str, ...], env: dict[str, str]
) -> None:
    env = {"WORKER": "true", "RABBITMQ_URL": "http://x", "PYTHONUNBUFFERED": "1", **env}
    worker = Worker(stage.folder, env, options=options)
    await worker.start(ready=False)
    assert await worker.stopped(60) == 2  # it starts several interpreters
    assert worker.log.count("RABBITMQ_URL: must start with amqp://") == 1


@pytest.mark.parametrize("options", [("--ssl-certfile", "c.pem"), ("--workers", "2", "--ssl-keyfile=k.pem")])
async def test_tls_of_the_http_server_is_refused_with_what_to_do(stage: Stage, options: tuple[str, ...]) -> None:
    worker = Worker(stage.folder, {}, options=options)
    await worker.start(ready=False)
    assert await worker.stopped(60) == 2
    assert worker.log.count("--ssl-…: the worker serves plain HTTP") == 1
    assert "put a proxy with TLS in front" in worker.log


async def test_options_that_would_lift_limits_of_several_workers_are_refused(stage: Stage) -> None:
    options = ("--workers", "2", "--limit-max-requests=5", "--timeout-keep-alive", "600", "--port", "1")
    worker = Worker(stage.folder, {}, options=options)
    await worker.start(ready=False)
    assert await worker.stopped(60) == 2
    assert "Fix 2 setting(s)" in worker.log
    assert "--limit-max-requests: is not an option of a worker; remove it" in worker.log
    assert "--timeout-keep-alive: is not an option" in worker.log


async def test_a_template_that_cannot_be_compiled_ends_the_start_with_2(stage: Stage) -> None:
    (stage.folder / "templates" / "otp").mkdir(parents=True)
    (stage.folder / "templates" / "otp" / "body.html").write_text("{% if %}")
    worker = stage.worker(TEMPLATES_DIR=str(stage.folder / "templates"))
    await worker.start(ready=False)
    assert await worker.stopped() == 2
    assert "TEMPLATES_DIR: template otp/body.html, line 1" in worker.log


async def test_a_block_that_is_never_printed_is_logged_at_the_start(stage: Stage) -> None:
    (stage.folder / "templates" / "otp").mkdir(parents=True)
    child = "{% extends 'layout.html' %}\n{% block expirey %}{{ validUntil }}{% endblock %}"
    (stage.folder / "templates" / "otp" / "body.html").write_text(child)
    worker = await stage.run(TEMPLATES_DIR=str(stage.folder / "templates"))
    await worker.wait_log("template: ", times=2)
    warning, error = [it for it in worker.lines if it["event"].startswith("template: ")]
    assert "layout.html has no block 'expirey'" in error["event"]
    assert (error["level"], error["file"], error["line"]) == ("error", "otp/body.html", 2)
    assert (warning["level"], warning["file"]) == ("warning", "otp/body.html")


async def test_without_worker_it_serves_http_only_and_logs_that(stage: Stage) -> None:
    worker = Worker(stage.folder, {"RABBITMQ_URL": "amqp://nobody:hunter2@127.0.0.1:1/"})
    await worker.start()
    await worker.wait_log("WORKER=false: serving HTTP only")
    assert worker.log.count("WORKER=false: serving HTTP only") == 1
    for path in ("/", "/health", "/livez", "/readyz", "/metrics", "/asyncapi", "/asyncapi.json", "/asyncapi.yaml"):
        assert (await worker.get(path))[0] == 200, path
    assert "hunter2" not in worker.log + (await worker.get("/asyncapi"))[1] + (await worker.get("/"))[1]
    assert await worker.stop() in {0, -signal.SIGTERM}


async def test_a_broker_that_is_down_at_start_is_waited_for_visibly(stage: Stage) -> None:
    async with amqp_proxy(stage.url) as (broker, url):
        await broker.stop()
        worker = stage.worker(url=url)
        await worker.start(ready=False)
        await worker.wait_log("waiting for RabbitMQ")

        async def reported() -> bool:
            status, body = await worker.get("/readyz")
            return status == 503 and "is away" in body

        await until(reported, "the broker on /readyz")
        assert (await worker.get("/livez"))[0] == 200
        assert (await worker.get("/health"))[0] == 503
        assert "No codes are going out" in (await worker.get("/"))[1]
        await broker.start()
        await worker.wait_ready()
        assert (await worker.get("/health"))[0] == 200
        await worker.stop()


async def test_a_broker_that_dies_and_comes_back_is_found_again_and_nothing_is_lost(stage: Stage) -> None:
    async with amqp_proxy(stage.url) as (broker, url):
        worker = stage.worker(url=url)
        await worker.start()
        await stage.relay.stop()
        await stage.rabbit.publish(*(job(f"u{n}@example.com", jobId=f"j{n}") for n in range(20)))
        await worker.wait_log("circuit breaker open")
        await broker.stop()
        await worker.wait_log("RabbitMQ is away")
        # OtpBrokerAway fires, not OtpNoConsumer: the worker still counts as one that consumes
        expected = {"otp_broker_connected": 0, 'otp_phase{state="consuming"}': 1}

        async def reported() -> bool:
            return {line: await worker.metric(line) for line in expected} == expected

        await until(reported, "the broker in the metrics")
        await broker.start()
        await stage.relay.start()
        await worker.wait_ready(60)
        await stage.relay.wait_accepted(20, timeout=30)
        assert len({mail.recipient for mail in stage.relay.accepted}) == len(stage.relay.accepted) == 20
        await worker.stop()


async def test_queues_that_are_gone_after_a_restart_are_made_again(stage: Stage) -> None:
    async with amqp_proxy(stage.url) as (broker, url):
        worker = stage.worker(url=url)
        await worker.start()
        await broker.stop()
        await worker.wait_log("RabbitMQ is away")
        await stage.rabbit.remove()
        await broker.start()
        await worker.wait_ready(60)
        events = await stage.rabbit.channel.declare_queue(exclusive=True)
        await events.bind(f"{stage.rabbit.prefix}.events", "otp.#")
        await stage.rabbit.publish(job())
        await stage.relay.wait_accepted(1, timeout=30)
        await stage.rabbit.take(events.name)
        await worker.stop()


async def test_queues_that_are_deleted_under_the_worker_are_made_again(stage: Stage) -> None:
    worker = await stage.run(HEARTBEAT_INTERVAL_MS="500")
    await stage.rabbit.remove()
    stage.rabbit.channel = await stage.rabbit.connection.channel()
    await worker.wait_log("topology is checked again")

    async def exists() -> bool:
        return await stage.rabbit.depth() is not None

    await until(exists, "jobs queue")
    await worker.wait_ready()
    await stage.rabbit.publish(job())
    await stage.relay.wait_accepted(1, timeout=30)


async def test_a_dead_letter_that_finds_no_queue_is_not_lost(stage: Stage) -> None:
    worker = await stage.run()
    await stage.rabbit.channel.queue_delete(f"{stage.rabbit.prefix}.dead")
    await stage.rabbit.publish(b"nonsense")
    await worker.wait_log("publish not confirmed")

    async def back() -> bool:
        return await stage.rabbit.depth(f"{stage.rabbit.prefix}.dead") == 1

    await until(back, "the queue, with the dead letter in it")
    (dead_letter,) = await stage.rabbit.dead()
    assert dead_letter.body == b"nonsense"


async def test_a_retry_that_finds_no_wait_is_not_lost(stage: Stage) -> None:
    worker = await stage.run()
    await stage.rabbit.channel.exchange_delete(f"{stage.rabbit.prefix}.retry")
    stage.relay.then("rcpt", "451 4.3.0 later")
    await stage.rabbit.publish(job())
    await stage.relay.wait_accepted(1, timeout=30)
    await worker.wait_log('"event":"job sent"')


async def test_at_a_stop_the_mail_on_the_wire_is_finished_and_the_rest_goes_back_unmarked(stage: Stage) -> None:
    cancelled = asyncio.Event()
    stage.relay.always("body", Act(until=cancelled))
    await stage.rabbit.declare()
    worker = await stage.run(SMTP_POOL_SIZE="2")
    await stage.rabbit.publish(*(job(f"u{n}@example.com") for n in range(20)))
    await stage.relay.wait(lambda: stage.relay.held == 1, "a mail on the wire")
    worker.signal()
    await worker.wait_log("stopping: consumers are cancelled")
    cancelled.set()
    assert await worker.stopped(40) in {0, -signal.SIGTERM}
    steps = [line["event"] for line in worker.lines if line["event"].startswith("stop")]
    assert steps == [
        "stopping: cancelling consumers",
        "stopping: consumers are cancelled",
        "stopping: jobs are settled",
        "stopped",
    ]
    accepted = len(stage.relay.accepted)
    assert accepted == 1  # of two connections one is kept for urgent jobs
    await stage.rabbit.wait_depth(19)
    stage.relay.always("body", None)
    await stage.run()
    await stage.relay.wait_accepted(20)
    assert len({mail.recipient for mail in stage.relay.accepted}) == len(stage.relay.accepted) == 20


async def test_a_quorum_queues_delivery_count_is_not_burned_by_a_clean_stop(stage: Stage) -> None:
    await stage.rabbit.declare(**{"x-queue-type": "quorum"})
    await stage.rabbit.publish(job(jobId="j-1"))
    await stage.relay.stop()  # nothing can be sent: the job is returned each time
    for _ in range(3):
        worker = stage.worker()
        await worker.start(ready=False)
        await worker.wait_log("circuit breaker open")
        await worker.stop()
    (message,) = await stage.rabbit.take(stage.rabbit.queue)
    assert not message.headers.get("x-delivery-count")
    assert message.body == job(jobId="j-1")


async def test_a_second_signal_hurries(stage: Stage) -> None:
    stage.relay.always("body", Act(delay_s=60))
    worker = await stage.run()
    await stage.rabbit.publish(job())
    await worker.wait_log("job started")
    worker.signal()
    await worker.wait_log("stopping: consumers are cancelled")
    began = time.monotonic()
    worker.signal()
    assert await worker.stopped() in {0, -signal.SIGTERM}
    assert time.monotonic() - began < 20  # not the 25 s of the grace time
    await stage.rabbit.wait_depth(1)


async def test_a_killed_worker_loses_nothing(stage: Stage) -> None:
    stage.relay.always("mail", Act(delay_s=60))
    await stage.rabbit.declare()
    worker = await stage.run()
    await stage.rabbit.publish(*(job(f"u{n}@example.com") for n in range(10)))

    async def held() -> bool:
        return await worker.metric('otp_jobs_unacked{lane="jobs"}') == 10

    await until(held, "jobs in flight")
    await worker.kill()
    stage.relay.always("mail", None)
    await stage.run()
    await stage.relay.wait_accepted(10, timeout=20)


async def test_logs_are_one_json_object_a_line_and_report_start_job_and_stop(stage: Stage) -> None:
    worker = await stage.run(SMTP_AUTH="none", HEARTBEAT_INTERVAL_MS="300")
    await stage.rabbit.publish(job(jobId="j-1"))
    await worker.wait_log("job sent")
    await worker.wait_log('"event":"health"')
    await worker.stop()
    lines = [json.loads(line) for line in worker.log.splitlines()]
    events = [line["event"] for line in lines]
    for event in ("serving HTTP", "otp-stream starts", "consuming", "job started", "job sent", "health", "stopped"):
        assert event in events, event
    assert all({"level", "timestamp"} <= line.keys() for line in lines)
    start = lines[events.index("otp-stream starts")]
    assert start["prefetch_count"] == 200
    assert "guest:guest" not in worker.log


async def test_no_code_and_no_address_in_any_log_metric_page_header_or_event_whatever_happens(stage: Stage) -> None:
    code, user = "Zq7-SECRET", "very.private.person"
    relay = stage.relay
    relay.always("rcpt", f"550 5.1.1 <{user}.no@example.com> {code} no", to=f"{user}.no@example.com")
    relay.then("rcpt", f"451 4.3.0 <{user}.late@example.com> {code}", to=f"{user}.late@example.com")
    worker = await stage.run(LOG_LEVEL="debug", BASE_DELAY_MS="100", HEARTBEAT_INTERVAL_MS="200")
    queue = await stage.rabbit.channel.declare_queue(exclusive=True)
    await queue.bind(f"{stage.rabbit.prefix}.events", "#")
    await stage.rabbit.publish(
        job(f"{user}@example.com", code),
        job(f"{user}.no@example.com", code),
        job(f"{user}.late@example.com", code),
        job(f"{user}@example.com", code, metadata={"template": "nope"}),
        job(f"{user}@example.com", code, priority=code),
        job(f"{user}@example.com", code, timestamp=10**12),
        json.dumps({"email": code, "otp": f"{user}@example.com x"}).encode(),
        job(f"{user}@example.com", code, jobId=f"{user}@example.com:{code}"),
        json.dumps({"email": f"{user}@example.com", "otp": 5, "jobId": f"x-{user}@example.com"}).encode(),
    )
    await relay.wait_accepted(4)
    dead_letters = await stage.rabbit.dead(5)
    events = await stage.rabbit.take(queue.name, 10)
    await worker.wait_log('"event":"health"')
    pages = [(await worker.get(path))[1] for path in ("/", "/health", "/metrics", "/readyz")]
    await worker.stop()
    seen = {
        "log": worker.log,
        "pages": "".join(pages),
        "headers": "".join(str(dict(it.headers)) for it in dead_letters),
        "events": "".join(str(event.body) for event in events),
        "mail headers": "".join(
            str(mail.content.partition(b"\r\n\r\n")[0]).replace(mail.recipient, "") for mail in relay.accepted
        ),
    }
    for where, text in seen.items():
        assert code not in text, where
        assert user not in text, where
    assert CODE not in worker.log_without_fractions


async def test_two_processes_of_one_command_share_the_queue_and_stop_together(stage: Stage) -> None:
    worker = stage.worker(PREFETCH_COUNT="5")
    worker.options = ("--workers", "2")
    await worker.start(ready=False)
    await worker.wait_log('"event":"consuming"', 150, times=2)
    stage.relay.always("body", Act(delay_s=0.02))
    await stage.rabbit.publish(*(job(f"u{n}@example.com") for n in range(40)))
    await stage.relay.wait_accepted(40)
    assert len({mail.recipient for mail in stage.relay.accepted}) == len(stage.relay.accepted) == 40
    await worker.stop()
    assert worker.log.count('"event":"stopped"') == 2
    await stage.rabbit.wait_depth(0)


async def test_a_reader_of_the_logs_that_does_not_read_stops_no_job(stage: Stage) -> None:
    worker = stage.worker()
    worker.output = stage.folder / "logs"
    os.mkfifo(worker.output)
    reader = os.open(worker.output, os.O_RDONLY | os.O_NONBLOCK)
    try:
        await worker.start()

        async def drops() -> bool:
            accepted = len(stage.relay.accepted)
            # long ids make long lines
            ids = [f"{'x' * 180}{accepted}-{number}" for number in range(500)]
            await stage.rabbit.publish(*(job(f"u{it[180:]}@example.com", jobId=it) for it in ids))
            await stage.relay.wait_accepted(accepted + 500)
            assert (await worker.get("/livez"))[0] == 200
            return await worker.metric("otp_log_lines_dropped_total") > 0

        await until(drops, "dropped log lines", 40)
        lines = b""

        async def reported() -> bool:
            nonlocal lines
            with suppress(BlockingIOError):
                while more := os.read(reader, 1 << 20):
                    lines += more
            return b"log lines were dropped" in lines

        await until(reported, "the number of dropped lines")
        await stage.rabbit.publish(job(jobId="again"))

        async def continues() -> bool:
            return await reported() and b'"job_id":"again"' in lines

        await until(continues, "lines after those that were dropped")
        written = [json.loads(line) for line in lines.splitlines()]
        reported = sum(it["dropped"] for it in written if it["event"].startswith("log lines were dropped"))
        assert reported == await worker.metric("otp_log_lines_dropped_total")
    finally:
        os.close(reader)
    # nothing reads the pipe any more: each write fails
    accepted = len(stage.relay.accepted)
    await stage.rabbit.publish(*(job(f"v{number}@example.com") for number in range(20)))
    await stage.relay.wait_accepted(accepted + 20)
    assert (await worker.get("/livez"))[0] == 200
    assert await worker.stop() in {0, -signal.SIGTERM}


async def test_development_logs_are_for_people(stage: Stage) -> None:
    worker = await stage.run(NODE_ENV="development", PREFETCH_COUNT="1")
    await worker.wait_log("PREFETCH_COUNT=1: one job at a time")
    assert "{" not in worker.log.splitlines()[0]


async def test_the_embedded_broker_runs_the_whole_worker(tmp_path: Path, stage: Stage) -> None:
    port = free_port()
    worker = stage.worker(url=f"memory://127.0.0.1:{port}", BASE_DELAY_MS="100")
    await worker.start()
    stage.relay.then("rcpt", "451 4.3.0 later")
    stage.relay.always("rcpt", "550 5.1.1 no", to="nobody@example.com")
    async with rabbit(f"amqp://guest:guest@127.0.0.1:{port}/", stage.rabbit.queue, stage.rabbit.prefix) as client:
        await client.publish(job(), job("nobody@example.com"), b"nonsense")
        await stage.relay.wait_accepted(1)
        dead_letters = await client.dead(2)
        assert {it.headers["x-otp-reason"] for it in dead_letters} == {"rejected", "malformed"}
    assert await worker.stop() in {0, -signal.SIGTERM}
