"""Deliveries without a broker: a channel that records how each was settled, and a publish that records each try."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

from aio_pika import Message
from aiormq import Channel
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from otp_stream.broker.frames import Acks
from otp_stream.broker.job_message import JobMessage
from otp_stream.broker.message import Delivered
from otp_stream.core.decision import Dead
from otp_stream.core.job import Job, Lane
from otp_stream.core.messaging import Destination

BODY = b'{"email": "user@example.com", "otp": "123456", "jobId": "j-1"}'


def deliver(tag: int, *, redelivered: bool = False) -> bytes:
    """Return the payload of a `basic.deliver`."""
    return b"\x00\x3c\x00\x3c" + Basic.Deliver("consumer", tag, redelivered, "", "jobs").marshal()


def searched(headers: Mapping[str, Any]) -> str:
    """Return headers to be searched for a code, without times and MAC, which may have its digits by chance."""
    return str({name: value for name, value in headers.items() if name not in _RANDOM})


_RANDOM = {"x-otp-first-seen", "x-otp-died-at", "x-otp-mac"}


class NoTelemetry:
    """Records only which messages were refused, which jobs crashed, and the error of each publish."""

    def __init__(self) -> None:
        self.refused: list[tuple[Lane, str, Dead]] = []
        self.settled: list[tuple[str, Dead]] = []
        self.publishes: list[type[BaseException] | None] = []

    def message_refused(self, lane: Lane, job_id: str, settlement: Dead) -> None:
        self.refused.append((lane, job_id, settlement))

    def job_settled(self, job: Job, settlement: Dead) -> None:
        self.settled.append((job.id, settlement))

    def unread_span(self, message: object) -> AbstractContextManager[None]:
        return nullcontext()

    def publish_span(self, publication: object) -> AbstractContextManager[None]:
        return nullcontext()

    def traceparent(self) -> None:
        return None

    def published(self, publication: object, took_s: float, error: BaseException | None) -> None:
        assert publication is not None
        assert took_s >= 0
        self.publishes.append(type(error) if error is not None else None)


class MadeIds:
    """Stores generated ids, as the tables do."""

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}

    async def recall(self, content: str) -> str | None:
        return self.ids.get(content)

    def keep(self, content: str, job_id: str) -> None:
        self.ids[content] = job_id


class Deliveries:
    """Creates deliveries of one channel. `acked` and `nacked` contain their tags, in order."""

    def __init__(self) -> None:
        self.is_closed = False
        self.acked: list[int] = []
        self.nacked: list[tuple[int, bool]] = []
        self.nack_error: BaseException | None = None
        self._tags = 0

    def reconnected(self) -> "Deliveries":
        """Close the channel, and return the next one."""
        self.is_closed = True
        return Deliveries()

    def delivered(
        self, body: bytes = BODY, *, redelivered: bool = False, dropped: int = 0, **properties: Any
    ) -> Delivered:
        """Return the next delivery, with these properties."""
        self._tags += 1
        header = ContentHeader(body_size=len(body), properties=Basic.Properties(**properties)).marshal()
        method = deliver(self._tags, redelivered=redelivered)
        return Delivered(cast("Channel", self), cast("Acks", self), method, header, body, dropped)

    def message(
        self, body: bytes = BODY, lane: Lane = "jobs", *, redelivered: bool = False, **properties: Any
    ) -> JobMessage:
        """Return the next delivery in a lane."""
        message = self.delivered(body, redelivered=redelivered, **properties)
        return JobMessage(message, lane, Destination("jobs"), 1_000, message.headers if lane == "due" else None)

    def ack(self, tag: int) -> None:
        self.acked.append(tag)

    def settled_otherwise(self, tag: int) -> None: ...

    async def basic_nack(self, tag: int, *, requeue: bool) -> None:
        if self.nack_error is not None:
            raise self.nack_error
        self.nacked.append((tag, requeue))


End = BaseException | Callable[[], None] | None


@dataclass(frozen=True)
class Try:
    """One attempt to publish, with copies of its arguments."""

    exchange: str
    routing_key: str
    new_channel: bool
    body: bytes
    headers: dict[str, Any]
    delivery_mode: int
    message: Message = field(repr=False)


@dataclass
class Publishing:
    """A fake confirmed publish. `ends` are results of tries, `None` for a confirm; further tries are confirmed."""

    ends: deque[End] = field(default_factory=deque[End])
    tries: list[Try] = field(default_factory=list[Try])
    confirmed: asyncio.Event = field(default_factory=asyncio.Event)
    """No attempt ends before it is set."""
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.confirmed.set()

    async def __call__(self, message: Message, *, exchange: str, routing_key: str, new_channel: bool = False) -> None:
        mode = int(message.delivery_mode or 0)
        self.tries.append(Try(exchange, routing_key, new_channel, message.body, dict(message.headers), mode, message))
        self.begun.set()
        await self.confirmed.wait()
        end = self.ends.popleft() if self.ends else None
        if callable(end):
            end()
        elif end is not None:
            raise end
