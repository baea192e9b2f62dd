"""A received message, and how a job is read from it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Protocol, get_args
from uuid import uuid4

from otp_stream.core.job import Job, Lane, Replay
from otp_stream.core.masking import is_secret_id, keyed_hash
from otp_stream.core.messaging import Destination
from otp_stream.core.otp_job import MalformedError, OtpJob
from otp_stream.core.sealing_keys import NO_KEYS, SealingKeys
from otp_stream.core.trace_context import TRACE, is_harmless_trace, is_trace

from .headers import (
    ATTEMPT,
    FIRST_SEEN,
    FRESH,
    JOB_ID,
    LANE,
    MAC,
    MOVES,
    REPLAYED_AT,
    REPLAYED_BY,
    SUSPECT,
    UNCERTAIN,
)
from .message import Delivered, RawMessage

SIGNED: tuple[Lane, ...] = ("due", "tenant")
"""The lanes whose messages a worker has signed. On the producers' queues, our headers have no effect."""


@dataclass(frozen=True, slots=True)
class JobMessage:
    """One delivery: the message, its lane, and when it was received (milliseconds since 1970)."""

    raw: RawMessage = field(repr=False)
    lane: Lane
    queue: Destination
    """The queue that it was delivered from."""
    seen_ms: int
    ours: Mapping[str, Any] | None = None
    """Our own headers, if a worker has signed them. Others are ignored."""

    @property
    def identity(self) -> tuple[str, int, object]:
        """Equal for all deliveries of one message within this process. The MAC covers our headers and the body."""
        return self.lane, hash(self.raw.body), self.ours and self.raw.headers.get(MAC)

    @property
    def alive(self) -> bool:
        """Whether it can still be acknowledged: a channel that closes returns its messages to the queue.

        The in-memory test broker has no channels.
        """
        return not (isinstance(self.raw, Delivered) and self.raw.channel.is_closed)

    def header(self, name: str, kind: type) -> Any:
        """Return a header of ours, or `None`."""
        value = self.ours.get(name) if self.ours else None
        return value if isinstance(value, kind) and not isinstance(value, bool) else None

    @property
    def dropped(self) -> int:
        """The size of a body that was too large to keep, otherwise 0."""
        return self.raw.dropped if isinstance(self.raw, Delivered) else 0

    @property
    def exchange(self) -> str:
        """The exchange to which it was published."""
        return self.raw.exchange or ""

    @property
    def routing_key(self) -> str:
        """The routing key with which it was published."""
        return self.raw.routing_key or ""

    @property
    def delivery_tag(self) -> int | None:
        """Its number in the channel."""
        return self.raw.delivery_tag

    @property
    def message_id(self) -> str | None:
        """AMQP's `message-id`."""
        return self.raw.message_id

    @property
    def correlation_id(self) -> str | None:
        """AMQP's `correlation-id`."""
        return self.raw.correlation_id

    @property
    def body_size(self) -> int:
        """Bytes of the body, opened if it was sealed."""
        return self.dropped or len(self.raw.body)

    @property
    def returns(self) -> int:
        """How often it was requeued, as quorum queues count it; classic queues do not."""
        count = self.raw.headers.get("x-delivery-count")
        return count if isinstance(count, int) else 0

    @property
    def first_seen_ms(self) -> int:
        """When a worker first received the job."""
        return self.header(FIRST_SEEN, int) or self.seen_ms

    @property
    def uncertain(self) -> str | None:
        """The relay that may have accepted its mail in an earlier attempt."""
        return self.header(UNCERTAIN, str)

    @property
    def first_lane(self) -> Lane:
        """The lane of the job: the one from which it was moved to its tenant's queue, or its own."""
        moved_from: Lane | None = self.header(LANE, str) if self.lane == "tenant" else None
        return moved_from if moved_from is not None and moved_from in get_args(Lane) else self.lane

    @property
    def moves(self) -> int:
        """How often the job was moved to its tenant's queue."""
        return self.header(MOVES, int) or 0

    @property
    def suspect(self) -> bool:
        """Whether it was delivered before and not settled, at the latest before it was moved to its tenant's queue."""
        return bool(self.raw.redelivered) or self.header(SUSPECT, str) is not None

    @property
    def replay(self) -> Replay | None:
        """The last replay, if it was a dead letter before."""
        at_ms: int | None = self.header(REPLAYED_AT, int)
        if at_ms is None:
            return None
        return Replay(at_ms, self.header(REPLAYED_BY, str) or "", self.header(FRESH, str) is not None)

    def attempts_made(self, request: OtpJob | None) -> int:
        """Return the number of attempts before this delivery; a producer's `retryCount` seeds it."""
        counted: int | None = self.header(ATTEMPT, int)
        return counted if counted is not None else request.retry_count if request else 0

    def carrier(self) -> dict[str, str]:
        """Return the producer's trace context (W3C)."""
        headers = self.raw.headers
        return {name: str(headers[name]) for name in TRACE if name in headers} if headers else {}

    def hide_in_trace(self, request: OtpJob | None) -> None:
        """Drop a trace context that no tracer wrote or that contains the address or the code: it goes into spans.

        The secrets of a malformed body (`request` is `None`) are not known, so only a valid `traceparent` is kept then.
        `baggage` is always dropped: it has no use here, and to search 8 KiB for secrets takes 13 ms.
        """
        headers = self.raw.headers
        for name in (*TRACE, "baggage") if headers else ():
            if name not in headers:
                continue
            value = headers[name]
            kept = name in TRACE and (
                name == "traceparent" and is_trace(value, name)
                if request is None
                else is_harmless_trace(value, name, request.email, request.otp)
            )
            if not kept:
                del headers[name]


