"""The producer API on asyncio."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self
from uuid import uuid4

from aio_pika.exceptions import ChannelClosed
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused, DeliveryError, PublishError

from otp_stream.connection_errors import broker_text
from otp_stream.core.body_at_rest import at_rest
from otp_stream.core.job_event import JobEvent
from otp_stream.core.masking import contains_secret
from otp_stream.core.otp_job import OtpJob
from otp_stream.core.sealed_body import Content
from otp_stream.core.sealing_keys import NO_KEYS, SealingKeys, keys_of, read_keys
from otp_stream.tasks import lost_connection_as_error
from otp_stream.urls import read_url

from .errors import ClientError, NoWorkerError, OutcomeUnknownError
from .link import CONNECTION_ERRORS, Link, until_final

SEND_S = 30.0
"""How long `send` waits for the final event by default."""
_URL_EXAMPLE = "amqp://user:password@rabbitmq.example.com:5672/vhost"
_CLOSE_S = 2


class OtpClient:
    """A connection to RabbitMQ that is opened at the first use, and again after a loss.

    `queue` and `prefix` are the workers' `RABBITMQ_QUEUE_NAME` and `RABBITMQ_PREFIX`. `exchange` is the exchange to
    which jobs are published: the workers' exchange for jobs, `<prefix>.jobs`, for a user that may write to nothing
    else; or the default exchange. `timeout_s` limits the time until RabbitMQ confirms a publish or a subscription.
    `sealing_key` seals codes before they are published: a JWK or a JWK Set, decoded or as JSON, whose first key is a
    public key of the workers (`otp-stream sealing public`) or a shared one. Raises `ValueError` for an invalid URL or
    key.
    """

    def __init__(
        self,
        url: str = "amqp://guest:guest@localhost:5672/",
        *,
        queue: str = "service_send_otp",
        prefix: str = "otp",
        exchange: str = "",
        timeout_s: float = 10.0,
        sealing_key: str | Mapping[str, Any] | SealingKeys = NO_KEYS,
    ) -> None:
        try:
            read_url(url, {"amqp", "amqps"}, _URL_EXAMPLE)
        except ValueError as error:
            raise ValueError(f"url {error}") from None
        self._url, self._queue, self._events = url, queue, f"{prefix}.events"
        self._exchange = exchange
        self._timeout_s = timeout_s
        self._keys = _sealing_keys(sealing_key)
        self._link: Link | None = None
        self._connecting = asyncio.Lock()
        for name in ("aiormq.channel", "aiormq.connection"):
            logging.getLogger(name).addFilter(_hides_messages)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close(self._link)

    async def connect(self) -> None:
        """Connect now instead of at the first use. Raises `ClientError` if RabbitMQ does not answer or refuses it."""
        await self._connected()

    async def publish(self, job: OtpJob | bytes, *, high_lane: bool = False) -> None:
        """Publish a job, or a message body, and wait until RabbitMQ has confirmed it.

        Declares the queue if it is missing, but only for the default exchange. Raises `ClientError`. If the connection
        was lost or RabbitMQ did not confirm, the job may have been published: publish it again with the same `job_id`,
        and it is sent once.
        """
        body = job if isinstance(job, bytes) else job.model_dump_json(by_alias=True, exclude_none=True).encode()
        content = at_rest(Content(body, "application/json"), self._keys)
        queue = f"{self._queue}.high" if high_lane else self._queue
        link = await self._connected()
        try:
            with lost_connection_as_error():
                try:
                    await link.publish(content, self._exchange, queue, self._timeout_s)
                except PublishError:  # the queue does not exist: no worker has been started yet
                    if self._exchange:  # declaring the queue would not bind it
                        raise
                    async with asyncio.timeout(self._timeout_s):
                        await link.declare(queue)
                    await link.publish(content, "", queue, self._timeout_s)
        # from None: the errors contain the message
        except PublishError:
            raise ClientError(self._unroutable(queue)) from None
        except ChannelClosed as error:  # no permission, no such exchange, or a queue of another kind
            raise ClientError(f"RabbitMQ refused to publish to the queue {queue}: {broker_text(error)}") from None
        except DeliveryError:
            raise ClientError(f"RabbitMQ refused the job: the queue {queue} may have reached its limit") from None
        except CONNECTION_ERRORS as error:
            await self._close(link)
            raise self._lost(error) from None

    async def send(self, job: OtpJob, *, high_lane: bool = False, timeout_s: float = SEND_S) -> JobEvent:
        """Publish a job, wait for its final outcome, at most `timeout_s` in all, and return that event.

        A job without `job_id` gets one. Raises `ValueError` if the `job_id` contains the address or the code. Raises
        `NoWorkerError` before it publishes if there are no events; `OutcomeUnknownError`, which has the `job_id`, if
        the outcome is unknown at the deadline or the connection is lost; and `ClientError` as `publish` does.
        """
        job = _with_id(job)
        confirmed = False
        try:
            async with asyncio.timeout(timeout_s), self.follow(job.job_id) as events:
                await self.publish(job, high_lane=high_lane)
                confirmed = True
                return [event async for event in events][-1]
        except TimeoutError:
            text = (
                f"RabbitMQ has the job, but no worker has reported its outcome within {timeout_s:g} s; is a worker "
                "running, is the relay up, and is EVENTS on?"
                if confirmed
                else f"RabbitMQ has not confirmed the job within {timeout_s:g} s; publish it again with the same job_id"
            )
            raise OutcomeUnknownError(text, job.job_id) from None
        except OutcomeUnknownError as error:
            raise OutcomeUnknownError(str(error), job.job_id) from None

    @asynccontextmanager
    async def follow(self, job_id: str | None = None) -> AsyncGenerator[AsyncIterator[JobEvent]]:
        """Yield an iterator over the events of a job until its final outcome. Without `job_id`, over all events.

        Call it before you publish the job, and limit the time with `asyncio.timeout`. Raises `ClientError` if there is
        no exchange for events. The iterator raises it if the connection is lost, so that the outcome is unknown.
        """
        link = await self._connected()
        try:
            with lost_connection_as_error():
                async with asyncio.timeout(self._timeout_s):
                    await link.subscribe(self._events)
        except ChannelAccessRefused as error:
            raise ClientError(
                f"RabbitMQ refused to subscribe to {self._events}: {broker_text(error)}; follow jobs as a user that "
                "may read events"
            ) from None
        except ChannelClosed:
            raise NoWorkerError(
                f"no worker has declared the exchange {self._events}, so there are no events; start a worker, or "
                "compare RABBITMQ_PREFIX"
            ) from None
        except CONNECTION_ERRORS as error:
            await self._close(link)
            raise self._lost(error) from None
        received: asyncio.Queue[JobEvent | None] = asyncio.Queue()
        link.followers[job_id].add(received)
        try:
            yield until_final(received, endless=job_id is None)
        finally:
            link.followers[job_id].discard(received)
            if not link.followers[job_id]:
                del link.followers[job_id]

    def _unroutable(self, queue: str) -> str:
        text = f"RabbitMQ returned the job: it cannot be routed to the queue {queue}"
        if not self._exchange:
            return text
        return f"{text} by the exchange {self._exchange}; start a worker, or run `otp-stream topology apply`"

    def _lost(self, error: BaseException) -> ClientError:
        if isinstance(error, TimeoutError):
            return ClientError(
                f"RabbitMQ has not replied within {self._timeout_s:g} s; is it short of memory or disk space?"
            )
        return ClientError(f"the connection to RabbitMQ was lost ({type(error).__name__})")

    async def _connected(self) -> Link:
        async with self._connecting:
            # the channel's state, because aio-pika considers a connection open that the other end has closed
            if self._link is None or self._link.publishing.is_closed:
                self._link = await Link.open(self._url)
            return self._link

    async def _close(self, link: Link | None) -> None:
        """Close a connection, but not another one that has replaced it."""
        if link is None:
            return
        if self._link is link:
            self._link = None
        with contextlib.suppress(*CONNECTION_ERRORS):
            async with asyncio.timeout(_CLOSE_S):
                await link.connection.close()


def _sealing_keys(given: str | Mapping[str, Any] | SealingKeys) -> SealingKeys:
    if isinstance(given, SealingKeys):
        return given
    try:
        return read_keys(given, sealing_only=True) if isinstance(given, str) else keys_of(given, sealing_only=True)
    except ValueError as error:
        raise ValueError(f"sealing_key: {error}") from None


def _with_id(job: OtpJob) -> OtpJob:
    """Return the job with an id that its events have. Raises `ValueError`."""
    if job.job_id and contains_secret(job.job_id, job.email, job.otp):
        raise ValueError("job_id: contains the address or the code, so its events have a hash instead; use another id")
    job_id = job.job_id
    while not job_id or contains_secret(job_id, job.email, job.otp):  # by chance, one in 2,000 contains a short code
        job_id = uuid4().hex
    return job.model_copy(update={"job_id": job_id})


def _hides_messages(record: logging.LogRecord) -> bool:
    # aiormq logs a late return with the whole message, and at DEBUG every frame, and both contain codes
    args = record.args if isinstance(record.args, tuple) else ()
    return record.levelno > logging.DEBUG and not any(isinstance(it, DeliveredMessage) for it in args)
