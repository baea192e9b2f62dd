"""Whatever a producer writes into a message's properties, the message arrives.

pamqp gives up on a time that no calendar holds, on text that is no UTF-8 and on a table that it cannot read; aiormq
then gives the whole connection up. The broker delivers the message again, and one message has stopped the worker.
"""

from collections.abc import Callable
from typing import Any

from pamqp import decode

_Decoder = Callable[[bytes], tuple[int, Any]]


def tolerate() -> None:
    """Let this process read every message: what cannot be read of its properties is left out."""
    decode.METHODS["timestamp"] = decode.TABLE_MAPPING[b"T"] = _timestamp
    decode.METHODS["shortstr"] = _short_text
    decode.METHODS["table"] = decode.TABLE_MAPPING[b"F"] = _table


def _timestamp(value: bytes) -> tuple[int, Any]:
    try:
        return decode.timestamp(value)
    except (ValueError, OverflowError, OSError):
        return 8, None


def _short_text(value: bytes) -> tuple[int, Any]:
    end = value[0] + 1
    return end, value[1:end].decode(errors="replace")


def _table(value: bytes) -> tuple[int, Any]:
    try:
        return decode.field_table(value)
    except (ValueError, OverflowError, OSError, IndexError):
        return int.from_bytes(value[:4], "big") + 4, {}
