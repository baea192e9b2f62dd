"""A name whose first address swallows connections or gives no session: the relay, RabbitMQ and Redis are reached."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import aio_pika
import aio_pika.exceptions
import pytest
from addresses import Address, resolve_to, swallowing
from aio_pika.abc import AbstractConnection
from certificates import Authority
from redis_server import RedisServer
from smtp_relay import Act, ScriptedRelay, client, send
from yarl import URL

from otp_stream.broker.amqp_stream import ConsumingConnection
from otp_stream.core.outcome import Accepted, Unavailable
from otp_stream.relay import RelayLimits
from otp_stream.relay.circuit_breaker import Pauses
from otp_stream.tables.redis_client import connected
from otp_stream.tables.redis_pipeline import RedisPipeline

MUTE_S = 1.0
"""Time limit for an address that says nothing. A good one needs some milliseconds, and more on a busy machine."""


@pytest.fixture
def dead() -> Iterator[Address]:
    with swallowing() as address:
        yield address


async def test_the_relay_is_reached(dead: Address, monkeypatch: pytest.MonkeyPatch):
    async with ScriptedRelay() as relay:
        resolve_to(monkeypatch, dead, ("127.0.0.1", relay.port))
        async with client(relay, host="relay.example") as smtp:
            assert isinstance(await send(smtp), Accepted)
            assert smtp.state()[0].circuit_breaker == "closed"


async def test_the_relay_s_certificate_is_for_its_name(dead: Address, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    authority = Authority(tmp_path)
    relay = ScriptedRelay(tls=authority.server("relay.example"), mode="implicit")
    async with relay:
        resolve_to(monkeypatch, dead, ("127.0.0.1", relay.port))
        async with client(relay, host="relay.example", tls="implicit", ca_file=authority.ca_file) as smtp:
            assert isinstance(await send(smtp), Accepted)


@pytest.mark.waits
async def test_the_next_connection_tries_another_address_than_one_without_a_greeting(monkeypatch: pytest.MonkeyPatch):
    async with ScriptedRelay() as mute, ScriptedRelay() as relay:
        mute.always("greeting", Act("", then="hang"))
        resolve_to(monkeypatch, ("127.0.0.1", mute.port), ("127.0.0.1", relay.port))
        async with client(relay, host="relay.example", limits=RelayLimits(handshake_s=MUTE_S)) as smtp:
            assert isinstance(await send(smtp), Unavailable)
            assert isinstance(await send(smtp), Accepted)


def probe_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no pause before a probe."""
    monkeypatch.setattr(Pauses, "next_ms", lambda *_: 1)


@pytest.mark.parametrize("greeting", ["421 4.7.0 too many connections", "554 5.7.1 your IP is blocked"])
async def test_the_next_connection_tries_another_address_than_one_that_refuses_us(
    monkeypatch: pytest.MonkeyPatch, greeting: str
):
    async with ScriptedRelay() as strict, ScriptedRelay() as relay:
        strict.always("greeting", Act(greeting, then="close"))
        resolve_to(monkeypatch, ("127.0.0.1", strict.port), ("127.0.0.1", relay.port))
        async with client(relay, host="relay.example") as smtp:
            probe_at_once(monkeypatch)
            assert isinstance(await send(smtp), Unavailable)
            assert isinstance(await send(smtp), Accepted)


@pytest.mark.parametrize("fault", [Act("", then="hang"), Act("", then="close"), Act("220 in the clear")])
async def test_the_next_connection_tries_another_address_than_one_without_tls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Act
):
    authority = Authority(tmp_path)
    async with ScriptedRelay() as bare, ScriptedRelay(tls=authority.server("relay.example"), mode="implicit") as relay:
        bare.always("greeting", fault)
        resolve_to(monkeypatch, ("127.0.0.1", bare.port), ("127.0.0.1", relay.port))
        limits = RelayLimits(connect_s=MUTE_S)
        async with client(
            relay, host="relay.example", tls="implicit", ca_file=authority.ca_file, limits=limits
        ) as smtp:
            probe_at_once(monkeypatch)
            assert isinstance(await send(smtp), Unavailable)
            assert isinstance(await send(smtp), Accepted)


@pytest.mark.waits
async def test_an_address_that_fails_once_is_tried_before_one_that_has_failed_since(monkeypatch: pytest.MonkeyPatch):
    async with ScriptedRelay() as mute, ScriptedRelay() as relay:
        mute.always("greeting", Act("", then="hang"))
        relay.then("greeting", Act("421 4.3.2 restarting", then="close"))
        resolve_to(monkeypatch, ("127.0.0.1", mute.port), ("127.0.0.1", relay.port))
        async with client(relay, host="relay.example", limits=RelayLimits(handshake_s=MUTE_S)) as smtp:
            probe_at_once(monkeypatch)
            outcomes = [await send(smtp) for _ in range(4)]
            assert [type(outcome) for outcome in outcomes] == [Unavailable, Unavailable, Unavailable, Accepted]


