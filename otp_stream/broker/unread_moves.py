"""Moves of jobs to their tenants' queues before they are read: another tenant's job may wait behind thousands.

To read a job, and to create and encode its copy field by field, takes four times as long as all of this.
"""

import asyncio
from collections.abc import Callable
from functools import lru_cache
from struct import Struct
from typing import Any

from pamqp.encode import field_table
from pydantic_core import from_json

from otp_stream.core.lenient import MAX_JOB_ID, MILLISECONDS
from otp_stream.core.otp_job import MAX_BODY_BYTES
from otp_stream.core.sealed_code import FIELD
from otp_stream.core.threshold import DynamicThreshold

from .headers import JOB_ID, MAC, sign
from .incoming import Shared
from .job_message import SIGNED, JobMessage
from .message import LARGEST_HEADER, Delivered
from .outgoing import foreign_headers, moved_headers

_CONTENT = Struct(">HHQH")
_HEADERS, _DELIVERY_MODE, _EXPIRATION, _USER_ID, _MORE_FLAGS = 0x2000, 0x1000, 0x0100, 0x0010, 0x0001
_PROPERTIES = (
    (0x8000, 0), (0x4000, 0), (_HEADERS, -1), (_DELIVERY_MODE, 1), (0x0800, 1), (0x0400, 0), (0x0200, 0),
    (_EXPIRATION, 0), (0x0080, 0), (0x0040, 8), (0x0020, 0), (_USER_ID, 0), (0x0008, 0), (0x0004, 0),
)  # fmt: skip
"""The flag of each property of AMQP 0-9-1 §1.8.3.1, in their order, and its bytes: 0 is a short string, -1 a table."""
_REPLACED = _HEADERS | _DELIVERY_MODE
_DROPPED = _EXPIRATION | _USER_ID | 0x0004
"""The same as for other copies: see `outgoing`."""
_FOREIGN_LIMIT = LARGEST_HEADER // 2
_PERSISTENT = b"\x02"


def start(
    message: JobMessage,
    threshold: DynamicThreshold,
    shared: Shared,
    on_timestamp: Callable[[JobMessage, int], None],
) -> asyncio.Future[None] | None:
    """Publish a job to its tenant's queue, if the tenant has too many. Returns the confirm.

    Returns `None` for a job that has to be read: it stays in its lane, or is not as expected. `on_timestamp` is called
    with the time at which the code of a moved job was made, if the producer has stated it.
    """
    raw, reader, mover = message.raw, shared.reader, shared.mover
    if mover is None or not mover.enabled or (message.ours is None and message.lane in SIGNED):
        return None
    if not isinstance(raw, Delivered) or raw.redelivered or raw.dropped or raw.headers_unread or raw.opened:
        return None
    try:
        identified = message.header(JOB_ID, str) is not None
        named, made_ms = _tenant_and_timestamp(raw.body, identified=identified, sealed=bool(reader.keys()))
        tenant = reader.tenant_of(named)
        if threshold.permits(tenant) or not mover.can_move(tenant):
            return None
        headers = moved_headers(message)
        sign(headers, raw.body, reader.hash_key)
        header = content_header(raw, headers)
    except Exception:  # noqa: BLE001 - the job is read in full, which finds out what is wrong and reports it
        return None
    confirm = mover.publish(tenant, header, raw.body, headers[MAC])
    if confirm is not None and made_ms is not None:
        on_timestamp(message, min(made_ms, message.first_seen_ms))
    return confirm


def _tenant_and_timestamp(body: bytes, *, identified: bool, sealed: bool) -> tuple[object, int | None]:
    """Return `metadata.tenant` and `timestamp`. Raises an error if the job has to be read in full.

    That is so if the copy would not have the same id as the original: a job without id and time gets a random one when
    it is read, unless it is `identified` by a header of ours. And if codes are `sealed`, for a job with a plain one.
    """
    if len(body) > MAX_BODY_BYTES:
        raise ValueError("too large")
    fields: Any = from_json(body)
    if sealed and (b'"otp"' in body or "otp" in fields or not fields.get(FIELD)):
        raise ValueError("plain code")
    made_ms, metadata = fields.get("timestamp"), fields.get("metadata")
    if type(made_ms) is not int or made_ms not in MILLISECONDS:
        made_ms = None
        job_id = fields.get("jobId")
        if not identified and not (isinstance(job_id, str) and 0 < len(job_id) <= MAX_JOB_ID and job_id.isprintable()):
            raise ValueError("no id")
    return None if metadata is None else metadata.get("tenant"), made_ms


def content_header(raw: Delivered, ours: dict[str, Any]) -> bytes:
    """Return the payload of the content header of a copy, with our headers in addition to the producer's.

    The other properties are copied as they are. Raises an error if they cannot be.
    """
    given = raw.header
    flags = int.from_bytes(given[12:14], "big")
    if flags & _MORE_FLAGS:
        raise ValueError("unknown properties")
    table = b"".join([_entry(name, value) for name, value in ours.items()])
    if raw.headers and (foreign := foreign_headers(raw)):
        table += field_table(foreign)[4:]
        if len(table) > _FOREIGN_LIMIT:
            raise ValueError("large headers")
    parts = [_CONTENT.pack(60, 0, len(raw.body), flags & ~_DROPPED | _REPLACED)]
    at = 14
    for flag, size in _present(flags):
        end = at
        if flags & flag:
            end += size if size > 0 else given[at] + 1 if size == 0 else int.from_bytes(given[at : at + 4], "big") + 4
        if flag == _HEADERS:
            parts += len(table).to_bytes(4, "big"), table
        elif flag == _DELIVERY_MODE:
            parts.append(_PERSISTENT)
        elif not flag & _DROPPED:
            parts.append(given[at:end])
        at = end
    return b"".join(parts)


@lru_cache(64)
def _present(flags: int) -> list[tuple[int, int]]:
    """Return the properties of a message with these flags, and the ones that its copy always has."""
    return [it for it in _PROPERTIES if it[0] & (flags | _REPLACED)]


def _entry(name: str, value: str | int) -> bytes:
    if isinstance(value, int):
        return b"%bl%b" % (_short(name), value.to_bytes(8, "big", signed=True))
    text = value.encode()
    return b"%bS%b%b" % (_short(name), len(text).to_bytes(4, "big"), text)


@lru_cache(64)
def _short(name: str) -> bytes:
    return b"%c%b" % (len(name), name.encode())
