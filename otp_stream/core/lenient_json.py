"""Reads JSON with common mistakes."""

import json
import math
import re
from collections.abc import Callable
from contextlib import suppress
from itertools import accumulate
from typing import Any

from pydantic_core import from_json

BOM = b"\xef\xbb\xbf"
_BAD_ESCAPE = re.compile(
    r"\\(?:(?![\"\\/bfnrtu])|u(?:(?![0-9a-fA-F]{4})|[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u)[dD][c-fC-F][0-9a-fA-F]{2}))"
)
"""An escape that JSON does not know, or half a surrogate pair, in a text without escaped backslashes."""
_BACKSLASH = "\ud800"
"""A temporary replacement of an escaped backslash: no decoded text has it."""
_MAX_DEPTH = 200
"""Levels of nesting that are read, as many as pydantic reads. The stack limits Python's own parser."""
_TEXT = re.compile(r'("(?:[^"\\]++|\\.)*+(?:"|\\?\Z))', re.DOTALL)
_STEPS = [(it in b"[{") - (it in b"]}") for it in range(256)]
"""For each byte, how it changes the depth of nesting."""
_DEEP = re.compile(rb"\x01+")
_MAX_DIGITS = 300
"""A whole number with more digits is read as infinite, like a float of that size."""
_LONG_NUMBER = b"0" * _MAX_DIGITS
_ZEROS = bytes(ord("0") if it in b"0123456789" else ord(" ") for it in range(256))
"""For each byte, what replaces it where digits are counted."""


def loads(body: bytes, parse_int: Callable[[str], Any] = int) -> Any:
    """Read JSON with common mistakes, as `repaired` does, but fast if it has none."""
    try:
        found = parsed(body)
    except ValueError:
        found = None
    return repaired(body, parse_int) if found is None else found


def parsed(body: bytes) -> Any:
    """Return what `repaired` reads in JSON without mistakes, several times as fast; `None` if a number may be too long.

    Raises `ValueError` for JSON with mistakes, or nested too deep.
    """
    return None if _has_long_number(body) else from_json(body.removeprefix(BOM))


def repaired(body: bytes, parse_int: Callable[[str], Any] = int) -> Any:
    """Read JSON with common mistakes. Raises `ValueError` for other mistakes.

    Invalid characters become U+FFFD: a lone surrogate, an unknown escape, or bytes that are not UTF-8. Strings may
    contain raw line breaks and other control characters. Values that are nested too deep are read as null.
    """
    text = _repaired(body)
    is_long = _has_long_number(body)
    if not is_long and text.encode() != body:
        with suppress(ValueError):  # there may be other mistakes
            return from_json(text)
    # a call for each of 32,000 numbers would take three quarters of the time
    return json.loads(_shallow(text), parse_int=parse_int if is_long else None, strict=False)


def _has_long_number(body: bytes) -> bool:
    """Return whether a number may have so many digits that only `read_integer` reads it as it should."""
    return len(body) > _MAX_DIGITS and _LONG_NUMBER in body.translate(_ZEROS)


def _repaired(body: bytes) -> str:
    text = body.removeprefix(BOM).decode(errors="replace")
    # without a callback for each escape: 64 KiB of them would take 18 ms instead of 3
    text = _BAD_ESCAPE.sub("\N{REPLACEMENT CHARACTER}", text.replace(r"\\", _BACKSLASH))
    return text.replace(_BACKSLASH, r"\\")


def _shallow(text: str) -> str:
    if text.count("[") + text.count("{") <= _MAX_DEPTH:
        return text
    # each step goes over the whole text in C: many short lists would take ten times as long in a loop
    parts: list[str] = _TEXT.split(text)
    parts[1::2] = map(" ".__mul__, map(len, parts[1::2]))  # brackets in strings do not nest
    bare = "".join(parts).encode("ascii", "replace")
    depths = list(accumulate(map(_STEPS.__getitem__, bare)))
    if max(depths) <= _MAX_DEPTH or depths[-1] > _MAX_DEPTH:
        return text
    deep = bytes([depth > _MAX_DEPTH for depth in depths])
    parts, at = [], 0
    for found in _DEEP.finditer(deep):
        parts += text[at : found.start()], "null"
        at = found.end() + 1  # after the closing bracket
    return "".join(parts) + text[at:]


def read_integer(digits: str) -> int | float:
    """Return a whole number, infinite if it has very many digits."""
    return int(digits) if len(digits) <= _MAX_DIGITS else math.inf
