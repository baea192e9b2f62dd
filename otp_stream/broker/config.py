"""What the connection to RabbitMQ needs to know."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from otp_stream.core.backoff import Backoff


@dataclass(frozen=True, slots=True)
class RabbitConfig:
    """The settings of the broker package."""

    url: str = field(repr=False)
    shown_url: str
    queue: str
    prefix: str
    prefetch: int
    backoff: Backoff
    default_expiry_minutes: float
    hash_key: bytes = field(repr=False)
    enabled: bool = True
    old_hash_keys: Sequence[bytes] = field(default=(), repr=False)
    """Keys that other workers may still sign with, or have signed with."""
    events: bool = True
    """Whether an event is published for each outcome."""
