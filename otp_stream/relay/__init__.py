"""All SMTP: the pool of connections, the meaning of replies, and the gate before the relay."""

from .config import RelayConfig, RelayLimits
from .relay import SmtpRelay

__all__ = ["RelayConfig", "RelayLimits", "SmtpRelay"]
