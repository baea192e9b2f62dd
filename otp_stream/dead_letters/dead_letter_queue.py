"""The dead-letter queue of a deployment: list, replay and drop its messages."""

import asyncio
import contextlib
import os
import pwd
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aio_pika import Message

from otp_stream.broker import outgoing
from otp_stream.broker.headers import JOB_ID
from otp_stream.broker.job_message import no_keys
from otp_stream.broker.message import Delivered
from otp_stream.broker.topology import Topology
from otp_stream.clock import now_ms
from otp_stream.core.dead_letter import DeadLetter
from otp_stream.core.dead_letter_filter import DeadLetterFilter
from otp_stream.core.job import Replay
from otp_stream.core.masking import keyed_hash
from otp_stream.core.retention import Retention
from otp_stream.core.sealing_keys import SealingKeys
from otp_stream.urls import without_secrets

from .exclusive_queue import exclusive_queue
from .reader import Reader, StoredDeadLetter
from .summary import Action, Choose, Summary, among, identity

MakeCopy = Callable[[StoredDeadLetter], Message]
Progress = Callable[[int, int], object]
"""Called after each dead letter with the number that have left the queue, and the number in it at the start."""

_UNREAD = {"key_missing", "malformed", "crashed"}
"""Reasons for which a job may have died before it was read."""
LIMIT = 10_000_000
"""Maximum number of dead letters read in one pass. A pass also ends after `_PASS_S`."""
_RENEW_AT = 10
"""Requeues after which a dead letter is published again, because RabbitMQ 4 drops a message after more than 20."""
_PASS_S = 20 * 60.0
"""Maximum time of a pass, because RabbitMQ requeues messages that are unacked for 30 minutes."""


def _no_progress(done: int, of: int) -> None:
    """Report nothing."""


