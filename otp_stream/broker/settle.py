"""Settlements carried out: confirmed publish first, acknowledgement second, always."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, assert_never

import structlog
from aio_pika import Message
from aio_pika.exceptions import AMQPError, DeliveryError
from aiormq.exceptions import AMQPError as WireError

from otp_stream.core.backoff import Backoff
from otp_stream.core.decision import Ack, Dead, Final, Park, Retry
from otp_stream.core.job import Job
from otp_stream.tasks import lost_connection_as_error

from . import outgoing
from .headers import sign
from .job_message import JobMessage
from .message import now_ms
from .outgoing import Inject
from .topology import Topology

GIVE_BACK_S = 5.0
"""At a stop: what has not gone back by then goes back with the connection, marked as returned."""
_PAUSES_S = (0.2, 1.0, 2.0, 5.0)
_REFUSALS = (AMQPError, WireError, OSError, RuntimeError)
"""What a broker that is away, full or in need answers."""


class Publish(Protocol):
    """A mandatory, confirmed publish."""

    async def __call__(self, message: Message, *, exchange: str, routing_key: str, afresh: bool = False) -> None:
        """Return once the broker has confirmed; raise when it returns, refuses or does not answer.

        `afresh`: over another channel than the try before.
        """
        ...


@dataclass(frozen=True, slots=True)
class Settler:
    """Brings settlements to the broker until they stand or the message has gone back to its queue."""

    topology: Topology
    backoff: Backoff
    publish: Publish
    inject: Inject
    repair: Callable[[str], None]
    """Told when something at the broker seems to be missing."""
    key: bytes = field(repr=False)
    """Signs our headers."""

    async def settle(self, message: JobMessage, settlement: Final, *, job_id: str, job: Job | None) -> bool:
        """Carry a settlement out. Returns whether it stands; if not, the message comes again."""
        attempts_made = job.attempts_made if job else 0
        match settlement:
            case Ack():
                stands = True
            case Retry(delay_ms, attempt, _, uncertain):
                stands = await self._retry(message, delay_ms, job_id, attempt, uncertain=uncertain)
            case Park(delay_ms):
                stands = await self._retry(message, delay_ms, job_id, attempts_made)
            case Dead():
                letter = outgoing.dead_letter(message, settlement, job_id=job_id, died_ms=now_ms(), inject=self.inject)
                sign(letter.headers, letter.body, self.key)
                stands = await self._confirmed(message, letter, exchange="", routing_key=self.topology.dead)
            case _:
                assert_never(settlement)
        if stands:
            await acknowledge(message)
        return stands

    async def renew(self, message: JobMessage, queue: str) -> bool:
        """Put a message back into its queue as a new one, without a mark on it. Returns whether that stands."""
        stands = await self._confirmed(message, outgoing.unchanged(message.raw), exchange="", routing_key=queue)
        if stands:
            await acknowledge(message)
        return stands

    async def give_back(self, message: JobMessage, queue: str, *, counts_returns: bool) -> None:
        """Let another worker have a message, at a stop.

        A quorum queue counts what is returned by closing, nack and reject, so it gets a new message. A classic queue
        counts nothing, and keeps a returned message's place. A body that was not kept can only be returned.
        """
        with contextlib.suppress(TimeoutError, *_REFUSALS):
            async with asyncio.timeout(GIVE_BACK_S):
                if counts_returns and not message.dropped:
                    await self.renew(message, queue)
                else:
                    with lost_connection_as_error():
                        await message.raw.nack(requeue=True)

    async def _retry(
        self, message: JobMessage, delay_ms: int, job_id: str, attempts_made: int, *, uncertain: str | None = None
    ) -> bool:
        copy = outgoing.retry(
            message, job_id=job_id, attempts_made=attempts_made, inject=self.inject, uncertain=uncertain
        )
        sign(copy.headers, copy.body, self.key)
        wait = str(self.backoff.wait_ms(delay_ms))
        return await self._confirmed(message, copy, exchange=self.topology.retry.name, routing_key=wait)

    async def _confirmed(self, message: JobMessage, copy: Message, *, exchange: str, routing_key: str) -> bool:
        """Publish until the broker confirms; `False` once the message has left our hands, and comes again."""
        tries = 0
        while message.alive:
            try:
                await self.publish(copy, exchange=exchange, routing_key=routing_key, afresh=tries > 0)
            except (TimeoutError, *_REFUSALS) as error:
                pause_s = _PAUSES_S[min(tries, len(_PAUSES_S) - 1)]
                tries += 1
                structlog.get_logger(__name__).warning(
                    "publish not confirmed",
                    exchange=exchange,
                    routing_key=routing_key,
                    error=_told(error),
                    again_in_s=pause_s,
                )
                self.repair(f"publish to {exchange or routing_key} not confirmed: {_told(error)}")
                await asyncio.sleep(pause_s)
            else:
                return True
        return False


async def acknowledge(message: JobMessage) -> None:
    """Acknowledge; where the channel is gone the message comes again, and the sent table knows it."""
    try:
        with lost_connection_as_error():
            await message.raw.ack()
    except _REFUSALS as error:
        structlog.get_logger(__name__).warning("acknowledgement lost, the job comes again", error=_told(error))


def _told(error: BaseException) -> str:
    if isinstance(error, DeliveryError):
        return "returned or refused by the broker"
    if not isinstance(error, AMQPError | WireError | ConnectionError):  # a middleware's may quote the message
        return type(error).__name__
    return f"{type(error).__name__}: {error}".rstrip(": ")[:200]
