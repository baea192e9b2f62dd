"""The messages that replace a received one: its retry, its dead letter, its move, or an unchanged copy.

They are published as `finished` returns them, without a code in plain text.
"""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from aio_pika import DeliveryMode, Message
from pamqp import encode

from otp_stream.core.body_at_rest import at_rest
from otp_stream.core.decision import Dead
from otp_stream.core.erasure import without_code
from otp_stream.core.job import Job, Replay
from otp_stream.core.lenient_json import loads
from otp_stream.core.masking import contains_secret
from otp_stream.core.otp_job import MAX_BODY_BYTES, too_large
from otp_stream.core.sealed_body import Content
from otp_stream.core.sealing_keys import NO_KEYS, SealingKeys
from otp_stream.core.trace_context import is_trace

from .headers import (
    ALLOWED_AT,
    ATTEMPT,
    DIED_AT,
    ERASED,
    ERROR,
    FIRST_SEEN,
    FRESH,
    JOB_ID,
    LANE,
    MOVES,
    OURS,
    REASON,
    REPLAYED_AT,
    REPLAYED_BY,
    REPLY_CODE,
    SUSPECT,
    UNCERTAIN,
    sign,
)
from .job_message import JobMessage
from .message import LARGEST_HEADER, Delivered, RawMessage

_OF_DEATH = {REASON, ERROR, DIED_AT, ALLOWED_AT, REPLY_CODE, UNCERTAIN, ERASED}
_OF_REPLAY = {REPLAYED_AT, REPLAYED_BY, FRESH}
_OF_JOB = _OF_REPLAY | {ATTEMPT, JOB_ID, UNCERTAIN}
# The broker's headers are not copied: with copied `x-death` headers, RabbitMQ has lost messages on their second pass
# through a wait queue, and CC and BCC would route the copy to queues that already have the producer's message.
_BROKERS = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count", "CC", "BCC")

_HEADERS_LIMIT = LARGEST_HEADER - 4 * 1024
"""Maximum bytes of published headers, which leaves room for those that the broker adds."""
_LONGEST_KEPT = 1024
"""Maximum characters of a header that is kept if the headers are too large."""
_LONGEST_NAME = 128
"""In bytes (AMQP 0-9-1, 4.2.5.5)."""
_NAME_BYTES = 140
"""Upper bound for a header's name and the bytes around its value."""

_SEARCHED = 1024
"""Maximum characters of a producer's headers that are searched for a code: 8,000 would take 17 ms."""

TEXTS = ("content_type", "content_encoding", "correlation_id", "reply_to", "message_id", "type", "app_id")
"""Properties that a producer may set to any text."""

Headers = dict[str, Any]


def retry(message: JobMessage, *, job_id: str, attempts_made: int, uncertain: str | None = None) -> Message:
    """Return the job for its next attempt, with our count of attempts as `retryCount` in the body."""
    headers = foreign_headers(message.raw) | _ours(message, job_id, attempts_made)
    if uncertain := uncertain or message.uncertain:
        headers[UNCERTAIN] = uncertain
    if message.moves:
        headers[MOVES] = message.moves
    return _copy(message.raw, _with_count(message.raw.body, attempts_made), headers)


def moved(message: JobMessage, job: Job) -> Message:
    """Return the job for its tenant's queue: the unchanged body, and all that is known about the job.

    It counts the move, so that the copy is never taken for the original, nor the original for the copy.
    """
    headers = foreign_headers(message.raw) | _ours(message, job.id, job.attempts_made) | moved_headers(message)
    return _copy(message.raw, message.raw.body, headers)


def moved_headers(message: JobMessage) -> Headers:
    """Return our headers of a moved job, without those that can be found only by reading the job."""
    headers = {name: message.ours[name] for name in _OF_JOB if name in message.ours} if message.ours else {}
    headers |= {FIRST_SEEN: message.first_seen_ms, LANE: message.first_lane, MOVES: message.moves + 1}
    if message.suspect:
        headers[SUSPECT] = "yes"
    return headers


def dead_letter(
    message: JobMessage, dead: Dead, *, job_id: str, died_ms: int, expired_code: str | None = None
) -> Message:
    """Return the dead letter: the unchanged body, with the reason and the time of death in its headers.

    An `expired_code` is removed from it. A body that was too large to keep is replaced by JSON with its size.
    """
    headers = foreign_headers(message.raw) | _ours(message, job_id, dead.attempt)
    headers |= {REASON: dead.reason, ERROR: dead.error, DIED_AT: died_ms}
    if dead.allowed_ms is not None:
        headers[ALLOWED_AT] = dead.allowed_ms
    if dead.reply is not None:
        headers[REPLY_CODE] = dead.reply.code
    if message.dropped:
        headers[ERASED] = died_ms
        return _stub(message.raw, message.dropped, dead.reason, dead.error, headers)
    if expired_code is not None:
        return erased(message.raw, without_code(message.raw.body, expired_code), headers | {ERASED: died_ms})
    return _copy(message.raw, message.raw.body, headers)


def erased(raw: RawMessage, body: bytes, headers: Mapping[str, Any]) -> Message:
    """Return a message without its code: a new body, and of the headers only ours and the trace.

    A producer may have written the code to any other header or property.
    """
    kept = {
        name: value
        for name, value in headers.items()
        if name.startswith(OURS) or (name == "traceparent" and is_trace(value, name))
    }
    return Message(
        body,
        headers=_encodable(kept),
        delivery_mode=DeliveryMode.PERSISTENT,
        content_type="application/json",
        timestamp=raw.timestamp,
    )


