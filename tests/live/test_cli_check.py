"""`otp-stream check`, with real faults."""

import asyncio
import contextlib
import json
import os
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from email import message_from_bytes
from pathlib import Path
from secrets import randbelow
from typing import Any
from urllib.request import Request, urlopen

import aio_pika
import dns.asyncresolver
import pytest
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelClosed
from amqp_proxy import amqp_proxy
from certificates import Authority
from cli import here, otp_stream
from conftest import Stage, set_stage
from dns_server import dns_server
from rabbitmq import Node, free_port, until
from redis_server import RedisServer
from smtp_relay import ScriptedRelay
from worker import job, settings

from otp_stream.broker import queue_inspect
from otp_stream.broker.declares import ANSWER_S
from otp_stream.cli.check import CheckReport, run_checks
from otp_stream.cli.check_systems import make_request
from otp_stream.core.sealing_keys import new_jwk

ADDRESS = "Ada.Lovelace@example.com"


@dataclass
class Checked:
    results: list[dict[str, str]]

    @property
    def out(self) -> str:
        """All results."""
        return json.dumps(self.results)

    def of(self, level: str, about: str = "") -> list[str]:
        """Return the texts of results."""
        return [it["text"] for it in self.results if it["level"] == level and it["about"].startswith(about)]

    def fix(self, text: str) -> str:
        """Return the fix of the only result that contains this text."""
        (result,) = (it for it in self.results if text in it["text"])
        return result["fix"]


@pytest.fixture
async def secure(tmp_path: Path) -> AsyncIterator[tuple[ScriptedRelay, Authority]]:
    """A relay with STARTTLS and a login."""
    authority = Authority(tmp_path)
    tls = authority.server("127.0.0.1")
    async with ScriptedRelay(tls=tls, mode="starttls", login=("mailer", "hunter2")) as relay:
        yield relay, authority


async def check(stage: Stage, send_to: str | None = None, **changes: str) -> Checked:
    """Run the checks for a worker of this stage in this process: a new process would take longer than the checks."""
    env = settings(stage.relay, stage.url, stage.rabbit.queue, stage.rabbit.prefix, **changes)
    report = CheckReport()
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("RABBITMQ_", "SMTP_", "REDIS_")):
                patch.delenv(name)
        for name, value in env.items():
            patch.setenv(name, value)
        patch.chdir(stage.folder)
        await run_checks(report, make_request(send_to) if send_to else None)
    return Checked([{"about": about, **asdict(it)} for about, results in report.results.items() for it in results])


async def run(stage: Stage, *options: str, **changes: str) -> tuple[int, Checked, str]:
    """Run the command itself; return its exit code, its results and its output."""
    env = settings(stage.relay, stage.url, stage.rabbit.queue, stage.rabbit.prefix, **changes)
    ran = await otp_stream(stage.folder, "check", *options, **env)
    report: dict[str, Any] = json.loads(ran.out) if "--json" in options else {"ok": ran.code == 0, "results": []}
    assert report["ok"] == (ran.code == 0)
    return ran.code, Checked(report["results"]), ran.out


async def nothing_exists(stage: Stage) -> bool:
    """Return whether the broker has no queue and no exchange of this test."""
    existing = [name for name in stage.rabbit.names() if await stage.rabbit.depth(name) is not None]
    for name in ("retry", "events", "jobs"):
        channel = await stage.rabbit.connection.channel()
        with contextlib.suppress(ChannelClosed):
            await channel.get_exchange(f"{stage.rabbit.prefix}.{name}", ensure=True)
            existing.append(name)
    return not existing


async def test_a_slow_broker_is_not_reported_as_a_node_that_is_down(stage: Stage) -> None:
    await stage.rabbit.declare()
    async with amqp_proxy(stage.url) as (proxy, url), await aio_pika.connect(url) as connection:
        hold = proxy.hold("to broker", (50, 10))  # queue.declare
        inspecting = asyncio.create_task(queue_inspect.inspect_queue(connection, stage.rabbit.queue, {}))
        await hold.reached.wait()
        await asyncio.sleep(ANSWER_S + 0.5)  # longer than a worker waits
        proxy.release()
        assert await inspecting is not None


