"""One relay of those that are configured: its gate, its rate, its connections, and what its answers mean for them."""

from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from otp_stream.core.masking import scrub
from otp_stream.core.outcome import Accepted, Deferred, Outcome, Rejected, Reply, Unavailable, Uncertain
from otp_stream.core.state import RelayState

from .config import RelayConfig
from .connection import Connection
from .gate import Gate, Pauses
from .pace import Pace, Sharing
from .pool import Pool
from .rate import Rate
from .reply import classify
from .turns import URGENT, Turn, Turns
from .wire import RelayUnavailableError

STALLED_S = 10.0
"""A relay that has work and gives no answer for so long is passed by, where there is another."""
_OFFENCES = 2
_MOST_LOST_AHEAD = 3
_REMEMBERED = 1_000
_MOST_PASSED = 100


class Dispatcher(Protocol):
    """Who has the jobs that wait, and all lines."""

    @property
    def closed(self) -> bool:
        """Whether no more turns are given."""
        ...

    def waiting_for(self, line: "Line") -> tuple[int, int]:
        """How many jobs this line may take now: urgent ones, and others."""
        ...

    def next_for(self, line: "Line", *, urgent_only: bool) -> Turn | None:
        """Take the job whose turn it is."""
        ...

    def push(self, turn: Turn) -> None:
        """Let a job wait."""
        ...

    def wants(self, turn: Turn) -> bool:
        """Whether the job is still ours."""
        ...

    def serve(self) -> None:
        """Give turns to whichever line may have one."""
        ...

    def gate_changed(self, line: "Line") -> None:
        """Take note that a gate opened or closed."""
        ...

    def rate_changed(self, line: "Line") -> None:
        """Take note that a relay was slowed down, or has its full rate again."""
        ...


