"""The messages that we publish in a job's place: its retry, its dead letter, its unchanged copy."""

import json
from collections.abc import Callable, MutableMapping
from typing import Any

from aio_pika import DeliveryMode, Message
from pamqp import encode

from otp_stream.core.decision import Dead
from otp_stream.core.job import MAX_BODY_BYTES, Replay

from .arrival import ATTEMPT, FIRST_SEEN, FRESH, JOB_ID, REPLAYED_AT, REPLAYED_BY, UNCERTAIN, Arrival
from .arrival import Message as Came

REASON, ERROR, DIED_AT, ALLOWED_AT = "x-otp-reason", "x-otp-error", "x-otp-died-at", "x-otp-allowed-at"
_OF_DEATH = {REASON, ERROR, DIED_AT, ALLOWED_AT, UNCERTAIN}
_OF_REPLAY = {REPLAYED_AT, REPLAYED_BY, FRESH}
_OURS = _OF_DEATH | _OF_REPLAY | {ATTEMPT, JOB_ID, FIRST_SEEN}
# What the broker writes is not carried on: copied `x-death` headers have lost messages on their second pass,
# and CC and BCC would route a copy to places that the producer has served already.
_BROKERS = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count", "CC", "BCC")

Headers = dict[str, Any]
Inject = Callable[[MutableMapping[str, Any]], None]
"""Puts the current trace context into headers."""


def retry(
    arrival: Arrival, *, job_id: str, attempts_made: int, inject: Inject, uncertain: str | None = None
) -> Message:
    """Return the job for its next attempt; the body's `retryCount` is kept in step with our count."""
    headers = _carried(arrival) | _ours(arrival, job_id, attempts_made)
    if uncertain := uncertain or arrival.uncertain:
        headers[UNCERTAIN] = uncertain
    inject(headers)
    return _copy(arrival.message, _counted(arrival.message.body, attempts_made), headers)


def dead_letter(arrival: Arrival, dead: Dead, *, job_id: str, died_ms: int, inject: Inject) -> Message:
    """Return the dead letter: the body as it came, with why and when it died in the headers."""
    headers = _carried(arrival) | _ours(arrival, job_id, dead.attempt)
    headers |= {REASON: dead.reason, ERROR: dead.error, DIED_AT: died_ms}
    if dead.allowed_ms is not None:
        headers[ALLOWED_AT] = dead.allowed_ms
    inject(headers)
    return _copy(arrival.message, arrival.message.body, headers)


def unchanged(arrival: Arrival) -> Message:
    """Return the same message once more, to go back whence it came without a mark on it."""
    return again(arrival.message)


def again(came: Came) -> Message:
    """Return a message as it came, without what the broker wrote on it."""
    kept = {name: value for name, value in came.headers.items() if not _is_brokers(name)}
    return _copy(came, came.body, _encodable(kept))


def replayed(came: Came, replay: Replay, *, known: bool) -> Message:
    """Return a dead letter's job for a new beginning in the lane of retries; `known` where its body is a job."""
    gone = _OF_DEATH | _OF_REPLAY
    headers = {name: value for name, value in came.headers.items() if name not in gone and not _is_brokers(name)}
    headers |= {ATTEMPT: 0, REPLAYED_AT: replay.at_ms, REPLAYED_BY: replay.by}
    if replay.fresh:
        headers[FRESH] = "yes"
    return _copy(came, _counted(came.body, 0) if known else came.body, _encodable(headers))


def _counted(body: bytes, attempts_made: int) -> bytes:
    content = json.loads(body)
    content["retryCount"] = attempts_made
    counted = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    # our own count is in a header; a body at the limit must not become too large by it
    return counted if len(counted) <= MAX_BODY_BYTES else body


def _ours(arrival: Arrival, job_id: str, attempts_made: int) -> Headers:
    ours: Headers = {ATTEMPT: attempts_made, JOB_ID: job_id, FIRST_SEEN: arrival.first_seen_ms}
    if arrival.replay is not None:
        ours |= {name: arrival.message.headers[name] for name in _OF_REPLAY if name in arrival.message.headers}
    return ours


def _carried(arrival: Arrival) -> Headers:
    headers = arrival.message.headers
    return _encodable({n: v for n, v in headers.items() if n not in _OURS and not _is_brokers(n)})


def _is_brokers(name: str) -> bool:
    return name.startswith(_BROKERS)


def _encodable(headers: Headers) -> Headers:
    try:
        encode.field_table(headers)
    except Exception:  # noqa: BLE001 - whatever a foreign client put there must not keep a job from moving on
        return {name: value for name, value in headers.items() if isinstance(value, str | int)}
    return headers


def _copy(came: Came, body: bytes, headers: Headers) -> Message:
    # user_id is left out: the broker refuses a message that claims another user than ours. So is expiration:
    # a wait must not end early.
    return Message(
        body,
        headers=headers,
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