class MadeIds(Protocol):
    """Stores the ids that were generated for jobs without one, by a keyed hash of their content."""

    async def recall(self, content: str) -> str | None:
        """Return the last id that any worker generated for this content."""
        ...

    def keep(self, content: str, job_id: str) -> None:
        """Store the id generated for this content."""
        ...


def default_tenant(_: object) -> str:
    """Return the default tenant, for a deployment that has no other one."""
    return ""


def no_keys() -> SealingKeys:
    """Return no keys, for a deployment that does not seal codes."""
    return NO_KEYS


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads jobs from messages. `tenant_of` returns the tenant that a job names, or raises `MalformedError`."""

    default_expiry_minutes: float
    hash_key: bytes = field(repr=False)
    made: MadeIds
    old_hash_keys: Sequence[bytes] = field(default=(), repr=False)
    tenant_of: Callable[[object], str] = default_tenant
    keys: Callable[[], SealingKeys] = no_keys
    """Returns the keys that open sealed codes now."""

    def read(self, body: bytes) -> OtpJob:
        """Read a job. Raises `MalformedError`."""
        try:
            return OtpJob.from_bytes(body, keys=self.keys())
        except MalformedError:
            raise
        except Exception as error:  # noqa: BLE001 - after any error the message is dead-lettered, not left unacked
            raise MalformedError(f"body: cannot be read ({type(error).__name__})") from None

    async def job(self, message: JobMessage, request: OtpJob) -> Job:
        """Return the job of a message. Raises `MalformedError` for a tenant that is not accepted."""
        return Job.from_request(
            request,
            job_id=await self.job_id(message, request),
            lane=message.first_lane,
            first_seen_ms=message.first_seen_ms,
            attempts_made=message.attempts_made(request),
            default_expiry_minutes=self.default_expiry_minutes,
            suspect=message.suspect,
            uncertain=message.uncertain,
            replay=message.replay,
            tenant=self.tenant_of(request.metadata.tenant),
            moves=message.moves,
        )

    async def job_id(self, message: JobMessage, request: OtpJob) -> str:
        """Return the job's id: the producer's, or a hash of it if it contains a secret, or a generated one."""
        if known := message.header(JOB_ID, str):
            return known
        if request.job_id and is_secret_id(request.job_id, request.email, request.otp):
            # logs, headers and events contain the id
            return keyed_hash(request.job_id, self.hash_key)
        return request.job_id or await self._made_id(message, request)

    async def _made_id(self, message: JobMessage, request: OtpJob) -> str:
        raw = message.raw
        moment = request.timestamp if request.timestamp is not None else raw.message_id or raw.timestamp
        content = "\0".join((request.email, request.otp, request.metadata.template, str(moment or "")))
        digests = [_digest(content, key) for key in (self.hash_key, *self.old_hash_keys)]
        if moment and not self.old_hash_keys:
            return digests[0]
        # Without a time, a copy cannot be distinguished from a second request for the same code. Only a redelivered
        # message or an unverified retry can be a copy, so only these get the id of an earlier message.
        copied = bool(moment) or raw.redelivered or message.lane in SIGNED
        made = await self._recall(digests) if copied else None
        made = made or (digests[0] if moment else uuid4().hex)
        # during a key change, workers with the old key and workers with the new one find each other's ids
        for digest in digests:
            self.made.keep(digest, made)
        return made

    async def _recall(self, digests: Iterable[str]) -> str | None:
        for digest in digests:
            if made := await self.made.recall(digest):
                return made
        return None


def _digest(content: str, key: bytes) -> str:
    return blake2b(content.encode(), key=key, digest_size=16).hexdigest()
