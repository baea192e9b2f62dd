"""A private Redis that a test may stop, freeze and start."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from patience import deadline
from rabbitmq import free_port

SERVER = "redis-server"
_START_S = 20


@dataclass
class RedisServer:
    """A Redis with its files in `folder`. A restart loses all data unless `settings` enable persistence."""

    folder: Path
    port: int = field(default_factory=free_port)
    settings: tuple[str, ...] = ()
    """More arguments, as in `("--maxmemory", "5mb")`."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [SERVER, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)]
        with (self.folder / "out").open("ab") as out:
            self.process = subprocess.Popen([*command, *self.settings], stdout=out, stderr=out)
        ends = deadline(_START_S)
        while not self.answers():
            assert self.process.poll() is None, (self.folder / "out").read_text()
            assert time.monotonic() < ends, f"no Redis within {_START_S} s"
            time.sleep(0.02)

    def answers(self) -> bool:
        """Return whether it accepts commands."""
        try:
            return self.command("PING").startswith(("+PONG", "-NOAUTH"))
        except OSError:
            return False

    def command(self, *words: str) -> str:
        """Run a command. Returns the raw reply."""
        packed = "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            # the end of the connection is the end of the reply, of which any part may end with CR LF
            connection.sendall(f"*{len(words)}\r\n{packed}*1\r\n$4\r\nQUIT\r\n".encode())
            answer = b""
            while more := connection.recv(65536):
                answer += more
            return answer.removesuffix(b"+OK\r\n").decode().strip()

    def freeze(self) -> None:
        """Pause it, with its connections open."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume it."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash does."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def remove(self) -> None:
        """Kill it and delete its files."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
