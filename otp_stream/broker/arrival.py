"""A message as it came, read into a typed job."""

import time
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol, cast
from urllib.parse import unquote
from uuid import uuid4

from aio_pika import IncomingMessage
from aio_pika.exceptions import ChannelInvalidStateError
from aiormq import Channel
from aiormq.exceptions import ChannelInvalidStateError as ClosedError
from pamqp.commands import Basic
from pamqp.header import ContentHeader
from pydantic_core import from_json

from otp_stream.core.job import MAX_BODY_BYTES, Job, Lane, MalformedError, OtpJob, Replay, carry
from otp_stream.core.masking import hidden, holds_any, suspects, tells

from .acks import Acks

ATTEMPT, JOB_ID, FIRST_SEEN = "x-otp-attempt", "x-otp-job-id", "x-otp-first-seen"
UNCERTAIN = "x-otp-uncertain"
REPLAYED_AT, REPLAYED_BY, FRESH = "x-otp-replayed-at", "x-otp-replayed-by", "x-otp-fresh"
TRACE = ("traceparent", "tracestate", "baggage")
_ID_LIMIT = 200
_NO_SECRETS = {"timestamp", "retryCount", "priority"}
_HAS_HEADERS = 0x20
"""In the first byte of a content header's flags."""


class Delivered:
    """What a broker delivered, with the face of aio-pika's `IncomingMessage`: that one costs more than all we do here.

    `header` is the payload of its content header; most producers' messages have nothing in it that we ask for.
    """

    __slots__ = ("_acks", "_header", "_known", "_tag", "body", "channel", "headers", "redelivered")

    def __init__(
        self,
        channel: Channel,
        acks: Acks,
        tag: int,
        redelivered: bool,  # noqa: FBT001 - keywords cost, and this is made once for each job
        header: bytes,
        body: bytes,
    ) -> None:
        self._acks = acks
        self._header = header
        self._known: Basic.Properties | None = None
        self._tag = tag
        self.body = body
        self.channel = channel
        self.headers: dict[str, Any] = self._properties().headers or {} if header[12] & _HAS_HEADERS else {}
        self.redelivered = redelivered

    def __getattr__(self, name: str) -> Any:
        return getattr(self._properties(), "message_type" if name == "type" else name)

    def _properties(self) -> Basic.Properties:
        if self._known is None:
            header = ContentHeader()
            try:
                header.unmarshal(self._header)
            except Exception:  # noqa: BLE001 - tables nested without end, or torn as nobody foresaw: the body still counts
                header = ContentHeader()
            self._known = header.properties
        return self._known

    async def ack(self) -> None:
        """Acknowledge; raises where the channel is gone."""
        if self.channel.is_closed:
            raise ClosedError("the channel is closed")
        self._acks.ack(self._tag)

    async def nack(self, *, requeue: bool = True) -> None:
        """Give it back."""
        await self.channel.basic_nack(self._tag, requeue=requeue)
        self._acks.settled_otherwise(self._tag)


Message = IncomingMessage | Delivered
"""As it came from the in-memory broker, or from a real one."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One delivery: the message as it came, where, and when (milliseconds since 1970)."""

    message: Message = field(repr=False)
    lane: Lane
    seen_ms: int

    @property
    def alive(self) -> bool:
        """Whether it can still be acknowledged: a closed channel has given it back."""
        try:
            return not self.message.channel.is_closed
        except ChannelInvalidStateError:  # aio-pika's word for a channel that is gone
            return False

    def header(self, name: str, kind: type) -> Any:
        """Return a header that only we write; anybody could write it on the producers' queues, so not from there."""
        value = self.message.headers.get(name) if self.lane == "due" else None
        return value if isinstance(value, kind) and not isinstance(value, bool) else None

    @property
    def returns(self) -> int:
        """How often it went back unsettled, by a quorum queue's count; a classic queue keeps none."""
        count = self.message.headers.get("x-delivery-count")
        return count if isinstance(count, int) else 0

    @property
    def first_seen_ms(self) -> int:
        """When this worker or another first saw the job."""
        return self.header(FIRST_SEEN, int) or self.seen_ms

    @property
    def uncertain(self) -> str | None:
        """Return the relay that may have taken it before."""
        return self.header(UNCERTAIN, str)

    @property
    def replay(self) -> Replay | None:
        """Return the last replay, if it was a dead letter before."""
        at_ms: int | None = self.header(REPLAYED_AT, int)
        if at_ms is None:
            return None
        return Replay(at_ms, self.header(REPLAYED_BY, str) or "", self.header(FRESH, str) is not None)

    def attempts_made(self, ask: OtpJob | None) -> int:
        """Return the attempts before this delivery; a producer's `retryCount` seeds the count."""
        counted: int | None = self.header(ATTEMPT, int)
        return counted if counted is not None else ask.retry_count if ask else 0

    def carrier(self) -> dict[str, str]:
        """Return the producer's trace context (W3C)."""
        headers = self.message.headers
        return {name: str(headers[name]) for name in TRACE if name in headers} if headers else {}

    def check_headers(self) -> None:
        """Refuse what no tracer can have written. Raises `MalformedError`."""
        headers = self.message.headers
        for name in TRACE if headers else ():
            value = headers.get(name)
            if value is not None and not isinstance(value, str):
                raise MalformedError(f"header {name}: must be a string, not {type(value).__name__}")


