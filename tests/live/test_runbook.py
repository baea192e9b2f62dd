"""The runbook, followed in each fault that it is for: its commands run as they stand, and what it quotes is real."""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from amqp_proxy import amqp_proxy
from certificates import Authority
from cli import Ran
from conftest import Stage, set_stage
from rabbitmq import SERVER, Node, free_port, until, with_management
from redis_server import RedisServer
from smtp_relay import Act, ScriptedRelay
from worker import CODE, SCRIPT, Worker, job

ROOT = Path(__file__).parents[2]
HTTP_PORT = free_port()
_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SEEN = re.compile(r"\*\*(?:You see|It is\s+over)\*\*.*?(?=\n\n|\Z)", re.DOTALL)


@dataclass
class Section:
    """One section, and what has been done of it."""

    text: str
    stage: Stage
    node: Node
    done: set[str] = field(default_factory=set)
    outputs: list[str] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)

    @property
    def commands(self) -> list[str]:
        """Every command, as it stands."""
        return [line for block in _BLOCK.findall(self.text) for line in block.splitlines()]

    @property
    def quotes(self) -> set[str]:
        """Everything that is said to be seen, but for the names of alerts."""
        return {word for seen in _SEEN.findall(self.text) for word in re.findall(r"`([^`/][^`]*)`", seen)}

    async def run(self, command: str, worker: Worker, *, code: int = 0, **env: str) -> str:
        """Run a command of this section, answering yes; returns what it told."""
        (line,) = (it for it in self.commands if re.split(r"\s+#", it)[0] == command)
        tools = {
            "PATH": f"{SCRIPT.parent}:{SERVER.parent}:{os.environ['PATH']}",
            "HOME": str(self.node.folder),
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": self.node.name,
            "COLUMNS": "200",
            "PAGE": f"http://127.0.0.1:{worker.port}",
            "PID": str(worker.process.pid if worker.process else ""),
            "MANAGEMENT_URL": f"http://127.0.0.1:{HTTP_PORT}",
        }
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_shell(
            line, cwd=self.stage.folder, env=worker.env | tools | env, stdin=pipe, stdout=pipe,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await asyncio.wait_for(process.communicate(b"y\n"), 60)
        ran = Ran(process.returncode or 0, out.decode())
        assert ran.code == code, f"{line}\n{ran.out}"
        assert CODE not in ran.out
        self.done.add(line)
        self.outputs.append(ran.out)
        return ran.out

    async def look(self, worker: Worker, words: str) -> None:
        """Wait until the page and `/readyz` say something."""

        async def said() -> bool:
            told = [(await worker.get(path))[1] for path in ("/", "/readyz")]
            self.pages += told
            return all(words in text for text in told)

        await until(said, words, 40)

    def check(self) -> None:
        """Fail where a command was not run, or nobody has seen what is said to be seen."""
        assert self.done == set(self.commands)
        alerts = (ROOT / "deploy" / "prometheus-alerts.yaml").read_text()
        evidence = "\n".join([alerts, *self.outputs, *self.pages, *(worker.log for worker in self.stage.workers)])
        assert {quote for quote in self.quotes if quote not in evidence} == set()


def sections() -> dict[str, str]:
    """Return every section of the runbook by its heading."""
    _, *parts = _SECTION.split((ROOT / "docs" / "runbook.md").read_text())
    return dict(zip(parts[::2], parts[1::2], strict=True))


def heading(test: str) -> str:
    """Return the heading that a test is named for."""
    return test.removeprefix("test_").replace("_s_", "'s_").replace("_", " ")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Start a RabbitMQ that is nobody else's: in the runbook the queues have their usual names."""
    node = Node(tmp_path_factory.mktemp("node"), settings=with_management(HTTP_PORT), plugins="rabbitmq_management")
    node.start()
    node.control("eval", "application:set_env(rabbit, quorum_tick_interval, 500).")
    yield node
    node.remove()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.remove()


@pytest.fixture
async def section(node: Node, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Section]:
    """Open the section that a test is named for, with a stage to follow it on."""
    texts = {name.lower().replace(",", ""): text for name, text in sections().items()}
    async with set_stage(node.url, tmp_path, names=("service_send_otp", "otp")) as stage:
        section = Section(texts[heading(request.node.name)], stage, node)
        yield section
        section.check()


def test_every_section_is_followed() -> None:
    followed = {heading(name) for name in globals() if name.startswith("test_")}
    assert {name.lower().replace(",", "") for name in sections()} <= followed


def test_every_alert_leads_to_a_section() -> None:
    anchors = {name.lower().replace(",", "").replace("'", "").replace(" ", "-") for name in sections()}
    alerts = yaml.safe_load((ROOT / "deploy" / "prometheus-alerts.yaml").read_text())
    for rule in alerts["groups"][0]["rules"]:
        path, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert (path, anchor in anchors) == ("docs/runbook.md", True), rule["alert"]


async def test_the_first_minute(section: Section) -> None:
    stage = section.stage
    stage.relay.always("rcpt", "550 5.7.1 relaying denied")
    worker = await stage.run()
    await stage.rabbit.publish(job("user@corp.example"))
    await worker.wait_log("job is dead")
    assert '"status": "healthy"' in await section.run('curl -s "$PAGE/readyz"', worker)
    assert "RabbitMQ" in await section.run("otp-stream check", worker)
    assert "service_send_otp" in await section.run("otp-stream topology show", worker)
    assert "550 5.7.1 relaying denied" in await section.run("otp-stream dead list", worker)


async def test_the_relay_cannot_be_reached(section: Section) -> None:
    stage = section.stage
    worker = await stage.run()
    await stage.relay.stop()
    await stage.rabbit.publish(job())
    await worker.wait_log("gate closed")
    assert f"127.0.0.1:{stage.relay.port}" in await section.run("otp-stream check", worker, code=1)
    await stage.relay.start()
    await stage.relay.wait_accepted(1, 20)
    await worker.wait_log("gate open")


async def test_the_relay_refuses_the_login(section: Section) -> None:
    stage = section.stage
    async with ScriptedRelay(login=("mailer", "new")) as relay:
        there = {"SMTP_PORT": str(relay.port), "SMTP_AUTH": "login", "SMTP_USER": "mailer"}
        old = await stage.run(SMTP_PASS="old", **there)
        await stage.rabbit.publish(job())
        await old.wait_log("gate closed")
        assert "535" in await section.run("otp-stream check", old, code=1)
        await section.run("otp-stream check --send-to you@example.com", old, SMTP_PASS="new")
        await old.stop()
        new = await stage.run(SMTP_PASS="new", **there)
        await relay.wait_accepted(2, 20)
        await new.wait_log("job sent")


async def test_the_relay_s_certificate_is_not_accepted(section: Section, tmp_path: Path) -> None:
    stage, authority = section.stage, Authority(tmp_path)
    async with ScriptedRelay(tls=authority.server("127.0.0.1"), mode="starttls") as relay:
        there = {"SMTP_PORT": str(relay.port), "SMTP_TLS": "starttls"}
        worker = await stage.run(**there)
        await stage.rabbit.publish(job())
        await worker.wait_log("gate closed")
        assert "SMTP_CA_FILE" in await section.run("otp-stream check", worker, code=1)
        await worker.stop()
        await stage.run(SMTP_CA_FILE=str(authority.ca_file), **there)
        await relay.wait_accepted(1, 20)


async def test_the_relay_throttles(section: Section) -> None:
    stage = section.stage
    stage.relay.then("body", "451 4.7.0 too many messages, slow down")
    worker = await stage.run(SMTP_RATE_PER_SECOND="20")
    await stage.rabbit.publish(*(job(jobId=f"j{number}") for number in range(10)))
    await worker.wait_log("slowed down")
    await section.look(worker, "slowed to")
    told = await section.run("curl -s \"$PAGE/metrics\" | grep -E '^otp_relay_(rate_limit|replies)'", worker)
    assert 'code="451"' in told
    await stage.relay.wait_accepted(10, 20)
    await worker.wait_log("at the full rate again", 40)


async def test_codes_to_one_domain_do_not_arrive(section: Section) -> None:
    stage = section.stage
    people = [f"user{number}@corp.example" for number in range(50)]
    for person in people:
        stage.relay.always("rcpt", "550 5.7.1 relaying denied", to=person)
    worker = await stage.run()
    await stage.rabbit.publish(*map(job, people))
    await until(lambda: _holds(stage, "otp.dead", 50), "fifty dead letters")
    told = await section.run("otp-stream dead list", worker)
    assert re.search(r"50 .*rejected.*corp\.example", told)
    replay = "otp-stream dead replay reason=rejected domain=corp.example"
    assert "50" in await section.run(f"{replay} --dry-run", worker)
    assert await _holds(stage, "otp.dead", 50)
    for person in people:
        stage.relay.always("rcpt", None, to=person)
    await section.run(replay, worker)
    await stage.relay.wait_accepted(50, 20)
    await until(lambda: _holds(stage, "otp.dead", 0), "an empty queue")


async def test_codes_are_late(section: Section) -> None:
    stage = section.stage
    stage.relay.always("body", Act(delay_s=1))
    worker = await stage.run(SMTP_POOL_SIZE="3", PREFETCH_COUNT="6")
    await stage.rabbit.publish(*(job(jobId=f"j{number}") for number in range(60)))
    await section.look(worker, "codes are late")
    assert "service_send_otp" in await section.run("otp-stream topology show", worker)
    figures = "otp_(queue_ready|relay_turns_waiting|relay_connections|send_seconds_(sum|count))"
    told = await section.run(f"curl -s \"$PAGE/metrics\" | grep -E '^{figures}'", worker)
    assert re.search(r"^otp_relay_turns_waiting [1-9]", told, re.MULTILINE)
    assert re.search(r"^otp_relay_connections\{.*\} 2\.0$", told, re.MULTILINE)
    assert re.search(r"^otp_queue_ready\{queue=\"service_send_otp\"\} [1-9]", told, re.MULTILINE)


async def test_rabbitmq_is_away(section: Section) -> None:
    stage = section.stage
    async with amqp_proxy(stage.url) as (proxy, url):
        worker = await stage.run(url=url)
        proxy.refuse = True
        proxy.cut()
        await worker.wait_log("RabbitMQ is away")
        assert "RABBITMQ_URL" in await section.run("otp-stream check", worker, code=1)
        proxy.refuse = False
        await worker.wait_log("RabbitMQ is back")
        await stage.rabbit.publish(job())
        await stage.relay.wait_accepted(1, 20)
        await worker.stop()


async def test_a_queue_of_ours_was_made_by_somebody_else(section: Section) -> None:
    stage = section.stage
    await stage.rabbit.declare("otp.retry.due")
    worker = stage.worker()
    await worker.start(ready=False)
    await worker.wait_log("exists with other properties")
    assert "otp.retry.due" in await section.run("otp-stream topology show", worker, code=1)
    await section.run("rabbitmqctl delete_queue otp.retry.due --if-empty", worker)
    await section.run("otp-stream topology apply", worker)
    await worker.wait_log('"consuming"')
    await worker.wait_ready()


async def test_the_delays_were_changed(section: Section) -> None:
    stage = section.stage
    await (await stage.run(BASE_DELAY_MS="7000")).stop()
    worker = await stage.run()
    before = set(section.node.control("list_queues", "name").split())
    prune = 'otp-stream topology prune --management-url "$MANAGEMENT_URL"'
    assert "otp.retry.7" in await section.run(f"{prune} --dry-run", worker)
    await section.run(prune, worker)
    gone = before - set(section.node.control("list_queues", "name").split())
    assert gone
    assert all(name.startswith("otp.retry.") for name in gone)
    await stage.rabbit.publish(job())
    await stage.relay.wait_accepted(1, 20)


async def test_a_producer_sends_what_is_no_job(section: Section) -> None:
    stage = section.stage
    worker = await stage.run()
    await stage.rabbit.publish(json.dumps({"email": "ada@example.com", "otp": int(CODE), "jobId": "order-17"}).encode())
    await worker.wait_log("job is dead")
    assert "otp: must be a string" in await section.run("otp-stream dead list reason=malformed", worker)
    assert "a***@example.com" in await section.run("otp-stream dead show order-17", worker)
    await section.run("otp-stream dead export reason=malformed --out malformed.jsonl", worker)
    assert "order-17" in (stage.folder / "malformed.jsonl").read_text()
    await section.run("otp-stream dead drop reason=malformed", worker)
    assert await _holds(stage, "otp.dead", 0)


async def test_a_template_fails(section: Section, tmp_path: Path) -> None:
    stage, own = section.stage, tmp_path / "own"
    (own / "otp").mkdir(parents=True)
    (own / "otp" / "body.txt").write_text("{{ otp }}, {{ company.name }}")
    worker = await stage.run(TEMPLATES_DIR=str(own))
    await stage.rabbit.publish(job())
    await worker.wait_log("job is dead")
    assert "otp/body.txt, line 1" in worker.log
    assert "otp/body.txt:1: error: " in await section.run("otp-stream templates lint", worker, code=1)
    await worker.stop()
    (own / "otp" / "body.txt").write_text("{{ otp }}")
    worker = await stage.run(TEMPLATES_DIR=str(own))
    await section.run("otp-stream dead replay reason=crashed", worker)
    await stage.relay.wait_accepted(1, 20)


async def test_redis_is_away(section: Section, redis: RedisServer) -> None:
    stage = section.stage
    worker = await stage.run(REDIS_URL=redis.url)
    redis.kill()
    await worker.wait_log("Redis does not answer")
    await stage.rabbit.publish(job())
    await stage.relay.wait_accepted(1, 20)
    assert redis.url in await section.run("otp-stream tables", worker, code=1)
    redis.start()
    await worker.wait_log("Redis answers again")


async def test_several_workers_do_not_share_their_state(section: Section) -> None:
    stage = section.stage
    first, _ = [await stage.run(HEARTBEAT_INTERVAL_MS="500") for _ in range(2)]
    await first.wait_log("workers do not share their state")
    assert "REDIS_URL: is not set" in await section.run("otp-stream tables", first, code=2)


async def test_codes_have_expired(section: Section, redis: RedisServer) -> None:
    stage = section.stage
    worker = await stage.run(REDIS_URL=redis.url)
    hour_ago_ms = time.time_ns() // 1_000_000 - 3_600_000
    await stage.rabbit.publish(job(timestamp=hour_ago_ms))
    await worker.wait_log("job is dead")
    assert "of this machine" in await section.run("otp-stream check", worker)
    await section.run("otp-stream dead drop reason=expired", worker)
    assert await _holds(stage, "otp.dead", 0)


async def test_restart_or_take_a_worker_away(section: Section) -> None:
    stage = section.stage
    stage.relay.always("body", Act(delay_s=1))
    worker = await stage.run(SMTP_POOL_SIZE="1")
    await stage.rabbit.publish(*(job(jobId=f"j{number}") for number in range(3)))
    await stage.relay.wait(lambda: stage.relay.contents > 0, "a mail on the wire")
    await section.run('kill -TERM "$PID"', worker)
    assert await worker.stopped() in {0, -signal.SIGTERM}
    assert '"stopped"' in worker.log
    stage.relay.always("body", None)
    await stage.run()
    await stage.relay.wait_accepted(3, 20)


async def _holds(stage: Stage, queue: str, count: int) -> bool:
    return await stage.rabbit.depth(queue) == count
