"""Exchanges and queues in memory: routing, time to live, dead-lettering, and fair delivery to consumers."""

import asyncio
import re
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pamqp.commands import Basic


class BrokerError(Exception):
    """An error that closes the client's channel, with a reply code of AMQP 0-9-1 §1.2."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(slots=True)
class Message:
    """One message. `expires` is monotonic seconds."""

    exchange: str
    routing_key: str
    properties: Basic.Properties
    body: bytes
    redelivered: bool = False
    returns: int = 0
    expires: float | None = None


class Consumer(Protocol):
    """A consumer of a queue."""

    def has_room(self) -> bool:
        """Return whether its prefetch allows another message."""
        ...

    def deliver(self, queue: "Queue", message: Message) -> None:
        """Send a message to the consumer."""
        ...


@dataclass(slots=True)
class Exchange:
    """An exchange. `bindings` are (routing key or pattern, queue name)."""

    kind: str
    bindings: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def route(self, key: str) -> set[str]:
        """Return the names of the queues for a routing key."""
        return {queue for bound, queue in self.bindings if self._matches(bound, key)}

    def _matches(self, bound: str, key: str) -> bool:
        match self.kind:
            case "fanout":
                return True
            case "topic":
                return _topic(bound).fullmatch(key) is not None
            case _:
                return bound == key


def _topic(pattern: str) -> re.Pattern[str]:
    words = {"*": r"[^.]+", "#": r".*"}
    parts = r"\.".join(words.get(word) or re.escape(word) for word in pattern.split("."))
    return re.compile(parts.replace(r"\..*", r"(\..*)?"))


class Queue:
    """A queue, first in, first out. `arguments` are those of RabbitMQ."""

    def __init__(self, name: str, arguments: Mapping[str, Any], host: "VirtualHost", owner: object | None) -> None:
        self.name = name
        self.arguments = dict(arguments)
        self.owner = owner
        """The connection to which an exclusive queue belongs."""
        self.ready: deque[Message] = deque()
        self.consumers: deque[Consumer] = deque()
        self._host = host
        self._timer: asyncio.TimerHandle | None = None

    def push(self, message: Message) -> None:
        """Append a message."""
        waits = [float(ms) for ms in (self.arguments.get("x-message-ttl"), message.properties.expiration) if ms]
        message.expires = time.monotonic() + min(waits) / 1000 if waits else None
        self.ready.append(message)
        self.dispatch()

    def requeue(self, message: Message) -> None:
        """Put an unacked message back, or dead-letter it if it exceeds the delivery limit."""
        message.redelivered = True
        message.returns += 1
        limit = self.arguments.get("x-delivery-limit")
        if limit is not None and message.returns > limit:
            self.dead_letter(message)
        else:
            self.ready.appendleft(message)

    def dead_letter(self, message: Message) -> None:
        """Publish a message to the dead-letter exchange, or drop it if there is none."""
        exchange = self.arguments.get("x-dead-letter-exchange")
        if exchange is not None:
            message.properties.expiration = None
            key = self.arguments.get("x-dead-letter-routing-key", message.routing_key)
            self._host.publish(Message(exchange, key, message.properties, message.body))

    def dispatch(self) -> None:
        """Deliver ready messages to the consumers in turn, as far as their prefetch allows."""
        skipped = 0
        while self.ready and skipped < len(self.consumers):
            consumer = self.consumers[0]
            self.consumers.rotate(-1)
            if consumer.has_room():
                skipped = 0
                consumer.deliver(self, self.ready.popleft())
            else:
                skipped += 1
        self._schedule_expiry()

    def _schedule_expiry(self) -> None:
        if self._timer is None and self.ready and (expires := self.ready[0].expires) is not None:
            delay = max(expires - time.monotonic(), 0)
            self._timer = asyncio.get_running_loop().call_later(delay, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = time.monotonic()
        while self.ready and (expires := self.ready[0].expires) is not None and expires <= now:
            self.dead_letter(self.ready.popleft())
        self._schedule_expiry()

    def close(self) -> None:
        """Drop all messages."""
        if self._timer is not None:
            self._timer.cancel()
        self.ready.clear()


class VirtualHost:
    """All exchanges and queues."""

    def __init__(self) -> None:
        self.exchanges = {
            "amq.direct": Exchange("direct"),
            "amq.topic": Exchange("topic"),
            "amq.fanout": Exchange("fanout"),
        }
        self.queues: dict[str, Queue] = {}

    def publish(self, message: Message) -> bool:
        """Route a message. Returns whether a queue received it. Raises `BrokerError` for an unknown exchange."""
        if message.exchange == "":
            names = {message.routing_key} & self.queues.keys()
        else:
            names = self.exchange(message.exchange).route(message.routing_key)
        for name in names:
            self.queues[name].push(Message(message.exchange, message.routing_key, message.properties, message.body))
        return bool(names)

    def exchange(self, name: str) -> Exchange:
        """Return an exchange. Raises `BrokerError`."""
        if name not in self.exchanges:
            raise BrokerError(404, f"NOT_FOUND - no exchange '{name}' in vhost '/'")
        return self.exchanges[name]

    def queue(self, name: str) -> Queue:
        """Return a queue. Raises `BrokerError`."""
        if name not in self.queues:
            raise BrokerError(404, f"NOT_FOUND - no queue '{name}' in vhost '/'")
        return self.queues[name]

    def declare_exchange(self, name: str, kind: str) -> None:
        """Declare an exchange. Raises `BrokerError` if one of another kind exists."""
        found = self.exchanges.setdefault(name, Exchange(kind))
        if found.kind != kind:
            raise BrokerError(
                406,
                f"PRECONDITION_FAILED - inequivalent arg 'type' for exchange '{name}' in vhost '/': "
                f"received '{kind}' but current is '{found.kind}'",
            )

    def declare_queue(self, name: str, arguments: Mapping[str, Any], owner: object | None) -> Queue:
        """Declare a queue. Raises `BrokerError` if one with other arguments exists."""
        found = self.queues.get(name)
        if found is None:
            found = self.queues[name] = Queue(name, arguments, self, owner)
        if found.owner is not None and found.owner is not owner:
            raise BrokerError(
                405, f"RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{name}' in vhost '/'"
            )
        wanted = {"x-queue-type": "classic"} | dict(arguments)
        current = {"x-queue-type": "classic"} | found.arguments
        for key in sorted(wanted.keys() | current.keys()):
            if wanted.get(key) != current.get(key):
                raise BrokerError(
                    406,
                    f"PRECONDITION_FAILED - inequivalent arg '{key}' for queue '{name}' in vhost '/': "
                    f"received {_quoted(arguments.get(key))} but current is {_quoted(found.arguments.get(key))}",
                )
        return found

    def delete_queue(self, name: str) -> int:
        """Delete a queue. Returns the number of its messages."""
        queue = self.queues.pop(name, None)
        if queue is None:
            return 0
        count = len(queue.ready)
        queue.close()
        for exchange in self.exchanges.values():
            exchange.bindings = [bound for bound in exchange.bindings if bound[1] != name]
        return count


def _quoted(value: object) -> str:
    """Return an argument as RabbitMQ quotes it in errors, which `otp-stream` parses."""
    return (
        "none"
        if value is None
        else f"the value '{value}' of type '{'longstr' if isinstance(value, str) else 'signedint'}'"
    )