@pytest.mark.parametrize("connection_class", [aio_pika.Connection, aio_pika.RobustConnection, ConsumingConnection])
async def test_rabbitmq_is_reached(
    dead: Address, monkeypatch: pytest.MonkeyPatch, rabbitmq_url: str, connection_class: type[AbstractConnection]
):
    url = URL(rabbitmq_url)
    resolve_to(monkeypatch, dead, ("127.0.0.1", url.port or 5672))
    async with asyncio.timeout(30):  # Linux would try the dead address for two minutes
        async with await aio_pika.connect(
            url.with_host("rabbitmq.example"), connection_class=connection_class
        ) as connection:
            assert not connection.is_closed


@asynccontextmanager
async def broken(fault: str) -> AsyncIterator[Address]:
    """Have an address that takes connections, and then is mute or closes them."""
    writers: list[asyncio.StreamWriter] = []

    async def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        if fault == "closes":
            writer.close()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()
        for writer in writers:
            writer.close()


@asynccontextmanager
async def behind_tls(context: ssl.SSLContext, port: int) -> AsyncIterator[Address]:
    """Have a TLS port for a server that has none."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pass_on(reader, inner_writer), pass_on(inner_reader, writer))

    async with await asyncio.start_server(take, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()


@pytest.mark.parametrize("fault", ["mute", "closes"])
@pytest.mark.parametrize("connection_class", [aio_pika.Connection, aio_pika.RobustConnection, ConsumingConnection])
async def test_the_next_connection_tries_another_address_than_one_that_is_no_broker(
    monkeypatch: pytest.MonkeyPatch, rabbitmq_url: str, connection_class: type[AbstractConnection], fault: str
):
    url = URL(rabbitmq_url)
    async with broken(fault) as first:
        resolve_to(monkeypatch, first, ("127.0.0.1", url.port or 5672))
        name = url.with_host("rabbitmq.example")
        with pytest.raises((OSError, aio_pika.exceptions.AMQPError)):
            await aio_pika.connect(name, timeout=MUTE_S, connection_class=connection_class)
        for _ in range(2):
            async with await aio_pika.connect(name, timeout=30, connection_class=connection_class) as connection:
                assert not connection.is_closed


@pytest.mark.parametrize("connection_class", [aio_pika.Connection, ConsumingConnection])
async def test_a_trailing_dot_is_no_part_of_the_broker_s_certificate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rabbitmq_url: str, connection_class: type[AbstractConnection]
):
    authority = Authority(tmp_path)
    async with behind_tls(authority.server("rabbitmq.example"), URL(rabbitmq_url).port or 5672) as address:
        resolve_to(monkeypatch, address)
        url = f"amqps://guest:guest@rabbitmq.example.:{address[1]}/?cafile={authority.ca_file}"
        async with await aio_pika.connect(url, timeout=30, connection_class=connection_class) as connection:
            assert not connection.is_closed


@pytest.mark.parametrize("mode", ["implicit", "starttls"])
async def test_a_trailing_dot_is_no_part_of_the_relay_s_certificate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: Literal["implicit", "starttls"]
):
    authority = Authority(tmp_path)
    async with ScriptedRelay(tls=authority.server("relay.example"), mode=mode) as relay:
        resolve_to(monkeypatch, ("127.0.0.1", relay.port))
        async with client(relay, host="relay.example.", tls=mode, ca_file=authority.ca_file) as smtp:
            assert isinstance(await send(smtp), Accepted)


async def reach_redis(url: str) -> None:
    """Return once there is a session."""
    back = asyncio.Event()

    async def note() -> None:
        connection.set_ready()
        back.set()

    connection = RedisPipeline(lambda: url, prefix="t:", worker="w", on_connected=note, on_lost=lambda *_: None)
    running = asyncio.create_task(connection.run())
    try:
        async with asyncio.timeout(30):
            await back.wait()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_redis_is_reached(dead: Address, monkeypatch: pytest.MonkeyPatch, redis: RedisServer):
    resolve_to(monkeypatch, dead, ("127.0.0.1", redis.port))
    await reach_redis("redis://redis.example:6379/0")


@pytest.mark.parametrize("fault", ["mute", "closes"])
async def test_the_next_connection_tries_another_address_than_one_that_is_no_redis(
    monkeypatch: pytest.MonkeyPatch, redis: RedisServer, fault: str
):
    monkeypatch.setattr("otp_stream.tables.redis_pipeline.CONNECT_TIMEOUT_S", 0.5)
    async with broken(fault) as first:
        resolve_to(monkeypatch, first, ("127.0.0.1", redis.port))
        await reach_redis("redis://redis.example:6379/0")


async def test_a_trailing_dot_is_no_part_of_redis_s_certificate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, redis: RedisServer
):
    authority = Authority(tmp_path)
    async with behind_tls(authority.server("redis.example"), redis.port) as address:
        resolve_to(monkeypatch, address)
        url = f"rediss://redis.example.:{address[1]}/0?ssl_ca_certs={authority.ca_file}"
        await reach_redis(url)
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]

        def ask() -> None:
            with connected(url) as client:
                assert client.execute("PING")

        await asyncio.to_thread(ask)
