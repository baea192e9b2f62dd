"""The connections to one relay: set up when wanted, kept while useful, ended politely."""

import asyncio
import contextlib
from time import monotonic
from typing import Protocol

from .config import RelayConfig
from .connection import Connection, Owner
from .handshake import Handshake
from .wire import RelayUnavailableError

_ALONE_S = 3.0
"""How long the first login is tried alone: a wrong password makes one failed login, not as many as connections."""


class PoolOwner(Owner, Protocol):
    """Who gives the pool's connections their work."""

    def unopened(self, error: RelayUnavailableError) -> None:
        """No connection could be set up."""
        ...


class Pool:
    """Up to `pool_size` connections. Nothing connects before `grow`; `pulse` looks after time limits."""

    def __init__(self, config: RelayConfig, owner: PoolOwner) -> None:
        self._config = config
        self._limits = config.limits
        self._owner = owner
        self._handshake = Handshake(config)
        self._opening: set[asyncio.Task[None]] = set()
        self._leaving: set[Connection] = set()
        self._closing = False
        self._renewed_at = 0.0
        """No connection from before takes another mail, by the monotonic clock."""
        self.open: set[Connection] = set()
        self.idle: list[Connection] = []
        """Those that rest; the one that rested shortest is used first, so that the others can go."""
        self.connects = 0
        self._alone_from = 0.0

    @property
    def alive(self) -> bool:
        """Whether there is anything for `pulse` to look after."""
        return bool(self.open or self._leaving)

    @property
    def opening(self) -> int:
        """How many connections are being set up."""
        return len(self._opening)

    @property
    def room(self) -> int:
        """How many connections more may be set up."""
        return self._config.pool_size - len(self.open) - len(self._leaving) - len(self._opening)

    def grow(self, wanted: int) -> None:
        """Set up connections until `wanted` of them are under way, as far as room and the handshake limit go."""
        # as many again as there are: a relay that has taken them will not mind, and fifty are there in four steps
        limit = max(self._limits.handshakes, len(self.open))
        if not self.open and self._config.user is not None:
            now = monotonic()
            self._alone_from = self._alone_from if self._opening else now
            if now - self._alone_from < _ALONE_S:
                limit = 1
        wanted = min(wanted, limit) - len(self._opening)
        for _ in range(min(wanted, self.room) if not self._closing else 0):
            task = asyncio.get_running_loop().create_task(self._open())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self) -> None:
        try:
            connection, offers = await self._handshake.open(lambda: Connection(self._owner, self._config))
            if connection.lost is not None:
                raise connection.lost
        except RelayUnavailableError as error:
            self._done_opening()
            self._owner.unopened(error)
            return
        self._done_opening()
        connection.become_ready(offers)
        self.connects += 1
        self.open.add(connection)
        self._owner.free(connection)

    def _done_opening(self) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._opening.discard(task)

    def rest(self, connection: Connection) -> None:
        """Keep a connection that has nothing to do."""
        connection.fresh = False
        connection.rests_from = monotonic()
        self.idle.append(connection)

    def usable(self, connection: Connection) -> bool:
        """Whether it may take one more mail; it takes leave if not."""
        if self.worn(connection, connection.mails):
            self._leave(connection)
            return False
        return True

    def worn(self, connection: Connection, mails: int) -> bool:
        """Whether a connection should take no more after so many mails."""
        limits = self._limits
        opened_at = connection.opened_at
        too_old = opened_at < self._renewed_at or monotonic() - opened_at >= limits.age_s
        return self._closing or too_old or mails >= limits.messages

    def renew(self) -> None:
        """Send no more mail over the connections of this moment."""
        self._renewed_at = monotonic()
        while self.idle:
            self._leave(self.idle.pop())

    def forget(self, connection: Connection) -> None:
        """Strike a connection that is gone."""
        self.open.discard(connection)
        self._leaving.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)

    def pulse(self) -> None:
        """End what is overdue, and let go what has rested long enough or is too old."""
        now = monotonic()
        for connection in [*self.open, *self._leaving]:
            connection.pulse(now)
        for connection in list(self.idle):
            age = now - connection.opened_at
            if now - connection.rests_from >= self._limits.idle_s or age >= self._limits.age_s:
                self.idle.remove(connection)
                self._leave(connection)

    def recall(self) -> None:
        """Give back every mail whose envelope went ahead of its turn."""
        for connection in self.open:
            connection.recall()

    async def close(self, grace_s: float) -> None:
        """Let mails on the wire finish and take leave, for `grace_s` seconds at most; then end everything."""
        self._closing = True
        for task in self._opening:
            task.cancel()
        while self.idle:
            self._leave(self.idle.pop())
        everything = [connection.closed for connection in self.open | self._leaving]
        if everything:
            await asyncio.wait(everything, timeout=grace_s)
        for connection in self.open | self._leaving:
            connection.break_off(RelayUnavailableError("unreachable", "the worker is stopping"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.gather(*self._opening, *everything, return_exceptions=True)

    def _leave(self, connection: Connection) -> None:
        self.open.discard(connection)
        self._leaving.add(connection)
        connection.quit()
