"""Queues, exchanges and bindings as data, and their declaration at the broker."""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, NamedTuple, cast

from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity
from faststream.rabbit import ExchangeType, RabbitExchange, RabbitQueue

from otp_stream.connection_errors import broker_text
from otp_stream.core.backoff import Backoff
from otp_stream.core.job import Lane

from .declares import ANSWER_S, QueueAwayError, answer_about, declare_exchange, declare_queue, is_missing, on_channel

DELIVERY_LIMIT = 20
"""Deliveries of one retry before the broker dead-letters it; RabbitMQ 4 has the same default."""

TENANT_WAIT_MS = 300_000
"""How long a job waits in its tenant's queue, before it returns to the lanes that all workers consume."""

DEFAULT_TENANT = "default"
"""How the default tenant, whose name is empty, is called in the names of queues and in logs."""

_UNSAFE = re.compile(r"[^a-zA-Z0-9_.:@#,/ -]")
"""Characters that the AMQP library or we do not allow in the name of a queue."""

_SAFE_HOP = {
    "x-queue-type": "quorum",
    "x-dead-letter-exchange": "",
    # the default strategy loses a message whose target is full or missing
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}


@dataclass(frozen=True, slots=True)
class Depth:
    """The messages and consumers of a queue, as the broker reports them."""

    messages: int
    consumers: int


class Bound(NamedTuple):
    """A binding of a queue to an exchange."""

    exchange: str
    routing_key: str
    queue: str


