"""The worker with a heartbeat in its event loop: `faststream run heartbeat:app`.

It writes into `HEARTBEAT_FILE` for how long the loop was blocked at most, in milliseconds.
"""

import asyncio
import os
import time
from pathlib import Path

from otp_stream.app import app

__all__ = ["app"]
_EVERY_S = 0.002
_tasks: set[asyncio.Task[None]] = set()


@app.after_startup
async def _begin() -> None:
    _tasks.add(asyncio.create_task(_beat(Path(os.environ["HEARTBEAT_FILE"]))))


async def _beat(file: Path) -> None:
    longest_ms = 0.0
    while True:
        came_at, worked_s = time.monotonic(), time.thread_time()
        await asyncio.sleep(_EVERY_S)
        late_s, work_s = time.monotonic() - came_at - _EVERY_S, time.thread_time() - worked_s
        # a machine that is busy with others makes it late, but that is no work of this thread
        blocked_ms = 1000 * min(late_s, work_s)
        if blocked_ms > longest_ms:
            longest_ms = blocked_ms
            file.write_text(f"{longest_ms:.1f}")  # noqa: ASYNC240 - a few bytes, and seldom
