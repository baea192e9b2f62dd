"""`otp-stream` as a process."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from conftest import Stage
from worker import SCRIPT


@dataclass
class Ran:
    code: int
    out: str


async def otp_stream(folder: Path, *arguments: str, **env: str) -> Ran:
    """Run `otp-stream` in an empty folder; returns exit code and everything that it wrote."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "SMTP_", "REDIS_"))}
    process = await asyncio.create_subprocess_exec(
        SCRIPT, *arguments, cwd=folder, env=kept | {"COLUMNS": "200", "NO_COLOR": "1"} | env,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return Ran(process.returncode, out.decode())


def names(stage: Stage) -> dict[str, str]:
    return {
        "RABBITMQ_URL": stage.url,
        "RABBITMQ_QUEUE_NAME": stage.rabbit.queue,
        "RABBITMQ_PREFIX": stage.rabbit.prefix,
    }
