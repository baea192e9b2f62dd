"""A name whose first address swallows connections: the relay, RabbitMQ and Redis are reached by the second."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import aio_pika
import pytest
from addresses import Address, resolve_to, swallowing
from aio_pika.abc import AbstractConnection
from certificates import Authority
from redis_server import RedisServer
from smtp_relay import Act, ScriptedRelay, client, send
from yarl import URL

from otp_stream.broker.inlet import Inlet
from otp_stream.core.outcome import Accepted, Unavailable
from otp_stream.relay import RelayLimits
from otp_stream.relay.gate import Pauses
from otp_stream.tables.redis import Redis


@pytest.fixture
def dead() -> Iterator[Address]:
    with swallowing() as address:
        yield address


async def test_the_relay_is_reached(dead: Address, monkeypatch: pytest.MonkeyPatch):
    async with ScriptedRelay() as relay:
        resolve_to(monkeypatch, dead, ("127.0.0.1", relay.port))
        async with client(relay, host="relay.example") as smtp:
            assert isinstance(await send(smtp), Accepted)
            assert smtp.look()[0].gate == "open"


async def test_the_relay_s_certificate_is_for_its_name(dead: Address, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    authority = Authority(tmp_path)
    relay = ScriptedRelay(tls=authority.server("relay.example"), mode="implicit")
    async with relay:
        resolve_to(monkeypatch, dead, ("127.0.0.1", relay.port))
        async with client(relay, host="relay.example", tls="implicit", ca_file=authority.ca_file) as smtp:
            assert isinstance(await send(smtp), Accepted)


async def test_the_next_connection_tries_another_address_than_one_without_a_greeting(monkeypatch: pytest.MonkeyPatch):
    async with ScriptedRelay() as mute, ScriptedRelay() as relay:
        mute.always("greeting", Act("", then="hang"))
        resolve_to(monkeypatch, ("127.0.0.1", mute.port), ("127.0.0.1", relay.port))
        async with client(relay, host="relay.example", limits=RelayLimits(handshake_s=0.2)) as smtp:
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
        limits = RelayLimits(connect_s=0.5)
        async with client(
            relay, host="relay.example", tls="implicit", ca_file=authority.ca_file, limits=limits
        ) as smtp:
            probe_at_once(monkeypatch)
            assert isinstance(await send(smtp), Unavailable)
            assert isinstance(await send(smtp), Accepted)


async def test_an_address_that_fails_once_is_tried_before_one_that_has_failed_since(monkeypatch: pytest.MonkeyPatch):
    async with ScriptedRelay() as mute, ScriptedRelay() as relay:
        mute.always("greeting", Act("", then="hang"))
        relay.then("greeting", Act("421 4.3.2 restarting", then="close"))
        resolve_to(monkeypatch, ("127.0.0.1", mute.port), ("127.0.0.1", relay.port))
        async with client(relay, host="relay.example", limits=RelayLimits(handshake_s=0.1)) as smtp:
            probe_at_once(monkeypatch)
            outcomes = [await send(smtp) for _ in range(4)]
            assert [type(outcome) for outcome in outcomes] == [Unavailable, Unavailable, Unavailable, Accepted]


@pytest.mark.parametrize("connection_class", [aio_pika.Connection, aio_pika.RobustConnection, Inlet])
async def test_rabbitmq_is_reached(
    dead: Address, monkeypatch: pytest.MonkeyPatch, rabbitmq_url: str, connection_class: type[AbstractConnection]
):
    url = URL(rabbitmq_url)
    resolve_to(monkeypatch, dead, ("127.0.0.1", url.port or 5672))
    async with asyncio.timeout(5):
        async with await aio_pika.connect(
            url.with_host("rabbitmq.example"), connection_class=connection_class
        ) as connection:
            assert not connection.is_closed


async def test_redis_is_reached(dead: Address, monkeypatch: pytest.MonkeyPatch, redis: RedisServer):
    back = asyncio.Event()

    async def note() -> None:
        back.set()

    resolve_to(monkeypatch, dead, ("127.0.0.1", redis.port))
    connection = Redis("redis://redis.example:6379/0", prefix="t:", worker="w", back=note, lost=lambda *_: None)
    running = asyncio.create_task(connection.run())
    async with asyncio.timeout(5):
        await back.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
