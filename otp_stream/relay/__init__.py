"""SMTP: connection pools, the meaning of replies, circuit breakers and rates."""

from .config import RelayConfig, RelayLimits
from .rate_limiter import Reserve, Sharing
from .relay import SmtpRelay

__all__ = ["RelayConfig", "RelayLimits", "Reserve", "Sharing", "SmtpRelay"]
