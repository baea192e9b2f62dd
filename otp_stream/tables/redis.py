"""One connection to Redis, on which questions follow each other without waiting for answers."""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import structlog

from otp_stream.sockets import Addresses, certificate_name
from otp_stream.tasks import cancel_and_wait, is_cancelled
from otp_stream.telemetry_errors import observe

if TYPE_CHECKING:
    from redis.asyncio import Connection

ANSWER_S = 0.25
"""A Redis that takes longer is no help to somebody who waits at a login page."""
_CONNECT_S = 3.0
_PAUSES_S = (0.1, 0.2, 0.5, 1.0)
_LATE_S = 0.05
_MOST = 100
"""Operations in one call: Redis does nothing else meanwhile."""
_CALLS = 10
"""Calls under way: a burst that takes Redis longer than `ANSWER_S` is no outage."""
_SCRIPT = (Path(__file__).parent / "tables.lua").read_bytes()

Word = bytes | int | float | str
Operation = tuple[Word, ...]


class AwayError(Exception):
    """Redis gave no answer; whether it did what it was asked is not known."""


@dataclass(slots=True)
class _Asked:
    """One call under way."""

    operations: list[Operation]
    answers: list[asyncio.Future[bytes] | None]
    at: float


class _Answers(asyncio.Protocol):
    """Reads what the script answers: one bulk string for each call, or an error. Streams would take twice as long."""

    def __init__(self, answered: Callable[[bytes], object], broken: Callable[[str], object]) -> None:
        self._answered, self._broken = answered, broken
        self._read = b""

    def data_received(self, data: bytes) -> None:
        self._read += data
        while (line_end := self._read.find(b"\r\n")) >= 0:
            kind, line = self._read[:1], self._read[1:line_end]
            if kind != b"$":
                self._broken(_said(line.decode(errors="replace")))
                return
            start = line_end + 2
            end = start + int(line)
            if len(self._read) < end + 2:
                return
            answer, self._read = self._read[start:end], self._read[end + 2 :]
            self._answered(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._broken(_told(exc) if exc else "it closed the connection")


class Redis:
    """Carries operations out in the order in which they are given, many in one call; `run` keeps the connection.

    `prefix` goes before all keys, `worker` is this worker's name; `head` are the limits, as the script wants them.
    `back` runs once a connection stands; it calls `rely` when the answers can be relied upon. `lost` is told at once
    when a connection is gone: why (nothing where we ended it), and which operations were not answered. `observe` is
    told the seconds that each call took. `now_ms` stands in for the server's clock.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str,
        worker: str,
        head: Sequence[Word] = (),
        back: Callable[[], Awaitable[object]],
        lost: Callable[[str, list[Operation]], object],
        observe: Callable[[float], object] = lambda _: None,
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        self.connected = False
        """Whether it answers."""
        self.error: str | None = "connecting"
        """Why it does not."""
        self._url = url
        self._prefix, self._worker, self._now_ms = prefix, worker, now_ms
        self._head, self._head_words = _packed(head), len(head)
        self._back, self._lost, self._observe = back, lost, observe
        self._sha = b""
        self._addresses = Addresses()
        self._broken: asyncio.Future[str] | None = None
        """Of the connection that stands: why it is given up."""
        self._queue: deque[tuple[Operation, asyncio.Future[bytes] | None]] = deque()
        self._asked: deque[_Asked] = deque()
        self._transport: asyncio.Transport | None = None
        self._due = False
        self._watchdog: asyncio.TimerHandle | None = None
        self._late = False
        self._tries = 0
        """Connections in vain, since one was relied upon."""

    @property
    def stands(self) -> bool:
        """Whether there is a connection, if only to find out whether it answers."""
        return self._broken is not None

    @property
    def under_way(self) -> bool:
        """Whether anything is not answered yet."""
        return bool(self._queue or self._asked)

    def ask(self, *operation: Word) -> asyncio.Future[bytes]:
        """Have an operation done; its answer comes within `ANSWER_S` seconds, or `AwayError`."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if self._broken is None:
            answer.set_exception(AwayError(self.error))
        else:
            self._add(operation, answer)
        return answer

    def tell(self, *operation: Word) -> bool:
        """Have an operation done, and wait for nothing. Returns whether there was a connection to tell it on."""
        if self._broken is None:
            return False
        self._add(operation, None)
        return True

    def _add(self, operation: Operation, answer: asyncio.Future[bytes] | None) -> None:
        self._queue.append((operation, answer))
        if self._asked:
            self._fall_due()
        else:
            self._flush()

    def _fall_due(self) -> None:
        # all that is asked in one turn of the loop travels together
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._flush)

    async def run(self) -> None:
        """Connect, and connect again, until cancelled."""
        while True:
            await self._once()
            await asyncio.sleep(_PAUSES_S[min(self._tries, len(_PAUSES_S) - 1)])
            self._tries += 1

    def rely(self) -> None:
        """Say that the answers can be relied upon."""
        self.connected, self.error, self._tries = True, None, 0

    async def _once(self) -> None:
        """Live with one connection until it is lost."""
        error = ""
        try:
            connection = _connection(self._url)
        except Exception as problem:  # noqa: BLE001 - what is wrong with it may be the password
            self._gone(f"REDIS_URL cannot be used: {type(problem).__name__}")
            return
        coming_back: asyncio.Task[None] | None = None
        address: object = None
        try:
            async with asyncio.timeout(_CONNECT_S):
                address = await _reach_every_address(connection, self._addresses)
                await connection.connect()
                self._sha = await _call(connection, b"SCRIPT", b"LOAD", _SCRIPT)
                await _warn_of_eviction(connection)
            broken = self._broken = asyncio.get_running_loop().create_future()
            self._transport = _taken_over(connection, _Answers(self._answered, self._break_off))
            coming_back = asyncio.create_task(self._come_back())
            error = await broken
        except TimeoutError:
            error = f"no answer within {_CONNECT_S:g} s"
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            error = "the connection was lost"
        except Exception as problem:  # noqa: BLE001 - whatever it is, nobody may go on waiting for answers
            error = _told(problem)
        finally:
            if address is not None:
                (self._addresses.succeeded if self.connected else self._addresses.failed)(address)
            # before anything is waited for: who asks in the meantime must know
            self._gone(error)
            if coming_back is not None:
                await cancel_and_wait(coming_back)
            await connection.disconnect(nowait=True)

    def _break_off(self, why: str) -> None:
        self._transport = None  # uvloop raises where one writes to what is closed
        if self._broken is not None and not self._broken.done():
            self._broken.set_result(why)

    async def _come_back(self) -> None:
        try:
            await self._back()
        except Exception as error:  # noqa: BLE001 - without it, the answers must not be relied upon
            self._break_off(_told(error))

    def _gone(self, error: str) -> None:
        self._broken = self._transport = None
        self.connected, self.error = False, error or "closed"
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        operations = [operation for asked in self._asked for operation in asked.operations]
        answers = [answer for asked in self._asked for answer in asked.answers]
        for operation, answer in self._queue:
            operations.append(operation)
            answers.append(answer)
        self._asked.clear()
        self._queue.clear()
        self._lost(error, operations)
        for answer in answers:
            if answer is not None and not answer.done():
                answer.set_exception(AwayError(error))

    def _flush(self) -> None:
        self._due = False
        while self._queue and self._transport is not None and len(self._asked) < _CALLS:
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), _MOST))]
            operations = [operation for operation, _ in batch]
            self._asked.append(_Asked(operations, [answer for _, answer in batch], monotonic()))
            self._transport.write(self._call(operations))
        if self._asked and self._watchdog is None:
            self._look_in(ANSWER_S)

    def _answered(self, reply: bytes) -> None:
        if not self._asked:
            return  # given up already
        asked = self._asked.popleft()
        observe(self._observe, monotonic() - asked.at)
        for answer, word in zip(asked.answers, reply.split(b" "), strict=True):
            if answer is not None and not answer.done():
                answer.set_result(word)
        if self._queue:
            self._fall_due()

    def _call(self, operations: list[Operation]) -> bytes:
        now = b"" if self._now_ms is None else self._now_ms()
        words = [word for operation in operations for word in operation]
        first = (b"EVALSHA", self._sha, 1, self._prefix, self._prefix, self._worker, now, self._head_words // 3)
        total = len(first) + self._head_words + len(words)
        return b"*%d\r\n%b%b%b" % (total, _packed(first), self._head, _packed(words))

    def _look_in(self, pause_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._watchdog = loop.call_later(pause_s, self._look, monotonic() + pause_s)

    def _look(self, due: float) -> None:
        self._watchdog = None
        if not self._asked:
            self._late = False
            return
        left_s = self._asked[0].at + ANSWER_S - monotonic()
        if left_s > 0:
            self._look_in(left_s)
        elif monotonic() - due > _LATE_S and not self._late:
            self._late = True
            self._look_in(_LATE_S)  # we stood still ourselves: it may have answered, and nobody has read it
        else:
            self._late = False
            self._break_off(f"no answer within {ANSWER_S * 1000:g} ms")


def _connection(url: str) -> "Connection":
    # it brings OpenTelemetry's SDK with it: nobody who shares no state should pay for that
    from redis.asyncio.connection import Connection, parse_url  # noqa: PLC0415

    options: dict[str, Any] = {**parse_url(url)}
    kind: type[Connection] = options.pop("connection_class", Connection)
    # answers are waited for by us, and Redis 5 knows nothing of protocol 3
    options |= {"protocol": 2, "driver_info": None, "socket_connect_timeout": _CONNECT_S, "socket_timeout": None}
    return kind(**options)


async def _reach_every_address(connection: "Connection", addresses: Addresses) -> object:
    """Have it use a socket that is connected already, by the first address of the name that answers: return that."""
    if not hasattr(connection, "host"):  # a unix socket
        return None
    arguments = {**cast("Any", connection)._connection_arguments()}  # noqa: SLF001 - it offers no other way
    host, port = arguments.pop("host"), arguments.pop("port")
    arguments["sock"] = await addresses.connect(host, port)
    if "ssl" in arguments:
        arguments.setdefault("server_hostname", certificate_name(host))
    vars(connection)["_connection_arguments"] = lambda: arguments
    return arguments["sock"].getpeername()


def _taken_over(connection: "Connection", answers: _Answers) -> asyncio.Transport:
    """Have the connection's bytes read by us from now on: it has logged in, and nothing is under way."""
    writer: asyncio.StreamWriter = cast("Any", connection)._writer  # noqa: SLF001 - it offers no other way
    transport = cast("asyncio.Transport", writer.transport)
    transport.set_protocol(answers)
    return transport


async def _warn_of_eviction(connection: "Connection") -> None:
    from redis.exceptions import ResponseError  # noqa: PLC0415 - see above

    try:
        told = (await _call(connection, b"INFO", b"memory")).decode(errors="replace")
    except ResponseError:  # not every user may ask
        return
    facts = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and facts.get("maxmemory", "0") != "0":
        structlog.get_logger(__name__).warning(
            "Redis may forget what was sent before its time: set maxmemory-policy to noeviction", policy=policy
        )


async def _call(connection: "Connection", *words: Word) -> bytes:
    await connection.send_packed_command(b"*%d\r\n%b" % (len(words), _packed(words)), check_health=False)
    return await _reply(connection)


async def _reply(connection: "Connection") -> bytes:
    return cast("bytes", await connection.read_response(timeout=math.inf, disable_decoding=True))


def _packed(words: Sequence[Word]) -> bytes:
    encoded = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded])


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {_said(str(error))}"


def _said(text: str) -> str:
    # Redis adds which script it was
    return " ".join(text.split()).partition(" script: ")[0][:200]