@dataclass(frozen=True)
class Topology:
    """All queues and exchanges. `jobs` belongs to the producers; all other names begin with `prefix`."""

    jobs: str
    prefix: str
    backoff: Backoff
    tenants: tuple[str, ...] = ()
    """The tenants whose queues `apply` declares, without the default one. A worker declares these queues later."""

    @property
    def high(self) -> str:
        """The producers' queue for urgent jobs."""
        return f"{self.jobs}.high"

    @property
    def due(self) -> str:
        """The queue in which waits end."""
        return f"{self.prefix}.retry.due"

    @property
    def dead(self) -> str:
        """The dead-letter queue."""
        return f"{self.prefix}.dead"

    @property
    def audit(self) -> str:
        """The queue for audit records of commands. Commands and workers declare it, and work without it."""
        return f"{self.prefix}.audit"

    @property
    def lanes(self) -> dict[Lane, str]:
        """The queues that are consumed, the most urgent first; those of tenants only by workers that have tenants."""
        return {"high": self.high, "jobs": self.jobs, "due": self.due}

    @cached_property
    def retry(self) -> RabbitExchange:
        """The exchange for retries; routing key: the wait in milliseconds."""
        return RabbitExchange(f"{self.prefix}.retry", type=ExchangeType.DIRECT, durable=True)

    @cached_property
    def jobs_exchange(self) -> RabbitExchange:
        """The exchange for jobs; routing key: the name of the producers' queue, as with the default exchange.

        A user that may write to it cannot write to any other queue, unlike one that may use the default exchange.
        """
        return RabbitExchange(f"{self.prefix}.jobs", type=ExchangeType.DIRECT, durable=True)

    @cached_property
    def events(self) -> RabbitExchange:
        """The exchange for events; routing key: `otp.<outcome>`."""
        return RabbitExchange(f"{self.prefix}.events", type=ExchangeType.TOPIC, durable=True)

    @property
    def exchanges(self) -> tuple[RabbitExchange, ...]:
        """All exchanges."""
        return (self.retry, self.events, self.jobs_exchange)

    @property
    def job_bindings(self) -> list[Bound]:
        """The bindings of the producers' queues."""
        return [Bound(self.jobs_exchange.name, queue, queue) for queue in (self.jobs, self.high)]

    @property
    def retry_bindings(self) -> list[Bound]:
        """The bindings of the wait queues."""
        return [Bound(self.retry.name, str(ms), self.wait_queue(ms)) for ms in self.backoff.waits_ms]

    @property
    def tenant_prefix(self) -> str:
        """The beginning of the names of the tenants' queues."""
        return f"{self.prefix}.tenant."

    @property
    def any_tenant(self) -> str:
        """The pattern of the tenants' queues."""
        return f"{self.tenant_prefix}{{tenant}}"

    def tenant_queue(self, tenant: str) -> str:
        """Return the name of the queue to which jobs of a tenant are moved; the default tenant's name is empty.

        The AMQP library refuses most characters in it; they are replaced, and a hash keeps the names apart.
        """
        name = tenant or DEFAULT_TENANT
        safe = _UNSAFE.sub("_", name)
        if safe != name:
            safe = f"{safe}+{blake2b(name.encode(), digest_size=5).hexdigest()}"
        return f"{self.tenant_prefix}{safe}"

    @property
    def tenant_queues(self) -> dict[str, dict[str, Any]]:
        """The queues of `tenants` and of the default tenant with their arguments; none without tenants."""
        names = ("", *self.tenants) if self.tenants else ()
        return {self.tenant_queue(name): self.tenant_arguments for name in names}

    @cached_property
    def tenant_arguments(self) -> dict[str, Any]:
        """The arguments of each tenant's queue.

        A job that waits long, or is delivered too often, goes to the queue in which waits end: every worker consumes
        that, including those that do not know the tenant and those of a version without tenants.
        """
        return {
            **_SAFE_HOP,
            "x-dead-letter-routing-key": self.due,
            "x-message-ttl": TENANT_WAIT_MS,
            "x-delivery-limit": DELIVERY_LIMIT,
        }

    def wait_queue(self, wait_ms: int) -> str:
        """Return the name of a wait queue."""
        return f"{self.prefix}.retry.{wait_ms}"

    @cached_property
    def arguments(self) -> dict[str, dict[str, Any]]:
        """Our own queues with their arguments. The producers' queues keep the arguments that they have."""
        queues: dict[str, dict[str, Any]] = {
            self.dead: {"x-queue-type": "quorum"},
            self.due: {**_SAFE_HOP, "x-dead-letter-routing-key": self.dead, "x-delivery-limit": DELIVERY_LIMIT},
        }
        for wait_ms in self.backoff.waits_ms:
            queues[self.wait_queue(wait_ms)] = {
                **_SAFE_HOP,
                "x-dead-letter-routing-key": self.due,
                "x-message-ttl": wait_ms,
            }
        return queues

    def consumed(self, lane: Lane) -> RabbitQueue:
        """Return the queue of a lane for a subscriber, which does not declare it."""
        name = self.any_tenant if lane == "tenant" else self.lanes[lane]
        arguments = self.tenant_arguments if lane == "tenant" else self.arguments.get(name)
        return RabbitQueue(name, durable=True, declare=False, robust=False, arguments=cast("Any", arguments))

    async def apply(
        self, connection: AbstractConnection, high_is_quorum: Callable[[], Awaitable[bool]] | None = None
    ) -> set[str]:
        """Declare everything that is missing, except what `bind_jobs` does.

        Returns the producers' queues that are skipped, as their node is down.

        If the high lane is missing, it is declared as a quorum queue if `high_is_quorum` returns true. Raises
        `TopologyError` if a queue or exchange has other properties.
        """
        for exchange in (self.retry, self.events):
            await on_channel(connection, exchange.name, lambda channel, it=exchange: declare_exchange(channel, it))
        away: set[str] = set()
        if await self._is_missing(connection, self.jobs, away):
            await declare_queue(connection, self.jobs, {})
        for name, arguments in (self.arguments | self.tenant_queues).items():
            await declare_queue(connection, name, arguments)
        if await self._is_missing(connection, self.high, away):
            quorum = high_is_quorum is not None and await high_is_quorum()
            await declare_queue(connection, self.high, {"x-queue-type": "quorum"} if quorum else {})
        for bound in self.retry_bindings:
            await on_channel(connection, bound.queue, lambda channel, it=bound: _bind(channel, it))
        return away

    async def bind_jobs(self, connection: AbstractConnection, away: Collection[str] = ()) -> None:
        """Declare the exchange for jobs and bind the producers' queues, except those that are `away`.

        Raises `TopologyError` if the exchange has another type or the user lacks a permission.
        """

        async def declare_and_bind(channel: AbstractChannel) -> None:
            await declare_exchange(channel, self.jobs_exchange)
            for bound in self.job_bindings:
                if bound.queue not in away:
                    await _bind(channel, bound)

        await on_channel(connection, self.jobs_exchange.name, declare_and_bind)

    async def _is_missing(self, connection: AbstractConnection, name: str, away: set[str]) -> bool:
        """Return whether a queue does not exist. One whose node is down exists, and is added to `away`."""
        try:
            return await self._passive_declare(connection, name) is None
        except QueueAwayError:
            away.add(name)
            return False

    async def depths(self, connection: AbstractConnection, names: Iterable[str]) -> dict[str, Depth | None]:
        """Read the depths of many queues, which costs a third if all exist; `None` for one that is unavailable."""
        found: dict[str, Depth | None] = {}
        channel = await connection.channel(publisher_confirms=False)
        try:
            for name in names:
                try:
                    async with asyncio.timeout(ANSWER_S):
                        declared = (await channel.declare_queue(name, passive=True)).declaration_result
                    found[name] = Depth(messages=declared.message_count or 0, consumers=declared.consumer_count or 0)
                except (ChannelNotFoundEntity, TimeoutError):
                    found[name] = None
                    await channel.close()
                    channel = await connection.channel(publisher_confirms=False)
        finally:
            await channel.close()
        return found

    async def depth(self, connection: AbstractConnection, name: str) -> Depth | None:
        """Read the depth of a queue, or `None` if it does not exist or its node is down."""
        with contextlib.suppress(QueueAwayError):
            return await self._passive_declare(connection, name)
        return None

    async def _passive_declare(self, connection: AbstractConnection, name: str) -> Depth | None:
        """Read the depth of a queue, or `None` if it does not exist. Raises `QueueAwayError` if its node is down."""
        channel = await connection.channel(publisher_confirms=False)
        try:
            async with answer_about(name, connection):
                queue = await channel.declare_queue(name, passive=True)
            found = queue.declaration_result
            return Depth(messages=found.message_count or 0, consumers=found.consumer_count or 0)
        except ChannelNotFoundEntity as error:
            if is_missing(error):
                return None
            raise QueueAwayError(f"{name} is away: {broker_text(error)}") from error
        finally:
            await channel.close()

    async def has_exchange(self, connection: AbstractConnection, name: str) -> bool:
        """Return whether an exchange exists."""
        channel = await connection.channel(publisher_confirms=False)
        try:
            await channel.get_exchange(name, ensure=True)
        except ChannelNotFoundEntity:
            return False
        else:
            return True
        finally:
            await channel.close()


async def _bind(channel: AbstractChannel, bound: Bound) -> None:
    queue = await channel.get_queue(bound.queue, ensure=False)
    await queue.bind(bound.exchange, bound.routing_key)
