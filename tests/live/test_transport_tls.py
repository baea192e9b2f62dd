"""TLS of every connection: version 1.2 or newer, a verified certificate, and no secret before that."""

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import aio_pika
import pytest
from aio_pika.exceptions import AMQPConnectionError
from aiormq.connection import SSLContextProvider
from certificates import Authority
from opentelemetry.exporter.otlp.common import http as otlp_http
from opentelemetry.sdk.trace import TracerProvider
from rabbitmq import until
from smtp_relay import ScriptedRelay, config, send
from structlog.testing import capture_logs
from tls_server import HOST, Tls, TlsServer
from yarl import URL

from otp_stream.broker.amqp_stream import ConsumingConnection
from otp_stream.broker.management_api import ManagementApi, ManagementError
from otp_stream.checks.tls import check_collector, check_token_server
from otp_stream.client import ClientError, OtpClient
from otp_stream.connection_errors import no_connection
from otp_stream.core.check_result import CheckResult, Report
from otp_stream.core.outcome import Unavailable
from otp_stream.relay import OAuthConfig, RelayConfig, SmtpRelay
from otp_stream.relay.access_token import TokenError
from otp_stream.relay.token_server import TokenServer
from otp_stream.sockets import Addresses
from otp_stream.tables.redis_client import connected
from otp_stream.tables.redis_connection import error_text, new_connection, refused_tls, use_first_reachable_address
from otp_stream.tables.redis_pipeline import RedisUnavailableError
from otp_stream.telemetry.exporters import open_span_exporter

Connect = Callable[[int, Path], Awaitable[str]]
"""Connects to a port, trusting an authority. Returns the text of the error."""
SECRET = "n8Vq2xT7"
# the tests use old versions on purpose
pytestmark = pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    folder = tmp_path_factory.mktemp("authorities")
    (folder / "other").mkdir()
    return Tls(Authority(folder), Authority(folder / "other"))


