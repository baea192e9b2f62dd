"""Client certificates at RabbitMQ, with and without SASL EXTERNAL, and at Redis, for all that connects."""

import json
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import Authority
from cli import otp_stream
from conftest import Stage, set_stage
from rabbitmq import Node, free_port, until
from redis_server import RedisServer
from worker import Worker, job

from otp_stream.client import ClientError, OtpClient, OtpJob

PEM = ("cafile", "certfile", "keyfile")
REDIS_PEM = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


@dataclass
class Place:
    """A server that requires a certificate, and one authority that it knows and one that it does not."""

    authority: Authority
    other: Authority
    folder: Path

    def query(
        self, authority: Authority, name: str = "worker", *, expired: bool = False, names: tuple[str, ...] = PEM
    ) -> str:
        files = (self.authority.ca_file, *authority.issue(name, expired=expired))
        return "&".join(f"{option}={file}" for option, file in zip(names, files, strict=True))

    def installed(self, name: str) -> str:
        """Put a certificate of this name into fixed files, as a renewal does. Returns the options that name them."""
        files = [self.folder / it for it in ("tls.crt", "tls.key")]
        for source, file in zip(self.authority.issue(name), files, strict=True):
            shutil.copy(source, file)
        return f"cafile={self.authority.ca_file}&certfile={files[0]}&keyfile={files[1]}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "other").mkdir()
    return Place(Authority(folder), Authority(folder / "other"), folder)


@pytest.fixture(scope="module")
def node(place: Place) -> Iterator[Node]:
    node = Node(place.folder / "node", tls=(place.authority.ca_file, *place.authority.issue("127.0.0.1")))
    node.wants_certificates, node.plugins = True, "rabbitmq_auth_mechanism_ssl"
    node.settings = (
        "auth_mechanisms.1 = EXTERNAL", "auth_mechanisms.2 = PLAIN", "ssl_cert_login_from = common_name"
    )  # fmt: skip
    node.start()
    for user in ("worker", "renewed"):
        node.control("add_user", user, "hunter2")
        node.control("set_permissions", user, ".*", ".*", ".*")
    node.control("clear_password", "worker")
    yield node
    node.remove()


@pytest.fixture
async def stage(node: Node, tmp_path: Path) -> AsyncIterator[Stage]:
    async with set_stage(node.url, tmp_path) as stage:
        yield stage


def url_of(node: Node, query: str, login: str = "") -> str:
    return f"amqps://{login}127.0.0.1:{node.tls_port}/?{query}"


async def test_the_certificate_is_the_login_of_worker_client_and_commands(
    stage: Stage, node: Node, place: Place
) -> None:
    url = url_of(node, f"{place.installed('worker')}&auth=external")
    stage.relay.always("rcpt", "550 5.1.1 no such user", to="dead@example.com")
    worker = stage.worker(url=url, NODE_ENV="production", SMTP_AUTH="none", SECRET_KEY="c9f1a67be0d24f8893aa51c7")
    await worker.start()
    env = {name: worker.env[name] for name in ("RABBITMQ_URL", "RABBITMQ_QUEUE_NAME", "RABBITMQ_PREFIX")}
    env |= {"MAX_RETRIES": "1", "MAX_DELAY_MS": "1000", "SECRET_KEY": worker.env["SECRET_KEY"]}
    async with OtpClient(url, queue=stage.rabbit.queue, prefix=stage.rabbit.prefix) as client:
        await client.publish(OtpJob(email="user@example.com", otp="739154"))
    await stage.relay.wait_accepted(1)
    sent = await otp_stream(stage.folder, "send", "dead@example.com", "--wait", "30", **env)
    assert "rejected" in sent.out
    listed = await otp_stream(stage.folder, "dead", "list", **env)
    assert (listed.code, "1 dead letter" in listed.out) == (0, True), listed.out
    topology = await otp_stream(stage.folder, "topology", "show", **env)
    assert topology.code == 0, topology.out
    checked = await otp_stream(stage.folder, "check", "--json", **worker.env | env)
    texts = [it["text"] for it in json.loads(checked.out)["results"] if it["about"] == "RabbitMQ"]
    assert any("login as <user of the certificate>, virtual host /" in it for it in texts)
    assert "<user of the certificate> has all permissions that the worker needs" in texts

    # renewed files are used for the next connection
    place.installed("renewed")
    node.control("close_all_user_connections", "worker", "renewal")
    await worker.wait_log("RabbitMQ is back")
    await stage.rabbit.publish(job("next@example.com"))
    await stage.relay.wait_accepted(2)

    async def renewed() -> bool:
        return node.control("list_connections", "user").split().count("renewed") >= 2

    await until(renewed, "connections of the new certificate")


