"""SMTP: connection pools, the meaning of replies, circuit breakers and rates."""

from .config import OAuthConfig, RelayConfig, RelayLimits, Rotation
from .rate_limiter import Reserve, Sharing
from .relay import SmtpRelay

__all__ = ["OAuthConfig", "RelayConfig", "RelayLimits", "Reserve", "Rotation", "Sharing", "SmtpRelay"]
