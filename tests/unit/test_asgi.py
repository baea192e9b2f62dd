"""A stream over ASGI: who reads slowly, who goes away, and what goes wrong."""

import asyncio
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any

import pytest

from otp_stream import asgi
from otp_stream.asgi import Answer, Fields, Scope, form_route, is_own_host, stream_route

SCOPE = {"method": "GET", "headers": []}


class Places:
    """A stream of numbers that counts who holds a place."""

    def __init__(self, error: Exception | None = None) -> None:
        self.held = 0
        self._error = error

    async def stream(self) -> AsyncGenerator[bytes]:
        self.held += 1
        try:
            for number in range(1_000_000):
                yield b"%d" % number
                await asyncio.sleep(0)
                if self._error:
                    raise self._error
        finally:
            self.held -= 1


class Reader:
    """A client; `reads` is cleared while nothing is read."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.reads.set()
        self.gone = asyncio.Event()
        self.got: list[bytes] = []

    async def receive(self) -> MutableMapping[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        await self.reads.wait()
        self.got.append(message.get("body", b""))


async def soon(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - whatever it waits for announces nothing
            await asyncio.sleep(0)


async def test_who_reads_slowly_keeps_the_place_as_long_as_the_connection() -> None:
    places, reader = Places(), Reader()
    route = stream_route(places.stream, "text/plain", has_room=lambda: True)
    asked = asyncio.create_task(route(SCOPE, reader.receive, reader.send))
    await soon(lambda: len(reader.got) > 5)
    reader.reads.clear()
    got = len(reader.got)
    await asyncio.sleep(0.05)
    assert places.held == 1
    reader.reads.set()
    await soon(lambda: len(reader.got) > got)
    reader.gone.set()
    await asyncio.wait_for(asked, 10)
    assert places.held == 0


async def test_what_fails_while_a_stream_is_made_is_nobody_elses_slowness() -> None:
    places, reader = Places(TimeoutError("ours")), Reader()
    route = stream_route(places.stream, "text/plain", has_room=lambda: True)
    with pytest.raises(TimeoutError, match="ours"):
        await asyncio.wait_for(route(SCOPE, reader.receive, reader.send), 10)
    assert places.held == 0


async def test_a_form_that_never_arrives_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def take(_: Scope, __: Fields) -> Answer:
        raise AssertionError

    monkeypatch.setattr(asgi, "_FORM_TIMEOUT_S", 0.01)
    reader, sent = Reader(), list[MutableMapping[str, Any]]()

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await form_route(take)({"method": "POST", "headers": []}, reader.receive, send)
    assert sent[0]["status"] == 408


async def test_a_form_that_breaks_off_is_not_acted_on() -> None:
    async def take(_: Scope, __: Fields) -> Answer:
        raise AssertionError

    messages = iter([{"type": "http.request", "body": b"rel", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> MutableMapping[str, Any]:
        return next(messages)

    reader = Reader()
    await form_route(take)({"method": "POST", "headers": []}, receive, reader.send)
    assert reader.got == []


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
def test_only_a_host_name_that_no_one_else_can_have_is_ours(host: str, *, own: bool) -> None:
    assert is_own_host(host, {"otp.example.com"}) is own
    assert is_own_host(host, {"*"})
