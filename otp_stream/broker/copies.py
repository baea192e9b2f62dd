"""The messages that we publish in a job's place: its retry, its dead letter, its unchanged copy."""

import contextlib
import json
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from aio_pika import DeliveryMode, Message
from pamqp import encode

from otp_stream.core.decision import Dead
from otp_stream.core.job import MAX_BODY_BYTES, Replay, too_large
from otp_stream.core.lenient import loads
from otp_stream.telemetry_errors import observe

from .arrival import (
    ATTEMPT,
    FIRST_SEEN,
    FRESH,
    JOB_ID,
    REPLAYED_AT,
    REPLAYED_BY,
    UNCERTAIN,
    Arrival,
)
from .mac import OURS
from .message import LARGEST_HEADER, Delivered
from .message import Message as Came

REASON, ERROR, DIED_AT, ALLOWED_AT = "x-otp-reason", "x-otp-error", "x-otp-died-at", "x-otp-allowed-at"
REPLY_CODE = "x-otp-reply-code"
_OF_DEATH = {REASON, ERROR, DIED_AT, ALLOWED_AT, REPLY_CODE, UNCERTAIN}
_OF_REPLAY = {REPLAYED_AT, REPLAYED_BY, FRESH}
# What the broker writes is not carried on: copied `x-death` headers have lost messages on their second pass,
# and CC and BCC would route a copy to places that the producer has served already.
_BROKERS = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count", "CC", "BCC")

_HEADERS_LIMIT = LARGEST_HEADER - 4 * 1024
"""Bytes of a copy's headers: with its properties and what the broker adds, the next worker must be able to read it."""
_LONGEST_KEPT = 1024
"""Characters of one header, where they are more than that."""
_NAME_BYTES = 140
"""Of a header's name and what stands around it."""

Headers = dict[str, Any]
Inject = Callable[[MutableMapping[str, Any]], None]
"""Puts the current trace context into headers."""


def retry(
    arrival: Arrival, *, job_id: str, attempts_made: int, inject: Inject, uncertain: str | None = None
) -> Message:
    """Return the job for its next attempt; the body's `retryCount` is kept in step with our count."""
    headers = _foreign(arrival.message) | _ours(arrival, job_id, attempts_made)
    if uncertain := uncertain or arrival.uncertain:
        headers[UNCERTAIN] = uncertain
    observe(inject, headers)
    return _copy(arrival.message, _counted(arrival.message.body, attempts_made), headers)


def dead_letter(arrival: Arrival, dead: Dead, *, job_id: str, died_ms: int, inject: Inject) -> Message:
    """Return the dead letter: the body as it came, with why and when it died in the headers.

    In place of a body that was too large to keep: JSON that says so.
    """
    headers = _foreign(arrival.message) | _ours(arrival, job_id, dead.attempt)
    headers |= {REASON: dead.reason, ERROR: dead.error, DIED_AT: died_ms}
    if dead.allowed_ms is not None:
        headers[ALLOWED_AT] = dead.allowed_ms
    if dead.reply is not None:
        headers[REPLY_CODE] = dead.reply.code
    observe(inject, headers)
    if not arrival.dropped:
        return _copy(arrival.message, arrival.message.body, headers)
    return _stub(arrival.message, arrival.dropped, dead.reason, dead.error, headers)


def unchanged(arrival: Arrival) -> Message:
    """Return the same message once more, to go back whence it came without a mark on it."""
    return again(arrival.message)


def again(came: Came) -> Message:
    """Return a message as it came, without what the broker wrote on it; a body that was not kept becomes a stub."""
    headers = {name: value for name, value in came.headers.items() if not _is_brokers(name)}
    if isinstance(came, Delivered) and came.dropped:
        return _stub(came, came.dropped, "malformed", str(too_large(came.dropped)), headers)
    return _copy(came, came.body, headers)


def replayed(came: Came, replay: Replay, *, known: bool, ours: Mapping[str, Any]) -> Message:
    """Return a dead letter's job for a new beginning in the lane of retries; `known` where its body is a job.

    `ours` are its headers that a worker wrote.
    """
    gone = _OF_DEATH | _OF_REPLAY
    headers = _foreign(came) | {name: value for name, value in ours.items() if name not in gone}
    headers |= {ATTEMPT: 0, REPLAYED_AT: replay.at_ms, REPLAYED_BY: replay.by}
    if replay.fresh:
        headers[FRESH] = "yes"
    return _copy(came, _counted(came.body, 0) if known else came.body, headers)


def _counted(body: bytes, attempts_made: int) -> bytes:
    try:
        content = loads(body)
    except (ValueError, RecursionError):
        return body  # a number of thousands of digits, for example, which the lenient reading takes
    content["retryCount"] = attempts_made
    counted = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    # our own count is in a header; a body at the limit must not become too large by it
    return counted if len(counted) <= MAX_BODY_BYTES else body


def _ours(arrival: Arrival, job_id: str, attempts_made: int) -> Headers:
    ours: Headers = {ATTEMPT: attempts_made, JOB_ID: job_id, FIRST_SEEN: arrival.first_seen_ms}
    if arrival.ours and arrival.replay is not None:
        ours |= {name: arrival.ours[name] for name in _OF_REPLAY if name in arrival.ours}
    return ours


def _foreign(came: Came) -> Headers:
    headers = came.headers
    return {name: it for name, it in headers.items() if not name.startswith(OURS) and not _is_brokers(name)}


def _is_brokers(name: str) -> bool:
    return name.startswith(_BROKERS)


def _encodable(headers: Headers) -> Headers:
    with contextlib.suppress(Exception):  # whatever a foreign client put there must not keep a job from moving on
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


def _stub(came: Came, size: int, reason: str, error: str, headers: Headers) -> Message:
    told = {"reason": reason, "error": f"{error}; the body was not kept", "originalSize": size}
    message = _copy(came, json.dumps(told).encode(), headers)
    message.content_type, message.content_encoding = "application/json", None
    return message


def _copy(came: Came, body: bytes, headers: Headers) -> Message:
    # user_id is left out: the broker refuses a message that claims another user than ours. So is expiration:
    # a wait must not end early.
    return Message(
        body,
        headers=_encodable(headers),
        delivery_mode=DeliveryMode.PERSISTENT,
        content_type=came.content_type,
        content_encoding=came.content_encoding,
        correlation_id=came.correlation_id,
        reply_to=came.reply_to,
        message_id=came.message_id,
        timestamp=came.timestamp,
        type=came.type,
        app_id=came.app_id,
        priority=came.priority,
    )
