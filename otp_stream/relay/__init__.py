"""All SMTP: the pool of connections, the meaning of replies, the circuit breaker before the relay, and its rate."""

from .config import RelayConfig, RelayLimits
from .rate_limiter import Reserve, Sharing
from .relay import SmtpRelay

__all__ = ["RelayConfig", "RelayLimits", "Reserve", "Sharing", "SmtpRelay"]
