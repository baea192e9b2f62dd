"""The relays as the worker uses them: one call for each mail, in the right order, through the first open gate."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from otp_stream import clock
from otp_stream.core.mail import Mail
from otp_stream.core.outcome import Outcome, TimedOut
from otp_stream.core.probe import Probed
from otp_stream.core.state import RelayState
from otp_stream.telemetry_errors import observe

from .config import RelayConfig
from .line import Line
from .pace import Sharing
from .turns import Turn, Turns

_PULSE_S = 0.1
"""How often time limits are looked at: one timer for all connections, jobs and gates."""
_FROZEN_S = 1.0
"""A pulse as late as this means that the process stood still: the broker may have given its jobs to others."""
_PROBE_S = 25.0
"""How long a requested probe is waited for; it goes on after that."""
_PROBE_LOOK_S = 0.05
_THAW_PULSES = 4
"""After that, for how many pulses no turn is given, so that a lost connection to the broker is noticed first. Counted,
not timed: on a machine that is short of processors, time passes without a look at what the network brought."""


_STEADY_FROM_MS = clock.now_ms() - time.monotonic_ns() // 1_000_000


def _steady_ms() -> int:
    # for pauses: a clock that is set back by an hour must not keep a gate shut for an hour
    return _STEADY_FROM_MS + time.monotonic_ns() // 1_000_000


class SmtpRelay:
    """Sends mail through the first relay whose gate is open: `config`'s, or else one of the `fallbacks`, in order.

    All relays draw on one list of waiting jobs, so jobs move to the next relay when a gate closes, and back when it
    opens, without being moved. Nothing connects before the first `send`. `on_gate` hears of every change of a gate,
    `on_rate` when a relay is slowed down and when it has its full rate again; `sharing` is how workers share a rate.
    `now_ms` is the clock that codes live by (milliseconds since 1970), `steady_ms` the one for pauses, which nobody
    sets, and `fraction` the randomness of the gates' pauses, in [0, 1).
    """

    def __init__(
        self,
        config: RelayConfig,
        *,
        fallbacks: Sequence[RelayConfig] = (),
        on_gate: Callable[[RelayState], None] | None = None,
        on_rate: Callable[[RelayState], None] | None = None,
        sharing: Sharing = Sharing(),  # noqa: B008 - frozen
        now_ms: Callable[[], int] = clock.now_ms,
        steady_ms: Callable[[], int] = _steady_ms,
        fraction: Callable[[], float] = random.random,
    ) -> None:
        self._on_gate = on_gate
        self._on_rate = on_rate
        self._now_ms = now_ms
        self._turns = Turns()
        self._lines = [Line(one, self, steady_ms, fraction, sharing) for one in (config, *fallbacks)]
        self._pulse_timer: asyncio.TimerHandle | None = None
        self._pulsed = 0.0
        self._thawing = 0
        self.closed = False
        """Whether no more turns are given."""

    async def send(
        self,
        mail: Mail,
        *,
        rank: int,
        lane: str,
        expires_ms: int,
        deadline_ms: int,
        wanted: Callable[[], bool] = lambda: True,
        prefer: str | None = None,
    ) -> Outcome:
        """Wait for a turn (none while every gate is closed), then send, once.

        `rank` is 0 to 3, most urgent first; within a rank the lane `due` and the rest alternate, each by `expires_ms`.
        Returns `TimedOut` when no turn came before `deadline_ms`, or when it came and `wanted` said no: a job that
        another worker has by now must not be sent twice. Times are milliseconds since 1970. `prefer` names the relay
        that may have this mail already: it is asked first, as long as its gate is not closed, because it can know the
        copy by its Message-ID. A call that is cancelled gives its place up; a mail whose content has left goes on.
        After `finish` the call is cancelled.
        """
        turn = Turn(mail, rank, lane, expires_ms, deadline_ms, asyncio.get_running_loop().create_future(), wanted)
        turn.prefer = prefer
        if self.closed:
            turn.result.cancel()
        else:
            self.push(turn)
            self.serve()
        try:
            return await turn.result
        finally:
            if turn.home is not None:
                turn.home.leave(turn)

    def look(self) -> tuple[RelayState, ...]:
        """Return what there is to know of each relay; jobs that wait for any of them are told with the first."""
        first, *others = (line.look() for line in self._lines)
        return replace(first, waiting=first.waiting + len(self._turns)), *others

    async def probe(self, name: str | None = None, *, wait_s: float = _PROBE_S) -> list[Probed]:
        """Send the next probe now to relays that take no mail: to all, or to the one of this `name`.

        Waits at most `wait_s` seconds for what comes back. A probe that is on its way already is waited for, and no
        other one is sent.
        """
        lines = [line for line in self._lines if name in {None, line.config.name}]
        probed = [(line, not self.closed and line.gate.state != "open" and line.probe()) for line in lines]
        ends = time.monotonic() + wait_s
        while any(line.probing for line in lines) and not self.closed and time.monotonic() < ends:  # noqa: ASYNC110
            await asyncio.sleep(_PROBE_LOOK_S)
        return [Probed(line.look(), sent, line.probe_in_ms()) for line, sent in probed]

    def recheck(self) -> None:
        """End the wait of mails that are not `wanted` any more, whether or not their turn would come."""
        for turns in self._all_turns():
            for turn in turns.unwanted():
                turn.end(TimedOut())

    def finish(self) -> None:
        """Give no more turns: calls that wait for one are cancelled, mails on the wire go on to their end."""
        self.closed = True
        for line in self._lines:
            line.pool.recall()
        for turns in self._all_turns():
            while turn := turns.take():
                turn.result.cancel()

    async def close(self, *, grace_s: float = 1.0) -> None:
        """Let mails on the wire finish within `grace_s` seconds and QUIT; calls that still wait are cancelled."""
        self.finish()
        if self._pulse_timer is not None:
            self._pulse_timer.cancel()
        for line in self._lines:
            line.pace.close()
        await asyncio.gather(*(line.pool.close(grace_s) for line in self._lines))

    # the lines call from here on

    def push(self, turn: Turn) -> None:
        """Let a job wait, for all relays or for the one that is preferred."""
        for line in self._lines:
            if turn.prefer == line.config.name and line.gate.state != "closed" and not line.stalled:
                line.own.push(turn)
                return
        self._turns.push(turn)

    def serve(self) -> None:
        """Give turns to whichever line may have one."""
        for line in self._lines:
            line.serve()
        if self._pulse_timer is None and not self.closed:
            self._pulsed = time.monotonic()
            self._pulse_timer = asyncio.get_running_loop().call_later(_PULSE_S, self._pulse)

    def waiting_for(self, line: Line) -> tuple[int, int]:
        """How many jobs this line may take now: urgent ones, and others."""
        sources = self._sources(line)
        urgent = sum(turns.urgent for turns in sources)
        return urgent, sum(map(len, sources)) - urgent

    def next_for(self, line: Line, *, urgent_only: bool) -> Turn | None:
        """Take the job whose turn it is; those that may not or need not be sent any more end on the way."""
        if self._is_frozen():
            return None
        for turns in self._sources(line):
            while turn := turns.take(urgent_only=urgent_only):
                if self._now_ms() < turn.deadline_ms and turn.wanted():
                    return turn
                turn.end(TimedOut())
        return None

    def wants(self, turn: Turn) -> bool:
        """Tell whether the job is still ours, as far as can be known at this moment, and its code still alive."""
        return self._now_ms() < turn.expires_ms and turn.wanted() and not self._is_frozen()

    def gate_changed(self, line: Line) -> None:
        """Tell of it, and let the jobs go where they can go now."""
        if line.gate.state == "closed":
            self._let_go(line)
        if self._on_gate is not None:
            observe(self._on_gate, replace(line.look(), waiting=sum(map(len, self._all_turns()))))
        # the caller may be in the middle of something
        asyncio.get_running_loop().call_soon(self.serve)

    def rate_changed(self, line: Line) -> None:
        """Tell of it."""
        if self._on_rate is not None:
            observe(self._on_rate, line.look())

    def _sources(self, line: Line) -> list[Turns]:
        """Whence a line may take: the common list only while no relay before it takes mail."""
        for before in self._lines:
            if before is line:
                return [line.own, self._turns]
            if before.gate.state == "open" and not before.stalled:
                break
        return [line.own]

    def _let_go(self, line: Line) -> None:
        while turn := line.own.take():
            self._turns.push(turn)

    def _all_turns(self) -> list[Turns]:
        return [self._turns, *(line.own for line in self._lines)]

    def _is_frozen(self) -> bool:
        return self._thawing > 0 or (self._pulse_timer is not None and time.monotonic() - self._pulsed > _FROZEN_S)

    def _pulse(self) -> None:
        if time.monotonic() - self._pulsed > _FROZEN_S:
            self._thawing = _THAW_PULSES
        elif self._thawing:
            self._thawing -= 1
        self._pulse_timer = None
        now_ms = self._now_ms()
        for turns in self._all_turns():
            for turn in turns.lapsed(now_ms):
                turn.end(TimedOut())
        for line in self._lines:
            line.pulse()
            if line.stalled:
                self._let_go(line)
        if (
            self._thawing
            or any(self._all_turns())
            or any(line.pool.alive or line.gate.state == "closed" or line.rate.slowed for line in self._lines)
        ):
            self.serve()
