"""A worker as a separate process."""

import asyncio
import json
import os
import re
import signal
import tomllib
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from patience import limit
from processes import SCRIPTS, Process, start
from rabbitmq import free_port, until
from smtp_relay import ScriptedRelay

SCRIPT = SCRIPTS / "otp-stream"
CODE = "739154"
_PASSED_ON = ("PATH", "HOME", "LANG", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")
_TAIL = 6_000
"""Characters of the log that a failed wait shows."""


def job(email: str = "user@example.com", otp: str = CODE, **more: Any) -> bytes:
    """Return the body of a job, as producers publish it."""
    return json.dumps({"email": email, "otp": otp, **more}).encode()


@dataclass
class Worker:
    """One process of `faststream run otp_stream.app:app`. `folder` is its empty working folder."""

    folder: Path
    env: dict[str, str]
    port: int = field(default_factory=free_port)
    process: asyncio.subprocess.Process | Process | None = None
    options: tuple[str, ...] = ()
    output: Path | None = None
    """The file for its output, instead of its log file."""
    app: str = "otp_stream.app:app"
    _tenants: set[str] = field(default_factory=set[str])

    async def start(self, *, ready: bool = True) -> None:
        """Start it and, if `ready`, wait until it is ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tenants()
        env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | self.env
        arguments = ("run", self.app, "--host", "127.0.0.1", "--port", str(self.port), *self.options)
        output = self.output or self.log_path
        if "--workers" in self.options or any(name.startswith(("LD_", "PYTHON")) for name in env):
            # it starts processes like itself; the interpreter or the loader reads these variables when it starts
            with output.open("ab") as log:
                self.process = await asyncio.create_subprocess_exec(
                    SCRIPTS / "faststream", *arguments, cwd=self.folder, env=env, stdout=log, stderr=log
                )
        else:
            self.process = await start("faststream", *arguments, folder=self.folder, env=env, output=output)
        if ready:
            await self.wait_ready(60)  # a RabbitMQ whose disk is slow may take half a minute to declare the queues

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def tenants(self) -> set[str]:
        """Return each tenant, with `default`, whose queue it may have declared; none without TENANTS_FILE.

        They are in the file as it was at the start or is now, or in the log lines about its changes.
        """
        if not (file := self.env.get("TENANTS_FILE")):
            return set()
        with suppress(OSError, ValueError, AttributeError):  # some tests break it
            self._tenants |= tomllib.loads((self.folder / file).read_text()).get("tenants", {}).keys()
        for line in self.log.splitlines():
            if '"TENANTS_FILE has changed"' in line:
                with suppress(ValueError):  # a kill may have cut the last line
                    changes = json.loads(line)
                    self._tenants.update(changes["added"], changes["removed"])
        return self._tenants | {"default"}

    async def may_have_unacked(self) -> bool:
        """Return whether it has unacked jobs, or does not answer."""
        status, body = await self.get("/metrics")
        unacked = [row for row in body.splitlines() if row.startswith("otp_ledger_unacked{")]
        return status != HTTPStatus.OK or any(float(row.rpartition(" ")[2]) for row in unacked)

    @property
    def log_path(self) -> Path:
        return self.folder / "worker.log"

    @property
    def log(self) -> str:
        """Its whole output."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    @property
    def log_without_fractions(self) -> str:
        """Its output without fractions of seconds, which contain the digits of a code once in a million lines."""
        return re.sub(r"(?<=\d:\d\d\.)\d{6}", "", self.log)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its log lines in JSON, without a last one that it is writing, or that a kill has cut."""
        complete = self.log.rpartition("\n")[0]
        return [json.loads(line) for line in complete.splitlines() if line.startswith("{")]

    async def wait_ready(self, timeout: float = 30) -> None:  # noqa: ASYNC109
        async def is_ready() -> bool:
            assert self.process is not None
            assert self.process.returncode is None, self.log
            return (await self.get("/readyz"))[0] == 200

        try:
            await until(is_ready, "readiness", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log[-_TAIL:]}") from None

    async def get(self, path: str) -> tuple[int, str]:
        """Return status and body, or status 0 if there is no response."""
        return await asyncio.to_thread(_get, f"http://127.0.0.1:{self.port}{path}")

    async def health(self) -> dict[str, Any]:
        return json.loads((await self.get("/health"))[1])

    async def metric(self, line: str) -> float:
        """Return the value of a metric, by its name and labels in Prometheus's format."""
        _, body = await self.get("/metrics")
        return next((float(row.rpartition(" ")[2]) for row in body.splitlines() if row.startswith(line + " ")), 0.0)

    async def wait_metric(self, line: str, value: float, timeout: float = 20) -> None:  # noqa: ASYNC109
        """Wait until a metric has this value. A job is counted some time after the relay has accepted its mail."""
        read = 0.0

        async def reached() -> bool:
            nonlocal read
            read = await self.metric(line)
            return read == value

        try:
            await until(reached, f"{line} {value}", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}, but {read}\n{self.log[-_TAIL:]}") from None

    async def wait_log(self, text: str, timeout: float = 20, *, times: int = 1) -> None:  # noqa: ASYNC109
        """Wait until the log contains a text the given number of times."""

        async def logged() -> bool:
            return self.log.count(text) >= times

        try:
            await until(logged, f"line {text!r}", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log[-_TAIL:]}") from None

    def signal(self, number: int = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def stopped(self, timeout: float = 20) -> int:  # noqa: ASYNC109
        """Wait for its end. Returns its exit code, negative for a signal."""
        assert self.process is not None
        try:
            return await asyncio.wait_for(self.process.wait(), limit(timeout))
        except TimeoutError:
            raise AssertionError(f"it has not ended within {limit(timeout)} s\n{self.log[-_TAIL:]}") from None

    async def stop(self) -> int:
        """End it as an operator does, by SIGTERM. Returns its exit code."""
        assert self.process is not None
        if self.process.returncode is None:
            self.signal()
        return await self.stopped(40)

    async def kill(self) -> None:
        """End it as a crash does, by SIGKILL."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def settings(relay: ScriptedRelay, rabbitmq_url: str, queue: str, prefix: str, **changes: str) -> dict[str, str]:
    """Return the environment of a worker for this broker and relay."""
    return {
        "WORKER": "true",
        "NODE_ENV": "staging",
        "RABBITMQ_URL": rabbitmq_url,
        "RABBITMQ_QUEUE_NAME": queue,
        "RABBITMQ_PREFIX": prefix,
        "PREFETCH_COUNT": "200",
        "SENDER_EMAIL": "Example <no-reply@example.com>",
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": str(relay.port),
        "SMTP_TLS": "none",
        "SMTP_AUTH": "none",
        **changes,
    }
