"""One event for each job outcome, for anyone who binds a queue to the events exchange."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, cast

import structlog
from aiormq import Channel
from aiormq.abc import ChannelFrame
from faststream.exceptions import SubscriberNotFound
from faststream.rabbit.publisher import RabbitPublisher
from pydantic_core import to_json

from otp_stream.core.decision import Ack, Dead, Final, Park, Retry
from otp_stream.core.job import Job
from otp_stream.core.masking import hash_address
from otp_stream.core.messaging import Publication, published_to
from otp_stream.core.outcome import Reply, Route

from . import frames
from .telemetry import BrokerTelemetry, Publishing

_BACKLOG = 10_000
_BATCH = 200
_GATHER_S = 0.005
"""How long to collect events: one packet for many is cheaper, and no one waits for an event."""


class Event(NamedTuple):
    """The content of a `JobEvent` by its aliases: building and dumping the model takes three times as long."""

    outcome: str
    content: dict[str, Any]


def event(settlement: Final, job_id: str, job: Job | None, *, at_ms: int, hash_key: bytes) -> Event:
    """Return the event of a settlement; `job` is `None` for a malformed message."""
    attempts_made = job.attempts_made if job else 0
    content: dict[str, Any] = {"jobId": job_id, "at": at_ms}
    if job:
        request = job.request
        content["recipient"] = hash_address(request.email, hash_key)
        content["template"] = request.shown_template
        if job.tenant:
            content["tenant"] = job.tenant
    match settlement:
        case Ack(ending, route):
            content |= {"outcome": ending, "attempt": attempts_made + (ending == "sent"), **_route_fields(route)}
        case Dead(reason, error, attempt, allowed_ms, reply, route):
            content |= {"outcome": reason, "attempt": attempt, "error": error}
            content |= {**_reply_fields(reply), **_route_fields(route)}
            if allowed_ms is not None:
                content["allowedAt"] = allowed_ms
        case Retry(delay_ms, attempt, error, _, reply, route):
            content |= {
                "outcome": "retrying",
                "attempt": attempt,
                "error": error,
                **_delay_fields(at_ms, delay_ms),
                **_reply_fields(reply),
                **_route_fields(route),
            }
        case Park(delay_ms):
            content |= {"outcome": "retrying", "attempt": attempts_made, **_delay_fields(at_ms, delay_ms)}
    return Event(content["outcome"], content)


def _delay_fields(at_ms: int, delay_ms: int) -> dict[str, Any]:
    return {"delayMs": delay_ms, "retryAt": at_ms + delay_ms}


def _reply_fields(reply: Reply | None) -> dict[str, Any]:
    if reply is None:
        return {}
    return {"replyCode": reply.code, "replyClass": reply.about} if reply.about else {"replyCode": reply.code}


def _route_fields(route: Route | None) -> dict[str, Any]:
    if route is None:
        return {}
    return (
        {"relay": route.relay, "switchedFrom": route.switched_from} if route.switched_from else {"relay": route.relay}
    )


class _Queued(NamedTuple):
    event: Event
    headers: dict[str, Any]
    """The trace context of the job, if it is traced."""


class Events:
    """Publishes events in the background. If the broker is too slow, they are dropped and counted."""

    def __init__(self, publisher: RabbitPublisher, telemetry: BrokerTelemetry, *, enabled: bool) -> None:
        self.enabled = enabled
        """Whether events are published at all."""
        self.dropped = 0
        self._publisher = publisher
        self._telemetry = telemetry
        self._queue: asyncio.Queue[_Queued] = asyncio.Queue(_BACKLOG)

    def enqueue(self, event: Event, traceparent: str | None) -> None:
        """Queue an event with the trace context of its job, or drop it if the queue is full."""
        try:
            self._queue.put_nowait(_Queued(event, {"traceparent": traceparent} if traceparent else {}))
        except asyncio.QueueFull:
            self.dropped += 1

    async def publish(self, channel: Callable[[], Awaitable[Channel]], *, by_publisher: bool) -> None:
        """Publish events until cancelled, without confirms.

        With `by_publisher`, each goes through FastStream's publisher and middlewares; otherwise many go in one packet.
        """
        while True:
            events = [await self._queue.get()]
            await asyncio.sleep(_GATHER_S)
            while len(events) < _BATCH and not self._queue.empty():
                events.append(self._queue.get_nowait())
            try:
                async with asyncio.timeout(5):
                    if by_publisher:
                        for queued in events:
                            await self._publish(queued)
                    else:
                        await self._send(await channel(), events)
            except Exception as error:  # noqa: BLE001 - an event may be lost, the worker must continue
                self.dropped += len(events)
                structlog.get_logger(__name__).warning("events dropped", count=len(events), error=type(error).__name__)
            finally:
                for _ in events:
                    self._queue.task_done()

    async def publish_now(self) -> None:
        """Publish all queued events, on the in-memory test broker."""
        while not self._queue.empty():
            with contextlib.suppress(SubscriberNotFound):  # a topic exchange without bound queues drops events, too
                await self._publish(self._queue.get_nowait())
            self._queue.task_done()

    async def _publish(self, queued: _Queued) -> None:
        event, headers = queued
        with self._publishing([queued]):
            await self._publisher.publish(
                event.content, routing_key=_routing_key(event), headers=headers or None, mandatory=False
            )

    async def _send(self, channel: Channel, events: list[_Queued]) -> None:
        number, exchange = channel.number, self._publisher.exchange.name
        outgoing = cast("asyncio.Queue[ChannelFrame]", cast("Any", channel.connection).write_queue)
        with self._publishing(events):
            packet = b"".join(
                [
                    frames.publish_json(
                        number, exchange, _routing_key(event), to_json(event.content), headers.get("traceparent")
                    )
                    for event, headers in events
                ]
            )
            await outgoing.put(frames.packet(packet))

    def _publishing(self, events: list[_Queued]) -> Publishing:
        exchange, parents = self._publisher.exchange.name, tuple(it.headers.get("traceparent") for it in events)
        if len(events) > 1:
            return Publishing(self._telemetry, Publication(published_to(exchange, ""), parents=parents))
        routing_key, headers = _routing_key(events[0].event), events[0].headers
        publication = Publication(published_to(exchange, routing_key), routing_key, None, headers, parents)
        return Publishing(self._telemetry, publication)

    async def flush(self, timeout_s: float) -> None:
        """Wait until all queued events are published, at most `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._queue.join()


def _routing_key(event: Event) -> str:
    return f"otp.{event.outcome}"
