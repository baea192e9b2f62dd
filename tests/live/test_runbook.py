"""The runbook, followed in each fault that it covers: its commands run unchanged, and its signs appear."""

import asyncio
import json
import re
import signal
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from certificates import Authority
from ground import FAKETIME
from patience import deadline, limit
from rabbitmq import until
from redis_server import RedisServer
from runbook import PREFIX, QUEUE, ROOT, WAIT_S, Fault, Ground, alerts, fault, sections
from smtp_relay import SILENCE, Act, ScriptedRelay
from worker import job

from otp_stream.core.body_at_rest import at_rest
from otp_stream.core.sealed_body import Content
from otp_stream.core.sealing_keys import keys_of, new_jwk

AT_ONCE = 3
"""Faults at one time: most of each is waiting."""

_LIMIT_S = 240
"""For each: a RabbitMQ that reads nothing keeps its clients waiting for ever."""

Play = Callable[[Fault], Awaitable[None]]
PLAYS: dict[str, Play] = {}
ALONE: list[str] = []
"""Faults of the RabbitMQ that all share."""


def plays(title: str, *, alone: bool = False) -> Callable[[Play], Play]:
    """Register a function as the one that follows a section."""

    def register(play: Play) -> Play:
        PLAYS[title] = play
        if alone:
            ALONE.append(title)
        return play

    return register


@plays("The first minute")
async def _well(it: Fault) -> None:
    await it.start()
    await asyncio.gather(
        it.run('curl -s "$PAGE/readyz"'),
        it.run("otp-stream check"),
        it.run("otp-stream topology show"),
        it.run("otp-stream dead list"),
        it.run("otp-stream send you@example.com"),
    )
    await it.shows()
    await it.arrive("you@example.com")


@plays("The relay cannot be reached")
async def _unreachable(it: Fault) -> None:
    await it.start()
    await it.relay.stop()
    await it.publish("ada@example.com", "bob@example.com")
    await it.run("otp-stream check", code=1)
    await it.shows()
    await it.metric(f'otp_circuit_breaker_state{{relay="127.0.0.1:{it.relay.port}",state="closed"}}', 0)
    await it.relay.start()
    await it.run("otp-stream check --send-to you@example.com")
    await it.shows(over=True)
    await it.arrive("ada@example.com", "bob@example.com", "you@example.com")
    await it.relay.stop()
    async with ScriptedRelay() as other:
        await it.start(SMTP_FALLBACK_URLS=f"smtp://127.0.0.1:{other.port}?tls=none")
        await it.publish("cleo@example.com")
        await other.wait_accepted(1, WAIT_S)


@plays("The relay refuses the login")
async def _login(it: Fault) -> None:
    it.relay.login = ("mailer", "new")
    old = {"SMTP_AUTH": "login", "SMTP_USER": "mailer", "SMTP_PASS": "old"}
    await it.start(**old)
    await it.publish("ada@example.com")
    assert "535 5.7.8" in await it.run("otp-stream check", code=1)
    await it.shows()
    await it.run("otp-stream check", SMTP_PASS="new")
    await it.start(**old | {"SMTP_PASS": "new", "HTTP_TOKEN": "correct-horse-battery"})
    await it.shows(over=True)
    await it.arrive("ada@example.com")
    assert "accepts mail" in await it.run('otp-stream relay probe "$PAGE"')


@plays("The relay's certificate is not accepted")
async def _certificate(it: Fault) -> None:
    authority = Authority(it.folder)
    corrected = {"SMTP_CA_FILE": str(authority.ca_file)}
    it.relay.tls, it.relay.mode = authority.server("127.0.0.1"), "starttls"
    await it.start(SMTP_TLS="starttls")
    await it.publish("ada@example.com")
    checked = await it.run("otp-stream check", code=1)
    await it.shows()
    (command,) = re.findall(r"openssl .*$", checked, re.MULTILINE)
    assert "test authority" in await it.shell(command)
    await it.run("otp-stream check", **corrected)
    await it.start(SMTP_TLS="starttls", **corrected)
    await it.shows(over=True)
    await it.arrive("ada@example.com")