async def test_with_a_healthy_worker_there_is_no_problem_and_dead_letters_are_reported(
    stage: Stage, redis: RedisServer, secure: tuple[ScriptedRelay, Authority]
) -> None:
    relay, authority = secure
    changes = {
        "SMTP_PORT": str(relay.port), "SMTP_TLS": "starttls", "SMTP_AUTH": "login", "SMTP_USER": "mailer",
        "SMTP_PASS": "hunter2", "SMTP_CA_FILE": str(authority.ca_file), "REDIS_URL": redis.url,
        "SMTP_FALLBACK_URLS": f"smtp://127.0.0.1:{stage.relay.port}?tls=none",
    }  # fmt: skip
    await stage.run(MAX_RETRIES="3", **changes)
    checked = await check(stage, **changes)
    assert checked.of("problem") == checked.of("warning") == []
    assert f"{stage.rabbit.queue}: classic queue, 0 jobs waiting, 1 worker" in checked.of("ok", "RabbitMQ")
    (exist,) = (it for it in checked.of("ok", "RabbitMQ") if it.startswith("exist with the right properties"))
    assert f"{stage.rabbit.prefix}.dead" in exist
    assert "9 wait queues" in exist
    first = checked.of("ok", "Relay 1")
    assert "TLSv1.3 (starttls), messages up to 10 485 760 bytes, PIPELINING" in first[0]
    assert "certificate by test authority, valid until 20" in first[1]
    assert "the login is accepted" in first[2]
    assert "no TLS" in checked.of("ok", "Relay 2")[0]
    assert "shared by 1 worker" in checked.of("ok", "Redis")[0]
    # a busy machine reads the answer late
    assert re.search(r"Redis is [0-4]\.\d s", checked.of("ok", "Clock")[0])
    assert "otp (de)" in checked.of("ok", "Templates")[0]
    for it in (relay, stage.relay):
        assert it.accepted == []
        assert "MAIL" not in it.commands()
        assert it.commands()[-1] == "QUIT"
    await stage.rabbit.publish(b"no job")

    async def dead() -> bool:
        return await stage.rabbit.depth(f"{stage.rabbit.prefix}.dead") == 1

    await until(dead, "the dead letter")
    code, _, out = await run(stage, **changes)
    assert code == 0, out
    assert f"  warning  {stage.rabbit.prefix}.dead contains 1 dead letter\n" in out
    assert out.endswith("no problems, 1 warning\n")
    assert "hunter2" not in checked.out + out
    await stage.rabbit.wait_depth(1, f"{stage.rabbit.prefix}.dead")  # a sweep of the worker may read it at the moment


async def test_a_server_whose_url_is_in_a_file_that_cannot_be_read_is_not_checked(stage: Stage) -> None:
    gone = f"{stage.folder}/gone"
    checked = await check(stage, RABBITMQ_URL="", RABBITMQ_URL_FILE=gone, REDIS_URL_FILE=gone)
    assert checked.of("problem") == [f"{name}_FILE: does not exist: {gone}" for name in ("RABBITMQ_URL", "REDIS_URL")]
    assert checked.of("note", "RabbitMQ") == ["not checked: RABBITMQ_URL cannot be read"]
    assert "not checked: REDIS_URL cannot be read" in checked.of("note", "Redis")[0]


async def test_the_senders_domain_is_looked_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = {("mail.acme.io", "TXT"): ['"v=spf1 ip4:192.0.2.1 -all"'], ("mail.acme.io", "MX"): ["10 mail.acme.io."]}
    with dns_server(zone) as resolver:
        monkeypatch.setattr(dns.asyncresolver, "default_resolver", resolver)
        checked = await check(stage, SENDER_EMAIL="Acme <no-reply@Mail.Acme.IO>", SMTP_HOST="127.0.0.1")
    assert checked.of("ok", "Sender") == [
        "mail.acme.io: SPF has a record", "mail.acme.io: MX takes bounces and replies",
    ]  # fmt: skip
    (dmarc,) = checked.of("warning", "Sender")
    assert "DMARC: no record" in dmarc
    assert checked.fix("DMARC: no record").startswith("add _dmarc.mail.acme.io. TXT ")


