"""What a worker asks the management API at its start holds it up for a moment only."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from otp_stream.broker import queue_inspect as standing
from otp_stream.broker.topology import Topology
from otp_stream.core.backoff import Backoff

TOPOLOGY = Topology("jobs", "otp", Backoff(1000, 30000, 3))


@asynccontextmanager
async def never_ending_answer() -> AsyncGenerator[str]:
    """Serve HTTP whose answer goes on and on, so that no time limit between two bytes ends it."""
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


async def test_a_management_api_that_does_not_end_its_answer_does_not_hold_up_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(standing, "_API_S", 0.2, raising=False)
    async with never_ending_answer() as url, asyncio.timeout(5):
        assert not await standing._is_cluster(TOPOLOGY, cast("Any", None), "amqp://127.0.0.1", url)
