"""The settings of the broker package."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from yarl import URL

from otp_stream.core.backoff import Backoff
from otp_stream.core.retention import Retention
from otp_stream.core.sealing_keys import SealingKeys

from .job_message import default_tenant, no_keys

_HEARTBEAT_S = 10
"""A half-open connection is noticed after three heartbeats."""


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
    """Earlier keys, by which messages may still be signed."""
    retention: Retention = field(default_factory=Retention)
    """How long dead letters and their codes are kept."""
    events: bool = True
    """Whether an event is published for each outcome."""
    tenants: Sequence[str] = ()
    """The names of the tenants, without the default one. None of them may be called `default`."""
    tenant_of: Callable[[object], str] = default_tenant
    """Returns the tenant for `metadata.tenant`, empty for the default one. Raises `MalformedError` to refuse a job."""
    sealing_keys: Callable[[], SealingKeys] = no_keys
    """Returns the keys that seal and open codes now."""


def with_heartbeat(url: str) -> str:
    """Return a URL with our heartbeat, unless it has one."""
    parsed = URL(url)
    return url if "heartbeat" in parsed.query else str(parsed.update_query(heartbeat=_HEARTBEAT_S))
