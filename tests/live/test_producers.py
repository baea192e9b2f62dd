"""The programs of docs/producers.md, over TLS, against RabbitMQ and a worker."""

import asyncio
import contextlib
import json
import os
import re
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from certificates import Authority
from conftest import Stage
from relays import FOLDER, NODE_MODULES
from worker import CODE

PAGE = (Path(__file__).parents[2] / "docs" / "producers.md").read_text()
_JARS = ":".join(f"/usr/share/java/{name}.jar" for name in ("amqp-client", "slf4j-api", "jackson-core",
                                                            "jackson-databind", "jackson-annotations"))  # fmt: skip
_JVM = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
"""Options with which a Java program that runs for a second takes half of the CPU time."""
_HOST_NAME = """
    factory.setSocketConfigurator(socket -> {
        var parameters = ((javax.net.ssl.SSLSocket) socket).getSSLParameters();
        parameters.setServerNames(java.util.List.of(new javax.net.ssl.SNIHostName(factory.getHost())));
        parameters.setEndpointIdentificationAlgorithm("HTTPS");
        ((javax.net.ssl.SSLSocket) socket).setSSLParameters(parameters);
    });
"""
"""What `enableHostnameVerification` does: Debian's client, 5.0.0, does not have it."""
_GO = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOCACHE": str(FOLDER.parent / "go")}


@dataclass(frozen=True)
class Program:
    """A program of the page in an empty folder: how it is built and run, and how it trusts an authority."""

    folder: Path
    command: tuple[str, ...]
    trust: dict[str, str]

    async def run(self, url: str, *, trusting: bool = True) -> tuple[int | None, str]:
        """Publish `CODE` to user@example.com. Returns exit code and output."""
        env = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "RABBITMQ_URL": url}
        process = await asyncio.create_subprocess_exec(
            *self.command, "user@example.com", CODE, "j-1", cwd=self.folder, env=env | (self.trust if trusting else {}),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            output, _ = await asyncio.wait_for(process.communicate(), 40)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        return process.returncode, output.decode()


def python(folder: Path, ca: Path) -> Program:
    return Program(folder, (sys.executable, "publish.python"), {"SSL_CERT_FILE": str(ca)})


def js(folder: Path, ca: Path) -> Program:
    (folder / "publish.js").rename(folder / "publish.mjs")
    (folder / "node_modules").symlink_to(NODE_MODULES)
    return Program(folder, ("node", "publish.mjs"), {"NODE_EXTRA_CA_CERTS": str(ca)})


def go(folder: Path, ca: Path) -> Program:
    subprocess.run(["go", "build", "-o", "publish", "publish.go"], cwd=folder, env=os.environ | _GO, check=True)
    return Program(folder, (str(folder / "publish"),), {"SSL_CERT_FILE": str(ca)})


def java(folder: Path, ca: Path) -> Program:
    source = (folder / "publish.java").read_text()
    assert "factory.enableHostnameVerification();" in source
    (folder / "Publish.java").write_text(source.replace("factory.enableHostnameVerification();", _HOST_NAME))
    store = ("-keystore", "trust.p12", "-storepass", "secret")
    subprocess.run(["javac", *(f"-J{it}" for it in _JVM), "-cp", _JARS, "Publish.java"], cwd=folder, check=True)
    subprocess.run(
        ["keytool", *(f"-J{it}" for it in _JVM), "-importcert", "-noprompt", "-file", ca, *store],
        cwd=folder,
        check=True,
    )
    options = "-Djavax.net.ssl.trustStore=trust.p12 -Djavax.net.ssl.trustStorePassword=secret"
    return Program(folder, ("java", *_JVM, "-cp", f".:{_JARS}", "Publish"), {"JAVA_TOOL_OPTIONS": options})


def php(folder: Path, ca: Path) -> Program:
    (folder / "vendor").mkdir()
    (folder / "vendor" / "autoload.php").write_text("<?php require 'PhpAmqpLib/autoload.php';")
    (folder / "php.ini").write_text(f"openssl.cafile={ca}\n")
    return Program(folder, ("php", "publish.php"), {"PHP_INI_SCAN_DIR": f":{folder}"})


@asynccontextmanager
async def tls_in_front_of(url: str, context: ssl.SSLContext) -> AsyncIterator[str]:
    """Terminate TLS in front of the broker at `url`. Yields the URL with TLS."""
    parts = urlsplit(url)
    tasks: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while content := await reader.read(65_536):
                writer.write(content)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        broker_reader, broker_writer = await asyncio.open_connection(parts.hostname, parts.port)
        await asyncio.gather(copy(reader, broker_writer), copy(broker_reader, writer))

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", ssl=context)
    try:
        port = server.sockets[0].getsockname()[1]
        yield f"amqps://{parts.username}:{parts.password}@localhost:{port}/{parts.path.strip('/') or '%2f'}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("language", [python, js, go, java, php])
async def test_a_program_of_the_page_publishes_a_code_that_is_sent(
    stage: Stage, tmp_path: Path, language: Callable[[Path, Path], Program]
) -> None:
    (source,) = re.findall(rf"```{language.__name__}\n(.*?)```", PAGE, re.DOTALL)
    queue = f"{stage.rabbit.queue}.high"
    authority = Authority(tmp_path)
    folder = tmp_path / "program"
    folder.mkdir()
    if language is python:
        source = source.replace('["RABBITMQ_URL"])', f'["RABBITMQ_URL"], queue="{stage.rabbit.queue}")')
    source = source.replace("service_send_otp.high", queue)
    (folder / f"publish.{language.__name__}").write_text(source)
    program = await asyncio.to_thread(language, folder, authority.ca_file)

    async with tls_in_front_of(stage.url, authority.server("localhost")) as url:
        if language is not python:  # which declares the queue
            status, output = await program.run(url)
            assert status != 0
            assert f"returned: there is no queue {queue}" in output, output
        declared = await stage.rabbit.channel.declare_queue(queue, durable=True)
        status, output = await program.run(url, trusting=False)
        assert status != 0, output
        async with tls_in_front_of(stage.url, authority.server("other.example")) as other:
            status, output = await program.run(other)
            assert status != 0, output
        assert await declared.get(fail=False) is None
        status, output = await program.run(url)
        assert status == 0, output
    message = await declared.get()
    assert (message.delivery_mode, message.content_type, message.expiration) == (2, "application/json", None)
    job = json.loads(message.body)
    assert (job["otp"], job["jobId"], job["metadata"]["expiryMinutes"]) == (CODE, "j-1", 10)
    assert 0 <= time.time() * 1000 - job["timestamp"] < 60_000
    await message.nack(requeue=True)
    await stage.run()
    await stage.relay.wait_accepted(1)
    assert CODE.encode() in stage.relay.accepted[0].content