async def test_before_the_first_start_nothing_is_declared(stage: Stage) -> None:
    checked = await check(stage)
    assert checked.of("problem") == []
    (missing,) = (it for it in checked.of("note", "RabbitMQ") if "declared at a worker's first start" in it)
    for name in (stage.rabbit.queue, f"{stage.rabbit.prefix}.retry", f"{stage.rabbit.prefix}.events", "9 wait queues"):
        assert name in missing
    assert "rabbitmqctl list_policies -p /" in checked.fix("policies were not checked")
    assert await nothing_exists(stage)


async def test_no_failure_hides_another_and_no_secret_shows(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "templates" / "otp").mkdir(parents=True)
    (tmp_path / "templates" / "otp" / "body.txt").write_text("{{ otp }\n")
    smtp_port, redis_port = free_port(), free_port()
    checked = await check(
        stage,
        RABBITMQ_URL=stage.url.replace("guest:guest", "guest:hunter1"),
        SMTP_PORT=str(smtp_port),
        SMTP_FALLBACK_URLS=f"smtp://u:hunter2@127.0.0.1:{stage.relay.port}?tls=none",
        REDIS_URL=f"redis://u:hunter3@127.0.0.1:{redis_port}/0",
        TEMPLATES_DIR=str(tmp_path / "templates"),
        PREFETCH_COUNT="none",
    )
    assert checked.of("problem", "Settings")[0].startswith("PREFETCH_COUNT: must be a whole number")
    assert "refuses the login of guest" in checked.of("problem", "RabbitMQ")[0]
    assert "change_password guest" in checked.fix("refuses the login of guest")
    assert "(at CONNECT)" in checked.of("problem", "Relay 1")[0]
    assert "no login by SCRAM-SHA-256, PLAIN, LOGIN, CRAM-MD5" in checked.of("problem", "Relay 2")[0]
    assert "does not answer" in checked.of("problem", "Redis")[0]
    assert "otp/body.txt, line 1" in checked.of("problem", "Templates")[0]
    assert "not checked" in checked.of("note", "Clock")[0]
    assert "hunter" not in checked.out


async def test_invalid_settings_do_not_prevent_the_other_checks(stage: Stage) -> None:
    checked = await check(stage, BASE_DELAY_MS="60000", REDIS_URL="redis://u:hunter/2@127.0.0.1", SMTP_HOST="")
    assert {it.partition(":")[0] for it in checked.of("problem", "Settings")} == {"REDIS_URL", "SMTP_HOST"} | {
        "BASE_DELAY_MS must not exceed MAX_DELAY_MS"
    }
    assert checked.of("ok", "RabbitMQ")
    assert any("queues were not checked" in it for it in checked.of("note", "RabbitMQ"))
    assert "REDIS_URL cannot be read" in checked.of("note", "Redis")[0]
    assert "correct the settings" in checked.of("note", "Relay 1")[0]
    assert "hunter" not in checked.out


async def test_it_is_reported_whether_a_plain_quorum_queue_drops_a_job_that_is_returned_often(stage: Stage) -> None:
    queue = stage.rabbit.queue
    await stage.rabbit.declare(**{"x-queue-type": "quorum"})
    drops = stage.rabbit.version >= (4, 0)
    warnings = [it for it in (await check(stage)).of("warning", "RabbitMQ") if "was returned" in it]
    default = "(delivery-limit: the default of RabbitMQ 4)"
    assert warnings == ([f"{queue}: a job that was returned 20 times is dropped silently {default}"] if drops else [])
    await stage.rabbit.publish(job())
    jobs = await stage.rabbit.channel.get_queue(queue, ensure=False)

    async def returned() -> bool:
        message = await jobs.get(fail=False)
        if message is not None:
            await message.reject(requeue=True)
        return message is not None

    for _ in range(21):
        await until(returned, "the job")
    assert await until(lambda: _is(stage, 0 if drops else 1), "the new depth")


