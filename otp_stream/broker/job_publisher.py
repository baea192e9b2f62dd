"""Publishes jobs that came over HTTP to the producers' queues, over the connection that also publishes retries."""

import asyncio
from collections.abc import Callable, Mapping

from aio_pika import DeliveryMode, Message
from aio_pika.exceptions import DeliveryError

from otp_stream.core.body_at_rest import at_rest
from otp_stream.core.not_queued import NotQueuedError
from otp_stream.core.sealed_body import Content
from otp_stream.core.sealing_keys import SealingKeys

from .settle import REFUSALS, Publish, error_text
from .state_tracker import StateTracker
from .topology import Topology

PUBLISH_S = 3.0
"""How long a publish may take. Supabase, for example, waits five seconds for the response."""


class JobPublisher:
    """Publishes persistent, mandatory and confirmed. `is_running` returns whether the worker publishes at all."""

    def __init__(
        self,
        publish: Publish,
        topology: Topology,
        tracker: StateTracker,
        is_running: Callable[[], bool],
        repair: Callable[[str], None],
        keys: Callable[[], SealingKeys],
    ) -> None:
        self._publish, self._topology, self._tracker = publish, topology, tracker
        self._is_running, self._repair, self._keys = is_running, repair, keys

    async def __call__(self, body: bytes, trace_context: Mapping[str, str], *, high: bool) -> None:
        """Publish a job, with its code sealed if there are keys, and wait for the confirm. `high`: in the high lane.

        Raises `NotQueuedError`. If RabbitMQ did not answer, the job may be in the queue nevertheless.
        """
        if not self._is_running() or not self._tracker.state.connected:
            raise NotQueuedError("the worker is not connected to RabbitMQ")
        queue = self._topology.high if high else self._topology.jobs
        content = at_rest(Content(body, "application/json"), self._keys())
        message = Message(
            content.body,
            headers=dict(trace_context),
            delivery_mode=DeliveryMode.PERSISTENT,
            content_type=content.content_type,
            content_encoding=content.content_encoding,
        )
        try:
            async with asyncio.timeout(PUBLISH_S):
                await self._confirmed(message, queue)
        except TimeoutError:
            raise NotQueuedError("RabbitMQ has not confirmed the job in time; is it short of memory or disk?") from None
        except DeliveryError as error:  # returned, or refused with a nack
            self._repair(f"publish to {queue} not confirmed: {error_text(error)}")
            raise NotQueuedError("RabbitMQ did not take the job: its queue is missing or full") from None
        except REFUSALS as error:
            # from None: the errors contain the message
            raise NotQueuedError(f"the connection to RabbitMQ was lost ({type(error).__name__})") from None

    async def _confirmed(self, message: Message, queue: str) -> None:
        try:
            await self._publish(message, exchange="", routing_key=queue)
        except DeliveryError:
            # a quorum queue that has refused a channel once refuses it forever
            await self._publish(message, exchange="", routing_key=queue, new_channel=True)
