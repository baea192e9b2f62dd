"""A scripted mail relay on a real socket, with any reply, delay or fault at any step.

    async with ScriptedRelay() as relay:
        relay.then("rcpt", "451 4.3.0 later", "451 4.3.0 later", to="user@example.com")  # then 250 again
        relay.always("body", Act(delay_s=0.15))                                         # every mail takes 150 ms
        ...
        await relay.wait_accepted(1)

Steps: greeting ehlo starttls auth mail rcpt data body rset quit (`body` is the final dot, or the end of a chunk).
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Literal, Self

from event_loop import rounds
from patience import deadline, limit
from rabbitmq import free_port

from otp_stream.core.mail import Mail
from otp_stream.core.outcome import Outcome
from otp_stream.relay import RelayConfig, SmtpRelay

CONTENT = b"Subject: hello\r\n\r\nyour code\r\n"
ENDED = CONTENT + b".\r\n"
LONE_DOT = b".\r\n"
ACCEPTS = "250 2.1.0 ok", "250 2.1.5 ok", "354 go ahead"
KEYWORDS = ("PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE 10485760", "ENHANCEDSTATUSCODES")

_USUAL = {
    "greeting": "220 relay.example ESMTP",
    "starttls": "220 2.0.0 go ahead",
    "auth": "235 2.7.0 welcome",
    "mail": "250 2.1.0 ok",
    "rcpt": "250 2.1.5 ok",
    "data": "354 end with a dot",
    "body": "250 2.0.0 queued",
    "rset": "250 2.0.0 ok",
    "quit": "221 2.0.0 bye",
}


@dataclass(frozen=True)
class Act:
    """What to do at a step: wait, reply, then perhaps close the connection or stop replying.

    `reply`: `None` is the usual one, an empty text is none at all.
    """

    reply: str | None = None
    delay_s: float = 0
    until: asyncio.Event | None = None
    """An event to wait for."""
    then: Literal["continue", "close", "reset", "hang"] = "continue"
    keep: bool = False
    """Whether to accept the mail at the final dot, whatever the reply."""
    end: str = "\r\n"
    """What to send behind the reply."""


SILENCE = Act("", then="hang")
CLOSE = Act("", then="close")
RESET = Act("", then="reset")


@dataclass(frozen=True)
class Received:
    """An accepted mail. `at` and `accepted_at` are monotonic seconds, `connection` counts from 1."""

    sender: str
    recipient: str
    content: bytes
    at: float
    connection: int
    parameters: str = ""
    accepted_at: float = 0.0
    """When the relay replied, `at`: when it received the final dot."""


class _CloseError(Exception):
    pass


@dataclass
class ScriptedRelay:
    """An SMTP server in this process."""

    keywords: tuple[str, ...] = KEYWORDS
    tls: ssl.SSLContext | None = None
    mode: Literal["none", "starttls", "implicit"] = "none"
    login: tuple[str, str] | None = None
    mechanisms: str = "PLAIN LOGIN"
    accepts_token: Callable[[str], bool] | None = None
    """Whether an access token is valid; the user is the first part of `login`."""
    closes_after_refusal: bool = True
    """Whether a refused access token ends the session."""
    tokens: list[str] = field(default_factory=list)
    """Each access token that was shown, in order."""
    knows_bdat: bool = True
    """Whether it reads chunks, if it offers CHUNKING. Otherwise it takes BDAT, and each line of the chunk, as unknown
    commands."""
    initial_response: bool = True
    """Whether AUTH PLAIN accepts an initial response."""
    scram_nonce: str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    scram_iterations: int = 4096
    scram_lies: bool = False
    """Whether it does not know the password, and signs with anything."""
    byte_by_byte: bool = False
    byte_s: float = 0
    """Pause after each byte."""
    port: int = 0
    accepted: list[Received] = field(default_factory=list)
    log: list[tuple[int, str]] = field(default_factory=list)
    """Every command with the number of its connection."""
    connections: int = 0
    contents: int = 0
    """Number of final dots received."""
    held: int = 0
    """Number of replies that wait for their `until`."""

    def __post_init__(self) -> None:
        self._once: dict[tuple[str, str | None], deque[Act]] = {}
        self._always: dict[tuple[str, str | None], Act] = {}
        self._every: dict[str, tuple[Act, Iterator[int]]] = {}
        self._server: asyncio.Server | None = None
        self._sessions: dict[asyncio.Task[None], _Session] = {}

    def then(self, step: str, *acts: str | Act, to: str | None = None, by: str | None = None) -> None:
        """Queue replies, each to be used once.

        `to` limits them to mails for one recipient, or for one `@domain`; `by` to those of one sender.
        """
        self._once.setdefault((step, _key(to, by)), deque()).extend(_act(act) for act in acts)

    def always(self, step: str, act: str | Act | None, to: str | None = None, by: str | None = None) -> None:
        """Set the reply to a step from now on. `None` restores the usual reply."""
        if act is None:
            self._always.pop((step, _key(to, by)), None)
        else:
            self._always[(step, _key(to, by))] = _act(act)

    def every(self, number: int, step: str, act: Act) -> None:
        """Do this at every so many times that the step is reached, and at the others the usual."""
        self._every[step] = act, cycle(range(number))

    def act(self, step: str, recipient: str | None, sender: str | None = None) -> Act:
        """Return what to do at this step."""
        domain = "@" + (recipient or "").rpartition("@")[2]
        keys = ((step, recipient), (step, domain), (step, _key(None, sender)), (step, None))
        for key in keys:
            if self._once.get(key):
                return self._once[key].popleft()
        for key in keys:
            if key in self._always:
                return self._always[key]
        if step in self._every:
            act, turns = self._every[step]
            return Act() if next(turns) else act
        return Act()

    def commands(self, connection: int | None = None) -> list[str]:
        """Return the verbs of the commands in order of arrival, of all connections or of one."""
        return [line.partition(" ")[0].upper() for at, line in self.log if connection in {None, at}]

    @property
    def open_connections(self) -> int:
        """Number of open connections."""
        return len(self._sessions)

    @property
    def is_busy(self) -> bool:
        """Whether a client with an open connection waits for a reply, or has begun a mail."""
        return any(
            (session.busy or session.sender is not None)
            and not session.reader._eof  # a killed worker has closed its connections
            for session in self._sessions.values()
        )

    async def start(self) -> None:
        """Listen. After `stop`, on the same port again, which no other test process uses meanwhile."""
        self.port = self.port or free_port()
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self.tls if self.mode == "implicit" else None
        )

    async def stop(self) -> None:
        """Stop listening and abort every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
            await rounds()
        self.cut()
        tasks = list(self._sessions)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await rounds()

    def cut(self) -> None:
        """Abort every connection without a reply."""
        for session in self._sessions.values():
            session.writer.transport.abort()

    def ahead_of_rate_s(self, began: float, per_s: float) -> float:
        """Return by how many seconds at most a mail was earlier than a rate from `began` on allows.

        A count of mails per second would also rise if a busy machine reads them late.
        """
        times = sorted(mail.at for mail in self.accepted)
        return max(began + number / per_s - at for number, at in enumerate(times))

    async def wait_accepted(self, count: int, timeout: float = 20) -> None:  # noqa: ASYNC109 - a test's own deadline
        """Wait until `count` mails are accepted."""
        await self.wait(lambda: len(self.accepted) >= count, f"{count} accepted mails", timeout)

    async def wait(self, condition: Callable[[], bool], what: str, timeout: float = 20) -> None:  # noqa: ASYNC109
        """Wait for a condition, with a deadline."""
        ends = deadline(timeout)
        while not condition():
            if time.monotonic() > ends:
                late = f"no {what} within {limit(timeout)} s"
                raise AssertionError(f"{late}; {len(self.accepted)} accepted, {self.log[-20:]}")
            await asyncio.sleep(0.005)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        session = _Session(self, reader, writer, self.connections)
        task = asyncio.current_task()
        assert task is not None
        self._sessions[task] = session
        try:
            await session.run()
        except (_CloseError, OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            del self._sessions[task]
            writer.transport.abort()


class _Session:
    """The dialogue on one connection."""

    def __init__(
        self, relay: ScriptedRelay, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        self.relay = relay
        self.reader = reader
        self.writer = writer
        self.number = number
        self.secured = relay.mode == "implicit"
        self.sender: str | None = None
        self.parameters = ""
        self.recipient: str | None = None
        self.busy = False
        """Whether it is handling a command."""

    async def run(self) -> None:
        await self.do("greeting")
        while line := await self.reader.readline():
            command = line.decode().rstrip("\r\n")
            self.relay.log.append((self.number, command))
            self.busy = True
            await self.handle(command)
            self.busy = False

    async def handle(self, command: str) -> None:  # noqa: C901 - one case for each command
        verb = command.split(maxsplit=1)[0].upper() if command else ""
        match verb:
            case "EHLO":
                await self.do("ehlo", self.offers())
            case "STARTTLS":
                if (await self.do("starttls")).startswith("220"):
                    await self.writer.start_tls(self.relay.tls)
                    self.secured = True
            case "AUTH":
                await self.authenticate(command.split())
            case "MAIL":
                await self.mail(command)
            case "RCPT":
                await self.rcpt(command)
            case "DATA":
                await self.data()
            case "BDAT" if self.relay.knows_bdat:
                await self.bdat(command)
            case "RSET":
                self.forget()
                await self.do("rset")
            case "QUIT":
                await self.do("quit")
                raise _CloseError
            case _:
                await self.reply("500 5.5.2 what?")

    def offers(self) -> str:
        lines = ["relay.example", *self.relay.keywords]
        if self.relay.mode == "starttls" and not self.secured:
            lines.append("STARTTLS")
        elif self.relay.login:
            lines.append(f"AUTH {self.relay.mechanisms}")
        return "\r\n".join(f"250{'-' if line is not lines[-1] else ' '}{line}" for line in lines)

    async def authenticate(self, words: list[str]) -> None:
        async def ask(prompt: bytes) -> bytes:
            await self.reply(f"334 {base64.b64encode(prompt).decode()}".rstrip())
            line = (await self.reader.readline()).strip()
            self.relay.log.append((self.number, "(response)"))
            return base64.b64decode(line)

        if words[1].upper() in {"XOAUTH2", "OAUTHBEARER"}:
            inline = self.relay.initial_response and len(words) == 3
            given = base64.b64decode(words[2]) if inline else await ask(b"")
            if not self.is_right_token(words[1].upper(), given.decode()):
                end = await ask(b'{"status":"401","schemes":"bearer"}')
                assert end == (b"" if words[1].upper() == "XOAUTH2" else b"\1")
                await self.do("auth", "535 5.7.3 Authentication unsuccessful")
                if self.relay.closes_after_refusal:
                    raise _CloseError
                return
            await self.do("auth")
            return
        if words[1].upper() == "EXTERNAL":
            given = base64.b64decode(words[2]) if words[2] != "=" else b""
            certificate = self.writer.get_extra_info("peercert")
            right = bool(certificate) and given.decode() == (self.relay.login or ("",))[0]
            await self.do("auth", None if right else "535 5.7.8 no certificate, no login")
            return
        if words[1].upper() == "SCRAM-SHA-256":
            inline = self.relay.initial_response and len(words) == 3
            first = base64.b64decode(words[2]) if inline else await ask(b"")
            await self.scram(first.decode(), ask)
            return
        if words[1].upper() == "CRAM-MD5":
            user, password = self.relay.login or ("", "")
            digest = hmac.new(password.encode(), b"<1@relay.example>", "md5").hexdigest()
            right = await ask(b"<1@relay.example>") == f"{user} {digest}".encode()
            await self.do("auth", None if right else "535 5.7.8 authentication credentials invalid")
            return
        if words[1].upper() == "PLAIN":
            inline = self.relay.initial_response and len(words) == 3
            given = base64.b64decode(words[2]) if inline else await ask(b"")
            _, user, password = given.decode().split("\0")
        else:
            user, password = (await ask(b"Username:")).decode(), (await ask(b"Password:")).decode()
        good = (user, password) == self.relay.login
        await self.do("auth", None if good else "535 5.7.8 authentication credentials invalid")

    async def scram(self, first: str, ask: Callable[[bytes], Awaitable[bytes]]) -> None:
        """Be the server of RFC 5802 §3 with SHA-256, as its text has it."""
        user, password = self.relay.login or ("", "")
        bare = first.removeprefix("n,,")
        nonce = f"{bare.partition(',r=')[2]}{self.relay.scram_nonce}"
        salt = bytes(range(16))
        server_first = f"r={nonce},s={base64.b64encode(salt).decode()},i={self.relay.scram_iterations}"
        final = (await ask(server_first.encode())).decode()
        without_proof, _, proof = final.rpartition(",p=")
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, min(self.relay.scram_iterations, 10_000))
        stored = hashlib.sha256(client_key := hmac.digest(salted, b"Client Key", "sha256")).digest()
        message = f"{bare},{server_first},{without_proof}".encode()
        wanted = bytes(a ^ b for a, b in zip(client_key, hmac.digest(stored, message, "sha256"), strict=True))
        if first != f"n,,n={user},r={first.partition('r=')[2]}" or base64.b64decode(proof) != wanted:
            await self.do("auth", "535 5.7.8 authentication credentials invalid")
            return
        signature = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), message, "sha256")
        signature = bytes(32) if self.relay.scram_lies else signature
        assert await ask(b"v=" + base64.b64encode(signature)) == b""
        await self.do("auth")

    def is_right_token(self, mechanism: str, given: str) -> bool:
        user, port = (self.relay.login or ("",))[0], self.relay.port
        token = given.partition("auth=Bearer ")[2].removesuffix("\1\1")
        self.relay.tokens.append(token)
        assert self.relay.accepts_token is not None
        head = f"user={user}" if mechanism == "XOAUTH2" else f"n,a={user},\1host=127.0.0.1\1port={port}"
        return given == f"{head}\1auth=Bearer {token}\1\1" and self.relay.accepts_token(token)

    async def mail(self, command: str) -> None:
        if self.sender is not None:
            await self.reply("503 5.5.1 nested MAIL command")
            return
        path, _, self.parameters = command.partition(">")
        sender = path.partition("<")[2]
        if (await self.do("mail", sender=sender)).startswith("2"):
            self.sender = sender

    async def rcpt(self, command: str) -> None:
        if self.sender is None:
            await self.reply("503 5.5.1 MAIL first")
            return
        recipient = command.partition("<")[2].partition(">")[0]
        if (await self.do("rcpt", recipient=recipient)).startswith("2"):
            self.recipient = recipient

    async def data(self) -> None:
        if self.recipient is None and self.sender is None:
            await self.reply("503 5.5.1 MAIL first")
            return
        # like many relays, reply 354 even if no recipient was accepted
        if not (await self.do("data")).startswith("354"):
            return
        lines: list[bytes] = []
        while (line := await self.reader.readline()) != b".\r\n":
            if not line:
                raise _CloseError
            lines.append(line[1:] if line.startswith(b".") else line)
        await self.content(b"".join(lines))

    async def bdat(self, command: str) -> None:
        _, size, last = command.split()
        assert last == "LAST"
        content = await self.reader.readexactly(int(size))
        if self.recipient is None:
            # like Postfix and Exim, keep the sender
            await self.reply("554 5.5.1 no valid recipients")
        else:
            await self.content(content)

    async def content(self, content: bytes) -> None:
        self.relay.contents += 1
        if self.recipient is None:
            self.forget()
            await self.reply("554 5.5.1 no valid recipients")
            return
        mail = Received(
            self.sender or "", self.recipient, content, time.monotonic(), self.number, self.parameters.strip()
        )
        act = self.relay.act("body", self.recipient, self.sender)
        self.forget()
        await self.perform("body", act, mail=mail)

    def forget(self) -> None:
        self.sender = self.recipient = None

    async def do(
        self, step: str, usual: str | None = None, recipient: str | None = None, sender: str | None = None
    ) -> str:
        return await self.perform(step, self.relay.act(step, recipient or self.recipient, sender or self.sender), usual)

    async def perform(self, step: str, act: Act, usual: str | None = None, mail: Received | None = None) -> str:
        if act.delay_s:
            await asyncio.sleep(act.delay_s)
        if act.until is not None:
            self.relay.held += 1
            await act.until.wait()
            self.relay.held -= 1
        reply = (usual or _USUAL[step]) if act.reply is None else act.reply
        if mail is not None and (act.keep or reply.startswith("2")):
            self.relay.accepted.append(replace(mail, accepted_at=time.monotonic()))
        if reply:
            await self.reply(reply, act.end)
        if act.then == "reset":
            linger = struct.pack("ii", 1, 0)  # so that the kernel sends RST, not FIN
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.writer.transport.abort()
        if act.then != "continue":
            if act.then == "hang":
                while await self.reader.read(65_536):
                    pass
            elif act.then == "close":
                self.writer.close()
                with contextlib.suppress(OSError, ssl.SSLError):
                    await self.writer.wait_closed()
            raise _CloseError
        return reply

    async def reply(self, reply: str, end: str = "\r\n") -> None:
        data = (reply + end).encode()
        for piece in (data[at : at + 1] for at in range(len(data))) if self.relay.byte_by_byte else (data,):
            self.writer.write(piece)
            await self.writer.drain()
            if self.relay.byte_by_byte:
                await asyncio.sleep(self.relay.byte_s)


