"""Reads the depth of a queue, also for a user without any permission for it."""

from dataclasses import dataclass

from aio_pika.abc import AbstractConnection
from aiormq.exceptions import ChannelAccessRefused

from otp_stream.broker.management_api import ManagementError
from otp_stream.broker.topology import Depth, Topology

from .management import ManagementQueries


@dataclass(slots=True)
class DepthReader:
    """Reads depths by a passive declare.

    Since 4.2.6 and 4.3, RabbitMQ refuses a passive declare to a user without any permission for the queue. The
    management API then reports the depth, which may be some seconds old.
    """

    topology: Topology
    connection: AbstractConnection
    management: ManagementQueries | None
    """`None` if the API cannot be used. After its first error it is not asked again: it may take seconds to fail."""
    _is_verified: bool = False

    async def read(self, queue: str) -> Depth | None:
        """Return the depth of a queue, or `None` if it does not exist or its node is down.

        Raises `ChannelAccessRefused` if RabbitMQ refuses the user, and the management API does not report it either.
        """
        try:
            return await self.topology.depth(self.connection, queue)
        except ChannelAccessRefused:
            if self.management is None:
                raise
            try:
                return await self._reported(self.management, queue)
            except ManagementError:
                self.management = None
            raise

    async def _reported(self, management: ManagementQueries, queue: str) -> Depth | None:
        if not self._is_verified:
            await management.verify(self.connection)
            self._is_verified = True
        return await management.depth(queue)
