"""A mail relay that reads line ends leniently, as many do: SMTP smuggling works if a client sends bare CR or LF."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

_LINE = re.compile(rb"\r\n|\n|\r")
_END = re.compile(rb"(?:\r\n|\n|\r)\.(?:\r\n|\n|\r(?!\n)|\0)")
"""Everything that one relay or another takes as the end of a mail."""


@dataclass
class LenientRelay:
    """Takes every command and every mail."""

    keywords: tuple[str, ...] = ()
    port: int = 0
    mails: list[bytes] = field(default_factory=list)
    """The content of each mail, as it was sent."""
    commands: list[bytes] = field(default_factory=list)
    """Each command except BDAT, without its line end."""
    outside: bytes = b""
    """All bytes outside chunks, in which line ends have a meaning."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, EOFError):
            await _Session(self, reader, writer).run()
        writer.transport.abort()


class _Session:
    def __init__(self, relay: LenientRelay, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.relay, self.reader, self.writer = relay, reader, writer
        self.buffer = b""

    async def run(self) -> None:
        self.reply("220 relay.example")
        while True:
            command = await self.until(_LINE)
            verb = command[:4].upper()
            if verb == b"BDAT":
                self.relay.mails.append(await self.exactly(int(command.split()[1])))
                self.reply("250 2.0.0 queued")
                continue
            self.relay.commands.append(command)
            if verb == b"EHLO":
                lines = ["relay.example", *self.relay.keywords]
                self.reply(*(f"250{' ' if it is lines[-1] else '-'}{it}" for it in lines))
            elif verb == b"DATA":
                self.reply("354 go ahead")
                self.relay.mails.append(await self.until(_END))
                self.reply("250 2.0.0 queued")
            else:
                self.reply("250 2.0.0 ok")

    def reply(self, *lines: str) -> None:
        self.writer.write("".join(f"{line}\r\n" for line in lines).encode())

    async def until(self, end: re.Pattern[bytes]) -> bytes:
        """Read up to an end, which is not part of the result."""
        while True:
            found = end.search(self.buffer)
            # a CR at the end of the buffer may be half of a CRLF
            if found is not None and not (found.end() == len(self.buffer) and found[0].endswith(b"\r")):
                read, self.buffer = self.buffer[: found.start()], self.buffer[found.end() :]
                self.relay.outside += read + found[0]
                return read
            await self.more()

    async def exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            await self.more()
        read, self.buffer = self.buffer[:size], self.buffer[size:]
        return read

    async def more(self) -> None:
        more = await self.reader.read(65_536)
        if not more:
            raise EOFError
        self.buffer += more


@asynccontextmanager
async def lenient_relay(*keywords: str) -> AsyncIterator[LenientRelay]:
    """Listen on 127.0.0.1."""
    relay = LenientRelay(keywords)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        server.close()
