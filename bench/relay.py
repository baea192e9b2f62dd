"""A cheap relay that measures: it checks each mail's code and records when it accepted the mail.

It runs as a separate process and offers PIPELINING, and CHUNKING if asked to. One delay for each reply imitates a
distant relay, one more for the reply to the content a slow one. Results are in shared memory, so that reading them does
not slow it down.
"""

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.sharedctypes import RawArray, RawValue
from typing import Any, Self

import uvloop

_PROCESSES = get_context("spawn")


def code_of(number: int) -> str:
    """Return the code of the job of this number."""
    return f"{100_000 + number * 7919 % 900_000}"


def address_of(number: int) -> str:
    """Return its recipient."""
    return f"u{number}@example.com"


@dataclass(slots=True)
class Notes:
    """What the relay records; times are seconds since 1970."""

    accepted_at: Any
    first_mail_at: Any
    taken: Any
    repeated: Any
    wrong: Any
    connections: Any

    @classmethod
    def of(cls, mails: int) -> "Notes":
        """Allocate memory for this number of mails."""
        return cls(RawArray("d", mails), RawValue("d", 0.0), *(RawValue("L", 0) for _ in range(4)))


class Relay:
    """The process, from `with` to its end."""

    def __init__(self, mails: int, *, delay_s: float = 0.0, body_s: float = 0.0, chunking: bool = False) -> None:
        self.notes = Notes.of(mails)
        self._ready = _PROCESSES.Queue()
        args = (self.notes, self._ready, delay_s, body_s, chunking)
        self._process = _PROCESSES.Process(target=_serve, args=args, daemon=True)
        self.port = 0

    def __enter__(self) -> Self:
        self._process.start()
        self.port = self._ready.get(timeout=20)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def _serve(notes: Notes, ready: Any, delay_s: float, body_s: float, chunking: bool) -> None:  # noqa: FBT001 - pickled
    async def run() -> None:
        loop = asyncio.get_running_loop()
        offers = _OFFERS + (b"250-CHUNKING\r\n" if chunking else b"") + b"250 ENHANCEDSTATUSCODES\r\n"
        make = partial(_Session, notes, offers, delay_s, body_s)
        server = await loop.create_server(make, "127.0.0.1", 0, backlog=1024)
        ready.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(run())


_OFFERS = b"250-relay\r\n250-PIPELINING\r\n250-8BITMIME\r\n"


class _Session(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, notes: Notes, offers: bytes, delay_s: float, body_s: float) -> None:
        self._notes, self._offers, self._delay_s, self._body_s = notes, offers, delay_s, body_s
        self._rest = b""
        self._in_content = False
        self._chunk = 0
        """Size of the chunk that is being received."""
        self._recipient = ""
        self._replied_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # pyright: ignore[reportAttributeAccessIssue]
        self._notes.connections.value += 1
        self._reply([b"220 relay ESMTP\r\n"], 0.0)

    def data_received(self, data: bytes) -> None:
        rest = self._rest + data
        replies: list[bytes] = []
        taken: list[int] = []
        while True:
            if self._chunk:
                if len(rest) < self._chunk:
                    break
                taken.append(self._check(rest[: self._chunk]))
                replies.append(b"250 2.0.0 Ok: queued\r\n")
                rest, self._chunk = rest[self._chunk :], 0
            end = b"\r\n.\r\n" if self._in_content else b"\r\n"
            received, found, left = rest.partition(end)
            if not found:
                break
            rest = left
            if self._in_content:
                self._in_content = False
                taken.append(self._check(received))
                replies.append(b"250 2.0.0 Ok: queued\r\n")
            elif received.startswith(b"BDAT "):
                self._chunk = int(received.split()[1])
            else:
                replies.append(self._answer(received))
        self._rest = rest
        if replies:
            self._reply(replies, self._body_s if taken else 0.0, taken)

    def _answer(self, line: bytes) -> bytes:
        match line[:4].upper():
            case b"EHLO":
                return self._offers
            case b"MAIL":
                if not self._notes.first_mail_at.value:
                    self._notes.first_mail_at.value = time.time()
                return b"250 2.1.0 Ok\r\n"
            case b"RCPT":
                self._recipient = line[line.index(b"<") + 1 : line.index(b">")].decode()
                return b"250 2.1.5 Ok\r\n"
            case b"DATA":
                self._in_content = True
                return b"354 go ahead\r\n"
            case b"QUIT":
                return b"221 2.0.0 Bye\r\n"
            case _:
                return b"250 2.0.0 Ok\r\n"

    def _check(self, content: bytes) -> int:
        number = int(self._recipient[1:].partition("@")[0])
        code = code_of(number).encode()
        if content.count(code) < 2 and content.replace(b"=\r\n", b"").count(code) < 2:
            self._notes.wrong.value += 1
        return number

    def _reply(self, replies: list[bytes], extra_s: float, taken: list[int] | None = None) -> None:
        if not self._delay_s and not extra_s:
            self._write(b"".join(replies), taken or [])
            return
        loop = asyncio.get_running_loop()
        self._replied_at = max(loop.time() + self._delay_s + extra_s, self._replied_at)
        loop.call_at(self._replied_at, self._write, b"".join(replies), taken or [])

    def _write(self, replies: bytes, taken: list[int]) -> None:
        notes = self._notes
        for number in taken:
            if notes.accepted_at[number]:
                notes.repeated.value += 1
            else:
                notes.accepted_at[number] = time.time()
                notes.taken.value += 1
        if not self.transport.is_closing():
            self.transport.write(replies)
            if replies.startswith(b"221"):
                self.transport.close()
