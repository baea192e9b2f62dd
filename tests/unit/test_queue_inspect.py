"""A slow management API delays a worker's start for a moment only."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from otp_stream.broker import queue_inspect
from otp_stream.broker.topology import Topology
from otp_stream.core.backoff import Backoff

TOPOLOGY = Topology("jobs", "otp", Backoff(1000, 30000, 3))


@asynccontextmanager
async def never_ending_answer() -> AsyncGenerator[str]:
    """Serve an HTTP response that never ends, so that no time limit between two bytes applies."""
    ended, tasks = asyncio.Event(), set[asyncio.Task[Any]]()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(cast("asyncio.Task[Any]", asyncio.current_task()))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{")
        while not ended.is_set():
            writer.write(b" ")
            await asyncio.sleep(0.05)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            ended.set()
            await asyncio.gather(*tasks)


async def test_a_management_api_whose_response_never_ends_does_not_delay_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_inspect, "_API_S", 0.2, raising=False)
    async with never_ending_answer() as url, asyncio.timeout(5):
        assert not await queue_inspect._is_cluster(TOPOLOGY, cast("Any", None), "amqp://127.0.0.1", url)
