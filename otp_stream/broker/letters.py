"""The dead letters of a deployment: to look at, to replay, to drop."""

import asyncio
import contextlib
import getpass
import re
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from aio_pika import Message

from otp_stream.core.dead_letter import Letter, Wanted
from otp_stream.core.decision import REASONS
from otp_stream.core.job import OtpJob, Replay, carry
from otp_stream.core.masking import hidden, mask_address, scrub, scrub_suspects, tells
from otp_stream.core.possible_secrets import said_job_id
from otp_stream.core.times import LAST_MS

from . import copies
from .arrival import ATTEMPT, FIRST_SEEN, FRESH, JOB_ID, REPLAYED_AT, REPLAYED_BY
from .copies import ALLOWED_AT, DIED_AT, ERROR, REASON, REPLY_CODE
from .hands import hands_on
from .mac import OURS, sign, verified
from .message import Delivered, now_ms
from .topology import Topology

MOST = 10_000_000
"""Letters taken in one pass; the others stay where they are. A pass ends by `_PASS_S` before."""
_MADE_ID = re.compile(r"[0-9a-f]{32}")
"""An id that a worker has made."""
_MOST_ATTEMPTS = 1_001
_REPLY_CODES = range(200, 600)
_CODE = re.compile(r"(?:^|last: )([245][0-9]{2})(?: [245]\.[0-9]{1,3}\.[0-9]{1,3})?\b")
_BY_THE_BROKER = "dead-lettered by the broker: redelivered too often"
_UNREAD = "the headers are too large to read"
_RENEW_AT = 10
"""Looks after which a letter is put down anew: RabbitMQ 4 drops what has come back more often than 20 times."""
_PASS_S = 20 * 60.0
"""One pass at most: RabbitMQ takes letters back that somebody holds for 30 minutes."""

Fate = Literal["kept", "replayed", "dropped", "stale"]
"""What becomes of a letter: `stale` is one that would have been replayed, but its code has expired."""


@dataclass(frozen=True, slots=True)
class Found:
    """A letter with the message that it is; only for whoever may see codes."""

    letter: Letter
    message: Delivered = field(repr=False)
    ours: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    """Our headers that go with a replay."""


Progress = Callable[[int, int], object]
"""Told after each letter how many have left the queue, and how many lay in it."""
Choose = Callable[[Found], Awaitable[Fate]]
Again = Callable[[Found], Message]


def _silent(done: int, of: int) -> None:
    """Tell nobody."""


@dataclass(slots=True)
class Pass:
    """What came of a pass over the letters."""

    seen: int = 0
    replayed: int = 0
    stale: int = 0
    """Meant, but not replayed: the code has expired."""
    dropped: int = 0
    left: int = 0
    """Behind the ones that were looked at, for another pass."""

    def add(self, fate: Fate) -> None:
        """Count a letter."""
        self.seen += 1
        self.stale += fate == "stale"
        self.replayed += fate == "replayed"
        self.dropped += fate == "dropped"