async def _is(stage: Stage, depth: int) -> bool:
    return await stage.rabbit.depth() == depth


async def test_queues_and_exchanges_with_other_properties_are_reported_with_the_command(stage: Stage) -> None:
    queue, prefix = stage.rabbit.queue, stage.rabbit.prefix
    odd = {"x-queue-type": "quorum", "x-delivery-limit": 5, "x-message-ttl": 60_000, "x-max-length": 9}
    await stage.rabbit.declare(**odd)
    await stage.rabbit.declare(f"{queue}.high", **{"x-dead-letter-exchange": "", "x-message-ttl": 60_000})
    await stage.rabbit.declare(f"{prefix}.dead")
    await stage.rabbit.declare(f"{prefix}.retry.due", **{"x-queue-type": "quorum", "x-delivery-limit": 7})
    await stage.rabbit.channel.declare_exchange(f"{prefix}.retry", "fanout", durable=True)
    await stage.rabbit.publish(job(), to=f"{prefix}.dead")
    await stage.rabbit.publish(job())
    checked = await check(stage)
    problems = checked.of("problem", "RabbitMQ")
    assert f"{prefix}.dead has the wrong properties: x-queue-type is 'classic', must be 'quorum'" in problems
    (due,) = (it for it in problems if it.startswith(f"{prefix}.retry.due"))
    assert "x-delivery-limit is 7, must be 20" in due
    assert f"x-dead-letter-routing-key is not set, must be '{prefix}.dead'" in due
    assert f"exchange {prefix}.retry has the wrong properties: type is 'fanout', must be 'direct'" in problems
    fix = checked.fix(f"{prefix}.dead has the wrong")
    assert f"rabbitmqctl delete_queue -p / {prefix}.dead --if-empty" in fix
    assert "move 1 message elsewhere (otp-stream dead export --raw)" in fix
    warnings = checked.of("warning", "RabbitMQ")
    assert f"{queue}: quorum queue, 1 job waiting, 0 workers: no worker consumes them" in warnings
    dropped = "is dropped silently"
    assert f"{queue}: a job that waits for 60000 ms {dropped} (message-ttl)" in warnings
    assert f"{queue}: beyond 9 the oldest job {dropped} (max-length)" in warnings
    assert f"{queue}: a job that was returned 5 times {dropped} (delivery-limit)" in warnings
    assert "rabbitmqctl set_policy" in checked.fix("(delivery-limit)")
    assert any(
        it.startswith(f"{queue}.high: a job that waits") and "goes to the dead-letter exchange" in it for it in warnings
    )
    assert await stage.rabbit.depth(f"{prefix}.dead") == 1
    assert await stage.rabbit.depth(f"{prefix}.retry.1150") is None
    await stage.rabbit.channel.exchange_delete(f"{prefix}.retry")


async def test_a_relay_s_certificate_and_login_are_reported_separately(
    stage: Stage, secure: tuple[ScriptedRelay, Authority], tmp_path: Path
) -> None:
    relay, authority = secure
    login = {"SMTP_AUTH": "login", "SMTP_USER": "mailer", "SMTP_PASS": "hunter3"}
    changes = {"SMTP_PORT": str(relay.port), "SMTP_TLS": "starttls", **login}
    checked = await check(stage, **changes)
    (text,) = checked.of("problem", "Relay 1")
    assert "127.0.0.1 has a certificate that is not accepted" in text
    assert f"openssl s_client -connect 127.0.0.1:{relay.port}" in checked.fix("is not accepted")
    relay.always("auth", "535 5.7.8 mailer is not hunter3")
    checked = await check(stage, **changes, SMTP_CA_FILE=str(authority.ca_file))
    assert any("certificate by test authority" in it for it in checked.of("ok", "Relay 1"))
    (text,) = checked.of("problem", "Relay 1")
    assert "535 5.7.8 *** is not ***" in text
    assert "SMTP_PASS" in checked.fix("535 5.7.8")
    assert "hunter" not in checked.out
    assert "mailer" not in checked.out


