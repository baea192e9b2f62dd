"""Background tasks survive their failures, and end when they are cancelled."""

import asyncio

import pytest

from otp_stream import tasks


@pytest.mark.parametrize("failure", [RuntimeError("secret"), asyncio.CancelledError()])
async def test_a_task_that_fails_starts_again_and_a_cancelled_one_ends(
    monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    monkeypatch.setattr(tasks, "_PAUSE_S", 0)
    runs: list[int] = []
    again = asyncio.Event()

    async def work() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise failure
        again.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(tasks.forever(work, "test"))
    await asyncio.wait_for(again.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(runs) == 2


async def test_a_task_that_swallows_its_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_PAUSE_S", 0.01)
    swallowed = 0

    async def work() -> None:
        nonlocal swallowed
        while swallowed < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
        await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await tasks.cancel_and_wait(task)
    assert (swallowed, task.cancelled()) == (2, True)
