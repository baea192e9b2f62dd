"""Circuit breaker of a relay: closed (mail flows), open, or half-open for one job as a probe. Pure."""

from collections.abc import Callable

from otp_stream.core.outcome import UnavailableReason
from otp_stream.core.state import CircuitBreakerState

# First and longest pause, milliseconds. A person waits at a login page for a relay that comes back; a login is
# fixed by people, and repeated failures lock accounts.
_PAUSES: dict[UnavailableReason, tuple[int, int]] = {
    "unreachable": (1_000, 5_000),
    "tls_failed": (1_000, 30_000),
    "throttled": (2_000, 30_000),
    "login_refused": (5_000, 60_000),
    "sender_refused": (5_000, 60_000),
}
_JITTER = 0.25
ON_REQUEST_MS = 5_000
"""Minimum time from a failure to a requested probe, because repeated failed logins lock accounts."""


class Pauses:
    """Growing pauses between tries: each doubles the one before and is up to a quarter longer, up to a cap.

    Each reason starts with its shortest pause.
    """

    def __init__(self, fraction: Callable[[], float]) -> None:
        self._fraction = fraction
        self._tries = 0
        self._reason: UnavailableReason | None = None

    def next_ms(self, reason: UnavailableReason) -> int:
        """Return the pause after another failure, in milliseconds."""
        first, cap = _PAUSES[reason]
        if reason != self._reason:
            self._reason, self._tries = reason, 0
        pause = first << min(self._tries, 16)
        self._tries += 1
        return min(round(pause * (1 + _JITTER * self._fraction())), cap)

    def reset(self) -> None:
        """Start again with the shortest pause."""
        self._tries = 0


class CircuitBreaker:
    """Circuit breaker over the whole relay; times are milliseconds since 1970.

    `fraction` gives the jitter's share in [0, 1). Each method returns whether the state changed.
    """

    def __init__(self, now_ms: int, fraction: Callable[[], float]) -> None:
        self.state: CircuitBreakerState = "closed"
        self.since_ms = now_ms
        self.reason: UnavailableReason | None = None
        self.error: str | None = None
        self.probe_ms: int | None = None
        self.probing = False
        self._pauses = Pauses(fraction)

    @property
    def passable(self) -> bool:
        """Whether one more job may pass."""
        return self.state == "closed" or (self.state == "half_open" and not self.probing)

    def open(
        self, reason: UnavailableReason, error: str, now_ms: int, *, probe: bool = False, longest_ms: int = 60_000
    ) -> bool:
        """Open, for a reason that the state shows, for `longest_ms` at most until the next probe.

        The failure of a job that was already in flight is ignored while the circuit breaker is not closed: only the
        probe counts.
        """
        if self.state == "open" or (self.state == "half_open" and self.probing and not probe):
            return False
        self.reason, self.error, self.probing = reason, error, False
        self.probe_ms = now_ms + min(self._pauses.next_ms(reason), longest_ms)
        self._set("open", now_ms)
        return True

    def half_open(self, now_ms: int, *, requested: bool = False, early_ms: int | None = None) -> bool:
        """Let the next job pass as the probe, if the pause is over.

        A `requested` probe may pass earlier. With `early_ms`, any probe may pass that long after the failure.
        """
        is_early = early_ms is not None and now_ms >= self.since_ms + early_ms
        if self.state != "open" or not (is_early or now_ms >= self.next_probe_ms(requested=requested)):
            return False
        self._set("half_open", now_ms)
        return True

    def next_probe_ms(self, *, requested: bool = False) -> int:
        """Return the earliest time of the next probe, as scheduled or if it is `requested`."""
        scheduled_ms = self.since_ms if self.probe_ms is None else self.probe_ms
        return min(scheduled_ms, self.since_ms + ON_REQUEST_MS) if requested else scheduled_ms

    def retry_login(self, now_ms: int) -> None:
        """Let the next probe pass at once, if the relay refused the login, because the password is another one now."""
        if self.reason == "login_refused":
            self.retry(now_ms)

    def retry(self, now_ms: int) -> None:
        """Let the next probe pass at once."""
        if self.state == "open":
            self.probe_ms = now_ms
            self._pauses.reset()

    def close(self, now_ms: int) -> bool:
        """Close after the probe was accepted."""
        if self.state == "closed":
            return False
        self.reason = self.error = self.probe_ms = None
        self.probing = False
        self._pauses.reset()
        self._set("closed", now_ms)
        return True

    def _set(self, state: CircuitBreakerState, now_ms: int) -> None:
        self.state = state
        self.since_ms = now_ms