async def test_one_real_mail_is_sent_on_request(stage: Stage) -> None:
    smtp_port = free_port()
    changes = {
        "SMTP_PORT": str(smtp_port), "SMTP_FALLBACK_URLS": f"smtp://127.0.0.1:{stage.relay.port}?tls=none"
    }  # fmt: skip
    stage.relay.then("body", f"250 2.0.0 queued for {ADDRESS}")
    code, checked, out = await run(stage, "--json", "--send-to", ADDRESS, **changes)
    assert code == 1  # the first relay is away
    (mail,) = stage.relay.accepted
    assert mail.recipient == ADDRESS
    assert checked.of("ok", "Mail")[0].startswith(
        f"127.0.0.1:{stage.relay.port} accepted a mail to A***@example.com: 250"
    )
    stage.relay.then("rcpt", "550 5.1.1 no such user")
    checked = await check(stage, ADDRESS)
    assert "refused a mail to A***@example.com: 550 5.1.1" in checked.of("problem", "Mail")[0]
    text = message_from_bytes(mail.content).get_payload(0)
    sent = re.search(r"\b\d{6}\b", str(text))
    assert sent is not None
    assert sent[0] not in out
    assert "ovelace" not in out + checked.out
    wrong = await otp_stream(stage.folder, "check", "--send-to", "Lovelace")
    assert (wrong.code, wrong.out.startswith("--send-to: must be one e-mail address")) == (2, True)
    assert len(stage.relay.accepted) == 1
    assert await nothing_exists(stage)


