import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
from addresses import resolve_to, swallowing

from otp_stream.sockets import SMALL_BUFFER, Addresses, connect


@asynccontextmanager
async def answering() -> AsyncIterator[tuple[str, int]]:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()


async def test_the_second_address_is_reached_where_the_first_swallows_connections(monkeypatch: pytest.MonkeyPatch):
    with swallowing() as dead:
        async with answering() as alive:
            resolve_to(monkeypatch, dead, dead, alive)
            begun = time.monotonic()
            async with asyncio.timeout(5):
                sock = await connect("two.example", 25)
            with sock:
                assert sock.getpeername() == alive
                assert time.monotonic() - begun < 3


async def test_an_address_that_refuses_costs_no_delay(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with answering() as alive:
            resolve_to(monkeypatch, closed.getsockname(), alive)
            with await connect("two.example", 25) as sock:
                assert sock.getpeername() == alive


async def test_the_first_error_is_raised_where_every_address_refuses(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        resolve_to(monkeypatch, closed.getsockname(), closed.getsockname())
        with pytest.raises(ConnectionRefusedError):
            await connect("two.example", 25)


async def test_a_name_with_thousands_of_addresses_is_tried_at_some_of_them(monkeypatch: pytest.MonkeyPatch):
    tried: list[object] = []

    async def refuse(_: object, address: object, __: object) -> socket.socket:
        tried.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr("otp_stream.sockets._open", refuse)
    addresses = [("127.0.0.1", port) for port in range(1, 4001)]
    resolve_to(monkeypatch, *addresses)
    for last in ((), addresses[:16]):
        with pytest.raises(ConnectionRefusedError):
            await connect("many.example", 25, last=last)
    assert tried == addresses[:32]


async def test_a_connect_that_is_cancelled_leaves_no_socket(monkeypatch: pytest.MonkeyPatch):
    with swallowing() as dead:
        resolve_to(monkeypatch, dead, dead)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.4):
                await connect("two.example", 25)


def test_it_connects_on_uvloop():
    async def main() -> None:
        async with answering() as (_, port):
            (await connect("localhost", port)).close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def test_addresses_that_failed_go_last_and_the_latest_failure_at_the_end(monkeypatch: pytest.MonkeyPatch):
    async with answering() as first, answering() as second, answering() as third:
        resolve_to(monkeypatch, first, second, third)
        for last, expected in (((), first), ((first,), second), ((third, first, second), third)):
            with await connect("three.example", 25, last=last) as sock:
                assert sock.getpeername() == expected


async def test_names_whose_servers_do_not_respond_delay_no_other_lookup(monkeypatch: pytest.MonkeyPatch):
    responds, asked = threading.Event(), Counter[str]()
    find = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **more: Any) -> Any:
        asked[host] += 1
        if host.endswith(".example"):
            responds.wait(20)
        return find("localhost", *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    names = [f"relay-{number}.example" for number in range(40)]
    async with answering() as (_, port):
        waiting = [asyncio.create_task(connect(name, port)) for name in (*names, *names)]
        try:
            async with asyncio.timeout(5):
                while len(asked) < len(names):  # noqa: ASYNC110 - threads count
                    await asyncio.sleep(0.01)
                (await connect("localhost", port)).close()
            for it in waiting[:40]:
                it.cancel()
            await asyncio.wait(waiting[:40])
        finally:
            responds.set()
        for it in await asyncio.gather(*waiting[40:]):
            it.close()
        (await connect(names[0], port)).close()
    assert asked == Counter([*names, names[0], "localhost"])


async def test_without_a_thread_a_name_cannot_be_looked_up_now(monkeypatch: pytest.MonkeyPatch):
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(OSError, match=r"no thread to look up relay\.example"):
        await connect("relay.example", 25)
    monkeypatch.undo()
    async with answering() as (_, port):
        (await connect("localhost", port)).close()


async def test_the_receive_buffer_can_be_kept_small():
    async with answering() as (host, port):
        for name in (host, "localhost"):
            with await Addresses(SMALL_BUFFER).connect(name, port) as small, await connect(name, port) as usual:
                sizes = [it.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) for it in (small, usual)]
                assert sizes[0] <= 2 * SMALL_BUFFER < sizes[1]
