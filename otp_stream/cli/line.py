"""A producer's line to the broker: confirmed publishes to the jobs queue, and what is told of how jobs end."""

import asyncio
import contextlib
import itertools
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, TypeVar, cast

import aio_pika
import uvloop
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelClosed
from aiormq import Channel, spec
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import AMQPError, DeliveryError, PublishError

from otp_stream.broker.refusal import no_connection, refusal
from otp_stream.settings import Settings
from otp_stream.tasks import lost_connection_as_error

T = TypeVar("T")

LOST = (AMQPError, OSError, TimeoutError, RuntimeError)
"""What a broker that is away, or goes away, makes of a question."""
NO_WORKER = "no worker has ever run here, so nobody tells what becomes of jobs; start one, or compare RABBITMQ_PREFIX"
EVENTS_OFF = "EVENTS=false: nobody tells what becomes of jobs"
_TIMEOUT_S = 10.0
_CLOSE_S = 2.0
_WINDOW = 200
"""Publishes that wait for the broker's confirmation at one time."""
_LOOK_S = 0.05


class ProducerError(Exception):
    """The job could not be published; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Line:
    """An open line; `queue` takes the jobs."""

    queue: str
    _exchange: str
    _connection: AbstractConnection = field(repr=False)
    _publishing: Channel = field(repr=False)

    async def publish(self, body: bytes) -> None:
        """Publish a job, confirmed. Raises `ProducerError` where the broker refuses it, or one of `LOST`."""
        for last in (False, True):
            try:
                with lost_connection_as_error():
                    await self._publishing.basic_publish(
                        body,
                        routing_key=self.queue,
                        mandatory=True,
                        properties=spec.Basic.Properties(delivery_mode=2),
                        timeout=_TIMEOUT_S,
                        wait=False,
                    )
            except PublishError:
                if last:
                    raise ProducerError(f"{self.queue}: the broker did not take the job") from None
                await self._declare()  # before the worker's first start, as producers do it
            except DeliveryError:
                raise ProducerError(f"{self.queue}: the broker refuses jobs; is there a limit on the queue?") from None
            else:
                return

    async def _declare(self) -> None:
        channel = await self._connection.channel()
        await channel.declare_queue(self.queue, durable=True)
        await channel.close()

    async def situation(self) -> str:
        """Return what the broker knows of jobs that have not ended."""
        channel = await self._connection.channel()
        found = (await channel.declare_queue(self.queue, passive=True)).declaration_result
        await channel.close()
        waiting, consumers = found.message_count or 0, found.consumer_count or 0
        if not consumers:
            return "no worker consumes this queue; start one"
        if waiting:
            return f"{waiting} wait in the queue, workers consume it"
        return "a worker holds it or it waits for a retry; see its /readyz for the relay"

    async def follow(self, heard: Callable[[bytes], None]) -> bool:
        """Hand over the body of every event from now on; `False` where no worker has ever run."""
        channel = await self._connection.channel(publisher_confirms=False)
        queue = await channel.declare_queue(exclusive=True, auto_delete=True)
        try:
            await queue.bind(self._exchange, "otp.#")
        except ChannelClosed:
            return False

        async def take(message: DeliveredMessage) -> None:
            heard(message.body)

        # past aio-pika, which reads all fields of a message of which one counts
        await cast("Channel", await channel.get_underlay_channel()).basic_consume(queue.name, take, no_ack=True)
        return True


@asynccontextmanager
async def opened(settings: Settings, *, high_lane: bool) -> AsyncGenerator[Line]:
    """Open a line to the jobs queue or to the high lane. Raises `ProducerError` where the broker does not answer."""
    url = settings.amqp_url
    try:
        connection = await aio_pika.connect(url, timeout=5)
    except LOST as error:
        text = f"RABBITMQ_URL: {settings.masked_rabbitmq_url} {no_connection(error, url)}"
        if refusal(error, url) is None:
            text += "; start the worker with `make run`, or set the URL of RabbitMQ"
        raise ProducerError(text) from None
    try:
        channel = await connection.channel(on_return_raises=True)
        publishing = cast("Channel", await channel.get_underlay_channel())
        queue = f"{settings.rabbitmq_queue_name}.high" if high_lane else settings.rabbitmq_queue_name
        yield Line(queue, f"{settings.rabbitmq_prefix}.events", connection, publishing)
    finally:
        with contextlib.suppress(*LOST):
            async with asyncio.timeout(_CLOSE_S):
                await connection.close()


async def at_a_pace(jobs: Iterator[T], publish: Callable[[T], Awaitable[None]], *, rate: float | None) -> None:
    """Publish each job when its turn comes, `rate` a second at most, and a bounded number at one time.

    Raises `ProducerError` when one cannot be published: none begins after that.
    """
    began, turn = monotonic(), 0
    troubles: list[str] = []

    async def one(job: T) -> None:
        try:
            await publish(job)
        except (ProducerError, *LOST) as error:
            troubles.append(told(error))

    async def one_after_another(most: int | None = None) -> None:
        nonlocal turn
        for job in itertools.islice(jobs, most):
            due, turn = began + (turn / rate if rate else 0), turn + 1
            if (ahead := due - monotonic()) > 0:
                await asyncio.sleep(ahead)
            if troubles:
                return
            await one(job)

    await one_after_another(1)  # alone: it makes the queue where that is missing
    async with asyncio.TaskGroup() as group:
        for _ in range(_WINDOW):
            group.create_task(one_after_another())
    if troubles:
        raise ProducerError(troubles[0])


def told(error: Exception) -> str:
    """Say what kept a job from being published."""
    if isinstance(error, ProducerError):
        return str(error)
    if isinstance(error, TimeoutError):
        return f"the broker has confirmed nothing for {_TIMEOUT_S:g} s; is it short of memory or disk?"
    return f"the broker has gone away: {type(error).__name__}"


async def until_quiet(done: Callable[[], bool], quiet_s: Callable[[], float], wait_s: Callable[[], float]) -> None:
    """Wait until it is done, or nothing has been heard for so long."""
    while not done() and quiet_s() < wait_s():  # noqa: ASYNC110 - what is heard comes thousands of times a second
        await asyncio.sleep(_LOOK_S)


def run(work: Coroutine[Any, Any, None]) -> bool:
    """Run to the end, or to Ctrl-C or SIGTERM. Returns whether it came to its own end."""

    async def stoppable() -> bool:
        task = asyncio.ensure_future(work)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            return False
        return True

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(stoppable())
