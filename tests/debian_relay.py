"""The base of the private relays from Debian's packages: start, stop, and the policy that decides about mails."""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rabbitmq import free_port
from relays import stop, wait_greeting

_STAGES = {"RCPT": "rcpt", "DATA": "data", "END-OF-MESSAGE": "body"}
"""Postfix's names of the stages, and ours."""


@dataclass
class Policy:
    """Decides which recipients a relay refuses, and at which stage."""

    refuse_sender_every: int = 0
    _senders: int = 0
    _deferred: set[str] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one smtpd of Postfix, request by request."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                request = (await reader.readuntil(b"\n\n")).decode()
                asked = dict(line.split("=", 1) for line in request.splitlines() if line)
                writer.write(f"action={self.action(asked['protocol_state'], asked['recipient'])}\n\n".encode())
        writer.close()

    def action(self, state: str, recipient: str) -> str:
        """Return the reply to a recipient at one stage, as Postfix names it, or `DUNNO`."""
        if state == "MAIL":
            self._senders += 1
            if not self.refuse_sender_every or self._senders % self.refuse_sender_every:
                return "DUNNO"
            return f"{450 if self._senders // self.refuse_sender_every % 2 else 550} refused at mail"
        # a client that is out of step has no recipient here
        at, code, *_ = *recipient.split("-"), ""
        if at != _STAGES[state] or recipient in self._deferred:
            return "DUNNO"
        if code.startswith("4"):
            self._deferred.add(recipient)
        return f"{code} refused at {at}"


@dataclass
class DebianRelay:
    """A relay that is started with `async with`. Needs root, as each of these relays does."""

    refuse_sender_every: int = 0
    tls: tuple[Path, Path] | None = None
    """Certificate and key. If set, the relay offers STARTTLS or uses implicit TLS."""
    implicit: bool = False
    login: tuple[str, str] | None = None
    """User and password. If set, the relay requires a login."""
    port: int = field(default_factory=free_port)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="otp-relay-")))
    """Not the test's own folder, which the relay's unprivileged processes may not read."""
    _process: asyncio.subprocess.Process | None = None

    async def __aexit__(self, *_: object) -> None:
        await stop(self._process)
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # Exim has one process for each connection
                os.killpg(self._process.pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    async def _start(self, command: Sequence[str | Path], env: dict[str, str]) -> None:
        """Start the relay, and wait until it greets. What it writes to its standard streams is in the file `out`."""
        output = self.folder / "out"
        with output.open("wb") as out:
            self._process = await asyncio.create_subprocess_exec(
                *command, env={"PATH": os.environ["PATH"]} | env, stdout=out, stderr=out, start_new_session=True
            )
        try:
            await wait_greeting(self.port, self._process, output.read_text, tls=self.implicit)
        except BaseException:
            await self.__aexit__()
            raise

    def _make_folder(self) -> None:
        assert os.geteuid() == 0, f"{type(self).__name__} runs as root only: run the tests as root"
        self.folder.chmod(0o755)

    def _read(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""