@plays("The relay throttles")
async def _throttle(it: Fault) -> None:
    people = [f"u{number}@example.com" for number in range(10)]
    it.relay.always("body", "451 4.7.0 too many messages, slow down")
    await it.start(SMTP_RATE_PER_SECOND="20")
    await it.publish(*people)
    await it.shows()
    it.relay.always("body", None)
    await it.relay.wait_accepted(1, WAIT_S)
    figures = "curl -s \"$PAGE/metrics\" | grep -E '^otp_relay_(rate_limit|replies)'"
    slowed = await it.run(figures)
    assert 'code="451"' in slowed
    limit = re.search(r"^otp_relay_rate_limit\{.*\} (.+)$", slowed, re.MULTILINE)
    assert limit is not None
    assert float(limit[1]) < 20
    await it.shows(over=True)
    await it.arrive(*people)
    await it.start(SMTP_RATE_PER_SECOND="14")
    assert re.search(r"^otp_relay_rate_limit\{.*\} 14\.0$", await it.run(figures), re.MULTILINE)
    await it.publish("ada@example.com")
    await it.arrive("ada@example.com")


@plays("A relay is slow")
async def _slow(it: Fault) -> None:
    async with ScriptedRelay() as fallback:
        it.relay.always("rcpt", SILENCE)
        await it.start(SMTP_FALLBACK_URLS=f"smtp://127.0.0.1:{fallback.port}?tls=none", HEARTBEAT_INTERVAL_MS="1000")
        await it.publish(*(f"u{number}@d{number}.example" for number in range(6)))
        await fallback.wait_accepted(6, WAIT_S)
        await it.shows()
        (figures,) = it.section.commands
        found = await it.run(figures)
        assert re.search(r'^otp_relay_switches_total\{.*step="rcpt"\} [1-9]', found, re.MULTILINE)
        it.relay.always("rcpt", None)
        published, ends = 0, deadline(2 * WAIT_S)
        while "relay is not slow any more" not in it.worker.log:
            await it.publish(*(f"v{number}@example.com" for number in range(published, published + 20)))
            published += 20
            assert time.monotonic() < ends
            await asyncio.sleep(0.1)
        await it.shows(over=True)


@plays("Codes to one domain do not arrive")
async def _rejected(it: Fault) -> None:
    people = [f"u{number}@corp.example" for number in range(4)]
    for to in people:
        it.relay.always("rcpt", "550 5.1.1 mailbox unknown", to=to)
    it.relay.always("rcpt", "550 5.1.1 no such user", to="typo@example.com")
    await it.start()
    await it.publish(people[0], jobId="login-4711")
    await it.publish(*people[1:], "typo@example.com", "ada@example.com")
    await it.dead(5)
    await it.arrive("ada@example.com")
    listed = await it.run("otp-stream dead list")
    assert re.search(r"^ +4 +0 +rejected +550 +corp\.example .*mailbox unknown", listed, re.MULTILINE)
    await it.shows()
    each = await it.run("otp-stream dead list domain=corp.example --each")
    assert re.search(r"^login-4711 +u\*\*\*@corp\.example +rejected +550 .* left *$", each, re.MULTILINE)
    assert "550 5.1.1 mailbox unknown" in await it.run("otp-stream dead show login-4711")
    replay = "otp-stream dead replay reason=rejected domain=corp.example"
    assert "deadLetters=4" in await it.run(f"{replay} --dry-run")
    await it.dead(5)
    for to in people:
        it.relay.always("rcpt", None, to=to)
    assert "deadLetters=4" in await it.run(replay)
    await it.arrive(*people)
    assert "deadLetters=1" in await it.run("otp-stream dead drop reason=rejected")
    await it.run("otp-stream dead list")
    await it.shows(over=True)


@plays("Codes are late")
async def _late(it: Fault) -> None:
    it.relay.always("body", Act(delay_s=2))  # so slow that jobs still wait after the first two workers
    people = [f"u{number}@example.com" for number in range(90)]
    (figures,) = (line for line in it.section.commands if line.startswith("curl"))
    often = {"HEARTBEAT_INTERVAL_MS": "1000"}
    await it.start(PREFETCH_COUNT="1", **often)
    await it.publish(*people)
    await it.run("otp-stream check")
    await it.shows()
    wanted = (
        'queue_ready{queue="service_send_otp"} ', 'prefetch_count{lane="jobs"} 1', 'jobs_unacked{lane="jobs"} 1',
        "relay_sends_pending 0.0",
    )  # fmt: skip

    async def full() -> str:
        text = await it.run(figures)  # empty between two jobs
        return text if all(f"otp_{name}" in text for name in wanted) else ""

    await until(full, "one unacked job at PREFETCH_COUNT=1", WAIT_S)
    await it.start(PREFETCH_COUNT="200", SMTP_POOL_SIZE="3", **often)

    async def narrow() -> bool:
        text = await it.run(figures)  # all connections but that for urgent jobs
        wanted = r"^otp_relay_sends_pending [1-9]", r"^otp_relay_connections\{.*\} 2\.0$"
        return all(re.search(pattern, text, re.MULTILINE) for pattern in wanted)

    await until(narrow, "jobs that wait for two connections", WAIT_S)
    it.relay.always("body", Act(delay_s=0.25))
    await it.start(PREFETCH_COUNT="200", **often)
    await it.arrive(*people)
    await it.shows(over=True)


