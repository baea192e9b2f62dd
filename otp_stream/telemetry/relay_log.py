"""Logs what changes at relays."""

from collections.abc import Callable

import structlog

from otp_stream.core.state import RelayState

from .stats import StatsRecorder

_NAMED_DOMAINS = 5

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class RelayLog:
    """Logs the changes of relays, and records their errors in the statistics."""

    def __init__(self, stats: StatsRecorder, now_ms: Callable[[], int]) -> None:
        self._stats, self._now_ms = stats, now_ms

    def circuit_breaker_changed(self, relay: RelayState) -> None:
        """Log the new state of a relay's circuit breaker."""
        fields = {"relay": relay.name, "reason": relay.reason, "error": relay.error, "waiting": relay.waiting}
        match relay.circuit_breaker:
            case "closed":
                _log.info("relay takes mail again: circuit breaker closed", relay=relay.name, waiting=relay.waiting)
            case "half_open":
                _log.info("relay is probed: circuit breaker half-open", **fields)
            case "open":
                self._stats.failed(f"{relay.reason}: {relay.error}", self._now_ms())
                pause_ms = max((relay.probe_ms or 0) - self._now_ms(), 0)
                _log.warning("relay takes no mail: circuit breaker open, jobs wait", **fields, probe_in_ms=pause_ms)

    def rate_changed(self, relay: RelayState) -> None:
        """Log that a relay is slowed down, or that it receives mail at the full rate again."""
        fields = {"relay": relay.name, "per_second": None if relay.rate is None else round(relay.rate, 1)}
        if relay.slowed:
            _log.warning("relay throttles: slowed down", **fields)
        else:
            _log.info("relay gets mail at the full rate again", **fields)

    def sender_changed(self, relay: RelayState, tenant: str, error: str | None) -> None:
        """Log that a relay refuses the sender of a tenant, or that it accepts it again."""
        name = tenant or "default"
        if error is None:
            _log.info("relay accepts the tenant's sender again", relay=relay.name, tenant=name)
        else:
            self._stats.failed(f"sender_refused, tenant {name}: {error}", self._now_ms())
            _log.warning("relay refuses the tenant's sender: its jobs wait", relay=relay.name, tenant=name, error=error)

    def slowness_changed(self, relay: RelayState) -> None:
        """Log that a relay has become slow, for all mail or for some domains, or that it is fast again."""
        fields = {"relay": relay.name, "slow": relay.slow_sends, "of_last": relay.last_sends}
        if relay.slow:
            _log.warning("relay is slow: most mails go to a faster one first", **fields)
        elif relay.slow_domains:
            domains = ", ".join(relay.slow_domains[:_NAMED_DOMAINS])
            _log.warning("relay is slow for some domains", **fields, domains=domains, count=len(relay.slow_domains))
        else:
            _log.info("relay is not slow any more", **fields)