def expire(message: Message, left_ms: int | None) -> None:
    """Have RabbitMQ delete a message after `left_ms` in its queue, once it is the oldest there; `None`: never."""
    message.expiration = None if left_ms is None else left_ms / 1000


def unchanged(raw: RawMessage) -> Message:
    """Return the same message without the broker's headers. A body that was too large to keep is replaced by JSON."""
    headers = {name: value for name, value in raw.headers.items() if not _is_brokers(name)}
    if isinstance(raw, Delivered) and raw.dropped:
        return _stub(raw, raw.dropped, "malformed", str(too_large(raw.dropped)), headers)
    return _copy(raw, raw.body, headers)


def replayed(raw: RawMessage, replay: Replay, *, known: bool, ours: Mapping[str, Any]) -> Message:
    """Return a dead letter's job for a new start in the lane `due`.

    `known`: whether the body is a valid job; `ours`: the headers that a worker signed.
    """
    removed = _OF_DEATH | _OF_REPLAY
    headers = foreign_headers(raw) | {name: value for name, value in ours.items() if name not in removed}
    headers |= {ATTEMPT: 0, REPLAYED_AT: replay.at_ms, REPLAYED_BY: replay.by}
    if replay.fresh:
        headers[FRESH] = "yes"
    return _copy(raw, _with_count(raw.body, 0) if known else raw.body, headers)


def finished(
    message: Message, keys: SealingKeys, sign_with: bytes | None, code: str = "", *, is_stub: bool = False
) -> Message:
    """Seal the body of a message, then sign its headers with a key, unless that is `None`.

    With keys, headers and properties of the producer that contain the code are dropped, and so are all headers beyond
    `_SEARCHED`. A body without a code is not sealed: a stub of one that was too large to keep, and one whose code was
    erased. Only a signed header shows that it was erased; by a forged one, anyone could have a sealed body published in
    plain text.
    """
    if is_stub or (sign_with is not None and ERASED in message.headers):
        keys = NO_KEYS
    if keys and code:
        _drop(message, code)  # first, because a sealed body has two of the properties in its header, in plain text
    content = at_rest(Content(message.body, message.content_type, message.content_encoding), keys)
    message.body, message.content_type, message.content_encoding = content
    if sign_with is not None:
        sign(message.headers, message.body, sign_with)
    return message


def _drop(message: Message, code: str) -> None:
    left = _SEARCHED
    for name in [it for it in message.headers if not it.startswith(OURS)]:
        text = f"{name} {message.headers[name]}"
        if len(text) > left or contains_secret(text, "", code, partial=True):
            del message.headers[name]
        else:
            left -= len(text)
    for name in TEXTS:
        if contains_secret(str(getattr(message, name) or ""), "", code, partial=True):
            setattr(message, name, None)


def _with_count(body: bytes, attempts_made: int) -> bytes:
    try:
        content = loads(body)
    except (ValueError, RecursionError):
        return body  # for example a number with thousands of digits, which only the lenient parser accepts
    content["retryCount"] = attempts_made
    counted = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    # our own count is in a header, so a body must not exceed the limit because of it
    return counted if len(counted) <= MAX_BODY_BYTES else body


def _ours(message: JobMessage, job_id: str, attempts_made: int) -> Headers:
    ours: Headers = {ATTEMPT: attempts_made, JOB_ID: job_id, FIRST_SEEN: message.first_seen_ms}
    if message.ours and message.replay is not None:
        ours |= {name: message.ours[name] for name in _OF_REPLAY if name in message.ours}
    return ours


def foreign_headers(raw: RawMessage) -> Headers:
    """Return the headers of a message that are neither ours nor the broker's."""
    headers = raw.headers
    return {name: it for name, it in headers.items() if not name.startswith(OURS) and not _is_brokers(name)}


def _is_brokers(name: str) -> bool:
    return name.startswith(_BROKERS)


def _encodable(headers: Headers) -> Headers:
    # pamqp would cut a longer name, so that it is another one
    headers = {name: value for name, value in headers.items() if len(name.encode(errors="replace")) <= _LONGEST_NAME}
    with contextlib.suppress(Exception):  # no header of a producer may prevent a retry or a dead letter
        if len(encode.field_table(headers)) <= _HEADERS_LIMIT:
            return headers
    kept: Headers = {}
    room = _HEADERS_LIMIT
    for name in sorted(headers, key=lambda it: not it.startswith(OURS)):
        value = headers[name]
        if isinstance(value, int) or (isinstance(value, str) and len(value) <= _LONGEST_KEPT):
            room -= 4 * len(str(value)) + _NAME_BYTES  # a character has up to 4 bytes
            if room < 0:
                break
            kept[name] = value
    return kept


def _stub(raw: RawMessage, size: int, reason: str, error: str, headers: Headers) -> Message:
    stub = {"reason": reason, "error": f"{error}; the body was not kept", "originalSize": size}
    return erased(raw, json.dumps(stub).encode(), headers)


def _copy(raw: RawMessage, body: bytes, headers: Headers) -> Message:
    # without user_id, because the broker accepts only our user in it; without expiration, so that no wait ends early
    return Message(
        body,
        headers=_encodable(headers),
        delivery_mode=DeliveryMode.PERSISTENT,
        content_type=raw.content_type,
        content_encoding=raw.content_encoding,
        correlation_id=raw.correlation_id,
        reply_to=raw.reply_to,
        message_id=raw.message_id,
        timestamp=raw.timestamp,
        type=raw.type,
        app_id=raw.app_id,
        priority=raw.priority,
    )