@plays("RabbitMQ is short of memory or disk", alone=True)
async def _blocked(it: Fault) -> None:
    taken = asyncio.Event()
    it.relay.always("body", Act(until=taken))
    await it.start()
    await it.publish("ada@example.com")
    await it.relay.wait(lambda: it.relay.contents == 1, "a mail on the wire", WAIT_S)
    try:
        await asyncio.to_thread(it.node.control, "set_vm_memory_high_watermark", "0.000001")
        await it.run("rabbitmq-diagnostics alarms")
        taken.set()  # what the worker then publishes is the event of it: before the alarm, no one would notice that
        await it.run("otp-stream check", code=1)
        await it.shows()
        await it.arrive("ada@example.com")
    finally:
        await asyncio.to_thread(it.node.control, "set_vm_memory_high_watermark", "0.4")
    await it.run("rabbitmq-diagnostics alarms")
    await it.shows(over=True)
    await it.publish("bob@example.com")
    await it.arrive("bob@example.com")


@plays("RabbitMQ is away", alone=True)
async def _broker(it: Fault) -> None:
    await it.start()
    it.relay.always("body", Act(delay_s=0.5))
    await it.publish("ada@example.com")
    await it.relay.wait(lambda: "DATA" in it.relay.commands(), "a mail on the wire")
    await asyncio.to_thread(it.node.stop)
    await asyncio.gather(it.run("otp-stream check", code=1), it.run("rabbitmqctl status", code=69))
    await it.shows()
    await it.metric("otp_broker_connected", 0)
    await it.arrive("ada@example.com")
    await asyncio.to_thread(it.node.start)
    await it.shows(over=True)
    await it.stage.rabbit.reconnect()
    await it.publish("bob@example.com")
    await it.arrive("ada@example.com", "bob@example.com")


@plays("A queue was declared by another application")
async def _other_properties(it: Fault) -> None:
    await it.stage.rabbit.declare()
    await it.stage.rabbit.declare(f"{PREFIX}.dead")
    await it.publish("ada@example.com")
    await it.stage.rabbit.publish(job("old@example.com"), to=f"{PREFIX}.dead")
    await it.start(ready=False)
    await it.run("otp-stream check", code=1)
    await it.shows()
    await it.metric('otp_phase{state="consuming"}', 0)
    await it.run("otp-stream dead export --raw --out dead-letters.jsonl")
    assert _bodies(it.folder / "dead-letters.jsonl") == [json.loads(job("old@example.com"))]
    await it.run("rabbitmqctl delete_queue otp.dead")
    await it.shows(over=True)
    await it.arrive("ada@example.com")
    assert "sent 1" in await it.run("otp-stream send --skip-bad --file dead-letters.jsonl")
    await it.arrive("ada@example.com", "old@example.com")


@plays("A queue is missing or obsolete")
async def _missing(it: Fault) -> None:
    worker = await it.start(BASE_DELAY_MS="500")
    await it.stage.rabbit.channel.queue_delete(f"{PREFIX}.dead")
    await worker.wait_log("topology is checked again", WAIT_S)
    await worker.stop()
    await it.stage.rabbit.channel.queue_delete(QUEUE)
    now = {"BASE_DELAY_MS": "1000"}
    await it.run("otp-stream topology show", code=1, **now)
    await it.shows()
    assert f"declared: queue {QUEUE}\n" in await it.run("otp-stream topology apply", **now)
    assert f"{PREFIX}.retry.575 " in await it.run("otp-stream topology prune --dry-run", **now)
    assert f"{PREFIX}.retry.575: deleted" in await it.run("otp-stream topology prune", **now)
    await it.run("otp-stream topology prune --dry-run", **now)
    await it.shows(over=True)


