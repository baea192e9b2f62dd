"""Sends each mail, most urgent first, through the first relay that takes mail."""

import asyncio
import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

from otp_stream import clock
from otp_stream.core.mail import Mail
from otp_stream.core.outcome import Outcome, with_route
from otp_stream.core.probe import Probed
from otp_stream.core.state import CircuitBreakerState, RelayState
from otp_stream.telemetry_errors import observe

from . import slow_mails
from .availability import Availability
from .config import RelayConfig
from .pending_send import PendingSend
from .rate_limiter import Sharing
from .relay_choice import RelayChoice
from .slowness import Slowness
from .suspension import Suspension
from .upstream import Upstream
from .waiting_sends import WaitingSends

_TICK_S = 0.1
"""How often time limits are checked, by one timer for all connections, jobs and breakers."""
_PROBE_S = 25.0
"""How long a caller waits for a requested probe, which continues after that."""
_PROBE_POLL_S = 0.05
_STEADY_FROM_MS = clock.now_ms() - time.monotonic_ns() // 1_000_000


def _steady_ms() -> int:
    # the clock for pauses: if the wall clock is set back by an hour, a circuit breaker must not stay open for an hour
    return _STEADY_FROM_MS + time.monotonic_ns() // 1_000_000


class SmtpRelay:
    """Sends mail through the first relay whose circuit breaker is closed: `config`'s, or one of `fallbacks`, in order.

    All relays take from one queue of waiting jobs, so the next relay takes them when a circuit breaker opens, and the
    first one again when it closes. Nothing connects before the first `send`. `on_circuit_breaker` is called for every
    change of a circuit breaker, `on_rate` when a relay is slowed down and when it has its full rate again,
    `on_slowness` when a relay becomes slow, for all mail or for a domain, and when it is fast again, `on_sender` with a
    tenant and an error when a relay refuses its sender, and with `None` when it accepts it again; `sharing` defines how
    workers share a rate. `now_ms` is the clock for expiry (milliseconds since 1970), `steady_ms` the clock for
    pauses, which is never set back, and `fraction` in [0, 1) their jitter.
    """

    def __init__(  # noqa: PLR0913 - one callback for each kind of change
        self,
        config: RelayConfig,
        *,
        fallbacks: Sequence[RelayConfig] = (),
        on_circuit_breaker: Callable[[RelayState], None] | None = None,
        on_rate: Callable[[RelayState], None] | None = None,
        on_slowness: Callable[[RelayState], None] | None = None,
        on_sender: Callable[[RelayState, str, str | None], None] | None = None,
        sharing: Sharing = Sharing(),  # noqa: B008 - frozen
        now_ms: Callable[[], int] = clock.now_ms,
        steady_ms: Callable[[], int] = _steady_ms,
        fraction: Callable[[], float] = random.random,
    ) -> None:
        self._on_circuit_breaker = on_circuit_breaker
        self._on_rate = on_rate
        self._on_slowness = on_slowness
        self._on_sender = on_sender
        self._now_ms, self._steady_ms = now_ms, steady_ms
        self._suspension = Suspension()
        configs = (config, *fallbacks)
        relays = [
            Availability(
                it.name,
                steady_ms(),
                fraction,
                Slowness() if fallbacks else None,
                shared=it.shared,
                sender=it.sender,
                scheme="smtps" if it.tls == "implicit" else "smtp",
            )
            for it in configs
        ]
        self._waiting = WaitingSends(relays, self._suspension, now_ms)
        self._upstreams = [
            Upstream(it, relay, self._waiting, self._changed, steady_ms, fraction, sharing)
            for it, relay in zip(configs, relays, strict=True)
        ]
        self._reported: dict[Upstream, CircuitBreakerState] = {}
        """The state of each circuit breaker that was reported last."""
        self._reported_suspended: dict[Upstream, frozenset[str]] = {}
        """The tenants whose suspension at a relay was reported last."""
        self._timer: asyncio.TimerHandle | None = None

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
        """Wait for a connection (none while every circuit breaker is open), then send, once.

        `rank` is 0 to 3, most urgent first; within a rank the lane `due` and the rest alternate, each by `expires_ms`.
        Returns `TimedOut` if no connection was available before `deadline_ms`, or if `wanted` returned false when there
        was one, for example because another worker has the job now. Times are milliseconds since 1970. `prefer` names
        the relay that may have this mail already: it is used first, unless its circuit breaker is open, because it can
        recognise the copy by its Message-ID. A cancelled call is removed from the queue; a mail whose content has been
        sent is completed. After `finish`, the call is cancelled.
        """
        result = asyncio.get_running_loop().create_future()
        may_send = partial(self._may_send, expires_ms, wanted, result)
        pending = PendingSend(mail, rank, lane, expires_ms, deadline_ms, result, wanted, may_send)
        pending.prefer, pending.uncertain = prefer, prefer is not None
        self._waiting.push(pending)
        self._serve()
        try:
            outcome = await pending.result
            return with_route(outcome, pending.route, pending.switched_from)
        finally:
            if pending.queue is not None:
                pending.queue.remove(pending)

    def state(self) -> tuple[RelayState, ...]:
        """Return the state of each relay; jobs that wait for any of them are counted with the first."""
        first, *others = map(self._state, self._upstreams)
        return replace(first, waiting=first.waiting + self._waiting.common), *others

    async def probe(self, name: str | None = None, *, wait_s: float = _PROBE_S) -> list[Probed]:
        """Send the next probe now to the relays that take no mail, or not of all tenants: to all, or to that `name`.

        Waits at most `wait_s` seconds for the result. If a probe is already in flight, waits for that one.
        """
        upstreams = [upstream for upstream in self._upstreams if name in {None, upstream.config.name}]
        probed = [
            (upstream, not self._waiting.closed and not upstream.availability.takes_all_mail and upstream.probe())
            for upstream in upstreams
        ]
        ends = time.monotonic() + wait_s
        while any(upstream.probing for upstream in upstreams) and not self._waiting.closed and time.monotonic() < ends:  # noqa: ASYNC110
            await asyncio.sleep(_PROBE_POLL_S)
        return [
            Probed(upstream.state(), sent, upstream.probe_in_ms(), upstream.availability.senders.state)
            for upstream, sent in probed
        ]

    def use_senders(self, senders: Collection[str | None]) -> None:
        """Note the addresses that mails are sent from, in the form that SMTP sends; `None` is the configured one.

        A relay that throttles the only one throttles all mail. Otherwise it may throttle the mail of one tenant.
        """
        for upstream in self._upstreams:
            upstream.availability.use_senders(senders)

    def retry_logins(self) -> None:
        """Try refused logins again at once, because their secrets are other ones now."""
        for upstream in self._upstreams:
            upstream.retry_login()

    def recheck(self) -> None:
        """Time out the queued mails that are no longer `wanted`."""
        self._waiting.recheck()

    def finish(self) -> None:
        """Cancel the waiting calls. Mails in flight are completed."""
        self._end(hand_over=False)

    def retire(self) -> None:
        """Raise `RelayRetiredError` in the waiting calls and in later ones: their mails go through another `SmtpRelay`.

        Mails in flight are completed; idle connections QUIT, and the others after their mails. Call `close` then, with
        the time that the mails in flight may take.
        """
        self._end(hand_over=True)
        for upstream in self._upstreams:
            upstream.pool.retire()

    def _end(self, *, hand_over: bool) -> None:
        self._waiting.close(hand_over=hand_over)
        for upstream in self._upstreams:
            upstream.pool.recall()

    async def close(self, *, grace_s: float = 1.0) -> None:
        """Let mails in flight finish within `grace_s` seconds and QUIT. Waiting calls are cancelled."""
        self.finish()
        if not self._waiting.handed_over:
            self._stop_timer()
        for upstream in self._upstreams:
            upstream.limiter.close()
        await asyncio.gather(*(upstream.pool.close(grace_s) for upstream in self._upstreams))
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _changed(self, upstream: Upstream) -> None:
        state = upstream.breaker.state
        if state == self._reported.get(upstream, "closed"):
            self._serve()
            return
        self._reported[upstream] = state
        if state == "open":
            self._waiting.release(upstream.availability)
        if self._on_circuit_breaker is not None:
            observe(self._on_circuit_breaker, replace(upstream.state(), waiting=len(self._waiting)))
        # later, because the caller may be changing its own state
        asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        """Send waiting mail over every relay that may take it."""
        if not self._waiting.closed:
            for upstream in self._upstreams:
                upstream.serve()
        elif not (self._waiting.handed_over and any(upstream.pool.alive for upstream in self._upstreams)):
            return
        if self._timer is None:
            self._suspension.start()
            self._timer = asyncio.get_running_loop().call_later(_TICK_S, self._tick)

    def _state(self, upstream: Upstream) -> RelayState:
        state, choice = upstream.state(), self._waiting.choice
        return state if choice is None else choice.describe(upstream.availability, state)

    def _check_slowness(self, choice: RelayChoice) -> None:
        if self._suspension.is_recent:
            for upstream in self._upstreams:
                upstream.availability.resumed()
            return
        now_ms = self._steady_ms()
        for upstream in self._upstreams:
            slowness = upstream.availability.slowness
            if slowness and slow_mails.check(upstream, slowness, choice, now_ms) and self._on_slowness is not None:
                observe(self._on_slowness, self._state(upstream))
        choice.tick()

    def _report_senders(self, upstream: Upstream) -> None:
        suspended = upstream.availability.senders.suspended
        before = self._reported_suspended.get(upstream, frozenset())
        if suspended == before or self._on_sender is None:
            return
        self._reported_suspended[upstream] = suspended
        state = upstream.state()
        for tenant in sorted(suspended ^ before):
            observe(self._on_sender, state, tenant, state.suspended.get(tenant))

    def _may_send(self, expires_ms: int, wanted: Callable[[], bool], result: asyncio.Future[Outcome]) -> bool:
        return not result.done() and self._now_ms() < expires_ms and wanted() and not self._suspension.is_recent

    def _tick(self) -> None:
        self._suspension.tick()
        self._timer = None
        self._waiting.time_out()
        if self._waiting.choice is not None and not self._waiting.closed:
            self._check_slowness(self._waiting.choice)
        for upstream in self._upstreams:
            if upstream.tick() and self._on_rate is not None:
                observe(self._on_rate, upstream.state())
            self._report_senders(upstream)
            if upstream.availability.stalled:
                self._waiting.release(upstream.availability)
        if (
            self._suspension.is_recent
            or len(self._waiting)
            or any(
                upstream.pool.alive or upstream.breaker.state == "open" or upstream.rate.slowed
                for upstream in self._upstreams
            )
        ):
            self._serve()
