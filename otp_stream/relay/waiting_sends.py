"""The mails that wait for a connection to any of the relays. Synchronous, without I/O."""

from collections.abc import Callable, Sequence

from otp_stream.core.outcome import TimedOut

from .availability import Availability
from .relay_choice import RelayChoice
from .send_queue import PendingSend, SendQueue
from .suspension import Suspension


class WaitingSends:
    """One queue for all relays, and one for each relay of the mails that it may have already.

    `relays` are in order of preference: a relay takes from the common queue only while none before it takes mail, or
    while those are slow. `now_ms` is the clock for deadlines, in milliseconds since 1970.
    """

    def __init__(self, relays: Sequence[Availability], suspension: Suspension, now_ms: Callable[[], int]) -> None:
        self._common = SendQueue()
        self._own = {relay: SendQueue() for relay in relays}
        self.choice = RelayChoice(relays, self._common, self.own) if len(relays) > 1 else None
        """Which relay sends a mail, if there are several."""
        self._suspension = suspension
        self._now_ms = now_ms
        self.closed = False
        """Whether sending has ended."""

    def __len__(self) -> int:
        return sum(map(len, self._all()))

    @property
    def common(self) -> int:
        """Number of mails that wait for any relay."""
        return len(self._common)

    def own(self, relay: Availability) -> int:
        """Return the number of mails that wait for this relay only."""
        return len(self._own[relay])

    def push(self, pending: PendingSend) -> None:
        """Queue a mail for all relays or the preferred one. Cancels it if sending has ended or its caller is gone."""
        if self.closed or pending.result.done():
            pending.result.cancel()
            return
        for relay, queue in self._own.items():
            if pending.prefer == relay.name and relay.breaker.state != "open" and not relay.stalled:
                queue.push(pending)
                return
        self._common.push(pending)

    def count(self, relay: Availability) -> tuple[int, int]:
        """Return how many mails this relay may take now: urgent ones, and others."""
        own, common = self._own[relay], self._common
        of_all = (common.urgent, len(common) - common.urgent) if self.choice is None else self.choice.count(relay)
        return own.urgent + of_all[0], len(own) - own.urgent + of_all[1]

    def take(self, relay: Availability, *, urgent_only: bool) -> PendingSend | None:
        """Take the next mail for this relay. Resolves those as `TimedOut` that may no longer be sent.

        A call that was cancelled a moment ago is still in the queue.
        """
        if self._suspension.is_recent:
            return None
        for queue in self._sources(relay):
            while pending := queue.take(urgent_only=urgent_only):
                if pending.result.done() or self._now_ms() >= pending.deadline_ms or not pending.wanted():
                    pending.resolve(TimedOut())
                elif queue is self._common and self.choice and (faster := self.choice.take(relay, pending)):
                    pending.prefer = faster.name
                    self.push(pending)
                else:
                    return pending
        if self.choice is not None and not self._common:
            self.choice.emptied()
        return None

    def release(self, relay: Availability) -> None:
        """Let every relay take the mails that wait for this one."""
        queue = self._own[relay]
        while pending := queue.take():
            self._common.push(pending)

    def time_out(self) -> None:
        """Time out the mails whose deadline has passed."""
        now_ms = self._now_ms()
        for queue in self._all():
            for pending in queue.pop_timed_out(now_ms):
                pending.resolve(TimedOut())

    def recheck(self) -> None:
        """Time out the mails that are no longer wanted."""
        for queue in self._all():
            for pending in queue.pop_unwanted():
                pending.resolve(TimedOut())

    def close(self) -> None:
        """Cancel the waiting calls, and those that are pushed from now on."""
        self.closed = True
        for queue in self._all():
            while pending := queue.take():
                pending.result.cancel()

    def _sources(self, relay: Availability) -> list[SendQueue]:
        if self.choice is None or self.choice.may_take(relay):
            return [self._own[relay], self._common]
        return [self._own[relay]]

    def _all(self) -> list[SendQueue]:
        return [self._common, *self._own.values()]
