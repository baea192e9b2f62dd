"""Background tasks outlive their troubles, and end when they are told to."""

import asyncio

import pytest

from otp_stream import tasks


@pytest.mark.parametrize("trouble", [RuntimeError("secret"), asyncio.CancelledError()])
async def test_a_task_that_fails_starts_again_and_a_cancelled_one_ends(
    monkeypatch: pytest.MonkeyPatch, trouble: BaseException
) -> None:
    monkeypatch.setattr(tasks, "_PAUSE_S", 0)
    runs: list[int] = []
    again = asyncio.Event()

    async def work() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise trouble
        again.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(tasks.forever(work, "test"))
    await asyncio.wait_for(again.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(runs) == 2
