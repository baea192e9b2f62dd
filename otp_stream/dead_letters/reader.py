"""Reads messages of the dead-letter queue. Trusts only headers that a worker has signed."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from otp_stream.broker.headers import (
    ALLOWED_AT,
    ATTEMPT,
    DIED_AT,
    ERASED,
    ERROR,
    FIRST_SEEN,
    FRESH,
    JOB_ID,
    OURS,
    REASON,
    REPLAYED_AT,
    REPLAYED_BY,
    REPLY_CODE,
    verified,
)
from otp_stream.broker.message import Delivered, open_message
from otp_stream.broker.outgoing import TEXTS
from otp_stream.clock import now_ms
from otp_stream.core.address import person_key
from otp_stream.core.dead_letter import DeadLetter
from otp_stream.core.decision import REASONS
from otp_stream.core.erasure import erased_job, has_no_code
from otp_stream.core.job import Job, Replay
from otp_stream.core.masking import (
    contains_secret,
    is_secret_id,
    keyed_hash,
    mask_recipient,
    mentions_address,
    scrub,
    scrub_suspects,
)
from otp_stream.core.otp_job import KeyMissingError, OtpJob
from otp_stream.core.possible_secrets import readable_job_id
from otp_stream.core.sealed_body import lacks_key
from otp_stream.core.sealing_keys import NO_KEYS, SealingKeys
from otp_stream.core.times import LAST_MS

_GENERATED_ID = re.compile(r"[0-9a-f]{32}")
_MAX_ATTEMPTS = 1_001
_REPLY_CODES = range(200, 600)
_CODE = re.compile(r"(?:^|last: )([245][0-9]{2})(?: [245]\.[0-9]{1,3}\.[0-9]{1,3})?\b")
_BY_THE_BROKER = "dead-lettered by the broker: redelivered too often"
_UNREAD = "the headers are too large to read"
_AHEAD_MS = 60 * 60_000
"""By how much the clock that wrote an unsigned time may be ahead of ours."""


@dataclass(frozen=True, slots=True)
class StoredDeadLetter:
    """A dead letter and its message, which contains the code and must be shown only to users who may see codes."""

    dead_letter: DeadLetter
    message: Delivered = field(repr=False)
    own_headers: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    """The headers that a worker has signed, which a replay keeps."""
    signed: bool = False
    """Whether a worker has signed its headers."""
    headers: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    """The same, or of unsigned ones the parts that may be shown."""
    request: OtpJob | None = field(default=None, repr=False)
    """The job; `None` if the message is not a valid one. Its `otp` is empty if the code was erased."""
    needed_until_ms: int | None = None
    """When its code expires; for a message that is no valid job, when any code in it does.

    `None`: not known yet, or not without the key with which its body is sealed.
    """

    locked: bool = False
    """Whether its whole body is sealed with a key that is not here."""

    @property
    def code(self) -> str:
        """The code; empty if it is not known."""
        return "" if self.request is None else self.request.otp

    def concerns(self, address: str) -> bool:
        """Return whether it is for this recipient; if it is no valid job, whether the address is anywhere in it.

        That includes headers and properties, which a producer may set to any text.
        """
        if self.request is not None:
            return person_key(self.request.email) == person_key(address)
        message = self.message
        texts = [message.body.decode(errors="replace"), str(message.headers), *(getattr(message, it) for it in TEXTS)]
        return any(mentions_address(it, address) for it in texts if it)

    @property
    def since_ms(self) -> int | None:
        """From when its retention counts; `None` if not known yet."""
        it = self.dead_letter
        return it.died_ms or (it.replay.at_ms if it.replay is not None else it.first_seen_ms)

    @property
    def expiration_ms(self) -> int | None:
        """After how long in the queue RabbitMQ deletes it; `None`: never."""
        expiration = self.message.expiration
        return int(expiration) if isinstance(expiration, str) and expiration.isdecimal() else None


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads dead letters with the keys of a deployment."""

    default_expiry_minutes: float
    hash_key: bytes = field(repr=False)
    old_hash_keys: Sequence[bytes] = field(default=(), repr=False)
    keys: SealingKeys = NO_KEYS
    """Keys that open sealed codes and bodies."""

    def read(self, message: Delivered) -> StoredDeadLetter:
        """Return a message's dead letter, and open its body if that is sealed. Never raises, whatever it contains."""
        all_headers: dict[str, Any] = dict(message.headers or {})
        size = message.dropped or len(message.body)
        signed = verified(all_headers, message.body, (self.hash_key, *self.old_hash_keys))
        open_message(message, self.keys)
        request = _job(message.body, self.keys) or (erased_job(message.body) if ERASED in all_headers else None)
        headers = _sanitized(all_headers, request) if signed is None else signed
        first_seen_ms, died_ms = _time_ms(headers.get(FIRST_SEEN)), _time_ms(headers.get(DIED_AT))
        is_erased = ERASED in all_headers and not (request and request.otp)
        # anyone may have written an unsigned header
        is_erased = is_erased and (signed is not None or bool(message.dropped) or has_no_code(message.body))
        job_id = self._job_id(message, headers, request)
        # the broker dead-letters messages that were redelivered too often, without our headers
        reason, error = ("unknown", _UNREAD) if message.headers_unread else ("crashed", _BY_THE_BROKER)
        error = str(headers.get(ERROR, error))
        if request is not None and contains_secret(error, request.email, request.otp, partial=True):
            error = scrub(error, request.otp, request.email)
        dead_letter = DeadLetter(
            job_id=job_id,
            reason=str(headers.get(REASON, reason)),
            error=error,
            code=str(headers.get(REPLY_CODE, "")) or _code_in(error),
            attempt=_int(headers.get(ATTEMPT)) or 0,
            recipient=mask_recipient(request.email, request.otp) if request else "",
            template=request.shown_template if request else "",
            died_ms=died_ms,
            first_seen_ms=first_seen_ms,
            expires_ms=self._expires_ms(request, job_id, first_seen_ms or died_ms or now_ms()),
            allowed_ms=_time_ms(headers.get(ALLOWED_AT)),
            size=size,
            replay=_replay(headers),
            erased_ms=_time_ms(headers.get(ERASED)) if is_erased else None,
            # without any of our headers, the broker has dead-lettered the message, and there is nothing to verify
            verified=signed is not None
            or not (message.headers_unread or any(name.startswith(OURS) for name in all_headers)),
        )
        own_headers = signed or ({} if first_seen_ms is None else {FIRST_SEEN: first_seen_ms})
        is_locked = request is None and lacks_key(self.keys, message.body)
        # it may be a job of any lifetime; a worker has read a malformed one, and found that it is none
        lasts = is_locked and dead_letter.reason != "malformed"
        needed_until_ms = None if lasts else self._needed_until_ms(request, dead_letter)
        return StoredDeadLetter(
            dead_letter, message, own_headers, signed is not None, headers, request, needed_until_ms, is_locked
        )

    def _job_id(self, message: Delivered, headers: Mapping[str, Any], request: OtpJob | None) -> str:
        job_id = str(headers.get(JOB_ID) or self._unsigned_id(message, request))
        if request is not None and is_secret_id(job_id, request.email, request.otp):
            return keyed_hash(job_id, self.hash_key)
        return job_id

    def _unsigned_id(self, message: Delivered, request: OtpJob | None) -> str:
        """Return the id that the producer gave to the job or to the message, hashed if it contains a secret."""
        if request is not None and request.job_id:
            secret = is_secret_id(request.job_id, request.email, request.otp)
            return keyed_hash(request.job_id, self.hash_key) if secret else request.job_id
        return readable_job_id(message.body) or keyed_hash(message.message_id or "", self.hash_key)

    def _needed_until_ms(self, request: OtpJob | None, it: DeadLetter) -> int | None:
        """Return when its code expires, with the lifetime of a replay that started it again; `None` if not known."""
        seen_ms = it.first_seen_ms or it.died_ms
        if request is None:
            return None if seen_ms is None else seen_ms + round(self.default_expiry_minutes * 60_000)
        if seen_ms is None and request.timestamp is None:
            return None
        until_ms = self._expires_ms(request, it.job_id, seen_ms or now_ms(), it.replay)
        return max(filter(None, (until_ms, it.expires_ms)))

    def _expires_ms(
        self, request: OtpJob | None, job_id: str, first_seen_ms: int, replay: Replay | None = None
    ) -> int | None:
        """Return when the code expires for a worker, after a replay without a fresh lifetime."""
        if request is None:
            return None
        return Job.from_request(
            request,
            job_id=job_id,
            lane="due",
            first_seen_ms=first_seen_ms,
            attempts_made=0,
            default_expiry_minutes=self.default_expiry_minutes,
            replay=replay,
        ).expires_ms


