"""The settings of the broker package."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from otp_stream.core.backoff import Backoff

from .job_message import default_tenant


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
    events: bool = True
    """Whether an event is published for each outcome."""
    tenants: Sequence[str] = ()
    """The names of the tenants, without the default one. None of them may be called `default`."""
    tenant_of: Callable[[object], str] = default_tenant
    """Returns the tenant for `metadata.tenant`, empty for the default one. Raises `MalformedError` to refuse a job."""