@plays("A producer sends invalid jobs")
async def _malformed(it: Fault) -> None:
    wrong = {"email": "ada@example.com", "otp": 739154, "jobId": "order-17"}
    await it.start()
    await it.stage.rabbit.publish(json.dumps(wrong).encode())
    await it.publish("bob@example.com")
    await it.dead(1)
    await it.run("otp-stream dead list reason=malformed")
    await it.shows()
    await it.arrive("bob@example.com")
    assert "a***@example.com" in await it.run("otp-stream dead show order-17")
    await it.run("otp-stream dead export reason=malformed --raw --out malformed.jsonl")
    assert _bodies(it.folder / "malformed.jsonl") == [wrong]
    assert "deadLetters=1" in await it.run("otp-stream dead drop reason=malformed")
    await it.run("otp-stream dead list reason=malformed")
    await it.shows(over=True)


@plays("A sealing key is missing")
async def _key_missing(it: Fault) -> None:
    old, new = new_jwk("p256"), new_jwk("p256")
    file = it.folder / "keys.json"
    file.write_text(json.dumps({"keys": [new]}))
    worker = await it.start(SEALING_KEYS_FILE=str(file))
    sealed = at_rest(Content(job("ada@example.com", jobId="order-17")), keys_of(old)).body
    await it.stage.rabbit.publish(sealed)
    await it.dead(1)
    assert "example.com" in await it.run("otp-stream dead list reason=key_missing")
    await it.shows()
    file.write_text(json.dumps({"keys": [new, old]}))
    await worker.wait_log("new secret: new jobs use it", WAIT_S)
    await it.run("otp-stream dead replay reason=key_missing")
    await it.arrive("ada@example.com")
    await it.run("otp-stream dead list reason=key_missing")
    await it.shows(over=True)


@plays("A template fails")
async def _template(it: Fault) -> None:
    own = {"TEMPLATES_DIR": str(it.folder / "own")}
    body = it.folder / "own" / "otp" / "body.txt"
    body.parent.mkdir(parents=True)
    body.write_text("{{ team }}: {{ otp }}\n")
    await it.start(**own)
    await it.publish("ada@example.com")
    await it.dead(1)
    await it.run("otp-stream templates lint", code=1)
    await it.shows()
    body.write_text("{{ otp }\n")
    worker = await it.start(ready=False, **own)
    assert await worker.stopped(WAIT_S) == 2
    assert "TEMPLATES_DIR: template otp/body.txt, line 1" in worker.log
    body.write_text("{{ team | default('us') }}: {{ otp }}\n")
    await it.run("otp-stream templates lint")
    assert "us: " in await it.run("otp-stream templates preview otp")
    await it.start(**own)
    await it.run("otp-stream dead replay reason=crashed")
    await it.arrive("ada@example.com")
    await it.run("otp-stream dead list")
    await it.shows(over=True)


@plays("Redis is away")
async def _redis(it: Fault) -> None:
    redis = RedisServer(it.folder / "redis")
    redis.start()
    try:
        worker = await it.start(REDIS_URL=redis.url)
        redis.kill()
        await it.publish("ada@example.com")
        await it.arrive("ada@example.com")
        await it.run("otp-stream check", code=1)
        await it.shows()
        await it.metric("otp_redis_connected", 0)
        redis.start()
        await worker.wait_log("Redis answers again", WAIT_S)
        await it.publish("bob@example.com")
        await it.arrive("bob@example.com")
        await it.run("otp-stream tables")
        await it.shows(over=True)
    finally:
        redis.remove()


@plays("Several workers do not share their state")
async def _apart(it: Fault) -> None:
    redis = RedisServer(it.folder / "redis")
    redis.start()
    try:
        for changes in ({}, {"REDIS_URL": redis.url}):
            other = it.stage.worker(HEARTBEAT_INTERVAL_MS="300", **changes)
            await asyncio.gather(it.start(HEARTBEAT_INTERVAL_MS="300", **changes), other.start())
            if changes:
                for worker in (it.worker, other):
                    await until(partial(worker.metric, "otp_redis_connected"), "connection to Redis", WAIT_S)
            await it.run("otp-stream check")
            await it.shows(over=bool(changes))
            await other.stop()
        await it.publish("ada@example.com")
        await it.arrive("ada@example.com")
    finally:
        redis.remove()