def _job(body: bytes, keys: SealingKeys) -> OtpJob | None:
    # a stored exception would keep the message, and with it the memory of its body
    with contextlib.suppress(Exception):
        try:
            return OtpJob.from_bytes(body, keys=keys)
        except KeyMissingError:
            return OtpJob.without_code(body)
    return None


def _replay(headers: Mapping[str, Any]) -> Replay | None:
    at_ms = _time_ms(headers.get(REPLAYED_AT))
    return None if at_ms is None else Replay(at_ms, str(headers.get(REPLAYED_BY, "")), FRESH in headers)


def _sanitized(headers: Mapping[str, Any], request: OtpJob | None) -> dict[str, Any]:
    """Return the parts that may be shown of unsigned headers, which anyone, or an earlier version, may have written."""
    secrets = (request.otp, request.email) if request else ()
    shown: dict[str, Any] = {}
    if REASON in headers:
        shown[REASON] = headers[REASON] if headers[REASON] in REASONS else "unknown"
        shown[ERROR] = ""
    for name in (ERROR, REPLAYED_BY):
        if isinstance(value := headers.get(name), str):
            shown[name] = scrub_suspects(value, *secrets)
    job_id = headers.get(JOB_ID)
    # the secrets of a malformed body are not known, so any id could contain them
    generated = request and isinstance(job_id, str) and _GENERATED_ID.fullmatch(job_id)
    if request and generated and not contains_secret(generated[0], request.email, request.otp, partial=True):
        shown[JOB_ID] = job_id
    code = _int(headers.get(REPLY_CODE))
    if code in _REPLY_CODES:
        shown[REPLY_CODE] = code
    attempt = _int(headers.get(ATTEMPT))
    shown[ATTEMPT] = attempt if attempt is not None and 0 <= attempt <= _MAX_ATTEMPTS else 0
    # a forged time in the future must not keep a dead letter for ever
    latest_ms = now_ms() + _AHEAD_MS
    times = {name: _time_ms(headers.get(name), latest_ms) for name in (FIRST_SEEN, DIED_AT, REPLAYED_AT, ERASED)}
    times[ALLOWED_AT] = _time_ms(headers.get(ALLOWED_AT))
    shown |= {name: at_ms for name, at_ms in times.items() if at_ms is not None}
    first_seen_ms = times[FIRST_SEEN] or times[DIED_AT]
    if first_seen_ms is not None:  # an unsigned time may shorten a code's lifetime, but not extend it
        shown[FIRST_SEEN] = min(first_seen_ms, now_ms())
    return shown


def _code_in(error: str) -> str:
    """Return the reply code in the text of an error, because earlier versions wrote no header for it."""
    found = _CODE.search(error)
    return found[1] if found else ""


def _time_ms(value: object, latest_ms: int = LAST_MS) -> int | None:
    """Return a plausible time, or `None`: foreign headers must not make a dead letter unreadable."""
    at_ms = _int(value)
    return at_ms if at_ms is not None and 0 <= at_ms <= latest_ms else None


def _int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
