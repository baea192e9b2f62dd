"""FastStream's subscriber for a priority lane. It calls the handler directly if no extension is registered."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, cast

from aio_pika import IncomingMessage
from faststream import AckPolicy, Context
from faststream._internal.endpoint.subscriber.call_item import CallsCollection
from faststream.rabbit import RabbitExchange, RabbitMessage, RabbitQueue
from faststream.rabbit.configs import RabbitBrokerConfig
from faststream.rabbit.subscriber.config import RabbitSubscriberConfig, RabbitSubscriberSpecificationConfig
from faststream.rabbit.subscriber.specification import RabbitSubscriberSpecification
from faststream.rabbit.subscriber.usecase import RabbitSubscriber
from faststream.response import Response, ensure_response
from pydantic import ValidationError

from otp_stream.core.job import Lane
from otp_stream.core.otp_job import MalformedError, OtpJob

from .incoming import IncomingJob, Shared
from .lane import LaneConsumer

_INCOMING = "incoming"

Incoming = Annotated[IncomingJob, Context(_INCOMING)]
"""The type of a handler's parameter: the message of the job, which the handler settles by calling it."""


class OtpSubscriber(RabbitSubscriber):
    """Passes the messages of one priority lane to the handler, which settles them.

    If middlewares, dependencies, a codec or a parser are registered at the start, FastStream passes each message
    through them. Otherwise the body is read and the handler called directly, which takes a fraction of the time.
    `Consumers` starts the consumers, because FastStream's do not survive an unavailable queue.
    """

    def __init__(
        self,
        *,
        queue: RabbitQueue,
        lane: Lane,
        prefetch: int,
        shared: Shared,
        config: RabbitBrokerConfig,
        title: str | None,
        description: str | None,
    ) -> None:
        calls = CallsCollection[IncomingMessage]()
        exchange = RabbitExchange.validate(None)
        specification = RabbitSubscriberSpecificationConfig(
            title_=title, description_=description, include_in_schema=True, queue=queue, exchange=exchange
        )
        super().__init__(
            RabbitSubscriberConfig(
                queue=queue, exchange=exchange, no_reply=True, _ack_policy=AckPolicy.MANUAL, _outer_config=config
            ),
            RabbitSubscriberSpecification(
                _outer_config=config, specification_config=specification, calls=cast("Any", calls)
            ),
            calls,
        )
        self.lane = LaneConsumer(lane, queue.name, prefetch, shared, self._handle, lambda: self._direct is not None)
        self._shared = shared
        self._direct: Callable[[OtpJob, IncomingJob], Awaitable[object]] | None = None
        """The handler, if no extension must be called before it."""

    def another(self, queue: str, prefetch: int) -> LaneConsumer:
        """Return a consumer of the same lane, with the same handler, for one of the queues of its pattern."""
        lane = self.lane
        return LaneConsumer(lane.lane, queue, prefetch, self._shared, self._handle, template=lane.queue)

    async def start(self) -> None:
        """Build the call of the handler, without consuming."""
        self._build_fastdepends_model()
        self._post_start()

    def _post_start(self) -> None:
        """Choose how to call the handler. The in-memory test broker calls this instead of `start`."""
        super()._post_start()
        self._direct = None if self._has_extensions() else cast("Any", self.calls[0].handler)

    async def stop(self) -> None:
        """Do nothing: the broker stops the consumers first, and then waits for the jobs in flight."""
        self.running = False

    async def process_message(self, msg: IncomingMessage) -> Response:
        """Process a message of the in-memory test broker."""
        # so that a cancelled publisher does not cancel the job
        await asyncio.shield(self.lane.dispatch(msg))
        await self._shared.events.publish_now()
        return ensure_response(None)

    async def decode(self, message: RabbitMessage) -> OtpJob:
        """Read a job; the default decoder. Raises `MalformedError`."""
        return self._shared.reader.read(message.body)

    def _has_extensions(self) -> bool:
        (call,) = self.calls
        options, config = self._call_options, self._outer_config
        return any((
            self._broker_middlewares,
            config.broker_dependencies,
            config.broker_parser,
            config.broker_decoder,
            config.broker_codec,
            options.parser,
            options.decoder != self.decode,
            options.codec,
            call.dependencies,
            call.item_parser,
            call.item_decoder,
            self._call_decorators,
            config.fd_config.call_decorators,
        ))  # fmt: skip

    async def _handle(self, incoming: IncomingJob) -> None:
        if self._direct is not None:
            await self._direct(self._shared.reader.read(incoming.message.raw.body), incoming)
            return
        with self._outer_config.context.scope(_INCOMING, incoming):
            try:
                await super().process_message(cast("IncomingMessage", incoming.message.raw))
            except ValidationError as error:
                if incoming.job is not None:
                    raise
                # an operator's codec returned something other than a job, which the error quotes
                fields = sorted({".".join(map(str, it["loc"])) or "body" for it in error.errors(include_input=False)})
                raise MalformedError(f"{', '.join(fields)}: not as an OtpJob requires it") from None