class MadeIds(Protocol):
    """Ids made for jobs that nothing tells apart but their content, by a keyed hash of it."""

    async def recall(self, content: str) -> str | None:
        """Return the last id made for this content, by this worker or another."""
        ...

    def keep(self, content: str, job_id: str) -> None:
        """Remember the id made for it."""
        ...


@dataclass(frozen=True, slots=True)
class Reader:
    """Makes jobs of arrivals."""

    default_expiry_minutes: float
    hash_key: bytes = field(repr=False)
    made: MadeIds

    async def job(self, arrival: Arrival, ask: OtpJob) -> Job:
        """Take a job into the worker's hands."""
        return carry(
            ask,
            job_id=await self.job_id(arrival, ask),
            lane=arrival.lane,
            first_seen_ms=arrival.first_seen_ms,
            attempts_made=arrival.attempts_made(ask),
            default_expiry_minutes=self.default_expiry_minutes,
            suspect=bool(arrival.message.redelivered),
            uncertain=arrival.uncertain,
            replay=arrival.replay,
        )

    async def job_id(self, arrival: Arrival, ask: OtpJob) -> str:
        """Return the job's id: the producer's, unless it tells a secret, or one made from its content."""
        if known := arrival.header(JOB_ID, str):
            return known
        if ask.job_id and tells(ask.job_id, ask.email, ask.otp):
            # ids stand in logs, headers and events
            return hidden(ask.job_id, self.hash_key)
        return ask.job_id or await self._made_id(arrival.message, ask)

    async def _made_id(self, message: Message, ask: OtpJob) -> str:
        moment = ask.timestamp if ask.timestamp is not None else message.message_id or message.timestamp
        content = "\0".join((ask.email, ask.otp, ask.metadata.template, str(moment or "")))
        digest = blake2b(content.encode(), key=self.hash_key, digest_size=16).hexdigest()
        if moment:
            return digest
        # Nothing tells a copy from a person who asked again and got the same code: only a message that the broker
        # marks as redelivered can be a copy, so only that one takes the id of the one before.
        made = (await self.made.recall(digest) if message.redelivered else None) or uuid4().hex
        self.made.keep(digest, made)
        return made


def said_job_id(body: bytes) -> str | None:
    """Return the `jobId` of a body that is no job, where one can be read in it: whoever looks for the job knows it."""
    try:
        said = from_json(body) if len(body) <= MAX_BODY_BYTES else None
    except ValueError:
        return None
    if not isinstance(said, dict):
        return None
    fields = cast("dict[str, Any]", said)
    job_id: Any = fields.pop("jobId", None)
    if not isinstance(job_id, str) or not 0 < len(job_id) <= _ID_LIMIT or not job_id.isprintable():
        return None
    if "@" in unquote(job_id):
        return None
    secrets = {str(fields.get("otp", "")).strip(), *suspects(fields, apart=_NO_SECRETS)}
    return None if holds_any(job_id, secrets) else job_id


def now_ms() -> int:
    """Return the wall clock, milliseconds since 1970."""
    return time.time_ns() // 1_000_000
