"""HTTP connections are limited in number, and closed when they are idle."""

import asyncio
import resource
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from types import SimpleNamespace

import pytest
import uvicorn
from rabbitmq import free_port
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from otp_stream import http_connections
from otp_stream.asgi import Fields, form_route, get_route, stream_route
from otp_stream.http_connections import connection_limit, limit_connections
from otp_stream.request_body import Bodies


async def _respond(request: Request) -> Response:
    return Response(bytes(100_000) if request.url.path == "/large" else b"alive")


async def _ticks(_: Request) -> AsyncGenerator[bytes]:
    while True:
        yield bytes(100_000) + b"\n"
        await asyncio.sleep(0.02)


async def _submit(request: Request, _: Fields) -> Response:
    return await _respond(request)


async def _has_room(_: Request) -> bool:
    return True


_ROUTES = {"/live": stream_route(_ticks, "text/plain", has_room=_has_room), "/form": form_route(_submit, Bodies())}


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    await _ROUTES.get(scope["path"], get_route(_respond))(scope, receive, send)


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[uvicorn.Server]:
    monkeypatch.setattr(http_connections, "HEADER_S", 0.2)
    for name in ("connection_made", "connection_lost", "send_400_response"):
        monkeypatch.setattr(AutoHTTPProtocol, name, getattr(AutoHTTPProtocol, name))
    limit_connections(2)
    server = uvicorn.Server(uvicorn.Config(_app, port=free_port(), log_config=None, lifespan="off"))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup()
    yield server
    await server.shutdown()


@pytest.fixture
def port(server: uvicorn.Server) -> int:
    return server.config.port


REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_a_connection_whose_request_never_ends_is_closed(port: int) -> None:
    for request in (b"", b"GET / HT", REQUEST[:-2], REQUEST + b"GET"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        await asyncio.wait_for(_end(reader), 5)
        writer.close()


async def test_a_request_that_becomes_invalid_during_its_response_ends_without_an_error(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (b"/", b"/live"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"not a chunk\r\n")
        await asyncio.wait_for(_end(reader), 5)
        writer.close()
    assert [it.levelname for it in caplog.records if it.name in {"asyncio", "uvicorn.error"}] == ["WARNING"] * 2


async def _end(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(1000):
            pass
    except ConnectionResetError:
        pass


async def test_beyond_the_limit_the_oldest_idle_connection_is_closed(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connections, "HEADER_S", 60)
    first, second, third = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    await asyncio.wait_for(_end(first[0]), 5)
    for reader, writer in (second, third):
        writer.write(REQUEST)
        assert b"200 OK" in await reader.readline()
    for _, writer in (first, second, third):
        writer.close()


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


UNFINISHED = b"POST /form HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"


async def _send_and_never_read(port: int, requests: bytes) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    await asyncio.get_running_loop().sock_sendall(sock, requests)
    return sock


@pytest.mark.parametrize("requests", [_get("/large") * 300, _get("/live")])
async def test_a_connection_whose_client_reads_nothing_is_closed(server: uvicorn.Server, requests: bytes) -> None:
    state = server.server_state
    with await _send_and_never_read(server.config.port, requests):
        async with asyncio.timeout(10):
            for in_progress in (True, False):
                while bool(state.connections or state.tasks) is not in_progress:  # noqa: ASYNC110 - nothing signals it
                    await asyncio.sleep(0.01)


@pytest.mark.parametrize("requests", [_get("/large") * 300, _get("/live"), UNFINISHED])
async def test_a_probe_is_answered_while_other_connections_are_blocked(
    port: int, monkeypatch: pytest.MonkeyPatch, requests: bytes
) -> None:
    monkeypatch.setattr(http_connections, "HEADER_S", 60)
    socks = [await _send_and_never_read(port, requests) for _ in range(4)]
    await asyncio.sleep(0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REQUEST)
    assert b"200 OK" in await asyncio.wait_for(reader.readline(), 5)
    for it in (writer, *socks):
        it.close()


class _Connection:
    """A connection as uvicorn's protocol has it."""

    def __init__(self, client: str | None, *, in_use: bool = False) -> None:
        self.client = (client, 50_000) if client else None
        self.cycle = SimpleNamespace(response_complete=False) if in_use else None
        self.flow = SimpleNamespace(write_paused=False)
        self.transport = self
        self.closed = False

    def abort(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("probe", "flood"), [("192.0.2.1", "198.51.100.7"), ("2001:db8::1", "2001:db8:1::{}")])
async def test_a_probe_is_not_closed_while_another_client_opens_connections(probe: str, flood: str) -> None:
    connections = http_connections._Connections(8)  # pyright: ignore[reportPrivateUsage]
    flooding = [_Connection(flood.format(number), in_use=True) for number in range(20)]
    for it in flooding[:10]:
        connections.add(it)
    probes = [_Connection(probe), _Connection(probe)]
    for it in (*probes, *flooding[10:]):
        connections.add(it)
    assert not any(it.closed for it in probes)
    assert sum(not it.closed for it in flooding) == 6


@pytest.mark.parametrize("client", ["192.0.2.1", None])
async def test_a_new_connection_is_not_closed_before_its_request_arrives(
    monkeypatch: pytest.MonkeyPatch, client: str | None
) -> None:
    connections = http_connections._Connections(8)  # pyright: ignore[reportPrivateUsage]
    in_use = [_Connection(client, in_use=True) for _ in range(8)]
    probe = _Connection(client)
    for it in (*in_use, probe, *(_Connection(client, in_use=True) for _ in range(6))):
        connections.add(it)
    assert not probe.closed
    assert sum(it.closed for it in in_use) == 7
    monkeypatch.setattr(http_connections, "_NEW_S", 0)
    connections.add(_Connection(client, in_use=True))
    assert probe.closed


async def test_a_stream_whose_client_reads_continues(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1_000_000)
    writer.write(_get("/live"))
    async with asyncio.timeout(10):
        for _ in range(60):
            await reader.readuntil(b"\0\n")
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
