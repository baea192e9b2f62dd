"""A private MailDev from npm, which refuses no recipient and stores each mail in a file."""

import asyncio
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from rabbitmq import free_port
from relays import NODE_MODULES, Taken, stop, wait_greeting

_TO = re.compile(rb"^To: <?([^\s<>]+@[^\s<>]+)>?\r?$", re.MULTILINE | re.IGNORECASE)


@dataclass
class MailDev:
    """A private MailDev, started with `async with`; `folder` is its empty working folder."""

    folder: Path
    tls: tuple[Path, Path] | None = None
    """Certificate and key of implicit TLS."""
    login: tuple[str, str] | None = None
    """User and password: required then."""
    port: int = field(default_factory=free_port)
    _process: asyncio.subprocess.Process | None = None
    _read: dict[str, Taken] = field(default_factory=dict)

    async def __aenter__(self) -> Self:
        self._mails.mkdir(parents=True)
        options = ["--smtp", str(self.port), "--ip", "127.0.0.1", "--disable-web", "--mail-directory", str(self._mails)]
        if self.tls is not None:
            options += ["--incoming-secure", "--incoming-cert", str(self.tls[0]), "--incoming-key", str(self.tls[1])]
        if self.login is not None:
            options += ["--incoming-user", self.login[0], "--incoming-pass", self.login[1]]
        output = self.folder / "out"
        with output.open("wb") as out:
            self._process = await asyncio.create_subprocess_exec(
                "node", str(NODE_MODULES / "maildev/bin/maildev"), *options,
                env={"PATH": os.environ["PATH"]}, cwd=self.folder, stdout=out, stderr=out,
            )  # fmt: skip
        try:
            await wait_greeting(self.port, self._process, output.read_text, tls=self.tls is not None)
        except BaseException:
            await stop(self._process)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await stop(self._process)

    @property
    def _mails(self) -> Path:
        return self.folder / "mails"

    @property
    def accepted(self) -> list[Taken]:
        """Every mail that it accepted, by the recipient in its header."""
        for path in self._mails.glob("*.eml"):
            size = path.stat().st_size
            read = self._read.get(path.name)
            if (read is None or read.size != size) and (to := _TO.search(path.read_bytes())):
                self._read[path.name] = Taken(to[1].decode(), size)
        return list(self._read.values())

    @property
    def refused(self) -> Counter[tuple[str | None, int]]:
        """How often it refused a recipient: never."""
        return Counter()
