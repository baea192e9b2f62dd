"""Where messages come from and go to, in the words of OpenTelemetry's conventions for messaging and RabbitMQ."""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from .job import Lane

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
"""The version of the conventions that all telemetry follows."""
_DEFAULT_EXCHANGE = "amq.default"


class Destination(NamedTuple):
    """`messaging.destination.name`, and `messaging.destination.template` if there are many names of its kind."""

    name: str
    template: str | None = None

    @property
    def kind(self) -> str:
        """The template, or the name without one: one of few, so that it can be a metric's label."""
        return self.template or self.name


def published_to(exchange: str, routing_key: str) -> Destination:
    """Return the destination of a publish. The routing key of an exchange has many values, such as waits."""
    if not exchange:
        return Destination(routing_key or _DEFAULT_EXCHANGE)
    return Destination(f"{exchange}:{routing_key}" if routing_key else exchange, exchange)


def consumed_from(exchange: str, routing_key: str, queue: Destination) -> Destination:
    """Return the destination of a received message. Producers choose exchange and routing key."""
    parts = [exchange, "" if routing_key == queue.name else routing_key, queue.name]
    name = ":".join(filter(None, parts))
    return queue if name == queue.name else Destination(name, queue.kind)


class ReceivedMessage(Protocol):
    """What telemetry shows of a received message. Its texts are a producer's, and may contain the address or code."""

    @property
    def lane(self) -> Lane: ...  # noqa: D102
    @property
    def queue(self) -> Destination: ...  # noqa: D102
    @property
    def exchange(self) -> str: ...  # noqa: D102
    @property
    def routing_key(self) -> str: ...  # noqa: D102
    @property
    def delivery_tag(self) -> int | None: ...  # noqa: D102
    @property
    def message_id(self) -> str | None: ...  # noqa: D102
    @property
    def correlation_id(self) -> str | None: ...  # noqa: D102
    @property
    def body_size(self) -> int:
        """In bytes; of a sealed message, the opened body."""
        ...

    def carrier(self) -> Mapping[str, str]:
        """Return the producer's trace context (W3C)."""
        ...


@dataclass(frozen=True, slots=True)
class Publication:
    """One publish of one message, or of several to the same exchange."""

    destination: Destination
    routing_key: str = ""
    body_size: int | None = None
    headers: MutableMapping[str, Any] | None = None
    """The message's headers, to which the trace context is added."""
    parents: tuple[str | None, ...] = field(default=(None,))
    """For each message `traceparent` of its job; `None` for the job of the current task."""
