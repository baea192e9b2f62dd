"""A second, plain connection for questions and declarations, so that a refusal never touches the consumers."""

import asyncio
from dataclasses import dataclass, field

import aio_pika
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import AMQPError

from .lane import LaneConsumer
from .topology import Topology, TopologyError

TIMEOUT_S = 10.0
TROUBLES = (AMQPError, TopologyError, OSError, TimeoutError, RuntimeError)
"""What talking to a broker that is away, full or configured otherwise can raise."""


@dataclass(slots=True)
class Control:
    """Makes the topology stand and asks for depths."""

    url: str = field(repr=False)
    topology: Topology
    _connection: AbstractConnection | None = None

    async def _open(self) -> AbstractConnection:
        if self._connection is None or self._connection.is_closed:
            self._connection = await aio_pika.connect(self.url, timeout=TIMEOUT_S)
        return self._connection

    async def apply(self, lanes: list[LaneConsumer]) -> None:
        """Make everything stand, and learn which of the producers' queues count returns."""
        async with asyncio.timeout(TIMEOUT_S * 2):
            connection = await self._open()
            await self.topology.apply(connection)
            for lane in lanes:
                lane.counts_returns = lane.lane == "due" or await self.topology.is_quorum(connection, lane.queue)

    async def ask(self, lanes: list[LaneConsumer]) -> tuple[int, int, list[str]]:
        """Refresh the lanes' depths. Returns dead letters, waiting jobs and the names of queues that are missing."""
        async with asyncio.timeout(TIMEOUT_S):
            connection = await self._open()
            missing: list[str] = []
            for lane in lanes:
                lane.depth = await self.topology.depth(connection, lane.queue)
                missing += [lane.queue] if lane.depth is None else []
            sums = [0, 0]
            rungs = [self.topology.rung(rung_ms) for rung_ms in self.topology.backoff.rungs_ms]
            for place, name in [(0, self.topology.dead), *((1, rung) for rung in rungs)]:
                depth = await self.topology.depth(connection, name)
                missing += [name] if depth is None else []
                sums[place] += depth.messages if depth else 0
            return sums[0], sums[1], missing

    async def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None
