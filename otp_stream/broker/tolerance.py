"""Whatever a producer writes into a message's properties, the message arrives.

pamqp gives up on a time that no calendar holds, on text that is no UTF-8 and on a table that it cannot read; aiormq
then gives the whole connection up. The broker delivers the message again, and one message has stopped the worker.
"""

from typing import Any

from pamqp import decode

_SHORT = 255
"""Bytes of a short string."""


def tolerate() -> None:
    """Let this process read every message: what cannot be read of its properties is left out."""
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
        # the text is published again with the copy, and must still fit into its 255 bytes there
        return end, value[1:end].decode(errors="replace").encode()[:_SHORT].decode(errors="ignore")


def _table(value: bytes) -> tuple[int, Any]:
    try:
        return decode.field_table(value)
    except (ValueError, OverflowError, OSError, IndexError):
        return _length(value), {}


def _headers(value: bytes) -> tuple[int, Any]:
    try:
        return _table(value)
    except RecursionError:  # tables nested that deep could not be published again
        return _length(value), {}


def _length(value: bytes) -> int:
    return int.from_bytes(value[:4], "big") + 4
