"""Tasks that go on for as long as the process does."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any

import structlog

_PAUSE_S = 1.0

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def forever(work: Callable[[], Awaitable[object]], name: str) -> None:
    """Run `work` again whenever it ends, until this task itself is cancelled.

    A lost AMQP connection ends what waits for it in a `CancelledError` that nobody asked for: without this a
    background task would be gone without a word.
    """
    while True:
        try:
            await work()
        except asyncio.CancelledError:
            if is_cancelled():
                raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the task; its text may hold secrets
            _log.error("background task failed and starts again", task=name, error=type(error).__name__)
        await asyncio.sleep(_PAUSE_S)


def is_cancelled() -> bool:
    """Whether the current task has been asked to end; if not, a `CancelledError` came from what it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _LosingItIsAnError:
    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, asyncio.CancelledError) and not is_cancelled():
            raise ConnectionError("the connection was lost") from None


_LOSING_IT = _LosingItIsAnError()


def losing_it_is_an_error() -> AbstractContextManager[None]:
    """Turn a `CancelledError` that nobody asked for into a `ConnectionError`: so a lost AMQP connection ends a wait."""
    return _LOSING_IT


async def cancelled(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended.

    More than once, if need be: in Python 3.11 a `wait_for` whose work is done at that very moment swallows it.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_PAUSE_S)
    await asyncio.gather(*tasks, return_exceptions=True)