def current_user() -> str:
    """Return user and host, for audit records. The user is the kernel's: variables such as `USER` can be set."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container, a user id may have no name
        user = f"uid {os.getuid()}"
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
    keys: Callable[[], SealingKeys] = no_keys
    """Returns the keys that seal and open codes now."""
    retention: Retention = field(default_factory=Retention)

    @property
    def reader(self) -> Reader:
        """A reader of its messages, with the same keys."""
        return Reader(self.default_expiry_minutes, self.hash_key, self.old_hash_keys, self.keys())

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
        only: Summary | None = None,
        progress: Progress = _no_progress,
    ) -> Summary:
        """Publish the selected dead letters to the lane of retries, where they get all attempts again.

        Dead letters with an expired code stay, unless `fresh` starts a new lifetime. `rate` is the maximum per second,
        0 means no limit. A replay can be cancelled at any time and started again. With `only`, the result of a dry run,
        those that died since are left.
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
            if it.dead_letter.erased_ms is not None:
                return "erased"
            if not fresh and it.dead_letter.is_expired(now_ms()):
                return "expired"
            if not dry_run and pause_s:
                await asyncio.sleep(max(next_s - time.monotonic(), 0))
                next_s = max(next_s, time.monotonic() - pause_s) + pause_s
            return "replayed"

        def make_copy(it: StoredDeadLetter) -> Message:
            return self.replay_message(it, by=by, fresh=fresh)

        return await self._passes(choose, make_copy, dry_run=dry_run, only=only, progress=progress)

    def replay_message(self, it: StoredDeadLetter, *, by: str, fresh: bool) -> Message:
        """Return the signed message that a replay publishes."""
        replay = Replay(now_ms(), by, fresh)
        known, ours = it.dead_letter.is_job, it.own_headers
        if not self._has_its_own_id(it):
            ours = {name: value for name, value in ours.items() if name != JOB_ID}
        copy = outgoing.replayed(it.message, replay, known=known, ours=ours)
        return outgoing.finished(copy, self.keys(), self.hash_key, it.code)

    def _has_its_own_id(self, it: StoredDeadLetter) -> bool:
        """Return whether the dead letter's id is the one that its job gets when it is read.

        A job that was not read, for example as its key was missing, has another one. By that, no one would find out
        that a copy of it was sent.
        """
        stated = it.request.job_id if it.request is not None else None
        if not stated or it.dead_letter.reason not in _UNREAD:
            return True
        hashes = (keyed_hash(stated, key) for key in (self.hash_key, *self.old_hash_keys))
        return it.own_headers.get(JOB_ID) in {stated, *hashes}

    def renewed(self, it: StoredDeadLetter) -> Message:
        """Return the same dead letter as a new message, which counts no requeue.

        Its expiration stays, too: a command may have other settings than the workers, and must not delete what they
        keep. Their sweeps delete it in time.
        """
        copy = self.finished(outgoing.unchanged(it.message), it, signs=it.signed)
        outgoing.expire(copy, it.expiration_ms)
        return copy

    def finished(self, copy: Message, it: StoredDeadLetter, *, signs: bool) -> Message:
        """Seal and sign a copy of a dead letter, which RabbitMQ deletes when the retention of the dead letter ends."""
        now = now_ms()
        outgoing.expire(copy, self.retention.left_ms(now if it.since_ms is None else it.since_ms, now))
        key = self.hash_key if signs else None
        return outgoing.finished(copy, self.keys(), key, it.code, is_stub=bool(it.message.dropped))

    async def drop(
        self,
        which: DeadLetterFilter,
        *,
        dry_run: bool = False,
        only: Summary | None = None,
        progress: Progress = _no_progress,
    ) -> Summary:
        """Delete the selected dead letters permanently; with `only`, the result of a dry run, none that died since."""

        async def choose(it: StoredDeadLetter) -> Action:
            return "dropped" if which.matches(it.dead_letter) else "kept"

        return await self._passes(choose, None, dry_run=dry_run, only=only, progress=progress)

    async def drop_if(
        self,
        is_selected: Callable[[StoredDeadLetter], bool],
        *,
        dry_run: bool = False,
        progress: Progress = _no_progress,
    ) -> Summary:
        """Delete permanently the dead letters for which `is_selected` returns true."""

        async def choose(it: StoredDeadLetter) -> Action:
            return "dropped" if is_selected(it) else "kept"

        return await self._passes(choose, None, dry_run=dry_run, progress=progress)

    async def _passes(
        self,
        choose: Choose,
        make_copy: MakeCopy | None,
        *,
        dry_run: bool,
        only: Summary | None = None,
        progress: Progress,
    ) -> Summary:
        """Repeat passes until one reads the whole queue."""
        total = Summary()
        if only is not None:
            choose = among(only, choose)

        def note(done: int, of: int) -> None:
            progress(total.replayed + total.dropped + done, of)

        while True:
            last = await self._pass(choose, make_copy, dry_run=dry_run, progress=note)
            total.replayed += last.replayed
            total.dropped += last.dropped
            total.read, total.not_read, total.selection = last.read, last.not_read, last.selection
            total.expired, total.erased = last.expired, last.erased
            if dry_run or not last.not_read or not (last.replayed or last.dropped):
                break
        if only is not None:
            total.expired += only.expired
            total.erased += only.erased
            total.not_read = max(total.not_read, only.not_read)  # the dry run did not select among them
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
                    if dry_run and action in {"replayed", "dropped"}:
                        summary.selection.add(identity(it))
                    if action == "replayed" and make_copy is not None and not dry_run:
                        await queue.replace(message, make_copy(it), self.topology.due)
                    elif action == "dropped" and not dry_run:
                        await queue.replace(message, None)
                    elif needs_renewal(message):
                        await queue.replace(message, self.renewed(it), queue.name)
                    progress(summary.replayed + summary.dropped, queue.count)
                    if time.monotonic() > deadline:
                        break
            summary.not_read = max(queue.count - summary.read, 0)
        return summary


def needs_renewal(message: Delivered) -> bool:
    """Return whether a dead letter must be published again before RabbitMQ drops it as requeued too often."""
    count = (message.headers or {}).get("x-delivery-count")
    return isinstance(count, int) and not isinstance(count, bool) and count >= _RENEW_AT
