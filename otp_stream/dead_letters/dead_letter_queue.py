"""The dead-letter queue of a deployment: list, replay and drop its messages."""

import asyncio
import contextlib
import getpass
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from aio_pika import Message

from otp_stream.broker import outgoing
from otp_stream.broker.headers import sign
from otp_stream.broker.message import Delivered
from otp_stream.broker.topology import Topology
from otp_stream.clock import now_ms
from otp_stream.core.dead_letter import DeadLetter
from otp_stream.core.dead_letter_filter import DeadLetterFilter
from otp_stream.core.job import Replay
from otp_stream.urls import without_secrets

from .exclusive_queue import exclusive_queue
from .reader import Reader, StoredDeadLetter

Action = Literal["kept", "replayed", "dropped", "expired"]
"""What was done with a dead letter. `expired`: it was selected for a replay, but its code has expired."""
Choose = Callable[[StoredDeadLetter], Awaitable[Action]]
MakeCopy = Callable[[StoredDeadLetter], Message]
Progress = Callable[[int, int], object]
"""Called after each dead letter with the number that have left the queue, and the number in it at the start."""

LIMIT = 10_000_000
"""Maximum number of dead letters read in one pass. A pass also ends after `_PASS_S`."""
_RENEW_AT = 10
"""Requeues after which a dead letter is published again, because RabbitMQ 4 drops a message after more than 20."""
_PASS_S = 20 * 60.0
"""Maximum time of a pass, because RabbitMQ requeues messages that are unacked for 30 minutes."""


@dataclass(slots=True)
class Summary:
    """Numbers of dead letters by what was done with them."""

    read: int = 0
    replayed: int = 0
    expired: int = 0
    """Selected, but not replayed."""
    dropped: int = 0
    not_read: int = 0
    """Left in the queue for another pass."""

    def add(self, action: Action) -> None:
        """Count a dead letter."""
        self.read += 1
        self.expired += action == "expired"
        self.replayed += action == "replayed"
        self.dropped += action == "dropped"


def _no_progress(done: int, of: int) -> None:
    """Report nothing."""


