"""The connections to one relay: opened on demand, kept while they are used, ended by QUIT."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from time import monotonic

from otp_stream.core.state import CredentialsState

from .config import RelayConfig
from .connection import Connection
from .handshake import Handshake
from .protocol import RelayUnavailableError
from .relay_support import RelaySupport

_ALONE_S = 3.0
"""How long to try the first login alone, so that a wrong password causes one failed login, not one per connection."""


class Pool:
    """Up to `pool_size` connections. Nothing connects before `grow`; `check_timeouts` enforces time limits."""

    def __init__(self, config: RelayConfig, *, careful: bool) -> None:
        self._config = config
        self._limits = config.limits
        self._handshake = Handshake(config)
        self.support = RelaySupport(careful=careful)
        self._opening: set[asyncio.Task[None]] = set()
        self._quitting: set[Connection] = set()
        self._closing = False
        self._renewed_at = 0.0
        """Connections that were opened before take no more mail. By the monotonic clock."""
        self.open: set[Connection] = set()
        self.idle: list[Connection] = []
        """The last used connection is used first, so that the others can be closed."""
        self.connects = 0
        self._alone_from = 0.0

    @property
    def alive(self) -> bool:
        """Whether `check_timeouts` has anything to check."""
        return bool(self.open or self._quitting or self._opening)

    @property
    def opening(self) -> int:
        """Connections that are being opened."""
        return len(self._opening)

    @property
    def following(self) -> int:
        """Mails whose envelope was sent behind another mail."""
        return sum(connection.following is not None for connection in self.open)

    @property
    def room(self) -> int:
        """How many more connections may be opened."""
        return self._config.pool_size - len(self.open) - len(self._quitting) - len(self._opening)

    @property
    def saturated(self) -> bool:
        """Whether every connection that ordinary jobs may use is in use, or is being opened or replaced."""
        reserved = self._config.pool_size - self._config.ordinary_connections
        return self.room + len(self.idle) <= reserved

    def grow(self, wanted: int, connect: Callable[[], Coroutine[object, object, None]]) -> None:
        """Run `connect` until `wanted` connections are being opened, within the pool size and the handshake limit."""
        # a relay that accepted these connections accepts more: their number doubles, to fifty after four steps
        limit = max(self._limits.handshakes, len(self.open))
        if not self.open and self._config.logs_in:
            now = monotonic()
            self._alone_from = self._alone_from if self._opening else now
            if now - self._alone_from < _ALONE_S:
                limit = 1
        missing = 0 if self._closing else max(min(min(wanted, limit) - len(self._opening), self.room), 0)
        for _ in range(missing):
            task = asyncio.get_running_loop().create_task(connect())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def connect(self, changed: Callable[[Connection], None]) -> Connection:
        """Open a connection, in a task that `grow` started. Raises `RelayUnavailableError`."""
        try:
            connection, offers = await self._handshake.open(lambda: Connection(self._config, self.support, changed))
            if connection.lost is not None:
                raise connection.lost
        finally:
            # not in a variable: a traceback would keep the task, and asyncio logs an error when such a task is deleted
            self._opening -= {asyncio.current_task()}
        connection.become_ready(offers)
        self.connects += 1
        self.open.add(connection)
        return connection

    def credentials(self) -> CredentialsState:
        """Return when the certificate and the access token end."""
        return self._handshake.credentials()

    def keep_idle(self, connection: Connection) -> None:
        """Keep an idle connection."""
        connection.fresh = False
        connection.idle_since = monotonic()
        self.idle.append(connection)

    def usable(self, connection: Connection) -> bool:
        """Return whether a connection may take another mail; otherwise send QUIT."""
        if self.is_used_up(connection, connection.mails):
            self._quit(connection)
            return False
        return True

    def is_used_up(self, connection: Connection, mails: int) -> bool:
        """Return whether a connection must take no more mail after `mails`."""
        limits = self._limits
        opened_at = connection.opened_at
        too_old = opened_at < self._renewed_at or monotonic() - opened_at >= limits.age_s
        return self._closing or too_old or connection.spent or mails >= limits.messages

    def renew(self) -> None:
        """Send no more mail over the connections that are open now."""
        self._renewed_at = monotonic()
        while self.idle:
            self._quit(self.idle.pop())

    def forget(self, connection: Connection) -> None:
        """Remove a closed connection."""
        self.open.discard(connection)
        self._quitting.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)

    def check_timeouts(self) -> None:
        """Abort connections that are overdue or send TLS without data; close those idle for too long or too old."""
        now = monotonic()
        for connection in [*self._handshake.unready, *self.open, *self._quitting]:
            connection.check_tls(now, self._config.name)
        for connection in [*self.open, *self._quitting]:
            connection.check_timeouts(now)
        for connection in list(self.idle):
            age = now - connection.opened_at
            if now - connection.idle_since >= self._limits.idle_s or age >= self._limits.age_s:
                self.idle.remove(connection)
                self._quit(connection)

    def recall(self) -> None:
        """Requeue every mail whose envelope was sent ahead."""
        for connection in self.open:
            connection.recall()

    def retire(self) -> None:
        """Open no more connections, and QUIT over each one when no mail is in flight on it."""
        self._closing = True
        for task in self._opening:
            task.cancel()
        while self.idle:
            self._quit(self.idle.pop())

    async def close(self, grace_s: float) -> None:
        """Let mails in flight finish and QUIT, for at most `grace_s` seconds; then abort every connection."""
        self.retire()
        closed = [connection.closed for connection in self.open | self._quitting]
        if closed:
            await asyncio.wait(closed, timeout=grace_s)
        for connection in self.open | self._quitting:
            connection.abort(RelayUnavailableError("unreachable", "the worker is stopping"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.gather(*self._opening, *closed, self._handshake.close(), return_exceptions=True)

    def _quit(self, connection: Connection) -> None:
        self.open.discard(connection)
        self._quitting.add(connection)
        connection.quit()