async def test_a_certificate_and_a_password_may_both_be_required(stage: Stage, node: Node, place: Place) -> None:
    worker = stage.worker(url=url_of(node, place.query(place.authority), "renewed:hunter2@"))
    await worker.start()
    await stage.rabbit.publish(job())
    await stage.relay.wait_accepted(1)


@pytest.mark.parametrize(
    ("name", "text", "fix"),
    [
        # if the alert arrives: requires, otherwise: may require
        (
            "none",
            r"requires? a client certificate",
            "set certfile=/path/client.pem&keyfile=/path/client.key in RABBITMQ_URL",
        ),
        ("unknown", r"refuses? the client certificate", "in RABBITMQ_URL"),
        ("expired", r"refuses? the client certificate", "RABBITMQ_URL"),
        ("user", "refuses the login by the client certificate", "ssl_cert_login_from"),
        ("mismatch", "was not asked: the files of RABBITMQ_URL cannot be used", "the key that of the certificate"),
    ],
)
async def test_a_refused_certificate_is_named_with_the_fix(
    stage: Stage, node: Node, place: Place, name: str, text: str, fix: str
) -> None:
    query = {
        "none": f"cafile={place.authority.ca_file}",
        "unknown": f"{place.query(place.other)}&auth=external",
        "expired": f"{place.query(place.authority, expired=True)}&auth=external",
        "user": f"{place.query(place.authority, 'nobody')}&auth=external",
        "mismatch": place.query(place.authority).rpartition("=")[0] + f"={place.other.issue('worker')[1]}",
    }[name]
    url = url_of(node, query)
    worker = stage.worker(url=url)
    checked = await otp_stream(stage.folder, "check", "--json", **worker.env)
    (problem,) = (
        it for it in json.loads(checked.out)["results"] if it["about"] == "RabbitMQ" and it["level"] == "problem"
    )
    assert re.search(text, problem["text"])
    assert fix in problem["fix"]
    with pytest.raises(ClientError, match=text):
        await OtpClient(url).connect()
    await worker.start(ready=False)

    async def logged() -> bool:
        return bool(re.search(text, worker.log))

    await until(logged, f"line {text!r}")


@pytest.fixture
def redis(place: Place, tmp_path: Path) -> Iterator[tuple[RedisServer, str]]:
    certificate, key = place.authority.issue("127.0.0.1")
    port = free_port()
    tls = ("--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key))
    server = RedisServer(tmp_path / "redis", settings=(*tls, "--tls-ca-cert-file", str(place.authority.ca_file)))
    server.start()
    yield server, f"rediss://127.0.0.1:{port}/0?"
    server.remove()


async def test_redis_with_a_client_certificate(stage: Stage, place: Place, redis: tuple[RedisServer, str]) -> None:
    server, url = redis
    url += place.query(place.authority, names=REDIS_PEM)
    worker = await stage.run(REDIS_URL=url)
    await worker.wait_log("consuming")
    await stage.rabbit.publish(job())
    await stage.relay.wait_accepted(1)

    async def shared() -> bool:
        return server.command("DBSIZE") != ":0"

    await until(shared, "keys in Redis")
    checked = await otp_stream(stage.folder, "check", "--json", **worker.env)
    results = [it for it in json.loads(checked.out)["results"] if it["about"] == "Redis"]
    assert results
    assert all(it["level"] == "ok" for it in results), results
    assert re.search(r"Redis: certificate by test authority, .*, TLSv1\.3, TLS_", results[0]["text"])
    tables = await otp_stream(stage.folder, "tables", **worker.env)
    assert tables.code == 0, tables.out


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("none", "client certificate"),
        ("unknown", "REDIS_URL"),
        ("expired", "REDIS_URL"),
        ("mismatch", "the key that of the certificate"),
        ("authority", "ssl_ca_certs=/path/ca.pem in REDIS_URL"),
    ],
)
async def test_a_certificate_that_redis_refuses_is_named_with_the_fix(
    stage: Stage, place: Place, redis: tuple[RedisServer, str], name: str, fix: str
) -> None:
    query = {
        "none": f"ssl_ca_certs={place.authority.ca_file}",
        "unknown": place.query(place.other, names=REDIS_PEM),
        "expired": place.query(place.authority, expired=True, names=REDIS_PEM),
        "mismatch": place.query(place.authority, names=REDIS_PEM).rpartition("=")[0] + f"={place.other.issue('w')[1]}",
        "authority": place.query(place.authority, names=REDIS_PEM).partition("&")[2],
    }[name]
    worker: Worker = stage.worker(REDIS_URL=redis[1] + query)
    checked = await otp_stream(stage.folder, "check", "--json", **worker.env)
    (problem,) = (it for it in json.loads(checked.out)["results"] if it["about"] == "Redis")
    assert fix in problem["fix"], problem
