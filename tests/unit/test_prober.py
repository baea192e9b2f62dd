"""Several probes on one connection: one that fails late never closes a newer connection."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from otp_stream.cli import prober
from otp_stream.cli.line import ProducerError
from otp_stream.cli.prober import Prober, Result, Route


@dataclass
class FakeLine:
    """A connection whose publishes end when the test ends them."""

    number: int
    ends: list[asyncio.Future[None]] = field(default_factory=list[asyncio.Future[None]])
    closed: bool = False

    async def follow(self, _: Callable[[bytes], None]) -> bool:
        return True

    async def publish(self, _: bytes) -> None:
        end = asyncio.get_running_loop().create_future()
        self.ends.append(end)
        await end


async def soon(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)


async def test_a_probe_that_fails_late_does_not_close_the_connection_of_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[FakeLine] = []

    @asynccontextmanager
    async def opened(*_: Any, **__: Any) -> AsyncGenerator[FakeLine]:
        line = FakeLine(len(lines))
        lines.append(line)
        yield line
        line.closed = True

    monkeypatch.setattr(prober, "opened", opened)
    results: list[Result] = []
    one = Prober(None, Route("a@example.com", high_lane=False, timeout_s=10, mailbox=False), results.append)  # type: ignore[arg-type]
    first, second = (asyncio.create_task(one._check()) for _ in range(2))
    await soon(lambda: bool(lines) and len(lines[0].ends) == 2)
    lines[0].ends[0].set_exception(ProducerError("lost"))
    await first
    assert lines[0].closed
    third = asyncio.create_task(one._check())
    await soon(lambda: len(lines) == 2 and len(lines[1].ends) == 1)
    lines[0].ends[1].set_exception(ProducerError("lost"))
    await second
    assert [it.outcome for it in results] == ["failed", "failed"]
    assert not lines[1].closed
    third.cancel()
    await asyncio.gather(third, return_exceptions=True)
