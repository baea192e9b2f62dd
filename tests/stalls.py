"""Notices when this process has stopped for a moment, on a busy machine: its relays then are slow for the worker."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

_EVERY_S = 0.1
_STALL_S = 1.0
"""Half the time after which a worker calls a relay slow."""


@dataclass
class Stalls:
    """The number of times that this process stopped for so long."""

    count: int = 0

    async def watch(self) -> None:
        before = time.monotonic()
        while True:
            await asyncio.sleep(_EVERY_S)
            now = time.monotonic()
            self.count += now - before > _STALL_S
            before = now


@asynccontextmanager
async def stalls() -> AsyncIterator[Stalls]:
    """Count stalls."""
    counted = Stalls()
    watching = asyncio.create_task(counted.watch())
    try:
        yield counted
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