def _key(to: str | None, by: str | None) -> str | None:
    return to if by is None else f"by {by}"


def _act(act: str | Act) -> Act:
    return act if isinstance(act, Act) else Act(act)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def config(relay: ScriptedRelay, **changes: object) -> RelayConfig:
    """Return the configuration of a client of the relay."""
    plain = RelayConfig("127.0.0.1", relay.port, "sender@example.com", tls="none", helo="worker.example")
    return replace(plain, **changes)


@asynccontextmanager
async def client(relay: ScriptedRelay, **changes: object) -> AsyncIterator[SmtpRelay]:
    """Open a client of the relay, and close it at the end."""
    smtp = SmtpRelay(config(relay, **changes))
    try:
        yield smtp
    finally:
        await smtp.close(grace_s=0.2)


async def send(
    smtp: SmtpRelay,
    to: str = "user@example.com",
    content: bytes = CONTENT,
    *,
    rank: int = 2,
    life_ms: int = 60_000,
    wanted: Callable[[], bool] = lambda: True,
    tenant: str = "",
    sender: str | None = None,
) -> Outcome:
    ends = now_ms() + life_ms
    mail = Mail(to, content, tenant=tenant, sender=sender)
    async with asyncio.timeout(60):
        return await smtp.send(mail, rank=rank, lane="jobs", expires_ms=ends, deadline_ms=ends, wanted=wanted)


