"""Executes settlements: always a confirmed publish first, then the acknowledgement."""

import asyncio
import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Literal, Protocol, assert_never

import structlog
from aio_pika import Message
from aio_pika.exceptions import AMQPError, DeliveryError
from aiormq.exceptions import AMQPError as WireError

from otp_stream.clock import now_ms
from otp_stream.connection_errors import broker_text
from otp_stream.core.backoff import Backoff
from otp_stream.core.decision import Ack, Dead, Final, Park, Retry
from otp_stream.core.job import Job
from otp_stream.core.retention import Retention
from otp_stream.core.sealing_keys import SealingKeys
from otp_stream.tasks import lost_connection_as_error

from . import outgoing
from .job_message import JobMessage
from .message import ClosedError, Delivered
from .topology import Topology

GIVE_BACK_S = 5.0
"""Time limit for one message at a stop. The broker requeues the rest when the connection closes."""
_PAUSES_S = (0.2, 1.0, 2.0, 5.0)
REFUSALS = (AMQPError, WireError, OSError, RuntimeError)
"""Errors of a broker that is unreachable, full or in alarm."""

Renewal = Literal["renewed", "refused", "taken_back"]
"""`refused`: the queue is full. `taken_back`: the message is back in its queue."""


class Publish(Protocol):
    """A mandatory, confirmed publish."""

    async def __call__(self, message: Message, *, exchange: str, routing_key: str, new_channel: bool = False) -> None:
        """Publish and wait for the confirm. Raises if the broker returns the message, refuses it or does not answer.

        A repeat needs a `new_channel`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Settler:
    """Settles messages. Repeats a publish until it is confirmed, or the received message is back in its queue."""

    topology: Topology
    backoff: Backoff
    publish: Publish
    repair: Callable[[str], None]
    """Called when a queue or an exchange seems to be missing."""
    key: bytes = field(repr=False)
    """The key that signs our headers."""
    keys: Callable[[], SealingKeys]
    """Returns the keys that seal codes now."""
    retention: Retention = field(default_factory=Retention)
    """How long dead letters and their codes are kept."""
    _copied: set[int] = field(default_factory=set[int], init=False)
    """The `id` of each message of which a copy is on its way."""

    def is_copying(self, message: JobMessage) -> bool:
        """Return whether a copy of the message is on its way to the broker, which has not confirmed it yet."""
        return id(message) in self._copied

    async def settle(self, message: JobMessage, settlement: Final, *, job_id: str, job: Job | None) -> bool:
        """Settle a message. Returns `False` if the broker will redeliver it."""
        attempts_made = job.attempts_made if job else 0
        match settlement:
            case Ack():
                settled = True
            case Retry(delay_ms, attempt, _, uncertain):
                settled = await self._retry(message, delay_ms, job_id, attempt, job, uncertain)
            case Park(delay_ms):
                settled = await self._retry(message, delay_ms, job_id, attempts_made, job)
            case Dead():
                copy = self._dead_letter(message, settlement, job_id, job)
                settled = await self._confirmed(message, copy, exchange="", routing_key=self.topology.dead)
            case _:
                assert_never(settlement)
        if settled:
            await acknowledge(message)
        return settled

    async def move(self, message: JobMessage, job: Job, queue: str, publish: Publish) -> str | None:
        """Publish a job to its tenant's queue, then acknowledge. Returns an error if the job is still this worker's.

        Unlike a settlement, it is not repeated until it is confirmed: a job that cannot be moved is processed here.
        After a confirm that was lost, both this job and its copy are processed, and its sent record prevents a second
        mail.
        """
        copy = outgoing.moved(message, job)
        self._finish(message, copy, job)
        try:
            with self._copying(message):
                await publish(copy, exchange="", routing_key=queue)
        except (TimeoutError, *REFUSALS) as error:
            return error_text(error)
        await acknowledge(message)
        return None

    async def renew(self, message: JobMessage, queue: str) -> Renewal:
        """Publish a message to its queue as a new one, which counts no requeue."""
        copy = outgoing.unchanged(message.raw)
        self._finish(message, copy, None, signs=message.ours is not None)
        try:
            settled = await self._confirmed(message, copy, exchange="", routing_key=queue, insists=False)
        except DeliveryError:  # a full queue takes no messages until this one is acknowledged
            return "refused"
        if not settled:
            return "taken_back"
        await acknowledge(message)
        return "renewed"

    async def give_back(self, message: JobMessage, queue: str, *, counts_returns: bool) -> None:
        """Put a message back into its queue for another worker, at a stop.

        A quorum queue counts requeues, so the message is published as a new one. A classic queue counts nothing and
        requeues a message at its old place. A message whose body was not kept can only be requeued.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GIVE_BACK_S):
                if not counts_returns or message.dropped or await self.renew(message, queue) == "refused":
                    await requeue(message)

    def _dead_letter(self, message: JobMessage, dead: Dead, job_id: str, job: Job | None) -> Message:
        """Return the signed dead letter. RabbitMQ deletes it when the retention ends."""
        died_ms, retention = now_ms(), self.retention
        erase = job is not None and job.expires_ms <= died_ms and not retention.keeps_codes
        expired_code = job.request.otp if job is not None and erase else None
        copy = outgoing.dead_letter(message, dead, job_id=job_id, died_ms=died_ms, expired_code=expired_code)
        self._finish(message, copy, job)
        outgoing.expire(copy, retention.left_ms(died_ms, died_ms))
        return copy

    async def _retry(
        self,
        message: JobMessage,
        delay_ms: int,
        job_id: str,
        attempts_made: int,
        job: Job | None,
        uncertain: str | None = None,
    ) -> bool:
        copy = outgoing.retry(message, job_id=job_id, attempts_made=attempts_made, uncertain=uncertain)
        self._finish(message, copy, job)
        wait = str(self.backoff.wait_ms(delay_ms))
        return await self._confirmed(message, copy, exchange=self.topology.retry.name, routing_key=wait)

    def _finish(self, message: JobMessage, copy: Message, job: Job | None, *, signs: bool = True) -> None:
        key, code = self.key if signs else None, job.request.otp if job else ""
        outgoing.finished(copy, self.keys(), key, code, is_stub=bool(message.dropped))

    @contextlib.contextmanager
    def _copying(self, message: JobMessage) -> Generator[None]:
        self._copied.add(id(message))
        try:
            yield
        finally:
            self._copied.discard(id(message))

    async def _confirmed(
        self, message: JobMessage, copy: Message, *, exchange: str, routing_key: str, insists: bool = True
    ) -> bool:
        """Publish until the broker confirms. Returns `False` if the received message is back in its queue first.

        Raises `DeliveryError` if the broker refuses the message, unless it `insists`.
        """
        tries = 0
        while message.alive:
            try:
                with self._copying(message):
                    await self.publish(copy, exchange=exchange, routing_key=routing_key, new_channel=tries > 0)
            except (TimeoutError, *REFUSALS) as error:
                if isinstance(error, DeliveryError) and not insists:
                    raise
                pause_s = _PAUSES_S[min(tries, len(_PAUSES_S) - 1)]
                tries += 1
                structlog.get_logger(__name__).warning(
                    "publish not confirmed",
                    exchange=exchange,
                    routing_key=routing_key,
                    error=error_text(error),
                    again_in_s=pause_s,
                )
                self.repair(f"publish to {exchange or routing_key} not confirmed: {error_text(error)}")
                await asyncio.sleep(pause_s)
            else:
                return True
        return False


