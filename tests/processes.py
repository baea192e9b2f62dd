"""Starts `faststream` and `otp-stream` as processes, forked from one that has already imported them.

A new interpreter takes a second of CPU to import the worker, a fork a few milliseconds. The process is complete, with
its own pid, signals, descriptors, working folder, environment and exit code (docs/decisions/015-fast-tests.md).
"""

import asyncio
import atexit
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

SCRIPTS = Path(sys.executable).parent
_COVERAGE = "COVERAGE_PROCESS_CONFIG"
"""The configuration of coverage.py for child processes, set by `make coverage`."""


class Process:
    """A process with the methods of `asyncio.subprocess.Process` that tests use."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(process.sentinel, self._notice_end)

    def _notice_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._process.sentinel)
        self._ended.set()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; `None` while it runs."""
        return self._process.exitcode

    async def wait(self) -> int:
        """Wait for the end. Returns the exit code."""
        await self._ended.wait()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


async def start(
    name: str,
    *arguments: str,
    folder: Path,
    env: Mapping[str, str],
    output: Path,
    errors: Path | None = None,
    answers: Path = Path(os.devnull),
) -> Process:
    """Start the script `name` in `folder` with exactly this environment.

    Its standard input is `answers`. Its output is appended to `output`, or if it is an error and `errors` is given,
    to that file.
    """
    context = _context()
    command = [str(SCRIPTS / name), *arguments]
    measured = {name: value for name, value in os.environ.items() if name == _COVERAGE}
    # a daemon, so that it ends with the tests at the latest
    process = context.Process(
        target=_run, args=(command, folder, measured | dict(env), output, errors, answers), daemon=True
    )
    process.start()
    return Process(process)


def _context() -> ForkServerContext:
    """Return the context of the fork server, which is started on the first call."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # the server does not have this process's sys.path
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


def _run(
    command: list[str], folder: Path, env: dict[str, str], output: Path, errors: Path | None, answers: Path
) -> None:
    """Run the script, in the forked process."""
    # the fork server ignores a failed import, and then each process would import everything
    assert "otp_stream.cli.main" in sys.modules, "preloaded.py has imported nothing"
    with answers.open("rb") as source, output.open("ab") as target, (errors or output).open("ab") as log:
        os.dup2(source.fileno(), 0)
        os.dup2(target.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdin = os.fdopen(0)  # multiprocessing has closed it
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = command
    sys.modules.pop("otp_stream.app", None)  # the import reads the settings
    try:
        if command[0].endswith("faststream"):
            from faststream.__main__ import cli as script  # noqa: PLC0415 - imported before the fork
        else:
            from otp_stream.cli import main as script  # noqa: PLC0415 - imported before the fork
        sys.exit(script())
    finally:
        atexit._run_exitfuncs()
