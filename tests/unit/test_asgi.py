"""Streams and forms: slow clients, disconnects and errors."""

import asyncio
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from otp_stream import asgi
from otp_stream.asgi import Fields, SecureApp, form_route, is_own_host, stream_route
from otp_stream.request_body import Bodies

SCOPE = {"type": "http", "method": "GET", "headers": []}


class Numbers:
    """A stream that counts its viewers."""

    def __init__(self, error: Exception | None = None) -> None:
        self.viewers = 0
        self._error = error

    async def stream(self, _: Request) -> AsyncGenerator[bytes]:
        self.viewers += 1
        try:
            for number in range(1_000_000):
                yield b"%d" % number
                await asyncio.sleep(0)
                if self._error:
                    raise self._error
        finally:
            self.viewers -= 1


class Reader:
    """A client; `reads` is cleared while it reads nothing, `gone` is set when it disconnects."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.reads.set()
        self.gone = asyncio.Event()
        self.received: list[bytes] = []
        self.waits = False

    async def receive(self) -> MutableMapping[str, Any]:
        self.waits = True
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        await self.reads.wait()
        self.received.append(message.get("body", b""))


async def _has_room(_: Request) -> bool:
    return True


async def soon(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nothing signals the condition
            await asyncio.sleep(0)


async def test_a_client_that_reads_slowly_counts_until_its_connection_ends() -> None:
    numbers, reader = Numbers(), Reader()
    route = stream_route(numbers.stream, "text/plain", has_room=_has_room)
    response = asyncio.create_task(route(SCOPE, reader.receive, reader.send))
    await soon(lambda: len(reader.received) > 5)
    reader.reads.clear()
    received = len(reader.received)
    await asyncio.sleep(0.05)
    assert numbers.viewers == 1
    reader.reads.set()
    await soon(lambda: len(reader.received) > received)
    reader.gone.set()
    await asyncio.wait_for(response, 10)
    assert numbers.viewers == 0


async def test_a_disconnected_client_no_longer_counts_though_it_read_nothing() -> None:
    numbers, reader = Numbers(), Reader()
    route = stream_route(numbers.stream, "text/plain", has_room=_has_room)
    response = asyncio.create_task(route(SCOPE, reader.receive, reader.send))
    await soon(lambda: numbers.viewers == 1)
    reader.reads.clear()
    await asyncio.sleep(0.01)
    reader.gone.set()
    await asyncio.wait_for(response, 10)
    assert numbers.viewers == 0


async def test_an_error_in_the_source_of_a_stream_is_raised() -> None:
    numbers, reader = Numbers(TimeoutError("ours")), Reader()
    route = stream_route(numbers.stream, "text/plain", has_room=_has_room)
    with pytest.raises(TimeoutError, match="ours"):
        await asyncio.wait_for(route(SCOPE, reader.receive, reader.send), 10)
    assert numbers.viewers == 0


async def test_a_form_that_never_arrives_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def submit(_: Request, __: Fields) -> Response:
        raise AssertionError

    monkeypatch.setattr(asgi, "_FORM_TIMEOUT_S", 0.01)
    reader, sent = Reader(), list[MutableMapping[str, Any]]()

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await form_route(submit, Bodies())(SCOPE | {"method": "POST"}, reader.receive, send)
    assert sent[0]["status"] == 408


async def test_a_request_that_is_cancelled_because_the_worker_stops_gets_503_and_logs_no_traceback() -> None:
    async def submit(_: Request, __: Fields) -> Response:
        raise AssertionError

    reader, sent = Reader(), list[MutableMapping[str, Any]]()

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    secured = SecureApp(form_route(submit, Bodies()), ())
    scope = SCOPE | {"method": "POST", "path": "/login"}
    request = asyncio.create_task(secured(scope, reader.receive, send))
    await soon(lambda: reader.waits)
    request.cancel()
    await asyncio.wait_for(request, 10)  # raises nothing, of which uvicorn would log a traceback
    assert (sent[0]["status"], sent[1]["body"]) == (503, b"this worker is stopping\n")
    assert (b"connection", b"close") in sent[0]["headers"]


async def test_a_lost_connection_of_the_application_is_not_taken_for_the_stop_of_the_worker() -> None:
    async def lost(*_: object) -> None:
        raise asyncio.CancelledError

    reader = Reader()
    with pytest.raises(asyncio.CancelledError):
        await SecureApp(lost, ())(SCOPE | {"path": "/livez"}, reader.receive, reader.send)
    assert reader.received == []


async def test_a_stream_that_is_cancelled_ends_without_a_second_response() -> None:
    numbers, reader = Numbers(), Reader()
    secured = SecureApp(stream_route(numbers.stream, "text/plain", has_room=_has_room), ())
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    request = asyncio.create_task(secured(SCOPE | {"path": "/live"}, reader.receive, send))
    await soon(lambda: len(sent) > 3)
    request.cancel()
    await asyncio.wait_for(request, 10)
    assert [it["type"] for it in sent].count("http.response.start") == 1
    assert numbers.viewers == 0


async def test_an_incomplete_form_is_not_submitted() -> None:
    async def submit(_: Request, __: Fields) -> Response:
        raise AssertionError

    messages = iter([{"type": "http.request", "body": b"rel", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> MutableMapping[str, Any]:
        return next(messages)

    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await form_route(submit, Bodies())(SCOPE | {"method": "POST"}, receive, send)
    assert sent[0]["status"] == 400


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1:8000", True), ("[::1]:8000", True), ("10.0.0.7", True), ("localhost:8000", True),
        ("worker", True), ("otp.svc.cluster.local:80", True), ("otp.example.com", True), ("OTP.example.com.:443", True),
        ("", True),  # HTTP/1.0
        ("attacker.example", False), ("otp.example.com.attacker.example", False), ("127.0.0.1.attacker.example", False),
        ("attacker.example:8000", False), ("[attacker.example]", False),
    ],
)  # fmt: skip
def test_a_host_name_is_accepted_only_if_no_one_else_can_own_it(host: str, *, own: bool) -> None:
    assert is_own_host(host, {"otp.example.com"}) is own
    assert is_own_host(host, {"*"})
