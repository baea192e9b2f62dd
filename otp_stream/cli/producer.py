"""A producer as there are many: plain JSON to the jobs queue through the default exchange."""

import asyncio
import contextlib
import json
import secrets
import time
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import AMQPError, ChannelClosed, DeliveryError

from otp_stream.core.decision import ENDINGS
from otp_stream.core.job import MalformedError, OtpJob
from otp_stream.settings import EMBEDDED_BROKER_PORT, Settings, load

Job = dict[str, Any]


class ProducerError(Exception):
    """The job could not be published; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Told:
    """What became of a job, in one line."""

    text: str
    good: bool = True


def make_job(*, email: str, otp: str | None, job_id: str | None, priority: str, metadata: Job) -> Job:
    """Return a job as the contract has it. Raises `ProducerError` where the worker would refuse it."""
    job: Job = {
        "email": email,
        "otp": otp or f"{secrets.randbelow(10**6):06}",
        "jobId": job_id or uuid4().hex,
        "timestamp": time.time_ns() // 1_000_000,
        "priority": priority,
        "metadata": {key: value for key, value in metadata.items() if value is not None},
    }
    try:
        OtpJob.from_bytes(json.dumps(job).encode())
    except MalformedError as error:
        raise ProducerError(str(error)) from None
    return job


async def publish(job: Job, *, high_lane: bool, wait_s: float) -> Told:
    """Publish a job, confirmed, and wait for its event. Raises `ProducerError`."""
    settings, problems = load()
    if problems and "RABBITMQ_URL" in " ".join(problems):
        raise ProducerError("\n".join(problems))
    url = await _find_broker(settings)
    queue = f"{settings.rabbitmq_queue_name}.high" if high_lane else settings.rabbitmq_queue_name
    try:
        connection = await aio_pika.connect(url, timeout=5)
    except (OSError, AMQPError, TimeoutError) as error:
        raise ProducerError(
            f"RABBITMQ_URL: {settings.masked_rabbitmq_url} does not answer ({error}); "
            "start the worker with `make run`, or name the broker"
        ) from None
    async with connection:
        exchange = f"{settings.rabbitmq_prefix}.events"
        events = await _events(await connection.channel(), exchange) if wait_s else None
        began = time.monotonic()
        await _publish(await connection.channel(on_return_raises=True), queue, json.dumps(job).encode())
        if events is None:
            return Told(f"published {job['jobId']} to {queue}")
        return await _watch(events, job["jobId"], queue, began, wait_s)


async def _find_broker(settings: Settings) -> str:
    if "rabbitmq_url" not in settings.model_fields_set:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", EMBEDDED_BROKER_PORT)
            writer.close()
            return f"amqp://guest:guest@127.0.0.1:{EMBEDDED_BROKER_PORT}/"
    return settings.amqp_url


async def _publish(channel: AbstractChannel, queue: str, body: bytes) -> None:
    message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
    for last in (False, True):
        try:
            await channel.default_exchange.publish(message, queue, mandatory=True, timeout=10)
        except DeliveryError:
            if last:
                raise ProducerError(f"{queue}: the broker did not take the job") from None
            await channel.declare_queue(queue, durable=True)  # before the worker's first start, as producers do it
        else:
            return


async def _events(channel: AbstractChannel, exchange: str) -> AbstractQueue | None:
    queue = await channel.declare_queue(exclusive=True, auto_delete=True)
    try:
        await queue.bind(exchange, "otp.#")
    except ChannelClosed:  # no worker has ever run here
        return None
    return queue


async def _watch(events: AbstractQueue, job_id: str, queue: str, began: float, wait_s: float) -> Told:
    heard: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    await events.consume(heard.put, no_ack=True)
    last = "no worker has taken it"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            while True:
                event = json.loads((await heard.get()).body)
                if event["jobId"] == job_id:
                    last = " ".join(filter(None, (event["outcome"], event.get("error"))))
                    if event["outcome"] in ENDINGS:
                        took_ms = round((time.monotonic() - began) * 1000)
                        return Told(f"{job_id}: {last}, after {took_ms} ms", good=event["outcome"] == "sent")
    return Told(f"{job_id} is in {queue}; after {wait_s:g} s: {last}", good=False)