class Line:
    """Sends what its dispatcher gives it. Nothing connects before the first job."""

    def __init__(
        self,
        config: RelayConfig,
        dispatcher: Dispatcher,
        now_ms: Callable[[], int],
        fraction: Callable[[], float],
        sharing: Sharing,
    ) -> None:
        self.config = config
        self.own = Turns()
        """Jobs that are for this relay alone while it takes any: it may have their mail already."""
        self.gate = Gate(now_ms(), fraction)
        self.pool = Pool(config, self)
        self.rate = Rate(config.rate, recovery_s=config.limits.recovery_s, share=sharing.share)
        self.pace = Pace(config.name, self.rate, sharing.reserve, self._waiting, dispatcher.serve)
        self._dispatcher = dispatcher
        self._now_ms = now_ms
        self._growth = Pauses(fraction)
        self._grow_from_ms = 0
        # some connections are kept for urgent jobs, so that a flood of others cannot hold them all
        kept = max(1, config.pool_size // 50) if config.pool_size > 1 else 0
        self._ordinary_limit = config.pool_size - kept
        self._ordinary = 0
        self._sending = 0
        self._pipelining: bool | None = None
        self._sends_ahead = True
        """Whether the relay takes an envelope behind the content before it."""
        self._lost_ahead = 0
        self._heard_at = monotonic()
        self._replies: Counter[int] = Counter()
        self._refusals: Counter[int] = Counter()
        """Replies to a mail that were about every mail: none was taken with them."""
        self._failed_recipients: set[str] = set()
        """Recipients whose mail failed since the circuit breaker opened: the next probe is for another recipient."""
        self._closer: str | None = None
        """The recipient whose mail closed the gate."""
        self._offences: Counter[str] = Counter()
        """How often a recipient's mail has closed the gate and another's has opened it, since one was accepted."""

    def look(self) -> RelayState:
        """Return what there is to know at this moment."""
        gate = self.gate
        return RelayState(
            name=self.config.name,
            gate=gate.state,
            since_ms=gate.since_ms,
            reason=gate.reason,
            error=gate.error,
            probe_ms=gate.probe_ms,
            probing=self.probing,
            size=self.config.pool_size,
            connections=len(self.pool.open),
            sending=self._sending,
            waiting=len(self.own) + sum(connection.following is not None for connection in self.pool.open),
            stalled=self.stalled,
            connects=self.pool.connects,
            replies={str(code): count for code, count in (self._replies + self._refusals).items()},
            rate=self.rate.allowed(monotonic()),
            slowed=self.rate.slowed,
        )

    @property
    def probing(self) -> bool:
        """Whether a probe is on its way: a job, one that waits for its connection, or a connection alone."""
        return self.gate.state == "half_open" and bool(self.gate.probing or self.pool.opening or self._waiting())

    def probe(self) -> bool:
        """Send the next probe now. Returns whether one is on its way; not where the last one has only just failed.

        Where no job waits, a connection is set up: it shows whether the relay can be reached and accepts the login.
        """
        if self.gate.half_open(self._now_ms(), requested=True):
            self._gate_changed()
        if self.gate.state != "half_open":
            return False
        # with a connection open, a new one that fails would leave the circuit breaker as it is
        if not self._waiting() and not self.pool.open:
            self.pool.grow(1)
        return True

    def probe_in_ms(self) -> int:
        """Return in how many milliseconds a probe may be requested."""
        return max(self.gate.next_probe_ms(requested=True) - self._now_ms(), 0)

    @property
    def stalled(self) -> bool:
        """Whether it has something to answer and does not."""
        return self._busy and monotonic() - self._heard_at > STALLED_S

    @property
    def _busy(self) -> bool:
        return bool(self._sending or self.pool.opening)

    def serve(self) -> None:
        """Give what waits to the connections that rest; set up more if that is not enough."""
        idle = self.pool.idle
        while idle:
            connection = idle.pop()
            if not self._occupy(connection):
                idle.append(connection)
                break
        self._grow()

    def pulse(self) -> None:
        """Look after time limits; the gate opens half when its pause is over."""
        self.pool.pulse()
        if self.gate.half_open(self._now_ms()):
            self._gate_changed()
        now = monotonic()
        if not self.rate.limited:
            self.rate.count(self._replies.total(), now)
        if self.rate.settle(now):
            self._dispatcher.rate_changed(self)

    # the pool and its connections call from here on

    def free(self, connection: Connection) -> None:
        """Give the connection its next mail, or let it rest."""
        self._heard_at = monotonic()
        if connection.fresh:
            self._growth.reset()
        if self.pool.usable(connection) and not self._occupy(connection):
            self.pool.rest(connection)
        self._grow()

    def wants(self, turn: Turn) -> bool:
        """Tell whether the job is still ours, as far as can be known at this moment."""
        return not turn.result.done() and self._dispatcher.wants(turn)

    def follow(self, connection: Connection) -> None:
        """Let the next mail's envelope go out behind the content of the one before."""
        if self._sends_ahead and self.gate.state == "open" and not self.pool.worn(connection, connection.mails + 1):
            self._occupy(connection)

    @property
    def pipelining(self) -> bool | None:
        """Whether the relay answers pipelined commands; `None` while nobody knows."""
        return self._pipelining

    def pipelined(self, *, works: bool) -> None:
        """Remember for all connections whether the relay answered pipelined commands."""
        self._pipelining = works

    def refused_ahead(self) -> None:
        """Send no envelope ahead to this relay any more."""
        self._sends_ahead = False

    def answered_ahead(self, *, taken: bool) -> None:
        """Send no envelope ahead any more after as many in a row that the relay may not have liked."""
        self._lost_ahead = 0 if taken else self._lost_ahead + 1
        if self._lost_ahead >= _MOST_LOST_AHEAD:
            self._sends_ahead = False

    def began(self, turn: Turn) -> None:
        """Count a mail from the moment at which it has its connection to itself."""
        self._heard_at = monotonic()
        self._count(turn, 1)

    def give_back(self, turn: Turn) -> None:
        """Let a mail wait for another connection."""
        if self._dispatcher.closed or turn.result.done():
            turn.result.cancel()
        else:
            self._dispatcher.push(turn)
            self._dispatcher.serve()

    def ended(self, turn: Turn, outcome: Outcome) -> None:
        """Hand out what the relay said of a mail."""
        if isinstance(outcome, Accepted | Rejected | Deferred):
            self._replies[outcome.reply.code] += 1
        elif isinstance(outcome, Unavailable) and outcome.code is not None:
            self._refusals[outcome.code] += 1
        self._off_the_wire(turn, outcome)

    def broke(self, connection: Connection, turn: Turn | None, error: RelayUnavailableError) -> None:
        """Decide what a lost connection means for the mail that was on it."""
        self._heard_at = monotonic()
        self.pool.forget(connection)
        if turn is None:
            pass
        elif turn.refusal is not None and (outcome := classify(turn.refusal)) is not None:
            self.ended(turn, outcome)
        elif turn.written:
            self._off_the_wire(turn, Uncertain(f"{error}, after the final dot", self.config.name))
        elif self._dispatcher.closed or turn.result.done():
            self._count(turn, -1)
            # nobody waits for this probe any more: the next job takes its place
            self.gate.probing = self.gate.probing and not turn.probe
            turn.result.cancel()
        elif turn.withdrawn or (not connection.fresh and not (turn.answered and turn.losses)):
            # a connection that went stale is no news of the relay, and nothing of the mail has left
            turn.losses += not turn.withdrawn
            self._count(turn, -1)
            self.gate.probing = self.gate.probing and not turn.probe
            turn.probe = False
            self._dispatcher.push(turn)
        else:
            self._off_the_wire(turn, Unavailable(error.reason, str(error)))
        self._dispatcher.serve()

    def unopened(self, error: RelayUnavailableError) -> None:
        """Close the gate when no connection can be had; while others work or may do, only stop growing for a while."""
        if self.pool.open or (error.reason in {"throttled", "unreachable"} and self.pool.opening):
            self._grow_from_ms = self._now_ms() + self._growth.next_ms(error.reason)
            return
        turn = self._dispatcher.next_for(self, urgent_only=False)
        text = scrub(str(error), self.config.password or "")  # a relay may quote the login
        if self.gate.close(error.reason, text, self._now_ms()):
            if turn is not None:
                turn.end(Unavailable(error.reason, text))
            self._gate_changed()
        elif turn is not None:
            self._dispatcher.push(turn)

    def _occupy(self, connection: Connection) -> bool:
        before = connection.turn
        while turn := self._take(before):
            refusal = connection.start(turn)
            if refusal is None:
                self._heard_at = self._heard_at if self._busy else monotonic()
                turn.probe = self.gate.probing = self.gate.state == "half_open"
                if before is None:
                    self._count(turn, 1)
                return True
            turn.end(Rejected(refusal))
        return False

    def _take(self, before: Turn | None) -> Turn | None:
        limited = self.rate.limited
        if not self.gate.passable or (limited and not self.pace.slots()):
            return None
        # behind an ordinary mail another one takes no more connections than there are taken
        urgent_only = self._ordinary >= self._ordinary_limit and (before is None or before.rank < URGENT)
        turn = self._dispatcher.next_for(self, urgent_only=urgent_only)
        if turn is not None and self.gate.state == "half_open" and turn.mail.recipient in self._failed_recipients:
            turn = self._untried(turn, urgent_only=urgent_only)
        if limited and turn is not None:
            self.rate.use(monotonic())
        return turn

    def _untried(self, turn: Turn, *, urgent_only: bool) -> Turn:
        """Return the next job for a recipient whose mail has not failed yet; if there is none, this one."""
        passed = [turn]
        found = None
        while found is None and len(passed) < _MOST_PASSED:
            other = self._dispatcher.next_for(self, urgent_only=urgent_only)
            if other is None:
                break
            if other.mail.recipient in self._failed_recipients:
                passed.append(other)
            else:
                found = other
        if found is None:
            self._failed_recipients.clear()  # each of them in turn
            found = passed.pop(0)
        for other in passed:
            self._dispatcher.push(other)
        return found

    def _grow(self) -> None:
        if self.pool.room <= 0 or not self.gate.passable:
            return
        urgent, others = self._dispatcher.waiting_for(self)
        if not urgent + others or ((self.pool.open or self.pool.opening) and self._now_ms() < self._grow_from_ms):
            return
        self._heard_at = self._heard_at if self._busy else monotonic()
        ordinary = min(others, max(self._ordinary_limit - self._ordinary, 0))
        wanted = urgent + ordinary if self.gate.state == "open" else 1
        self.pool.grow(min(wanted, self.pace.lacking()) if self.rate.limited else wanted)

    def _off_the_wire(self, turn: Turn, outcome: Outcome) -> None:
        self._count(turn, -1)
        now_ms = self._now_ms()
        recipient = turn.mail.recipient
        changed = False
        match outcome:
            case Unavailable(_, error) if self._is_alone_with(turn, outcome):
                # everybody else's mail is taken: one address must not hold up all of them
                outcome = Deferred(Reply(421, None, f"met by this recipient alone: {error}", "rcpt"))
            case Unavailable(reason, error):
                # where the gate is told of, nobody knows whose secrets these words may hold
                changed = self.gate.close(reason, scrub(error, *turn.mail.secrets), now_ms, probe=turn.probe)
                self._failed_recipients.add(recipient)
                if changed:
                    self._closer = recipient
                    if reason == "throttled":
                        self.pace.throttled()
                    if turn.probe or (reason == "unreachable" and outcome.code not in {None, 421}):
                        # it refuses all mail and ends no session: it may take mail in a new one only
                        self.pool.renew()
            case Uncertain(error) if turn.probe:
                changed = self.gate.close("unreachable", scrub(error, *turn.mail.secrets), now_ms, probe=True)
            case _:
                if self._offences and isinstance(outcome, Accepted):
                    del self._offences[recipient]
                changed = turn.probe and self.gate.open(now_ms)
                if changed:
                    self._blame(recipient)
        turn.end(outcome)
        if changed:
            self._gate_changed()

    def _is_alone_with(self, turn: Turn, outcome: Unavailable) -> bool:
        # MAIL names no recipient, and a probe may get the reply that every mail would get
        return self._offences[turn.mail.recipient] >= _OFFENCES and outcome.stage != "mail" and not turn.probe

    def _gate_changed(self) -> None:
        if self.gate.state == "open" or len(self._failed_recipients) > _REMEMBERED:
            self._failed_recipients.clear()
        if self.gate.state == "closed":
            self.rate.hold(monotonic())
        else:
            self.rate.resume(monotonic())
        self._dispatcher.gate_changed(self)

    def _waiting(self) -> int:
        return sum(self._dispatcher.waiting_for(self))

    def _blame(self, opener: str) -> None:
        closer, self._closer = self._closer, None
        if closer is not None and closer != opener:
            self._offences[closer] += 1
        if len(self._offences) > _REMEMBERED:
            self._offences.clear()

    def _count(self, turn: Turn, change: int) -> None:
        self._sending += change
        if turn.rank >= URGENT:
            self._ordinary += change
