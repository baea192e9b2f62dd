"""The result of a probe that was requested."""

from dataclasses import dataclass
from typing import Literal

from .state import CircuitBreakerState, RelayState
from .times import in_words

Result = Literal["accepted", "connected", "refused", "no_answer", "too_soon", "not_needed"]


@dataclass(frozen=True, slots=True)
class Probed:
    """A relay after the request of a probe."""

    relay: RelayState
    sent: bool
    """Whether a probe was sent, or was already in flight."""
    again_in_ms: int = 0
    """Milliseconds until another probe may be requested, if mail does not flow."""
    tenants: CircuitBreakerState = "closed"
    """The same as the state of the relay's circuit breaker, for the tenants whose sender it refuses."""

    @property
    def result(self) -> Result:
        """The result. `connected`: no job was waiting to be the probe, and the relay has refused nothing so far."""
        closed = self.relay.circuit_breaker == "closed"
        match self.tenants if closed else self.relay.circuit_breaker:
            case "closed":
                return "accepted" if self.sent else "not_needed"
            case "half_open":
                return "no_answer" if self.relay.probing else "connected"
            case "open":
                return "refused" if self.sent else "too_soon"

    @property
    def good(self) -> bool:
        """Whether mail can flow."""
        return self.result in {"accepted", "connected", "not_needed"}

    @property
    def text(self) -> str:
        """The result as a sentence."""
        name = self.relay.name
        match self.result:
            case "accepted":
                return f"{name} accepts mail again; jobs are being sent"
            case "connected":
                return f"{name} is connected; no job waits, so the next one is the probe"
            case "refused":
                if self.relay.circuit_breaker == "closed":
                    return f"{name} {self._refuses_senders}"
                return f"{name} still accepts no mail: {self.relay.reason}: {self.relay.error}"
            case "no_answer":
                return f"{name} has not answered yet; the probe is still running"
            case "too_soon":
                wait = in_words(max(self.again_in_ms, 1))
                closed = self.relay.circuit_breaker == "closed"
                why = f"it {self._refuses_senders}" if closed else f"{self.relay.reason}: {self.relay.error}"
                return f"{name} was probed a moment ago ({why}): try again in {wait}"
            case "not_needed":
                return f"{name} accepts mail; there is nothing to probe"

    @property
    def _refuses_senders(self) -> str:
        tenants = ", ".join(tenant or "default" for tenant in self.relay.suspended)
        return f"refuses the sender of {tenants}: {next(iter(self.relay.suspended.values()), None)}"
