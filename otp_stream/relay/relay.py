"""Sends each mail, most urgent first, through the first relay that takes mail."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from otp_stream import clock
from otp_stream.core.mail import Mail
from otp_stream.core.outcome import Outcome, TimedOut
from otp_stream.core.probe import Probed
from otp_stream.core.state import RelayState
from otp_stream.telemetry_errors import observe

from .config import RelayConfig
from .rate_limiter import Sharing
from .send_queue import PendingSend, SendQueue
from .upstream import Upstream

_TICK_S = 0.1
"""How often time limits are checked, by one timer for all connections, jobs and breakers."""
_SUSPENDED_S = 1.0
"""A tick that is this late means that the process was suspended, and the broker may have given its jobs to others."""
_RESUME_TICKS = 4
"""For how many ticks after that no mail is sent, so that a lost connection to the broker is noticed first. Counted, not
timed: on a machine that is short of processors, time passes without a read from the network."""
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
    change of a circuit breaker, `on_rate` when a relay is slowed down and when it has its full rate again; `sharing`
    defines how workers share a rate. `now_ms` is the clock for expiry (milliseconds since 1970), `steady_ms` the clock
    for pauses, which is never set back, and `fraction` in [0, 1) their jitter.
    """

    def __init__(
        self,
        config: RelayConfig,
        *,
        fallbacks: Sequence[RelayConfig] = (),
        on_circuit_breaker: Callable[[RelayState], None] | None = None,
        on_rate: Callable[[RelayState], None] | None = None,
        sharing: Sharing = Sharing(),  # noqa: B008 - frozen
        now_ms: Callable[[], int] = clock.now_ms,
        steady_ms: Callable[[], int] = _steady_ms,
        fraction: Callable[[], float] = random.random,
    ) -> None:
        self._on_circuit_breaker = on_circuit_breaker
        self._on_rate = on_rate
        self._now_ms = now_ms
        self._queue = SendQueue()
        self._upstreams = [Upstream(one, self, steady_ms, fraction, sharing) for one in (config, *fallbacks)]
        self._timer: asyncio.TimerHandle | None = None
        self._ticked_at = 0.0
        self._resume_ticks = 0
        self.closed = False
        """Whether sending has ended."""

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
        pending.prefer = prefer
        self.push(pending)
        self.serve()
        try:
            return await pending.result
        finally:
            if pending.queue is not None:
                pending.queue.remove(pending)

    def state(self) -> tuple[RelayState, ...]:
        """Return the state of each relay; jobs that wait for any of them are counted with the first."""
        first, *others = (upstream.state() for upstream in self._upstreams)
        return replace(first, waiting=first.waiting + len(self._queue)), *others

    async def probe(self, name: str | None = None, *, wait_s: float = _PROBE_S) -> list[Probed]:
        """Send the next probe now to the relays that take no mail: to all of them, or to the one called `name`.

        Waits at most `wait_s` seconds for the result. If a probe is already in flight, waits for that one.
        """
        upstreams = [upstream for upstream in self._upstreams if name in {None, upstream.config.name}]
        probed = [
            (upstream, not self.closed and upstream.breaker.state != "closed" and upstream.probe())
            for upstream in upstreams
        ]
        ends = time.monotonic() + wait_s
        while any(upstream.probing for upstream in upstreams) and not self.closed and time.monotonic() < ends:  # noqa: ASYNC110
            await asyncio.sleep(_PROBE_POLL_S)
        return [Probed(upstream.state(), sent, upstream.probe_in_ms()) for upstream, sent in probed]

    def recheck(self) -> None:
        """Time out the queued mails that are no longer `wanted`."""
        for queue in self._all_queues():
            for pending in queue.pop_unwanted():
                pending.resolve(TimedOut())

    def finish(self) -> None:
        """Cancel the waiting calls. Mails in flight are completed."""
        self.closed = True
        for upstream in self._upstreams:
            upstream.pool.recall()
        for queue in self._all_queues():
            while pending := queue.take():
                pending.result.cancel()

    async def close(self, *, grace_s: float = 1.0) -> None:
        """Let mails in flight finish within `grace_s` seconds and QUIT. Waiting calls are cancelled."""
        self.finish()
        if self._timer is not None:
            self._timer.cancel()
        for upstream in self._upstreams:
            upstream.limiter.close()
        await asyncio.gather(*(upstream.pool.close(grace_s) for upstream in self._upstreams))

    # called by the upstreams

    def push(self, pending: PendingSend) -> None:
        """Queue a job for all relays or the preferred one. Cancels it if sending has ended or its caller is gone."""
        if self.closed or pending.result.done():
            pending.result.cancel()
            return
        for upstream in self._upstreams:
            if pending.prefer == upstream.config.name and upstream.breaker.state != "open" and not upstream.stalled:
                upstream.own_queue.push(pending)
                return
        self._queue.push(pending)

    def serve(self) -> None:
        """Send waiting mail over every relay that may take it."""
        if self.closed:
            return
        for upstream in self._upstreams:
            upstream.serve()
        if self._timer is None:
            self._ticked_at = time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(_TICK_S, self._tick)

    def waiting_for(self, upstream: Upstream) -> tuple[int, int]:
        """Return how many jobs this upstream may take now: urgent ones, and others."""
        sources = self._sources(upstream)
        urgent = sum(queue.urgent for queue in sources)
        return urgent, sum(map(len, sources)) - urgent

    def next_for(self, upstream: Upstream, *, urgent_only: bool) -> PendingSend | None:
        """Take the next job. Resolves those as `TimedOut` that are past their deadline or no longer wanted."""
        if self._was_suspended():
            return None
        for queue in self._sources(upstream):
            while pending := queue.take(urgent_only=urgent_only):
                if self._now_ms() < pending.deadline_ms and pending.wanted():
                    return pending
                pending.resolve(TimedOut())
        return None

    def breaker_changed(self, upstream: Upstream) -> None:
        """Report the change, and send the waiting jobs that can be sent now."""
        if upstream.breaker.state == "open":
            self._release(upstream)
        if self._on_circuit_breaker is not None:
            observe(self._on_circuit_breaker, replace(upstream.state(), waiting=sum(map(len, self._all_queues()))))
        # later, because the caller may be changing its own state
        asyncio.get_running_loop().call_soon(self.serve)

    def _sources(self, upstream: Upstream) -> list[SendQueue]:
        """Return the queues of an upstream: the common one is among them only while no relay before it takes mail."""
        for before in self._upstreams:
            if before is upstream:
                return [upstream.own_queue, self._queue]
            if before.breaker.state == "closed" and not before.stalled:
                break
        return [upstream.own_queue]

    def _release(self, upstream: Upstream) -> None:
        while pending := upstream.own_queue.take():
            self._queue.push(pending)

    def _all_queues(self) -> list[SendQueue]:
        return [self._queue, *(upstream.own_queue for upstream in self._upstreams)]

    def _may_send(self, expires_ms: int, wanted: Callable[[], bool], result: asyncio.Future[Outcome]) -> bool:
        return not result.done() and self._now_ms() < expires_ms and wanted() and not self._was_suspended()

    def _was_suspended(self) -> bool:
        return self._resume_ticks > 0 or (self._timer is not None and time.monotonic() - self._ticked_at > _SUSPENDED_S)

    def _tick(self) -> None:
        if time.monotonic() - self._ticked_at > _SUSPENDED_S:
            self._resume_ticks = _RESUME_TICKS
        elif self._resume_ticks:
            self._resume_ticks -= 1
        self._timer = None
        now_ms = self._now_ms()
        for queue in self._all_queues():
            for pending in queue.pop_timed_out(now_ms):
                pending.resolve(TimedOut())
        for upstream in self._upstreams:
            if upstream.tick() and self._on_rate is not None:
                observe(self._on_rate, upstream.state())
            if upstream.stalled:
                self._release(upstream)
        if (
            self._resume_ticks
            or any(self._all_queues())
            or any(
                upstream.pool.alive or upstream.breaker.state == "open" or upstream.rate.slowed
                for upstream in self._upstreams
            )
        ):
            self.serve()
