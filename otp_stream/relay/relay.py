"""The relay as the worker uses it: one call for each mail, in the right order, through the gate."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable

from otp_stream.core.mail import Mail
from otp_stream.core.outcome import Accepted, Deferred, Lapsed, Outcome, Rejected, Unavailable, Uncertain
from otp_stream.core.state import RelayState

from .config import RelayConfig
from .connection import Connection
from .gate import Gate, Pauses
from .pool import Pool
from .reply import classify
from .turns import URGENT, Turn, Turns
from .wire import TroubleError

_PULSE_S = 0.1
"""How often time limits are looked at: one timer for all connections, jobs and the gate."""
_FROZEN_S = 1.0
"""A pulse as late as this means that the process stood still: the broker may have given its jobs to others."""
_THAW_S = 0.25
"""After that, how long no turn is given, so that a lost connection to the broker is noticed first."""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class SmtpRelay:
    """Sends mail through one relay. Nothing connects before the first `send`.

    `on_gate` hears of every change of the gate; `now_ms` is the clock (milliseconds since 1970) and `fraction` the
    randomness of the gate's pauses, in [0, 1).
    """

    def __init__(
        self,
        config: RelayConfig,
        *,
        on_gate: Callable[[RelayState], None] | None = None,
        now_ms: Callable[[], int] = _now_ms,
        fraction: Callable[[], float] = random.random,
    ) -> None:
        self._config = config
        self._on_gate = on_gate
        self._now_ms = now_ms
        self._turns = Turns()
        self._gate = Gate(now_ms(), fraction)
        self._pool = Pool(config, self)
        self._growth = Pauses(fraction)
        self._grow_from_ms = 0
        # some connections are kept for urgent jobs, so that a flood of others cannot hold them all
        kept = max(1, config.pool_size // 20) if config.pool_size > 1 else 0
        self._ordinary_limit = config.pool_size - kept
        self._ordinary = 0
        self._sending = 0
        self._replies: Counter[int] = Counter()
        self._suspect: Mail | None = None
        """The mail that closed the gate: the probe is another one's, lest one mail keep it shut."""
        self._pulse_timer: asyncio.TimerHandle | None = None
        self._pulsed = self._thawed = 0.0
        self._closed = False

    async def send(
        self,
        mail: Mail,
        *,
        rank: int,
        lane: str,
        expires_ms: int,
        deadline_ms: int,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Outcome:
        """Wait for a turn (none while the gate is closed), then send, once.

        `rank` is 0 to 3, most urgent first; within a rank the lane `due` and the rest alternate, each by `expires_ms`.
        Returns `Lapsed` when no turn came before `deadline_ms`, or when it came and `wanted` said no: a job that
        another worker has by now must not be sent twice. Times are milliseconds since 1970. A call that is cancelled
        gives its place up; a mail that is on the wire stays there. After `finish` the call is cancelled.
        """
        turn = Turn(mail, rank, lane, expires_ms, deadline_ms, asyncio.get_running_loop().create_future(), wanted)
        if self._closed:
            turn.result.cancel()
        else:
            self._turns.push(turn)
            self._serve()
        try:
            return await turn.result
        finally:
            self._turns.leave(turn)

    def look(self) -> RelayState:
        """Return what there is to know at this moment."""
        gate = self._gate
        return RelayState(
            name=self._config.name,
            gate=gate.state,
            since_ms=gate.since_ms,
            trouble=gate.trouble,
            error=gate.error,
            probe_ms=gate.probe_ms,
            size=self._config.pool_size,
            connections=len(self._pool.open),
            sending=self._sending,
            waiting=len(self._turns),
            connects=self._pool.connects,
            replies={str(code): count for code, count in self._replies.items()},
        )

    def finish(self) -> None:
        """Give no more turns: calls that wait for one are cancelled, mails on the wire go on to their end."""
        self._closed = True
        while turn := self._turns.take():
            turn.result.cancel()

    async def close(self, *, grace_s: float = 1.0) -> None:
        """Let mails on the wire finish within `grace_s` seconds and QUIT; calls that still wait are cancelled."""
        self.finish()
        if self._pulse_timer is not None:
            self._pulse_timer.cancel()
        await self._pool.close(grace_s)

    # the pool and its connections call from here on

    def free(self, connection: Connection) -> None:
        """Give the connection its next mail, or let it rest."""
        if connection.fresh:
            self._growth.reset()
        if self._pool.usable(connection) and not self._occupy(connection):
            self._pool.rest(connection)
        self._grow()

    def wants(self, turn: Turn) -> bool:
        """Tell whether the job is still ours, as far as can be known at this moment."""
        return turn.wanted() and not self._is_frozen()

    def ended(self, turn: Turn, outcome: Outcome) -> None:
        """Hand out what the relay said of a mail."""
        if isinstance(outcome, Accepted | Rejected | Deferred):
            self._replies[outcome.reply.code] += 1
        self._off_the_wire(turn, outcome)

    def broke(self, connection: Connection, turn: Turn | None, error: TroubleError) -> None:
        """Decide what a lost connection means for the mail that was on it."""
        self._pool.forget(connection)
        if turn is None:
            pass
        elif turn.refusal is not None and (outcome := classify(turn.refusal)) is not None:
            self.ended(turn, outcome)
        elif turn.written:
            self._off_the_wire(turn, Uncertain(f"{error}, after the final dot"))
        elif self._closed:
            self._count(turn, -1)
            turn.result.cancel()
        elif turn.withdrawn or (not connection.fresh and not (turn.answered and turn.losses)):
            # a connection that went stale is no news of the relay, and nothing of the mail has left
            turn.losses += not turn.withdrawn
            self._count(turn, -1)
            self._gate.probing = self._gate.probing and not turn.probe
            turn.probe = False
            self._turns.push(turn)
        else:
            self._off_the_wire(turn, Unavailable(error.trouble, str(error)))
        self._serve()

    def unopened(self, error: TroubleError) -> None:
        """Close the gate when no connection can be had; while others work, only stop growing for a while."""
        if self._pool.open:
            self._grow_from_ms = self._now_ms() + self._growth.next_ms(error.trouble)
        elif self._gate.close(error.trouble, str(error), self._now_ms()):
            if turn := self._turns.take():
                turn.end(Unavailable(error.trouble, str(error)))
            self._tell_gate()

    def _serve(self) -> None:
        idle = self._pool.idle
        while idle:
            connection = idle.pop()
            if not self._occupy(connection):
                idle.append(connection)
                break
        self._grow()
        if self._pulse_timer is None and not self._closed:
            self._pulsed = time.monotonic()
            self._pulse_timer = asyncio.get_running_loop().call_later(_PULSE_S, self._pulse)

    def _occupy(self, connection: Connection) -> bool:
        while turn := self._take():
            refusal = connection.start(turn)
            if refusal is None:
                turn.probe = self._gate.probing = self._gate.state == "half_open"
                self._count(turn, 1)
                return True
            turn.end(Rejected(refusal))
        return False

    def _take(self) -> Turn | None:
        if not self._gate.passable or self._is_frozen():
            return None
        urgent_only = self._ordinary >= self._ordinary_limit
        while turn := self._turns.take(urgent_only=urgent_only):
            if turn.mail == self._suspect and (other := self._turns.take(urgent_only=urgent_only)):
                self._turns.push(turn)
                self._suspect, turn = None, other
            if self._now_ms() < turn.deadline_ms and turn.wanted():
                return turn
            turn.end(Lapsed())
        return None

    def _is_frozen(self) -> bool:
        now = time.monotonic()
        return now < self._thawed or (self._pulse_timer is not None and now - self._pulsed > _FROZEN_S)

    def _grow(self) -> None:
        if self._pool.room <= 0 or not self._turns or not self._gate.passable:
            return
        if self._pool.open and self._now_ms() < self._grow_from_ms:
            return
        urgent = self._turns.urgent
        ordinary = min(len(self._turns) - urgent, max(self._ordinary_limit - self._ordinary, 0))
        self._pool.grow(urgent + ordinary if self._gate.state == "open" else 1)

    def _off_the_wire(self, turn: Turn, outcome: Outcome) -> None:
        self._count(turn, -1)
        now_ms = self._now_ms()
        match outcome:
            case Unavailable(trouble, error):
                changed = self._gate.close(trouble, error, now_ms, probe=turn.probe)
                self._suspect = turn.mail if changed else self._suspect
            case Uncertain(error) if turn.probe:
                changed = self._gate.close("unreachable", error, now_ms, probe=True)
            case _:
                changed = turn.probe and self._gate.open(now_ms)
        turn.end(outcome)
        if changed:
            self._tell_gate()

    def _count(self, turn: Turn, change: int) -> None:
        self._sending += change
        if turn.rank >= URGENT:
            self._ordinary += change

    def _tell_gate(self) -> None:
        if self._on_gate is not None:
            self._on_gate(self.look())
        # the caller may be in the middle of something
        asyncio.get_running_loop().call_soon(self._serve)

    def _pulse(self) -> None:
        if time.monotonic() - self._pulsed > _FROZEN_S:
            self._thawed = time.monotonic() + _THAW_S
        self._pulse_timer = None
        now_ms = self._now_ms()
        self._pool.pulse()
        for turn in self._turns.lapsed(now_ms):
            turn.end(Lapsed())
        if self._gate.half_open(now_ms):
            self._tell_gate()
        if self._pool.alive or self._turns or self._gate.state == "closed":
            self._serve()
