"""Which Redis the tables use, and which keys in it."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RedisConfig:
    """The server, and the prefixes of the keys."""

    url: str = field(repr=False)
    shown_url: str
    prefix: str
    """Precedes all keys of this deployment."""
    names: str
    """Precedes the keys of every deployment with this queue name and RABBITMQ_PREFIX.

    Earlier versions kept their keys here, by the job's id alone. They are read, so that an upgrade sends nothing twice,
    and never written.
    """
    broker: str = ""
    """What other deployments may know of our RabbitMQ."""
