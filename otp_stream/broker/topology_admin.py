"""A separate connection for declares and depths, so that a refusal never affects the consumers."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import aio_pika
import structlog
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPError

from otp_stream.tasks import lost_connection_as_error

from . import queue_inspect
from .declares import QueueAwayError, TopologyError, declare_queue
from .lane import LaneConsumer
from .topology import Depth, Topology

TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 1.0
_PAUSE_S = 1.0
BROKER_ERRORS = (AMQPError, TopologyError, OSError, TimeoutError, RuntimeError)
"""Errors if the broker is unreachable, in alarm, or has queues with other properties."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Depths(NamedTuple):
    """The depths of the dead-letter queue and the wait queues; `None` for an unavailable one."""

    dead: int | None
    waiting: dict[int, int | None]
    """By the delay of the wait queue in milliseconds."""
    missing: list[str]


@dataclass(slots=True)
class TopologyAdmin:
    """Declares the topology and reads depths."""

    url: Callable[[], str]
    topology: Topology
    _connection: AbstractConnection | None = None
    _connecting: asyncio.Lock = field(default_factory=asyncio.Lock)
    _jobs_refused: bool = False
    """Whether RabbitMQ refused the exchange for jobs or its bindings, so that it is tried again only by `apply`."""

    @asynccontextmanager
    async def _connected(self, timeout_s: float) -> AsyncGenerator[AbstractConnection]:
        async with asyncio.timeout(timeout_s):
            async with self._connecting:
                if self._connection is None:
                    self._connection = await aio_pika.connect(self.url(), timeout=TIMEOUT_S)
            try:
                with lost_connection_as_error():
                    yield self._connection
            except TopologyError:
                raise
            except BaseException:
                # this connection does not report that it was lost, so after any error the next request opens another
                await self.close()
                raise

    async def apply(self, lanes: list[LaneConsumer]) -> None:
        """Declare missing queues and exchanges, and determine which lanes count requeues."""
        async with self._connected(TIMEOUT_S * 2) as connection:
            away = await queue_inspect.apply_topology(self.topology, connection, self.url())
            await self._bind_jobs(connection, away)
            for lane in lanes:
                if lane.queue not in away:
                    is_quorum = lane.lane == "due" or await queue_inspect.is_quorum(connection, lane.queue)
                    lane.counts_returns = is_quorum

    async def _bind_jobs(self, connection: AbstractConnection, away: Collection[str]) -> None:
        """Declare the exchange for jobs and its bindings.

        A user of an earlier version lacks the permission for it. The worker works without, and logs that once.
        """
        try:
            await self.topology.bind_jobs(connection, away)
        except QueueAwayError:  # it was deleted a moment ago
            return
        except TopologyError as error:
            if not self._jobs_refused:
                exchange = self.topology.jobs_exchange.name
                fix = "otp-stream check shows the permissions; producers can use the default exchange meanwhile"
                _log.warning("producers cannot use the exchange for jobs", exchange=exchange, error=str(error), fix=fix)
            self._jobs_refused = True
        else:
            self._jobs_refused = False

    async def declare_tenant(self, queue: str) -> None:
        """Declare the queue of a tenant. Raises `TopologyError` if it has other properties or its node is down."""
        async with self._connected(TIMEOUT_S) as connection:
            await declare_queue(connection, queue, self.topology.tenant_arguments)

    async def depths(self, queues: Iterable[str]) -> dict[str, Depth | None]:
        """Read the depths of queues; `None` for one that is unavailable."""
        async with self._connected(TIMEOUT_S * 2) as connection:
            return await self.topology.depths(connection, queues)

    async def exists(self, queue: str) -> bool:
        """Return whether a queue exists and its node is up."""
        async with self._connected(TIMEOUT_S) as connection:
            return await self.topology.depth(connection, queue) is not None

    async def read_depths(self, lanes: list[LaneConsumer]) -> Depths:
        """Record the depths of the lanes. Returns those of our other queues, and the missing queues and exchanges.

        Binds the producers' queues again: a queue that was deleted and declared again is not bound, and AMQP cannot
        report that.
        """
        async with self._connected(TIMEOUT_S) as connection:
            # concurrently, because for a queue whose node is down there may be no answer for seconds
            found = await asyncio.gather(*(self.topology.depth(connection, lane.queue) for lane in lanes))
            for lane, depth in zip(lanes, found, strict=True):
                lane.record_depth(depth)
            missing = [lane.queue for lane in lanes if lane.depth is None]
            depths: dict[int | None, int | None] = {}
            for wait_ms in (None, *self.topology.backoff.waits_ms):
                name = self.topology.dead if wait_ms is None else self.topology.wait_queue(wait_ms)
                depth = await self.topology.depth(connection, name)
                missing += [name] if depth is None else []
                depths[wait_ms] = depth.messages if depth else None
            for exchange in (self.topology.retry, self.topology.events):
                missing += [] if await self.topology.has_exchange(connection, exchange.name) else [exchange.name]
            if not self._jobs_refused:
                await self._bind_jobs(connection, missing)
            dead = depths.pop(None)
            return Depths(dead, {wait_ms: depth for wait_ms, depth in depths.items() if wait_ms is not None}, missing)

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await quietly(connection.close(), _CLOSE_TIMEOUT_S)


class TopologyRepair:
    """Applies the topology again on request, at most once a second."""

    def __init__(self) -> None:
        self._requested = asyncio.Event()
        self._reason: str | None = None

    def request(self, reason: str) -> None:
        """Request that the topology is applied again."""
        if reason != self._reason:  # so that a queue that stays missing is logged once
            _log.warning("topology is checked again", reason=reason)
        self._reason = reason
        self._requested.set()

    def again(self) -> None:
        """Request the same, for a reason that is already logged."""
        self._requested.set()

    def complete(self) -> None:
        """Record that nothing is missing."""
        self._reason = None

    async def run(self, apply: Callable[[], Awaitable[None]], failed: Callable[[BaseException], None]) -> None:
        """Apply the topology on each request, until cancelled."""
        while True:
            await self._requested.wait()
            self._requested.clear()
            try:
                await apply()
            except BROKER_ERRORS as error:
                failed(error)
                self._requested.set()
            await asyncio.sleep(_PAUSE_S)


async def quietly(closing: Awaitable[object], timeout_s: float) -> None:
    """Await a close or another last request, and suppress its errors."""
    with contextlib.suppress(*BROKER_ERRORS), lost_connection_as_error():
        await asyncio.wait_for(closing, timeout_s)