def current_user() -> str:
    """Return user and machine, for the audit log."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # in a container, a user id may have no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


@dataclass(frozen=True, slots=True)
class DeadLetterQueue:
    """Reads the dead-letter queue exclusively. Every call opens and closes a connection.

    All calls raise `DeadLettersError` if the broker does not answer or refuses, and `DeadLettersInUseError` if another
    user or command is reading the queue.
    """

    url: Callable[[], str]
    """Returns the URL for the next connection."""
    topology: Topology
    default_expiry_minutes: float
    hash_key: bytes = field(repr=False)
    old_hash_keys: Sequence[bytes] = field(default=(), repr=False)
    shown_url: str | None = None
    """For messages; `None`: the URL without its password."""

    @property
    def reader(self) -> Reader:
        """A reader of its messages, with the same keys."""
        return Reader(self.default_expiry_minutes, self.hash_key, self.old_hash_keys)

    async def fetch(self, *, limit: int = LIMIT, timeout_s: float | None = None) -> tuple[list[DeadLetter], int]:
        """Return dead letters, the oldest first, and the number of others. All stay in the queue.

        Waits at most `timeout_s` for the broker, and for another user who reads the queue.
        """
        found: list[DeadLetter] = []
        not_read = await self.for_each(lambda it: found.append(it.dead_letter), limit=limit, timeout_s=timeout_s)
        # RabbitMQ requeues the messages of each consumer together, and those of several consumers in any order
        return sorted(found, key=lambda it: it.died_ms or 0), not_read

    async def for_each(
        self, handle: Callable[[StoredDeadLetter], object], *, limit: int = LIMIT, timeout_s: float | None = None
    ) -> int:
        """Call `handle` with each dead letter. All stay in the queue. Returns the number of those not read."""

        async def keep(it: StoredDeadLetter) -> Action:
            handle(it)
            return "kept"

        return (await self._pass(keep, limit=limit, timeout_s=timeout_s)).not_read

    async def replay(
        self,
        which: DeadLetterFilter,
        *,
        by: str,
        fresh: bool = False,
        rate: float = 0,
        dry_run: bool = False,
        progress: Progress = _no_progress,
    ) -> Summary:
        """Publish the selected dead letters to the lane of retries, where they get all attempts again.

        Dead letters with an expired code stay, unless `fresh` starts a new lifetime. `rate` is the maximum per second,
        0 means no limit. A replay can be cancelled at any time and started again.
        """
        pause_s = 1 / rate if rate else 0.0
        started_ms = now_ms()
        next_s = time.monotonic()

        async def choose(it: StoredDeadLetter) -> Action:
            nonlocal next_s
            last = it.dead_letter.replay
            if it.message.dropped:
                return "kept"  # the body was too large to keep, so it is not a valid job
            if not which.matches(it.dead_letter) or (last is not None and last.at_ms >= started_ms):
                return "kept"  # not selected, or dead-lettered again after this replay
            if not fresh and it.dead_letter.is_expired(now_ms()):
                return "expired"
            if not dry_run and pause_s:
                await asyncio.sleep(max(next_s - time.monotonic(), 0))
                next_s = max(next_s, time.monotonic() - pause_s) + pause_s
            return "replayed"

        def make_copy(it: StoredDeadLetter) -> Message:
            return self.replay_message(it, by=by, fresh=fresh)

        return await self._passes(choose, make_copy, dry_run=dry_run, progress=progress)

    def replay_message(self, it: StoredDeadLetter, *, by: str, fresh: bool) -> Message:
        """Return the signed message that a replay publishes."""
        replay = Replay(now_ms(), by, fresh)
        copy = outgoing.replayed(it.message, replay, known=it.dead_letter.is_job, ours=it.own_headers)
        sign(copy.headers, copy.body, self.hash_key)
        return copy

    async def drop(
        self, which: DeadLetterFilter, *, dry_run: bool = False, progress: Progress = _no_progress
    ) -> Summary:
        """Delete the selected dead letters permanently."""

        async def choose(it: StoredDeadLetter) -> Action:
            return "dropped" if which.matches(it.dead_letter) else "kept"

        return await self._passes(choose, None, dry_run=dry_run, progress=progress)

    async def _passes(
        self, choose: Choose, make_copy: MakeCopy | None, *, dry_run: bool, progress: Progress
    ) -> Summary:
        """Repeat passes until one reads the whole queue."""
        total = Summary()

        def note(done: int, of: int) -> None:
            progress(total.replayed + total.dropped + done, of)

        while True:
            last = await self._pass(choose, make_copy, dry_run=dry_run, progress=note)
            total.replayed += last.replayed
            total.dropped += last.dropped
            total.read, total.expired, total.not_read = last.read, last.expired, last.not_read
            if dry_run or not last.not_read or not (last.replayed or last.dropped):
                return total

    async def _pass(
        self,
        choose: Choose,
        make_copy: MakeCopy | None = None,
        *,
        dry_run: bool = False,
        limit: int = LIMIT,
        progress: Progress = _no_progress,
        timeout_s: float | None = None,
    ) -> Summary:
        summary, deadline, reader = Summary(), time.monotonic() + _PASS_S, self.reader
        url = self.url()
        shown_url = self.shown_url or without_secrets(url)
        async with exclusive_queue(self.topology.dead, url, shown_url, timeout_s=timeout_s) as queue:
            async with contextlib.aclosing(queue.messages(limit)) as messages:
                async for message in messages:
                    it = reader.read(message)
                    action = await choose(it)
                    summary.add(action)
                    if action == "replayed" and make_copy is not None and not dry_run:
                        await queue.replace(message, make_copy(it), self.topology.due)
                    elif action == "dropped" and not dry_run:
                        await queue.replace(message, None)
                    elif _delivery_count(message) >= _RENEW_AT:
                        await queue.replace(message, outgoing.unchanged(message), queue.name)
                    progress(summary.replayed + summary.dropped, queue.count)
                    if time.monotonic() > deadline:
                        break
            summary.not_read = max(queue.count - summary.read, 0)
        return summary


def _delivery_count(message: Delivered) -> int:
    count = (message.headers or {}).get("x-delivery-count")
    return count if isinstance(count, int) and not isinstance(count, bool) else 0
