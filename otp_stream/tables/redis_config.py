"""Which Redis the tables use, and which keys in it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from otp_stream.core.admission import Limit


@dataclass(frozen=True, slots=True)
class RedisConfig:
    """The server, the prefixes of its keys, and the limits that the script applies."""

    url: str = field(repr=False)
    prefix: str
    """Precedes all keys of this deployment."""
    limits: Sequence[Limit]
    names: str
    """Precedes the keys of every deployment with this queue name and RABBITMQ_PREFIX.

    Earlier versions kept their keys here, by the job's id alone. They are read, so that an upgrade sends nothing twice,
    and never written.
    """
    broker: str = ""
    """What other deployments may know of our RabbitMQ."""
