"""HTTP connections are bounded, and end when nothing is asked on them."""

import asyncio
import resource
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
import uvicorn
from rabbitmq import free_port
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from otp_stream import http_connections
from otp_stream.asgi import Answer, Scope, answering
from otp_stream.http_connections import connection_limit, limit_connections


async def _alive(_: Scope) -> Answer:
    return Answer(b"alive", "text/plain")


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(http_connections, "HEADER_S", 0.2)
    for name in ("connection_made", "connection_lost"):
        monkeypatch.setattr(AutoHTTPProtocol, name, getattr(AutoHTTPProtocol, name))
    limit_connections(2)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(answering(_alive), port=port, log_config=None, lifespan="off"))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup()
    yield port
    await server.shutdown()


REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_a_connection_whose_request_never_ends_is_closed(port: int) -> None:
    for said in (b"", b"GET / HT", REQUEST[:-2], REQUEST + b"GET"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        await asyncio.wait_for(_end(reader), 5)
        writer.close()


async def _end(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(1000):
            pass
    except ConnectionResetError:
        pass


async def test_the_oldest_idle_connection_makes_room(port: int) -> None:
    first, second, third = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    await asyncio.wait_for(_end(first[0]), 5)
    for reader, writer in (second, third):
        writer.write(REQUEST)
        assert b"200 OK" in await reader.readline()
    for _, writer in (first, second, third):
        writer.close()


def test_the_limit_leaves_descriptors_for_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = SimpleNamespace(soft=1024)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limits.soft, limits.soft))  # pyright: ignore[reportUnknownLambdaType]
    assert connection_limit(20) == 256
    limits.soft = 256
    assert connection_limit(20) == 256 - 20 - 64
    limits.soft = 64
    assert connection_limit(20) == 16
    limits.soft = resource.RLIM_INFINITY
    assert connection_limit(20) == 256
