"""SMTP: connection pools, the meaning of replies, circuit breakers and rates."""

from .config import OAuthConfig, RelayConfig, RelayLimits, Rotation
from .pending_send import RelayRetiredError
from .rate_limiter import Reserve, Sharing
from .relay import SmtpRelay

__all__ = [
    "OAuthConfig",
    "RelayConfig",
    "RelayLimits",
    "RelayRetiredError",
    "Reserve",
    "Rotation",
    "Sharing",
    "SmtpRelay",
]
