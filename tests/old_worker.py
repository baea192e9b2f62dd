"""A worker like the previous one, in Node.js: tests/old_worker.mjs as a process."""

import asyncio
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from rabbitmq import until
from relays import NODE_MODULES
from smtp_relay import Received, ScriptedRelay

_SOURCE = Path(__file__).parent / "old_worker.mjs"
_EHLO = "EHLO previous-worker"


@dataclass
class OldWorker:
    """One process. `folder` is its working folder; `changes` are environment variables."""

    folder: Path
    url: str
    queue: str
    relay: ScriptedRelay
    changes: dict[str, str] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, and wait until it consumes."""
        self.folder.mkdir(exist_ok=True)
        modules = self.folder / "node_modules"
        if not modules.exists():
            modules.symlink_to(NODE_MODULES)
        script = self.folder / _SOURCE.name
        script.write_text(_SOURCE.read_text())
        env = {
            "PATH": os.environ["PATH"],
            "RABBITMQ_URL": self.url,
            "RABBITMQ_QUEUE_NAME": self.queue,
            "SENDER_EMAIL": "no-reply@example.com",
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(self.relay.port),
        } | self.changes
        times = self.log.count("[READY]")
        with self.log_path.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                "node", str(script), cwd=self.folder, env=env, stdout=log, stderr=log
            )

        async def consumes() -> bool:
            assert self.process is not None
            assert self.process.returncode is None, self.log
            return self.log.count("[READY]") > times

        await until(consumes, "consumer of the previous worker", 40)

    @property
    def log_path(self) -> Path:
        return self.folder / "old.log"

    @property
    def log(self) -> str:
        """Its whole output."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    @property
    def retries(self) -> set[str]:
        """The ids of the jobs that wait in this process: they are in no queue."""
        waiting: list[str] = []
        for scheduled, requeued in re.findall(r"Scheduling retry \S+ for job (\S+)|Job (\S+) requeued", self.log):
            if scheduled:
                waiting.append(scheduled)
            else:
                waiting.remove(requeued)
        return set(waiting)

    async def stop(self) -> int:
        """End it as an operator does, by SIGTERM. Returns its exit code."""
        assert self.process is not None
        self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), 20)

    async def kill(self) -> None:
        """End it as a crash does, by SIGKILL."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


def sent_by_old(relay: ScriptedRelay) -> list[Received]:
    """Return the mails that the previous worker sent."""
    connections = _connections(relay)
    return [mail for mail in relay.accepted if mail.connection in connections]


async def end_of_old(relay: ScriptedRelay) -> None:
    """Wait until the relay has read all that the previous worker, which has ended, has sent."""
    await relay.wait(
        lambda: _connections(relay).isdisjoint(it.number for it in relay._sessions.values()), "end of its connections"
    )


def _connections(relay: ScriptedRelay) -> set[int]:
    return {connection for connection, line in relay.log if line.startswith(_EHLO)}
