"""Sends operations to Redis one after another, without waiting for replies."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from otp_stream.core.shown_secrets import ShownSecrets
from otp_stream.sockets import SMALL_BUFFER, Addresses
from otp_stream.tasks import cancel_and_wait, is_cancelled
from otp_stream.telemetry_errors import observe
from otp_stream.urls import secrets_of

from .redis_connection import (
    CONNECT_TIMEOUT_S,
    Argument,
    encode,
    error_text,
    execute,
    new_connection,
    take_over,
    use_first_reachable_address,
    warn_of_eviction,
)
from .reply_reader import ReplyReader

REPLY_TIMEOUT_S = 0.25
"""Someone waits for the code at a login page, so the worker does not wait longer for Redis."""
_RECONNECT_DELAYS_S = (0.1, 0.2, 0.5, 1.0)
_LATE_S = 0.05
_BATCH_LIMIT = 100
"""Maximum number of operations in one call, during which Redis serves no one else."""
_CALLS_LIMIT = 10
"""Maximum number of unanswered calls, so that no call of a burst waits longer than `REPLY_TIMEOUT_S`."""
_ERROR_LIMIT = 200
"""Characters of an error that are shown."""
_UNREADABLE = (ArithmeticError, LookupError, RecursionError, TypeError, ValueError)
"""What reading a reply raises that the script did not write."""
_SCRIPT = (Path(__file__).parent / "tables.lua").read_bytes()

Operation = tuple[Argument, ...]


class RedisUnavailableError(Exception):
    """Redis did not reply. It is unknown whether it has executed the operation."""


@dataclass(slots=True)
class _Call:
    """One unanswered call of the script."""

    operations: list[Operation]
    replies: list[asyncio.Future[bytes] | None]
    sent_at: float


class RedisPipeline:
    """Executes operations in order, many in one call of the script. `run` maintains the connection.

    `url` returns the URL for the next connection. `prefix` precedes all keys, `worker` is this worker's name, `limits`
    are the limits in the script's format.
    `on_connected` runs after each connect, and calls `set_ready` when replies can be trusted. `on_lost` is called
    immediately when a connection is lost, with the error (empty if we closed it) and the unanswered operations.
    `observe` is called with the seconds that each call took. In tests, `now_ms` replaces the server's clock.
    """

    def __init__(
        self,
        url: Callable[[], str],
        *,
        prefix: str,
        worker: str,
        limits: Sequence[Argument] = (),
        on_connected: Callable[[], Awaitable[object]],
        on_lost: Callable[[str, list[Operation]], object],
        observe: Callable[[float], object] = lambda _: None,
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        self.ready = False
        """Whether replies can be trusted."""
        self.error: str | None = "connecting"
        """The reason if it is not ready."""
        self._url = url
        self._shown = ShownSecrets()
        self._prefix, self._worker, self._now_ms = prefix, worker, now_ms
        self._limits, self._limits_arguments = encode(limits), len(limits)
        self._on_connected, self._on_lost, self._observe = on_connected, on_lost, observe
        self._sha = b""
        self._addresses = Addresses(SMALL_BUFFER)
        self._failure: asyncio.Future[str] | None = None
        """Resolves to the error when the open connection is lost."""
        self._queue: deque[tuple[Operation, asyncio.Future[bytes] | None]] = deque()
        self._calls: deque[_Call] = deque()
        self._transport: asyncio.Transport | None = None
        self._flush_scheduled = False
        self._watchdog: asyncio.TimerHandle | None = None
        self._late = False
        self._attempts = 0
        """Attempts to connect since it was last ready."""

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, ready or not."""
        return self._failure is not None

    @property
    def has_unanswered(self) -> bool:
        """Whether operations are queued or unanswered."""
        return bool(self._queue or self._calls)

    def request(self, *operation: Argument) -> asyncio.Future[bytes]:
        """Send an operation. The reply arrives within `REPLY_TIMEOUT_S`, or raises `RedisUnavailableError`."""
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if self._failure is None:
            reply.set_exception(RedisUnavailableError(self.error))
        else:
            self._add(operation, reply)
        return reply

    def send(self, *operation: Argument) -> bool:
        """Send an operation without waiting for its reply. Returns `False` if there is no connection."""
        if self._failure is None:
            return False
        self._add(operation, None)
        return True

    @contextmanager
    def reading(self) -> Generator[None]:
        """Read replies in the body. One that is not the script's ends the connection: `RedisUnavailableError`."""
        try:
            yield
        except _UNREADABLE as problem:
            error = error_text(problem)
            self._fail(error)
            raise RedisUnavailableError(error) from None

    def _add(self, operation: Operation, reply: asyncio.Future[bytes] | None) -> None:
        self._queue.append((operation, reply))
        if self._calls:
            self._schedule_flush()
        else:
            self._flush()

    def _schedule_flush(self) -> None:
        # operations of one iteration of the event loop share a call
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    async def run(self) -> None:
        """Connect, and reconnect after each loss of the connection, until cancelled."""
        while True:
            await self._run_connection()
            await asyncio.sleep(_RECONNECT_DELAYS_S[min(self._attempts, len(_RECONNECT_DELAYS_S) - 1)])
            self._attempts += 1

    def set_ready(self) -> None:
        """Record that replies can be trusted."""
        self.ready, self.error, self._attempts = True, None, 0

    async def _run_connection(self) -> None:
        """Open one connection, and return when it is lost."""
        error = ""
        url = self._url()
        self._shown.add(*secrets_of(url))
        try:
            connection = new_connection(url)
        except Exception as problem:  # noqa: BLE001 - the text may contain the password
            self._close(f"REDIS_URL cannot be used: {type(problem).__name__}")
            return
        preparing: asyncio.Task[None] | None = None
        address: object = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                address = await use_first_reachable_address(connection, self._addresses)
                await connection.connect()
                self._sha = await execute(connection, b"SCRIPT", b"LOAD", _SCRIPT)
                await warn_of_eviction(connection)
            failure = self._failure = asyncio.get_running_loop().create_future()
            self._transport = take_over(connection, ReplyReader(self._receive, self._fail))
            preparing = asyncio.create_task(self._prepare())
            error = await failure
        except TimeoutError:
            error = f"no answer within {CONNECT_TIMEOUT_S:g} s"
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            error = "the connection was lost"
        except Exception as problem:  # noqa: BLE001 - after any error, waiting requests must fail
            error = error_text(problem)
        finally:
            if address is not None:
                (self._addresses.succeeded if self.ready else self._addresses.failed)(address)
            # before the first await: requests in the meantime must fail
            self._close(error)
            if preparing is not None:
                await cancel_and_wait(preparing)
            await connection.disconnect(nowait=True)

    def _fail(self, error: str) -> None:
        self._transport = None  # uvloop raises on a write to a closed transport
        if self._failure is not None and not self._failure.done():
            self._failure.set_result(error)

    async def _prepare(self) -> None:
        try:
            await self._on_connected()
        except Exception as error:  # noqa: BLE001 - after any error, replies must not be trusted
            self._fail(error_text(error))

    def _close(self, error: str) -> None:
        self._failure = self._transport = None
        error = self._shown.redact(error, _ERROR_LIMIT)
        self.ready, self.error = False, error or "closed"
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        operations = [operation for call in self._calls for operation in call.operations]
        replies = [reply for call in self._calls for reply in call.replies]
        for operation, reply in self._queue:
            operations.append(operation)
            replies.append(reply)
        self._calls.clear()
        self._queue.clear()
        self._on_lost(error, operations)
        for reply in replies:
            if reply is not None and not reply.done():
                reply.set_exception(RedisUnavailableError(error))

    def _flush(self) -> None:
        self._flush_scheduled = False
        while self._queue and self._transport is not None and len(self._calls) < _CALLS_LIMIT:
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), _BATCH_LIMIT))]
            operations = [operation for operation, _ in batch]
            self._calls.append(_Call(operations, [reply for _, reply in batch], monotonic()))
            self._transport.write(self._encode_call(operations))
        if self._calls and self._watchdog is None:
            self._start_watchdog(REPLY_TIMEOUT_S)

    def _receive(self, replies: bytes) -> None:
        if not self._calls:
            return  # the connection has failed already
        words = replies.split(b" ")
        if len(words) != len(self._calls[0].replies):  # no reply may be taken for that to another operation
            self._fail("replies that do not match the operations; does another program write its keys?")
            return
        call = self._calls.popleft()
        observe(self._observe, monotonic() - call.sent_at)
        for future, reply in zip(call.replies, words, strict=True):
            if future is not None and not future.done():
                future.set_result(reply)
        if self._queue:
            self._schedule_flush()

    def _encode_call(self, operations: list[Operation]) -> bytes:
        now = b"" if self._now_ms is None else self._now_ms()
        arguments = [argument for operation in operations for argument in operation]
        first = (b"EVALSHA", self._sha, 1, self._prefix, self._prefix, self._worker, now, self._limits_arguments // 3)
        total = len(first) + self._limits_arguments + len(arguments)
        return b"*%d\r\n%b%b%b" % (total, encode(first), self._limits, encode(arguments))

    def _start_watchdog(self, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._watchdog = loop.call_later(delay_s, self._check_timeout, monotonic() + delay_s)

    def _check_timeout(self, due: float) -> None:
        self._watchdog = None
        if not self._calls:
            self._late = False
            return
        left_s = self._calls[0].sent_at + REPLY_TIMEOUT_S - monotonic()
        if left_s > 0:
            self._start_watchdog(left_s)
        elif monotonic() - due > _LATE_S and not self._late:
            # this process was stopped or busy, so the reply may have arrived, but not be read yet
            self._late = True
            self._start_watchdog(_LATE_S)
        else:
            self._late = False
            self._fail(f"no answer within {REPLY_TIMEOUT_S * 1000:g} ms")
