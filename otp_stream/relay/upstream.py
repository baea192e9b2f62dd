"""One configured relay: its circuit breaker, rate and connections, and how its replies affect them."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from time import monotonic

from otp_stream.core.masking import scrub
from otp_stream.core.outcome import Accepted, Deferred, Outcome, Rejected, Unavailable, Uncertain
from otp_stream.core.state import RelayState

from .availability import Availability
from .circuit_breaker import Pauses
from .config import RelayConfig
from .connection import Connection
from .next_mail import NextMail
from .pending_send import PendingSend
from .pipeline import Event
from .pool import Pool
from .protocol import RelayUnavailableError
from .rate import Rate
from .rate_limiter import RateLimiter, Sharing
from .reply import classify
from .send_queue import URGENT
from .waiting_sends import WaitingSends


class Upstream:
    """Sends waiting mails. Nothing connects before the first one.

    Calls `changed` when its circuit breaker changes, and when mails can be sent: by this relay, or by another one.
    """

    def __init__(
        self,
        config: RelayConfig,
        availability: Availability,
        waiting: WaitingSends,
        changed: Callable[["Upstream"], None],
        now_ms: Callable[[], int],
        fraction: Callable[[], float],
        sharing: Sharing,
    ) -> None:
        self.config = config
        self.availability = availability
        self.breaker = availability.breaker
        self.pool = Pool(config, careful=availability.slowness is not None)
        self.rate = Rate(config.rate, recovery_s=config.limits.recovery_s, share=sharing.share)
        self.limiter = RateLimiter(config.name, self.rate, sharing.reserve, self._waiting_count, partial(changed, self))
        self._waiting = waiting
        self._next = NextMail(availability, waiting, self.rate, self.limiter, now_ms)
        self._changed = changed
        self._now_ms = now_ms
        self._growth = Pauses(fraction)
        self.grow_from_ms = 0  # until then no connection is opened beside others, because the relay refused the last
        self._ordinary_limit = config.ordinary_connections
        self._ordinary = self._sending = 0
        self._replies: Counter[int] = Counter()
        self._refusals: Counter[int] = Counter()  # replies to one mail that are about all mail

    def state(self) -> RelayState:
        """Return the current state."""
        breaker = self.breaker
        return RelayState(
            name=self.config.name,
            circuit_breaker=breaker.state,
            since_ms=breaker.since_ms,
            reason=breaker.reason,
            error=breaker.error,
            probe_ms=breaker.probe_ms,
            probing=self.probing,
            size=self.config.pool_size,
            connections=len(self.pool.open),
            sending=self._sending,
            saturated=self.pool.saturated,
            waiting=self._waiting.own(self.availability) + self.pool.following,
            stalled=self.availability.stalled,
            connects=self.pool.connects,
            replies={str(code): count for code, count in (self._replies + self._refusals).items()},
            rate=self.rate.allowed(monotonic()),
            slowed=self.rate.slowed,
            suspended=self.availability.senders.errors(),
            credentials=self.pool.credentials(),
        )

    @property
    def probing(self) -> bool:
        """Whether a probe is in flight: a job, a job that waits for its connection, or a connection alone."""
        if self.breaker.state == "closed":
            return self.availability.senders.probing or any(self._waiting.count_probes(self.availability))
        in_flight = self.breaker.probing or self.pool.opening or self._waiting_count()
        return self.breaker.state == "half_open" and bool(in_flight)

    def probe(self) -> bool:
        """Send the next probe now, unless the last one failed a moment ago. Returns whether a probe is in flight.

        While the relay takes mail, the same for each suspended tenant, if one of its jobs waits.
        """
        if self.availability.half_open(self._now_ms(), requested=True):
            self.breaker_changed()
        if self.breaker.state == "closed":
            self.serve()
            return self.probing
        if self.breaker.state != "half_open":
            return False
        # a connection alone shows whether the relay accepts the login, unless another one is open
        if not self._waiting_count() and not self.pool.open:
            self.pool.grow(1, self._connect)
        return True

    def retry_login(self) -> None:
        """Open connections without a pause, because the secret of the login is another one now."""
        self.grow_from_ms = 0
        self.availability.retry_login(self._now_ms())

    def probe_in_ms(self) -> int:
        """Return in how many milliseconds a probe may be requested."""
        return max(self.availability.next_probe_ms() - self._now_ms(), 0)

    def serve(self) -> None:
        """Send waiting mail over the idle connections, and open more if there are too few."""
        idle = self.pool.idle
        while idle:
            connection = idle.pop()
            if not self._occupy(connection):
                idle.append(connection)
                break
        self._grow()

    def tick(self) -> bool:
        """Check time limits, and let the circuit breaker become half-open when its pause is over.

        Returns whether the relay was slowed down, or has its full rate again.
        """
        self.pool.check_timeouts()
        self.availability.replace_slow_probe(self._now_ms())
        self._next.release_failed()
        if self.availability.half_open(self._now_ms(), waiting=self._waiting.held_back(self.availability)):
            self.breaker_changed()
        now = monotonic()
        if not self.rate.limited:
            self.rate.count(self._replies.total(), now)
        return self.rate.update(now)

    def breaker_changed(self) -> None:
        """Report that the circuit breaker has changed, and adapt the rate."""
        if self.breaker.state == "open":
            self.rate.hold(monotonic())
        else:
            self.rate.resume(monotonic())
        self._changed(self)

    def _connection_changed(self, connection: Connection) -> None:
        self.availability.replied()
        events, connection.events = connection.events, []
        for pending, event in events:
            self._mail_changed(connection, pending, event)
        if connection.lost is not None:
            self.pool.forget(connection)
            if self.availability.connection_lost(connection.lost, self._now_ms()):
                self.breaker_changed()
            self._changed(self)
        elif connection.free:
            self._use(connection)
        elif any(event == "requeued" for _, event in events):
            self._changed(self)
        else:
            self._follow(connection)

    def _mail_changed(self, connection: Connection, pending: PendingSend, event: Event) -> None:
        match event:
            case "started":
                self._count(pending, 1)
            case "requeued":
                self._waiting.push(pending)
            case RelayUnavailableError():
                self._lost(connection, pending, event)
            case _:
                self._replied(pending, event)

    def _replied(self, pending: PendingSend, outcome: Outcome) -> None:
        if isinstance(outcome, Accepted | Rejected | Deferred):
            self._replies[outcome.reply.code] += 1
        elif isinstance(outcome, Unavailable) and outcome.reply is not None:
            self._refusals[outcome.reply.code] += 1
        self._finish(pending, outcome)

    def _lost(self, connection: Connection, pending: PendingSend, error: RelayUnavailableError) -> None:
        """Decide what a lost connection means for the mail that was on it."""
        if pending.refusal is not None and (outcome := classify(pending.refusal)) is not None:
            self._replied(pending, outcome)
        elif pending.written:
            self._finish(pending, Uncertain(f"{error}, after its content was sent", self.config.name))
        elif self._is_lost_without_cause(connection, pending):
            pending.losses += not pending.withdrawn
            self._count(pending, -1)
            self.availability.probe_withdrawn(pending)
            self._waiting.push(pending)
        else:
            self._finish(pending, Unavailable(error.reason, str(error)))

    def _use(self, connection: Connection) -> None:
        """Send the next mail over the connection, or keep it idle."""
        if connection.fresh:
            self._growth.reset()
        if self.pool.usable(connection):
            if self._occupy(connection):
                self._follow(connection)
            else:
                self.pool.keep_idle(connection)
        self._grow()

    def _follow(self, connection: Connection) -> None:
        """Send another mail, or its envelope, behind the one on the connection, if the relay and the queue allow it."""
        if not connection.followable or self.breaker.state != "closed":
            return
        # another connection is better: there, the mail does not wait for the reply to the mail before it
        has_others = connection.is_chunking and self._ordinary < self._ordinary_limit
        if not has_others and not self.pool.is_used_up(connection, connection.mails + 1):
            self._occupy(connection)

    async def _connect(self) -> None:
        try:
            with self.availability.connecting():
                connection = await self.pool.connect(self._connection_changed)
        except RelayUnavailableError as error:
            self._connect_failed(error)
        except Exception as error:
            self._connect_failed(RelayUnavailableError("unreachable", f"error of otp-stream: {type(error).__name__}"))
            raise  # so that asyncio logs it
        else:
            self._use(connection)

    def _connect_failed(self, error: RelayUnavailableError) -> None:
        # while other connections work, or may still be opened, only the growth of the pool pauses
        if self.pool.open or (error.reason in {"throttled", "unreachable"} and self.pool.opening):
            self.grow_from_ms = self._now_ms() + self._growth.next_ms(error.reason)
            return
        pending = self._waiting.take(self.availability, urgent_only=False)
        text = scrub(str(error))
        if self.breaker.open(error.reason, text, self._now_ms()):
            if pending is not None:
                pending.resolve(Unavailable(error.reason, text))
            self.breaker_changed()
        elif pending is not None:
            self._waiting.push(pending)

    def _occupy(self, connection: Connection) -> bool:
        before = connection.current
        while pending := self._take(before):
            pending.probe = self.breaker.state == "half_open"
            if (refusal := connection.start(pending)) is None:
                self.availability.started(pending)
                if before is None:
                    self._count(pending, 1)
                return True
            pending.resolve(Rejected(refusal))
        return False

    def _take(self, before: PendingSend | None) -> PendingSend | None:
        # an ordinary mail behind another one occupies no additional connection
        urgent_only = self._ordinary >= self._ordinary_limit and (before is None or before.rank < URGENT)
        return self._next.take(urgent_only=urgent_only, behind=before is not None)

    def _grow(self) -> None:
        if self.pool.room <= 0 or self.pool.idle or not self.breaker.passable:
            return
        urgent, others = self._waiting.count(self.availability)
        if not urgent + others or ((self.pool.open or self.pool.opening) and self._now_ms() < self.grow_from_ms):
            return
        ordinary = min(others, max(self._ordinary_limit - self._ordinary, 0))
        wanted = urgent + ordinary if self.breaker.state == "closed" else 1
        wanted = min(wanted, self.limiter.lacking()) if self.rate.limited else wanted
        self.pool.grow(wanted, self._connect)

    def _finish(self, pending: PendingSend, outcome: Outcome) -> None:
        self._count(pending, -1)
        verdict = self.availability.judge(pending, outcome, self._now_ms())
        if verdict.changed and verdict.slows and self.breaker.reason == "throttled":
            self.limiter.throttled()
        if verdict.renew:
            self.pool.renew()
        if verdict.sender_changed:
            self._waiting.release_suspended(self.availability)
        pending.resolve(verdict.outcome)
        if verdict.changed:
            self.breaker_changed()

    def _is_lost_without_cause(self, connection: Connection, pending: PendingSend) -> bool:
        # a stale connection says nothing about the relay, and no content was sent over it
        stale = not connection.fresh and not (pending.answered and pending.losses)
        return pending.withdrawn or stale or self._waiting.closed or pending.result.done()

    def _waiting_count(self) -> int:
        return sum(self._waiting.count(self.availability))

    def _count(self, pending: PendingSend, change: int) -> None:
        self._sending += change
        self.availability.owes(change)
        self._ordinary += change if pending.rank >= URGENT else 0
