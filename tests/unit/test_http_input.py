"""What HTTP clients send is parsed in parts, between which everything else runs."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import uvicorn
from rabbitmq import free_port
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import request_response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.http.flow_control import FlowControl

from otp_stream import http_input
from otp_stream.asgi import Fields, form_route, get_route, text
from otp_stream.http_input import limit_input
from otp_stream.request_body import Bodies

_NOT_FOUND = text("not found", 404)


async def _respond(_: Request) -> Response:
    return Response(b"alive")


async def _count(request: Request) -> Response:
    """Read a body of any size."""
    return Response(str(sum([len(it) async for it in request.stream()])))


async def _pause(_: Request) -> Response:
    await asyncio.sleep(0.3)
    return Response(b"late")


async def _submit(_: Request, fields: Fields) -> Response:
    return Response("".join(fields.values()))


_ROUTES = {
    "/": get_route(_respond),
    "/form": form_route(_submit, Bodies()),
    "/count": request_response(_count),
    "/late": get_route(_pause),
}


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    route = _ROUTES[scope["path"]] if scope["type"] == "http" else _NOT_FOUND
    await route(scope, receive, send)


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(AutoHTTPProtocol, "data_received", AutoHTTPProtocol.data_received)
    monkeypatch.setattr(FlowControl, "resume_reading", FlowControl.resume_reading)
    limit_input()
    server = uvicorn.Server(uvicorn.Config(_app, port=free_port(), log_config=None, lifespan="off"))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup()
    yield server.config.port
    await server.shutdown()


@pytest.fixture
def one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each iteration of the event loop parse one part."""
    monkeypatch.setattr(http_input, "PARSE_S", 1e-9)


REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKS = b"1\r\na\r\n" * 100_000


async def _status(reader: asyncio.StreamReader) -> bytes:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    return head.split()[1]


async def test_a_body_of_many_chunks_that_no_one_reads_delays_no_one(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(CHUNKED + CHUNKS)
    longest_s, ends = 0.0, time.monotonic() + 1
    while time.monotonic() < ends:
        since = time.thread_time()  # not the time, in which a busy machine runs other processes
        await asyncio.sleep(0)
        longest_s = max(longest_s, time.thread_time() - since)
    assert await _status(reader) == b"200"
    writer.transport.abort()
    await asyncio.sleep(0)
    assert longest_s < 0.1  # 0.3 s if all that one read returns is parsed at once


@pytest.fixture
def sizes(port: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of what the protocols have parsed or stored so far."""
    sizes: list[int] = []
    protocol: Any = AutoHTTPProtocol
    received = protocol.data_received.unlimited

    def data_received(self: Any, data: bytes) -> None:
        sizes.append(len(data))
        received(self, data)

    monkeypatch.setattr(protocol, "data_received", data_received)
    limit_input()
    return sizes


async def test_what_waits_for_a_response_is_not_stored_to_be_parsed_at_once(port: int, sizes: list[int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REQUEST.replace(b"/ ", b"/late ") + CHUNKED + CHUNKS)
    await asyncio.sleep(0.1)
    assert sum(sizes) == 1024
    assert await _status(reader) == b"200"
    assert await asyncio.wait_for(reader.readexactly(4), 5) == b"late"
    assert await _status(reader) == b"200"
    writer.transport.abort()
    assert sum(sizes) > 1024


@pytest.mark.usefixtures("one_part")
async def test_connections_take_turns(port: int, sizes: list[int]) -> None:
    _, flood = await asyncio.open_connection("127.0.0.1", port)
    flood.write(CHUNKED + CHUNKS)
    await asyncio.sleep(0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REQUEST)
    assert await _status(reader) == b"200"
    assert max(sizes) <= 1024
    assert sum(sizes) < len(CHUNKS) / 2  # the rest waits
    flood.transport.abort()
    writer.close()


@pytest.mark.usefixtures("one_part")
async def test_a_request_in_parts_arrives_whole_and_in_order(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    value = "".join(f"{number:05}" for number in range(1_900)).encode()
    form = b"POST /form HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\na=%s" % (len(value) + 2, value)
    writer.write(form + REQUEST + form)
    for expected in (value, b"alive", value):
        assert await _status(reader) == b"200"
        assert await asyncio.wait_for(reader.readexactly(len(expected)), 5) == expected
    writer.close()


@pytest.mark.usefixtures("one_part")
async def test_a_large_body_arrives_whole_and_so_does_the_next_request(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    size = 2_000_000
    large = b"POST /count HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)
    writer.write((large + REQUEST) * 2)
    for expected in (b"2000000", b"alive") * 2:
        assert await _status(reader) == b"200"
        assert await asyncio.wait_for(reader.readexactly(len(expected)), 5) == expected
    writer.close()


@pytest.mark.usefixtures("one_part")
async def test_a_websocket_is_refused(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" + bytes(5_000)
    )
    assert await _status(reader) == b"404"
    assert await asyncio.wait_for(reader.read(), 5) == b"not found"
    writer.close()


@pytest.mark.parametrize("line", [b"a:\r\n", b"a:\n", b"Cookie: a=b\r\n"])
async def test_a_head_of_many_lines_is_refused_before_all_of_it_is_parsed(
    port: int, sizes: list[int], line: bytes
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REQUEST + b"GET / HTTP/1.1\r\nHost: x\r\n" + line * (16_000 // len(line)))
    assert await _status(reader) == b"200"
    assert await asyncio.wait_for(reader.readexactly(5), 5) == b"alive"
    assert await _status(reader) == b"431"
    assert await asyncio.wait_for(reader.read(), 5) == b"too many headers: at most 100\n"
    assert sum(sizes) <= 3 * 1024
    writer.close()


@pytest.mark.usefixtures("one_part")
async def test_a_trailer_of_many_lines_ends_the_connection_before_all_of_it_is_parsed(
    port: int, sizes: list[int]
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(CHUNKED.replace(b"/ ", b"/count ") + b"1\r\na\r\n0\r\n" + b"a:\r\n" * 4_000)
    with suppress(ConnectionResetError):
        assert b"200 OK" not in await asyncio.wait_for(reader.read(), 5)
    assert sum(sizes) <= 3 * 1024
    writer.close()


async def test_another_parser_than_h11_gets_what_arrives() -> None:
    parsed: list[bytes] = []

    class Parser:
        """As uvicorn's with httptools, which parses a head line by line and takes microseconds."""

    queue = http_input._InputQueue(lambda _, data: parsed.append(data))
    queue.add(Parser(), b"a:\n" * 300)
    assert parsed == [b"a:\n" * 300]


@pytest.mark.usefixtures("one_part")
async def test_a_head_of_100_lines_is_read(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    long = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"x-%d: %s\r\n" % (it, 50 * b"a") for it in range(99))
    writer.write((long + b"\r\n") * 2)
    for _ in range(2):
        assert await _status(reader) == b"200"
        assert await asyncio.wait_for(reader.readexactly(5), 5) == b"alive"
    writer.close()


async def test_a_connection_with_too_much_that_waits_is_closed(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_input, "_MOST_WAITING", -1)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(bytes(2_000))
    with suppress(ConnectionResetError):
        assert not await asyncio.wait_for(reader.read(), 5)
    writer.close()