def whoami() -> str:
    """Return who asks, for the audit: user and machine."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's number without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """The dead-letter queue of a deployment. Every call opens a connection of its own and closes it.

    All raise `LettersError` where the broker is away, refuses, or somebody else has the letters in hand.
    """

    url: str = field(repr=False)
    shown_url: str
    topology: Topology
    default_expiry_minutes: float
    hash_key: bytes = field(repr=False)
    old_hash_keys: Sequence[bytes] = field(default=(), repr=False)

    async def look(self, *, most: int = MOST, patience_s: float | None = None) -> tuple[list[Letter], int]:
        """Return what lies there, the oldest first, and how many more there are.

        Waits at most `patience_s` for the broker, and for somebody else who has them in hand.
        """
        letters: list[Letter] = []
        left = await self.each(lambda found: letters.append(found.letter), most=most, patience_s=patience_s)
        # RabbitMQ puts back what each consumer had together, and the consumers of a look in any order
        return sorted(letters, key=lambda it: it.died_ms or 0), left

    async def each(self, take: Callable[[Found], object], *, most: int = MOST, patience_s: float | None = None) -> int:
        """Show letters with their content to `take`; all stay where they are. Returns how many more there are."""

        async def keep(found: Found) -> Fate:
            take(found)
            return "kept"

        return (await self._walk(keep, most=most, patience_s=patience_s)).left

    async def replay(
        self,
        wanted: Wanted,
        *,
        by: str,
        fresh: bool = False,
        rate: float = 0,
        dry: bool = False,
        progress: Progress = _silent,
    ) -> Pass:
        """Send what is meant on its way again, in the lane of retries and with all its attempts.

        A code that has expired stays, unless its life begins anew (`fresh`). `rate` is letters a second at most, 0 as
        fast as it goes. May be interrupted at any moment, and begun again.
        """
        pause_s = 1 / rate if rate else 0.0
        began_ms = now_ms()
        next_s = time.monotonic()

        async def choose(found: Found) -> Fate:
            nonlocal next_s
            last = found.letter.replay
            if found.message.dropped:
                return "kept"  # its body was not read, and is no job
            if not wanted.has(found.letter) or (last is not None and last.at_ms >= began_ms):
                return "kept"  # not meant, or sent again just now, and dead again
            if not fresh and found.letter.stale(now_ms()):
                return "stale"
            if not dry and pause_s:
                await asyncio.sleep(max(next_s - time.monotonic(), 0))
                next_s = max(next_s, time.monotonic() - pause_s) + pause_s
            return "replayed"

        def again(found: Found) -> Message:
            return self.again(found, by=by, fresh=fresh)

        return await self._passes(choose, again, dry=dry, progress=progress)

    def again(self, found: Found, *, by: str, fresh: bool) -> Message:
        """Return what is published to send a dead letter again."""
        replay = Replay(now_ms(), by, fresh)
        copy = copies.replayed(found.message, replay, known=found.letter.is_job, ours=found.ours)
        sign(copy.headers, copy.body, self.hash_key)
        return copy

    async def drop(self, wanted: Wanted, *, dry: bool = False, progress: Progress = _silent) -> Pass:
        """Forget what is meant, for good."""

        async def choose(found: Found) -> Fate:
            return "dropped" if wanted.has(found.letter) else "kept"

        return await self._passes(choose, None, dry=dry, progress=progress)

    async def _passes(self, choose: Choose, again: Again | None, *, dry: bool, progress: Progress) -> Pass:
        """Go over the letters until a pass comes to their end."""
        whole = Pass()

        def note(done: int, of: int) -> None:
            progress(whole.replayed + whole.dropped + done, of)

        while True:
            passed = await self._walk(choose, again, dry=dry, progress=note)
            whole.replayed += passed.replayed
            whole.dropped += passed.dropped
            whole.seen, whole.stale, whole.left = passed.seen, passed.stale, passed.left
            if dry or not passed.left or not (passed.replayed or passed.dropped):
                return whole

    async def _walk(
        self,
        choose: Choose,
        again: Again | None = None,
        *,
        dry: bool = False,
        most: int = MOST,
        progress: Progress = _silent,
        patience_s: float | None = None,
    ) -> Pass:
        passed, ends = Pass(), time.monotonic() + _PASS_S
        async with hands_on(self.topology.dead, self.url, self.shown_url, patience_s=patience_s) as hands:
            async with contextlib.aclosing(hands.letters(most)) as letters:
                async for message in letters:
                    found = self._read(message)
                    fate = await choose(found)
                    passed.add(fate)
                    if fate == "replayed" and again is not None and not dry:
                        await hands.replace(message, again(found), self.topology.due)
                    elif fate == "dropped" and not dry:
                        await hands.replace(message, None)
                    elif _looks(message) >= _RENEW_AT:
                        await hands.replace(message, copies.again(message), hands.name)
                    progress(passed.replayed + passed.dropped, hands.count)
                    if time.monotonic() > ends:
                        break
            passed.left = max(hands.count - passed.seen, 0)
        return passed

    def _read(self, message: Delivered) -> Found:
        ask = _job(message.body)
        came: dict[str, Any] = dict(message.headers or {})
        ours = verified(came, message.body, (self.hash_key, *self.old_hash_keys))
        headers = _sanitized(came, ask) if ours is None else ours
        first_seen_ms = _moment(headers.get(FIRST_SEEN))
        replay = None
        if (at_ms := _moment(headers.get(REPLAYED_AT))) is not None:
            replay = Replay(at_ms, str(headers.get(REPLAYED_BY, "")), FRESH in headers)
        died_ms = _moment(headers.get(DIED_AT))
        job_id = str(headers.get(JOB_ID) or self._job_id(message, ask))
        # the broker itself dead-letters what came back too often, and says nothing in our headers
        reason, error = ("unknown", _UNREAD) if message.headers_unread else ("crashed", _BY_THE_BROKER)
        error = str(headers.get(ERROR, error))
        if ask is not None:
            job_id = hidden(job_id, self.hash_key) if tells(job_id, ask.email, ask.otp) else job_id
            error = scrub(error, ask.otp, ask.email) if tells(error, ask.email, ask.otp, chance=True) else error
        expires_ms = None
        if ask is not None:
            seen_ms = first_seen_ms or died_ms or now_ms()
            expires_ms = carry(
                ask,
                job_id=job_id,
                lane="due",
                first_seen_ms=seen_ms,
                attempts_made=0,
                default_expiry_minutes=self.default_expiry_minutes,
                # as it will be judged after a replay: a life that began anew with an earlier one ends with that
            ).expires_ms
        letter = Letter(
            job_id=job_id,
            reason=str(headers.get(REASON, reason)),
            error=error,
            code=str(headers.get(REPLY_CODE, "")) or _code_in(error),
            attempt=_int(headers.get(ATTEMPT)) or 0,
            recipient=mask_address(ask.email) if ask else "",
            template=ask.shown_template if ask else "",
            died_ms=died_ms,
            first_seen_ms=first_seen_ms,
            expires_ms=expires_ms,
            allowed_ms=_moment(headers.get(ALLOWED_AT)),
            size=message.dropped or len(message.body),
            replay=replay,
            # where there is none of our headers the broker has dead-lettered it, and nothing is to be verified
            verified=ours is not None or not (message.headers_unread or any(name.startswith(OURS) for name in came)),
        )
        kept = ours or ({} if first_seen_ms is None else {FIRST_SEEN: first_seen_ms})
        return Found(letter, message, kept)

    def _job_id(self, message: Delivered, ask: OtpJob | None) -> str:
        if ask is not None and ask.job_id:
            return hidden(ask.job_id, self.hash_key) if tells(ask.job_id, ask.email, ask.otp) else ask.job_id
        return said_job_id(message.body) or hidden(message.message_id or "", self.hash_key)


def _job(body: bytes) -> OtpJob | None:
    # an error that is kept would keep the message, and what it takes of the memory for bodies
    with contextlib.suppress(Exception):
        return OtpJob.from_bytes(body)
    return None


def _sanitized(came: Mapping[str, Any], ask: OtpJob | None) -> dict[str, Any]:
    """Return what may be shown of headers that no key of ours signed: anyone may have written them.

    A previous version signed none.
    """
    secrets = (ask.otp, ask.email) if ask else ()
    found: dict[str, Any] = {}
    if REASON in came:
        found[REASON] = came[REASON] if came[REASON] in REASONS else "unknown"
        found[ERROR] = ""
    for name in (ERROR, REPLAYED_BY):
        if isinstance(value := came.get(name), str):
            found[name] = scrub_suspects(value, *secrets)
    job_id = came.get(JOB_ID)
    # whatever the secrets of a malformed body are, they could be in it
    made = ask and isinstance(job_id, str) and _MADE_ID.fullmatch(job_id)
    if ask and made and not tells(made[0], ask.email, ask.otp, chance=True):
        found[JOB_ID] = job_id
    code = _int(came.get(REPLY_CODE))
    if code in _REPLY_CODES:
        found[REPLY_CODE] = code
    attempt = _int(came.get(ATTEMPT))
    found[ATTEMPT] = attempt if attempt is not None and 0 <= attempt <= _MOST_ATTEMPTS else 0
    moments = {name: _moment(came.get(name)) for name in (FIRST_SEEN, DIED_AT, ALLOWED_AT, REPLAYED_AT)}
    found |= {name: at_ms for name, at_ms in moments.items() if at_ms is not None}
    seen_ms = moments[FIRST_SEEN] or moments[DIED_AT]
    if seen_ms is not None:  # it may end a code's life earlier, but must not prolong it
        found[FIRST_SEEN] = min(seen_ms, now_ms())
    return found


def _code_in(error: str) -> str:
    """Return the reply code that an error begins or ends with: previous versions wrote no header for it."""
    found = _CODE.search(error)
    return found[1] if found else ""


def _looks(message: Delivered) -> int:
    return _int((message.headers or {}).get("x-delivery-count")) or 0


def _moment(value: object) -> int | None:
    """Return a time that can be one: whatever others have written there must not keep us from the other letters."""
    at_ms = _int(value)
    return at_ms if at_ms is not None and 0 <= at_ms <= LAST_MS else None


def _int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