class ManualRelay:
    """A relay for which the test itself reads and writes every byte.

    `pipelining`: whether it offers PIPELINING. `byte_by_byte` sends each byte of a reply separately.
    """

    def __init__(self, *, pipelining: bool = True, byte_by_byte: bool = False) -> None:
        self.pipelining, self.byte_by_byte = pipelining, byte_by_byte
        self.port = 0
        self._accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def connection(self) -> "ManualConnection":
        """Return the next connection, before its greeting."""
        async with asyncio.timeout(10):
            return ManualConnection(*await self._accepted.get(), byte_by_byte=self.byte_by_byte)

    async def ready_connection(self) -> "ManualConnection":
        """Return the next connection, after the reply to EHLO."""
        connection = await self.connection()
        await connection.greet(pipelining=self.pipelining)
        return connection

    async def __aenter__(self) -> Self:
        async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._accepted.put_nowait((reader, writer))

        self._server = await asyncio.start_server(keep, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()


class ManualConnection:
    """One connection to a `ManualRelay`. Every wait ends after 10 seconds."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, byte_by_byte: bool) -> None:
        self._reader, self._writer, self._byte_by_byte = reader, writer, byte_by_byte
        self._read = b""

    async def greet(self, *, pipelining: bool = True) -> None:
        """Send the greeting and the reply to EHLO."""
        await self.reply("220 relay.example")
        await self.expect(b"EHLO worker.example\r\n")
        await self.reply(*(["250-relay.example", "250 PIPELINING"] if pipelining else ["250 relay.example"]))

    async def expect(self, data: bytes) -> None:
        """Read exactly these bytes. More may have arrived already."""
        async with asyncio.timeout(10):
            while len(self._read) < len(data) and (more := await self._reader.read(65_536)):
                self._read += more
        read, self._read = self._read[: len(data)], self._read[len(data) :]
        assert read == data

    async def expect_line(self) -> bytes:
        """Read a line, and return it without its end."""
        async with asyncio.timeout(10):
            while b"\r\n" not in self._read and (more := await self._reader.read(65_536)):
                self._read += more
        line, _, self._read = self._read.partition(b"\r\n")
        return line

    async def expect_alone(self, data: bytes) -> None:
        """Read exactly these bytes, without any others in the same read."""
        await self.expect(data)
        assert self._read == b""

    async def expect_end(self, after: bytes = b"") -> None:
        """Read the end of the connection, and nothing before it but, perhaps, `after`."""
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                self._read += await self._reader.read()
        assert self._read in {b"", after}

    async def reply(self, *lines: str) -> None:
        """Write these lines in one segment, or each byte separately. Ignores a closed connection."""
        await self.send("".join(f"{line}\r\n" for line in lines))

    async def send(self, text: str) -> None:
        """Write these characters in the same way."""
        data = text.encode()
        with contextlib.suppress(ConnectionError):
            for piece in (data[at : at + 1] for at in range(len(data))) if self._byte_by_byte else (data,):
                self._writer.write(piece)
                await self._writer.drain()
                await asyncio.sleep(0)

    async def accept(self, recipient: str, *, alone: bool = False) -> None:
        """Accept one mail. `alone`: nothing is sent ahead behind it."""
        await self.expect(envelope(recipient))
        await self.reply(*ACCEPTS)
        await (self.expect_alone if alone else self.expect)(ENDED)
        await self.reply("250 2.0.0 queued")

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """Begin TLS, after the reply to STARTTLS."""
        await self._writer.start_tls(context)

    def close(self) -> None:
        """Close the connection without a reply."""
        self._writer.close()


def envelope(recipient: str, sender: str = "sender@example.com") -> bytes:
    """Return the bytes of a pipelined envelope."""
    return f"MAIL FROM:<{sender}>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n".encode()
