"""Sweeps the dead letters of a deployment while a worker runs. One worker does it for all."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

import aio_pika
import structlog
from aio_pika.exceptions import AMQPError
from aiormq.exceptions import ChannelAccessRefused

from otp_stream.broker.locks import locks_of
from otp_stream.clock import now_ms
from otp_stream.core.dead_letter import DeadLettersError, DeadLettersInUseError
from otp_stream.core.retention import SweepState
from otp_stream.tasks import lost_connection_as_error

from .dead_letter_queue import DeadLetterQueue
from .exclusive_queue import try_lock
from .sweep import Sweep, Swept

_TIMEOUT_S = 10.0
_LEAST_S = 5 * 60.0
_MAX_DOUBLINGS = 8
"""After sweeps that fail one after another, the pause doubles up to 21 hours. Each requeues the dead letters that it
has read, and RabbitMQ 4 drops a message after more than 20 requeues."""
_OTHERS_CHECK = 4
"""How much less often the other workers find out whether the one that sweeps has ended."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(slots=True)
class Sweeper:
    """Sweeps when something is due: a code has expired, or there are dead letters that were not read yet.

    It sweeps at its start, then every `least_s` seconds at most.
    """

    dead_letters: DeadLetterQueue
    depth: Callable[[], int | None]
    """Returns RabbitMQ's number of dead letters, or `None` if it is not known."""
    usable: Callable[[], bool]
    """Returns whether RabbitMQ is connected and accepts publishes."""
    least_s: float = _LEAST_S
    check_s: float = 15.0
    """How often it finds out whether something is due."""
    share: float = 0.02
    """Maximum share of the time in which it sweeps: RabbitMQ delivers and requeues every dead letter each time."""
    state: SweepState = field(default_factory=SweepState)
    _last: Swept | None = None
    _not_before: float = 0.0
    """When the next sweep may start (monotonic)."""
    _failures: int = 0
    """Sweeps that failed since the last one that did not."""
    _error: str = ""
    """The last error that was logged."""

    async def run(self) -> None:
        """Sweep until cancelled, whenever no other worker does it."""
        while True:
            # not all workers at once
            await asyncio.sleep(self.check_s * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            if not self._may_be_due():
                continue
            try:
                async with self._alone() as connection:
                    while connection is not None and not connection.is_closed:
                        await self._sweep_if_due()
                        await asyncio.sleep(self.check_s)
            except ChannelAccessRefused as error:
                self._failed(f"{error}; otp-stream check shows missing permissions")
            except (AMQPError, OSError, TimeoutError, RuntimeError):
                continue  # RabbitMQ is away, which the worker reports
            self._last = None
            await asyncio.sleep(self.check_s * _OTHERS_CHECK)  # another worker sweeps

    def _may_be_due(self) -> bool:
        return self.usable() and self.depth() != 0 and time.monotonic() >= self._not_before

    @asynccontextmanager
    async def _alone(self) -> AsyncGenerator[aio_pika.abc.AbstractConnection | None]:
        """Become the worker that sweeps. Yields `None` if another one is."""
        connection = await aio_pika.connect(self.dead_letters.url(), timeout=_TIMEOUT_S)
        try:
            with lost_connection_as_error():
                alone = await try_lock(connection, locks_of(self.dead_letters.topology.dead).sweep)
                yield connection if alone else None
        finally:
            with suppress(AMQPError, OSError, TimeoutError, RuntimeError):
                await asyncio.wait_for(connection.close(), _TIMEOUT_S)

    async def _sweep_if_due(self) -> None:
        last = self._last
        if not self._may_be_due():
            return
        if last is not None and last.complete and last.left == self.depth() and not _is_past(last.next_ms):
            return
        began = time.monotonic()
        try:
            self._last = await Sweep(self.dead_letters).run()
        except DeadLettersInUseError:
            return
        except Exception as error:  # noqa: BLE001 - after any error, the next sweep must wait
            self._failures += 1
            # the text of an unexpected error may contain secrets
            self._failed(str(error) if isinstance(error, DeadLettersError) else type(error).__name__)
        else:
            self._failures = 0
            self._done(self._last)
        took_s = time.monotonic() - began
        least_s = self.least_s * 2 ** min(max(self._failures - 1, 0), _MAX_DOUBLINGS)
        self._not_before = time.monotonic() + max(least_s, took_s / self.share)

    def _failed(self, error: str) -> None:
        self.state = replace(self.state, failed=self.state.failed + 1)
        if error != self._error:  # it may fail again every time
            _log.warning("dead letters were not swept", error=error)
        self._error = error

    def _done(self, swept: Swept) -> None:
        if swept.unhandled:
            self._failed(f"{swept.error} in {swept.unhandled} of them, the others were swept")
        else:
            self._error = ""
        state = self.state
        self.state = SweepState(
            state.erased + swept.erased,
            state.too_old + swept.too_old,
            state.too_many + swept.too_many,
            state.complete + swept.complete,
            state.interrupted + (not swept.complete),
            state.failed,
            now_ms() if swept.complete else state.last_ms,
        )
        if swept.erased or swept.too_old or swept.too_many:
            _log.info(
                "dead letters swept",
                codes_erased=swept.erased,
                deleted_too_old=swept.too_old,
                deleted_too_many=swept.too_many,
                left=swept.left,
                complete=swept.complete,
            )


def _is_past(at_ms: int | None) -> bool:
    return at_ms is not None and at_ms <= now_ms()
