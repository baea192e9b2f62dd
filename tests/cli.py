"""Runs `otp-stream` as a process, or in this process, if many processes would take too long."""

import asyncio
import os
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from conftest import Stage
from processes import start
from typer.testing import CliRunner

_OURS = ("RABBITMQ_", "SMTP_", "REDIS_")
_PLAIN = {"COLUMNS": "200", "NO_COLOR": "1"}


@dataclass
class Ran:
    code: int
    out: str


async def otp_stream(folder: Path, *arguments: str, **env: str) -> Ran:
    """Run `otp-stream` in an empty folder. Returns exit code and output."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    with NamedTemporaryFile() as output:
        process = await start(
            "otp-stream", *arguments, folder=folder, env=kept | _PLAIN | env, output=Path(output.name)
        )
        code = await asyncio.wait_for(process.wait(), 60)
        return Ran(code, output.read().decode())


def here(folder: Path, *arguments: str, **env: str) -> Ran:
    """Run a command in this process. `out` is its standard output, followed by its standard error."""
    from otp_stream.cli.main import cli  # noqa: PLC0415 - the processes that others start do not need it

    gone = {name: None for name in os.environ if name.startswith(_OURS)}
    with chdir(folder):
        done = CliRunner().invoke(cli, arguments, env=gone | _PLAIN | env)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Ran(done.exit_code, done.stdout + done.stderr)


def names(stage: Stage) -> dict[str, str]:
    return {
        "RABBITMQ_URL": stage.url,
        "RABBITMQ_QUEUE_NAME": stage.rabbit.queue,
        "RABBITMQ_PREFIX": stage.rabbit.prefix,
    }
