"""Visitors who connect and say nothing cost no code and no probe."""

import asyncio
import contextlib
import resource

from conftest import Stage
from worker import job

DESCRIPTORS = 256


async def test_codes_go_out_and_probes_are_answered_while_idle_connections_outnumber_descriptors(stage: Stage) -> None:
    worker = stage.worker()
    worker.options = ("--workers", "1")  # not from the fork server, which has a limit of its own
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
    try:
        await worker.start(ready=False)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await worker.wait_ready()
    writers: list[asyncio.StreamWriter] = []

    async def connect() -> None:
        with contextlib.suppress(OSError):
            writers.append((await asyncio.open_connection("127.0.0.1", worker.port))[1])

    try:
        for _ in range(4):
            await asyncio.gather(*(connect() for _ in range(150)))
        await stage.rabbit.publish(*(job(f"u{number}@example.com") for number in range(30)))
        await stage.relay.wait_accepted(30)
        assert (await worker.get("/livez"))[0] == 200
    finally:
        for writer in writers:
            writer.close()
