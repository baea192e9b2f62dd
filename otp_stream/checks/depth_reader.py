"""Reads the depth of a queue, also for a user without any permission for it."""

from contextlib import suppress
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
    """`None` if the API cannot be used. If it does not answer the first request, which may take seconds, it is not
    asked again."""
    _is_verified: bool = False

    async def read(self, queue: str) -> Depth | None:
        """Return the depth of a queue, or `None` if it does not exist or its node is down.

        Raises `ChannelAccessRefused` if RabbitMQ refuses the user, and the management API does not report it either.
        """
        try:
            return await self.topology.depth(self.connection, queue)
        except ChannelAccessRefused:
            if management := await self._verified():
                with suppress(ManagementError):  # it has no statistics of a new queue
                    return await management.depth(queue)
            raise

    async def _verified(self) -> ManagementQueries | None:
        if self.management is not None and not self._is_verified:
            try:
                await self.management.verify(self.connection)
            except ManagementError:
                self.management = None
            else:
                self._is_verified = True
        return self.management
