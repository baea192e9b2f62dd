"""One sweep of the dead-letter queue: expired codes are erased, and dead letters that are too old or too many deleted.

RabbitMQ deletes most of them by itself. The sweep deletes those without an expiration, which versions before this one
and the broker have put there, and those that would stay behind one of them.
"""

import contextlib
import time
from array import array
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import Literal

from aio_pika import Message

from otp_stream.broker import outgoing
from otp_stream.broker.headers import ERASED, FIRST_SEEN, JOB_ID
from otp_stream.broker.message import Delivered
from otp_stream.clock import now_ms
from otp_stream.core.erasure import body_outline, without_code
from otp_stream.urls import without_secrets

from .dead_letter_queue import LIMIT, DeadLetterQueue, needs_renewal
from .exclusive_queue import ExclusiveQueue, exclusive_queue
from .reader import Reader, StoredDeadLetter

_LONGEST_S = 10 * 60.0
"""Maximum time of a sweep, because RabbitMQ requeues messages that are unacked for 30 minutes."""
_ASK_EVERY_S = 0.5
"""How often a sweep finds out whether an operator waits for the queue."""
_CONNECT_S = 5.0

Action = Literal["kept", "erased", "too_old", "too_many", "copied"]
"""What was done with a dead letter. `copied`: published again, with the time at which it was first seen, or because it
was requeued often."""


@dataclass(slots=True)
class Swept:
    """What a sweep did."""

    read: int = 0
    erased: int = 0
    too_old: int = 0
    too_many: int = 0
    left: int = 0
    """Dead letters in the queue at its end."""
    complete: bool = False
    """Whether it has read the whole queue."""
    unhandled: int = 0
    """Dead letters that were kept as they are, because of a bug: each of the others is handled all the same."""
    error: str = ""
    """The type of the last error in one of them, whose text may contain secrets."""
    next_ms: int | None = None
    """When there is something to do for the next time (milliseconds since 1970); `None` if that is not known."""

    def add(self, action: Action) -> None:
        """Count a dead letter."""
        self.read += 1
        self.erased += action == "erased"
        self.too_old += action == "too_old"
        self.too_many += action == "too_many"

    def is_due(self, at_ms: int | None) -> None:
        """Note when there is something to do."""
        if at_ms is not None:
            self.next_ms = at_ms if self.next_ms is None else min(self.next_ms, at_ms)


@dataclass(slots=True)
class Sweep:
    """A sweep of one deployment's dead letters. Raises what `DeadLetterQueue` does."""

    dead_letters: DeadLetterQueue
    swept: Swept = field(default_factory=Swept)
    _since_ms: "array[int]" = field(default_factory=lambda: array("q"))
    """From when the retention of each dead letter counts."""
    _oldest_ms: int = -1
    """Dead letters up to this time are deleted, as there are too many."""
    _excess: int = 0
    """How many they are."""

    async def run(self) -> Swept:
        """Sweep the queue, or as much of it as is possible before an operator wants to read it, or time is up."""
        swept, limit = self.swept, self.dead_letters.retention.limit
        await self._pass()
        self._excess = len(self._since_ms) - (limit or 0)
        if swept.complete and limit is not None and self._excess > 0:
            self._oldest_ms = nsmallest(self._excess, self._since_ms)[-1]
            self._since_ms = array("q")
            await self._pass()
        return swept

    async def _pass(self) -> None:
        letters, reader = self.dead_letters, self.dead_letters.reader
        url = letters.url()
        shown_url = letters.shown_url or without_secrets(url)
        ends = time.monotonic() + _LONGEST_S
        async with exclusive_queue(letters.topology.dead, url, shown_url, timeout_s=_CONNECT_S, insists=False) as queue:
            self.swept.complete = await self._read(queue, reader, ends)

    async def _read(self, queue: ExclusiveQueue, reader: Reader, ends: float) -> bool:
        """Handle each dead letter. Returns whether all were read."""
        ask_at, read, removed = time.monotonic() + _ASK_EVERY_S, 0, 0
        async with contextlib.aclosing(queue.messages(LIMIT)) as messages:
            async for message in messages:
                action = await self._handle(queue, reader, message)
                self.swept.add(action)
                read += 1
                removed += action in {"too_old", "too_many"}
                self.swept.left = queue.count - removed
                now = time.monotonic()
                if now > ends:
                    return False
                if now > ask_at:
                    if await queue.is_wanted():
                        return False
                    ask_at = time.monotonic() + _ASK_EVERY_S
        return read >= min(queue.count, LIMIT)

    async def _handle(self, queue: ExclusiveQueue, reader: Reader, message: Delivered) -> Action:
        try:
            action, copy = self._decide(reader.read(message))
            if copy is not None:
                copy.properties.marshal()  # raises here what would otherwise end the sweep
        except Exception as error:  # noqa: BLE001 - no dead letter may prevent that the others are erased
            self.swept.unhandled += 1
            self.swept.error = type(error).__name__
            return "kept"
        if action != "kept":
            await queue.replace(message, copy, "" if copy is None else queue.name)
        return action

    def _decide(self, it: StoredDeadLetter) -> tuple[Action, Message | None]:
        """Return what to do with a dead letter, and the message that replaces it in the queue, if any."""
        now, retention = now_ms(), self.dead_letters.retention
        since_ms = now if it.since_ms is None else min(it.since_ms, now)
        if retention.left_ms(since_ms, now) == 0:
            return "too_old", None
        if since_ms <= self._oldest_ms and self._excess > 0:
            self._excess -= 1
            return "too_many", None
        if retention.limit is not None:
            self._since_ms.append(since_ms)
        has_code = it.dead_letter.erased_ms is None and not retention.keeps_codes
        if has_code and it.needed_until_ms is not None and it.needed_until_ms <= now:
            return "erased", self.erased(it, now)
        if has_code:
            self.swept.is_due(it.needed_until_ms)
        keep_ms, own_ms = retention.keep_ms, it.expiration_ms
        if keep_ms is not None and (own_ms is None or own_ms > keep_ms):
            self.swept.is_due(since_ms + keep_ms)
        if it.since_ms is None:
            return "copied", self._seen(it, now)
        if needs_renewal(it.message):
            return "copied", self._renewed(it)
        return "kept", None

    def erased(self, it: StoredDeadLetter, now: int) -> Message:
        """Return the dead letter without its code.

        It is signed only if the original was: a signature must not make forged headers valid.
        """
        message = it.message
        if it.request is None:
            body = body_outline(message.body, message.dropped or None)
        else:
            body = without_code(message.body, it.request.otp)
        ours = {FIRST_SEEN: now, JOB_ID: it.dead_letter.job_id, **it.headers, ERASED: now}
        headers = outgoing.foreign_headers(message) | ours
        copy = outgoing.erased(message, body, headers)
        return self.dead_letters.finished(copy, it, signs=it.dead_letter.verified)

    def _renewed(self, it: StoredDeadLetter) -> Message:
        """Return the same dead letter as a new message, which RabbitMQ deletes when the retention ends."""
        return self.dead_letters.finished(outgoing.unchanged(it.message), it, signs=it.signed)

    def _seen(self, it: StoredDeadLetter, now: int) -> Message:
        """Return a dead letter whose age is not known with the present as the time at which it was first seen."""
        copy = outgoing.unchanged(it.message)
        copy.headers[FIRST_SEEN] = now
        return self.dead_letters.finished(copy, it, signs=it.dead_letter.verified)