@plays("Codes have expired")
async def _expired(it: Fault) -> None:
    now_ms = time.time_ns() // 1_000_000
    await it.start(DEAD_LETTER_CODES="keep")
    await it.publish("late@example.com", "later@example.com", timestamp=now_ms - 20 * 60_000)
    await it.publish("ahead@example.com", timestamp=now_ms + 60_000)
    await it.dead(2)
    await it.arrive("ahead@example.com")
    await it.metric("otp_clock_ahead_total", 1)
    await it.run("otp-stream check", LD_PRELOAD=str(FAKETIME), FAKETIME="+60", DONT_FAKE_MONOTONIC="1")
    await it.shows()
    listed = await it.run("otp-stream dead list reason=expired")
    assert re.search(r"^ +2 +2 +expired .*example\.com", listed, re.MULTILINE)
    assert "deadLetters=2" in await it.run("otp-stream dead replay reason=expired newer=10m --fresh-expiry")
    await it.arrive("late@example.com", "later@example.com")
    await it.publish("gone@example.com", timestamp=now_ms - 20 * 60_000)
    await it.dead(1)
    assert "deadLetters=1" in await it.run("otp-stream dead drop reason=expired")
    await it.run("otp-stream dead list reason=expired")
    await it.shows(over=True)


@plays("Restart or remove a worker")
async def _stop(it: Fault) -> None:
    people = [f"u{number}@example.com" for number in range(30)]
    it.relay.always("body", Act(delay_s=0.3))
    worker = await it.start(SMTP_POOL_SIZE="5")
    await it.publish(*people)
    await it.relay.wait_accepted(1, WAIT_S)
    await it.run('kill -TERM "$PID"')
    assert await worker.stopped(WAIT_S) in {0, -signal.SIGTERM}
    await it.shows()
    worker = await it.start()
    await it.arrive(*people)
    it.relay.always("body", Act(delay_s=60))
    await it.publish("ada@example.com")
    await it.relay.wait(lambda: it.relay.contents > len(people), "a mail on the wire")
    await it.run('kill -KILL "$PID"')
    assert await worker.stopped() == -signal.SIGKILL
    it.relay.always("body", None)
    await it.start()
    await it.shows(over=True)
    await until(lambda: _has(it, "ada@example.com"), "the mail", WAIT_S)


async def _has(it: Fault, recipient: str) -> bool:
    return recipient in {mail.recipient for mail in it.relay.accepted}


def _bodies(file: Path) -> list[object]:
    return [json.loads(b64decode(json.loads(line)["body"])) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    ground = Ground(tmp_path_factory.mktemp("runbook"))
    ground.start()
    yield ground
    ground.node.remove()


@pytest.fixture(scope="module")
def followed(request: pytest.FixtureRequest, ground: Ground) -> Iterator[dict[str, Future[None]]]:
    """Follow every section that is asked for, several at one time, in another thread. Yields the end of each.

    A test waits for its own section only: the time limit of a test is too short for all of them on a busy machine.
    """
    asked = {item.callspec.params["title"] for item in request.session.items if "title" in _parameters(item)}
    ends = {title: Future[None]() for title in PLAYS if title in asked}
    turn = asyncio.Semaphore(AT_ONCE)

    async def follow(title: str) -> None:
        async with turn:
            try:
                async with asyncio.timeout(limit(_LIMIT_S)), fault(ground, title) as it:
                    await PLAYS[title](it)
            except Exception as error:  # noqa: BLE001 - the test of this section raises it
                ends[title].set_exception(error)
            else:
                ends[title].set_result(None)

    async def follow_all() -> None:
        await asyncio.gather(*(follow(title) for title in ends if title not in ALONE))
        for title in ALONE:
            if title in ends:
                await follow(title)

    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(asyncio.run, follow_all())
        yield ends
        following.result()


def _parameters(item: pytest.Item) -> dict[str, object]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


def test_every_section_is_followed_and_every_command_is_run() -> None:
    assert set(PLAYS) == set(sections())
    assert set(re.findall(r"^```(\w*)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)) == {"sh", ""}


def test_every_alert_leads_to_a_section() -> None:
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in sections()}
    for name, lead in alerts().items():
        path, _, anchor = lead.partition("#")
        assert (path, anchor in anchors) == ("docs/runbook.md", True), name


@pytest.mark.parametrize("title", [*(it for it in PLAYS if it not in ALONE), *ALONE])
def test_its_signs_appear_and_its_commands_end_the_fault(title: str, followed: dict[str, Future[None]]) -> None:
    followed[title].result()
