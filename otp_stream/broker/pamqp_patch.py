"""Decode every message, whatever a producer has written into its properties.

pamqp raises an exception for a time outside the calendar, for text that is not UTF-8 and for a malformed table, and
aiormq then closes the connection. The broker redelivers the message, so that one message would stop the worker.
"""

from typing import Any

from pamqp import decode

_SHORT = 255
"""Maximum length of a short string in bytes."""


def patch_pamqp() -> None:
    """Patch pamqp in this process, so that it leaves out properties that it cannot decode."""
    decode.METHODS["timestamp"] = decode.TABLE_MAPPING[b"T"] = _timestamp
    decode.METHODS["shortstr"] = _short_text
    decode.METHODS["table"] = _headers
    decode.TABLE_MAPPING[b"F"] = _table


def _timestamp(value: bytes) -> tuple[int, Any]:
    try:
        return decode.timestamp(value)
    except (ValueError, OverflowError, OSError):
        return 8, None


def _short_text(value: bytes) -> tuple[int, Any]:
    end = value[0] + 1
    try:
        return end, value[1:end].decode()
    except ValueError:
        # the text is published again with a retry, and must still fit into 255 bytes
        return end, value[1:end].decode(errors="replace").encode()[:_SHORT].decode(errors="ignore")


def _table(value: bytes) -> tuple[int, Any]:
    try:
        return decode.field_table(value)
    except (ValueError, OverflowError, OSError, IndexError):
        return _length(value), {}


def _headers(value: bytes) -> tuple[int, Any]:
    try:
        return _table(value)
    except RecursionError:  # such deeply nested tables could not be published again
        return _length(value), {}


def _length(value: bytes) -> int:
    return int.from_bytes(value[:4], "big") + 4