async def acknowledge(message: JobMessage) -> None:
    """Acknowledge. If that fails, the message is redelivered, and its sent record prevents a second mail."""
    try:
        with lost_connection_as_error():
            await message.raw.ack()
    except REFUSALS as error:
        structlog.get_logger(__name__).warning("acknowledgement lost, the job is redelivered", error=error_text(error))


def acknowledge_now(message: JobMessage) -> None:
    """Acknowledge a message of a real broker, as `acknowledge` does."""
    if isinstance(message.raw, Delivered):
        try:
            message.raw.ack_now()
        except ClosedError as error:
            structlog.get_logger(__name__).warning(
                "acknowledgement lost, the job is redelivered", error=error_text(error)
            )


async def requeue(message: JobMessage) -> bool:
    """Requeue. Returns `False` if the channel is closed: the broker has requeued the message then."""
    try:
        with lost_connection_as_error():
            await message.raw.nack(requeue=True)
    except REFUSALS:
        return False
    return True


def error_text(error: BaseException) -> str:
    """Return the text of an error of a publish, without anything of the message."""
    if isinstance(error, DeliveryError):
        return "returned or refused by the broker"
    if not isinstance(error, AMQPError | WireError | ConnectionError):
        return type(error).__name__  # the text of an exception in an operator's middleware may quote the message
    return f"{type(error).__name__}: {broker_text(error)}".rstrip(": ")