async def test_permissions_policies_virtual_host_and_certificate_of_a_broker(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("127.0.0.1")
    # its own address: the management API is expected at its default port
    host = f"127.{randbelow(250) + 1}.{randbelow(250) + 1}.{randbelow(250) + 1}"
    node = Node(tmp_path / "node", tls=(authority.ca_file, certificate, key))
    node.settings = (
        f"listeners.tcp.2 = {host}:{node.port}", f"management.tcp.ip = {host}", "management.tcp.port = 15672"
    )  # fmt: skip
    node.plugins = "rabbitmq_management"
    node.start()
    try:
        async with set_stage(node.url, tmp_path / "stage", tidy=False) as stage:
            stage.folder.mkdir()
            await _on_a_node(stage, node, host, authority)  # what it holds goes with the node
    finally:
        node.remove()


async def _on_a_node(stage: Stage, node: Node, host: str, authority: Authority) -> None:
    queue, prefix = stage.rabbit.queue, stage.rabbit.prefix
    url = f"amqp://worker:hunter4@{host}:{node.port}/"

    def put(path: str, **body: Any) -> None:
        """Use the management API: `rabbitmqctl` takes a second for each command."""
        token = b64encode(b"guest:guest").decode()
        headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
        where = f"http://{host}:15672/api/{path}"
        urlopen(Request(where, json.dumps(body).encode(), headers, method="PUT"), timeout=60).close()

    put("users/worker", password="hunter4", tags="")
    checked = await check(stage, RABBITMQ_URL=url)
    assert "has no virtual host /, or worker may not use it" in checked.of("problem", "RabbitMQ")[0]
    put("permissions/%2F/worker", configure=f"^{prefix}\\.retry.*", write=f"^{prefix}\\..*", read="^nothing$")
    checked = await check(stage, RABBITMQ_URL=url)
    (text,) = (it for it in checked.of("problem", "RabbitMQ") if "lacks permissions" in it)
    locks = f"{prefix}.dead.hands, {prefix}.dead.hands.wait, {prefix}.dead.hands.sweep"
    assert f"configure {queue}, {queue}.high, {prefix}.dead, {prefix}.events, {locks}, {prefix}.jobs;" in text
    assert f"write amq.default, {queue};" in text
    assert f"read {queue}.high, {queue}, {prefix}.retry.due" in text
    assert await nothing_exists(stage)
    assert "rabbitmqctl list_policies -p /" in checked.fix("refuses this user (HTTP 401)")
    parts = checked.fix("lacks permissions").split("'")
    node.control("set_permissions", "-p", "/", "worker", *parts[1::2])
    await stage.run(RABBITMQ_URL=url, MAX_RETRIES="3")  # the command grants all that is needed
    put("users/worker", password="hunter4", tags="policymaker")
    limits = {"max-length": 5, "expires": 3_600_000}
    put("policies/%2F/bad", pattern=f"^{prefix}\\.(dead|retry\\.due)$", definition=limits)
    put("policies/%2F/late", pattern=f"^{queue}$", definition={"message-ttl": 5000})
    put("operator-policies/%2F/short", pattern=f"^{queue}$", definition={"message-ttl": 4000}, **{"apply-to": "queues"})
    checked = await check(stage, RABBITMQ_URL=url)
    assert "worker has all permissions that the worker needs" in checked.of("ok", "RabbitMQ")
    (text,) = checked.of("problem", "RabbitMQ")
    assert f"policy bad sets expires=3600000, max-length=5 on {prefix}.dead, {prefix}.retry.due" in text
    assert "rabbitmqctl clear_policy -p / bad" in checked.fix("policy bad")
    assert any(it.startswith(f"{queue}: a job that waits for 4000 ms is dropped") for it in checked.of("warning"))
    # accurate to a second only; a busy machine reads the answer late
    assert any(it.startswith("RabbitMQ's management API is ") for it in checked.of("ok", "Clock"))
    assert "add to policy late with operator policy short" in checked.fix("waits for 4000 ms")
    secure = f"amqps://worker:hunter4@127.0.0.1:{node.tls_port}/"
    checked = await check(stage, RABBITMQ_URL=secure)
    assert "has a certificate that is not accepted: " in checked.of("problem", "RabbitMQ")[0]
    checked = await check(stage, RABBITMQ_URL=f"{secure}?cafile={authority.ca_file}")
    assert any("RabbitMQ's TLS port: certificate by test authority" in it for it in checked.of("ok", "RabbitMQ"))
    assert "https://127.0.0.1:15671 does not answer" in checked.of("note", "RabbitMQ")[0]
    assert "hunter" not in checked.out


async def test_a_queue_that_is_deleted_during_its_check_is_not_declared(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, name = stage.rabbit.channel, f"{stage.rabbit.prefix}.gone"
    original = queue_inspect.temporary_channel

    @contextlib.asynccontextmanager
    async def request_then_delete(connection: AbstractConnection) -> AsyncIterator[AbstractChannel]:
        async with original(connection) as one:
            yield one
        if not deleted:
            deleted.append(await channel.queue_delete(name))

    monkeypatch.setattr(queue_inspect, "temporary_channel", request_then_delete)
    for arguments in ({}, {"x-queue-type": "quorum"}):
        deleted: list[object] = []
        await channel.declare_queue(name, durable=True, arguments=arguments)
        async with await aio_pika.connect(stage.url) as connection:
            assert await queue_inspect.inspect_queue(connection, name, arguments) is not None
        assert await stage.rabbit.depth(name) is None


async def test_whether_codes_are_sealed_is_named(stage: Stage) -> None:
    checked = await check(stage)
    assert any(it.startswith("SEALING_KEYS is not set: RabbitMQ writes codes") for it in checked.of("note", "Settings"))
    checked = await check(stage, SEALING_KEYS=json.dumps({"keys": [new_jwk("p256"), new_jwk("oct")]}))
    assert "codes are sealed with the first of 2 keys" in checked.of("ok", "Settings")
    checked = await check(stage, SEALING_KEYS='{"keys": [{"kty": "RSA"}]}')
    assert "SEALING_KEYS: key 1: has another kty or crv" in checked.of("problem", "Settings")[0]
    assert not any("SEALING_KEYS" in it for it in checked.of("note", "Settings"))


def test_the_demo_is_not_checked_because_it_has_settings_of_its_own(tmp_path: Path) -> None:
    ran = here(tmp_path, "check", "--json", RABBITMQ_URL="memory://127.0.0.1:5673")
    assert ran.code == 1  # these settings are incomplete for a worker
    (text,) = (it["text"] for it in json.loads(ran.out)["results"] if it["about"] == "RabbitMQ")
    assert "the demo of `make run` here has other settings" in text