@pytest.fixture(autouse=True)
def _lenient_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this machine's OpenSSL allow old versions and short keys, as a system's configuration may."""
    usual = ssl.create_default_context

    def lenient(*arguments: object, **options: object) -> ssl.SSLContext:
        context = usual(*arguments, **options)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1
        return context

    monkeypatch.setattr(ssl, "create_default_context", lenient)
    monkeypatch.setattr(otlp_http._OTLPHTTPClient, "_compute_backoff", lambda *_: 0.01)
    for name in ("HTTPS_PROXY", "SSLKEYLOGFILE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


def amqp_url(port: int, ca: Path) -> str:
    return f"amqps://otp:{SECRET}@{HOST}:{port}/?cafile={ca}"


async def command(port: int, ca: Path) -> str:
    url = amqp_url(port, ca)
    try:
        await aio_pika.connect(url, timeout=5)
    except (AMQPConnectionError, OSError) as error:
        return no_connection(error, url)
    raise AssertionError


async def consumer(port: int, ca: Path) -> str:
    url = amqp_url(port, ca)
    connection = ConsumingConnection(URL(url), fail_fast=True)
    try:
        await connection.connect(timeout=5)
    except (AMQPConnectionError, OSError) as error:
        return no_connection(error, url)
    finally:
        await connection.close()
    raise AssertionError


async def producer(port: int, ca: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(SSLContextProvider, "_create_context")  # producers do not import the worker, which replaces it
        try:
            await OtpClient(amqp_url(port, ca)).connect()
        except ClientError as error:
            return str(error)
    raise AssertionError


async def management(port: int, ca: Path) -> str:
    api = ManagementApi.of_broker(amqp_url(port, ca), f"https://{HOST}:{port}")
    try:
        await api.fetch("overview")
    except ManagementError as error:
        return str(error)
    raise AssertionError


async def redis(port: int, ca: Path) -> str:
    connection = new_connection(f"rediss://otp:{SECRET}@{HOST}:{port}/0?ssl_ca_certs={ca}")
    try:
        await use_first_reachable_address(connection, Addresses())
        await connection.connect()
    except Exception as error:  # noqa: BLE001 - redis-py raises errors of many kinds
        return error_text(error)
    finally:
        await connection.disconnect(nowait=True)
    raise AssertionError


async def redis_command(port: int, ca: Path) -> str:
    def run() -> str:
        try:
            with connected(f"rediss://otp:{SECRET}@{HOST}:{port}/0?ssl_ca_certs={ca}") as client:
                client.execute("PING")
        except RedisUnavailableError as error:
            found = refused_tls(str(error))
            return "; ".join(found) if found else str(error)
        raise AssertionError

    return await asyncio.to_thread(run)


async def relay(port: int, ca: Path) -> str:
    smtp = SmtpRelay(RelayConfig(HOST, port, "s@example.com", "implicit", "otp", SECRET, ca))
    try:
        outcome = await send(smtp)
    finally:
        await smtp.close(grace_s=0)
    assert isinstance(outcome, Unavailable)
    assert outcome.reason == "tls_failed"
    return outcome.error


async def token_server(port: int, ca: Path) -> str:
    oauth = OAuthConfig("otp", f"https://{HOST}:{port}/token", "client", SECRET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REQUESTS_CA_BUNDLE", str(ca))
        try:
            await TokenServer(lambda: oauth).fetch()
        except TokenError as error:
            return str(error)
    raise AssertionError


def collector(protocol: str) -> Connect:
    async def connect(port: int, ca: Path) -> str:
        values = {
            "ENDPOINT": f"https://{HOST}:{port}", "PROTOCOL": protocol, "CERTIFICATE": str(ca), "TIMEOUT": "1",
            "HEADERS": f"authorization=Bearer {SECRET}", "INSECURE": "true",
        }  # fmt: skip
        span = TracerProvider(shutdown_on_exit=False).get_tracer("test").start_span("send")
        span.end()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in values.items():
                patch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
            for _ in range(5):
                exporter = open_span_exporter()
                with capture_logs() as logs:
                    await asyncio.to_thread(exporter.export, [span])
                exporter.shutdown()
                if logs[0]["error"] != "DEADLINE_EXCEEDED":  # as on a busy machine
                    break
        return str(logs[0]["error"])

    return connect


COLLECTOR_GRPC = collector("grpc")
AUTHORITIES: dict[Connect, str] = {
    command: "cafile=/path/ca.pem in RABBITMQ_URL",
    consumer: "cafile=/path/ca.pem in RABBITMQ_URL",
    producer: "cafile=/path/ca.pem in RABBITMQ_URL",
    management: "cafile=/path/ca.pem in RABBITMQ_URL",
    redis: "ssl_ca_certs=/path/ca.pem in REDIS_URL",
    redis_command: "ssl_ca_certs=/path/ca.pem in REDIS_URL",
    relay: "SMTP_CA_FILE",
    token_server: "REQUESTS_CA_BUNDLE",
    collector("http/protobuf"): "OTEL_EXPORTER_OTLP_CERTIFICATE",
    COLLECTOR_GRPC: "OTEL_EXPORTER_OTLP_CERTIFICATE",
}
"""The setting for the authority, for each client."""
CLIENTS = pytest.mark.parametrize(
    "connect",
    AUTHORITIES,
    ids=[
        "command", "consumer", "producer", "management", "redis", "redis-command", "relay", "token-server", "otlp-http",
        "otlp-grpc",
    ],
)  # fmt: skip


@CLIENTS
@pytest.mark.parametrize(
    ("fault", "fix"),
    [
        pytest.param("1.0", "offers no TLS 1.2 or newer; upgrade it, or enable TLS 1.2", id="1.0"),
        pytest.param("1.1", "offers no TLS 1.2 or newer; upgrade it, or enable TLS 1.2", id="1.1"),
        pytest.param("ciphers", "offer only weak encryption", id="ciphers"),
        pytest.param("expired", "certificate has expired", id="expired"),
        pytest.param("name", "must be a name in it", id="name"),
        pytest.param("purpose", "the server needs one for servers (extended key usage serverAuth)", id="purpose"),
        pytest.param("authority", "set the CA that signed it: ", id="authority"),
    ],
)
async def test_bad_tls_is_refused_with_the_fix_before_any_secret(
    tls: Tls, connect: Connect, fault: str, fix: str
) -> None:
    with TlsServer(tls.context(fault)) as server:
        text = await connect(server.port, tls.authority.ca_file)
    assert fix in text
    assert fault != "authority" or f"{fix}{AUTHORITIES[connect]}" in text
    assert server.received == b""
    assert SECRET not in text


@pytest.mark.parametrize("connect", [it for it in AUTHORITIES if it is not COLLECTOR_GRPC])
@pytest.mark.parametrize("names", ["no alternative name", "another address"])
async def test_a_common_name_is_not_the_name_of_a_server(tls: Tls, connect: Connect, names: str) -> None:
    with TlsServer(tls.context(names)) as server:
        assert "must be a name in it (subjectAltName)" in await connect(server.port, tls.authority.ca_file)
    assert server.received == b""


@CLIENTS
@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_tls_of_both_versions_works(tls: Tls, connect: Connect, version: str) -> None:
    with TlsServer(tls.context(version)) as server:
        working = asyncio.create_task(connect(server.port, tls.authority.ca_file))

        async def spoken() -> bool:
            return server.version == f"TLSv{version}" and (bool(server.received) or connect is relay)

        await until(spoken, f"TLS {version}, and what follows it")
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def test_the_password_of_amqps_is_not_sent_to_a_management_api_without_tls_on_another_host() -> None:
    url = f"amqps://otp:{SECRET}@rabbit.example/"
    with pytest.raises(ManagementError, match=r"192\.0\.2\.1:15672 was not asked: it has no TLS, .* write https://"):
        await ManagementApi.of_broker(url, "http://192.0.2.1:15672").fetch("overview")
    with pytest.raises(ManagementError, match="does not answer"):  # a tunnel
        await ManagementApi.of_broker(url, "http://localhost:1").fetch("overview")


@pytest.mark.parametrize("check", [check_collector, check_token_server])
async def test_the_check_shows_certificate_version_and_cipher(
    tls: Tls, check: Callable[[str, Report], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "OTEL_EXPORTER_OTLP_CERTIFICATE"):
        monkeypatch.setenv(name, str(tls.authority.ca_file))
    found: list[CheckResult] = []
    for name in ("1.2", "1.3", "1.1", "expired", "authority"):
        with TlsServer(tls.context(name)) as server:
            await check(f"https://{HOST}:{server.port}/path", found.append)
    await check(f"https://{HOST}:{server.port}", found.append)
    await check(f"http://{HOST}:{server.port}", found.append)
    texts = [
        r"localhost: certificate by test authority, valid until .* days\), TLSv1.2, ECDHE-ECDSA-.*",
        r"localhost: certificate by test authority, valid until .* days\), TLSv1.3, TLS_.*",
        "localhost offers no TLS 1.2 or newer",
        "localhost has a certificate that is not accepted: certificate has expired",
        "localhost has a certificate that is not accepted: unable to get local issuer certificate",
        "localhost does not answer .*",
        "localhost: no TLS",
    ]
    for result, text in zip(found, texts, strict=True):
        assert re.fullmatch(f"(collector|token server) {text}", result.text)
    assert [it.level for it in found] == ["ok", "ok", "problem", "problem", "problem", "problem", "ok"]


@pytest.mark.parametrize(
    "fault", ["1.0", "1.1", "ciphers", "expired", "name", "no alternative name", "purpose", "authority"]
)
async def test_bad_tls_after_starttls_is_refused_before_the_login_and_the_mail(tls: Tls, fault: str) -> None:
    login = ("otp", SECRET)
    async with ScriptedRelay(tls=tls.context(fault), mode="starttls", login=login) as server:
        files = {"ca_file": tls.authority.ca_file, "host": HOST}
        smtp = SmtpRelay(config(server, tls="starttls", user=login[0], password=login[1], **files))
        try:
            outcome = await send(smtp)
        finally:
            await smtp.close(grace_s=0)
    assert isinstance(outcome, Unavailable)
    assert server.commands() == ["EHLO", "STARTTLS"]
