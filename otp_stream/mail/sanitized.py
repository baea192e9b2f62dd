"""Makes the values of a job safe to print: those that a stranger may have typed must not add a message or a link."""

import re
from collections.abc import Mapping
from typing import Any, cast

from otp_stream.core.address import INVISIBLE

from .message import one_line

NAME_LIMIT = 100
"""Maximum characters of a name, a purpose or a tenant. A longer one is probably a message."""
TEXT_LIMIT = 500
"""Maximum characters of any other text in metadata."""
_NAMES = {"userName", "purpose", "tenant"}
_MAX_DEPTH = 5

_PLAIN = re.compile(r"[\w ,'-]*")
_INVISIBLE = re.compile(f"[{INVISIBLE}]+")
_IGNORED = "\u034f\u180b-\u180f\u200c\u200d\ufe00-\ufe0f\U000e0000-\U000e0fff"
"""Characters in names and emoji that are ignored when a domain is looked up (UTS 46)."""
_DOT = "[.\u2024\u2488-\u249b\u3002\u33c2\u33c7\u33d8\ufe52\uff0e\uff61\U0001f100]"
"""Characters that are, or end with, a dot when a domain is looked up (NFKC, UTS 46)."""
# Where a mail client begins a link: after a scheme, at a dot before letters, at an IP address, at the name of a Windows
# server. A space there ends it in every client.
_LINKS = re.compile(
    rf"""(?<=[^\W\d_]) : (?=\S) | : (?=//)                                           # mailto:x, https://x
      | (?<=[^\s.]) {_DOT} (?=[{_IGNORED}]*[^\W\d_][{_IGNORED}]*[^\W\d_])     # example.com
      | (?P<ip>(?<![\d.]) \d{{1,3}} (?:{_DOT}\d{{1,3}}){{3}} (?![\d.]))
      | \\\\(?=[^\s\\])                                                             # \\server
    """,
    re.VERBOSE,
)
_DOTS = re.compile(_DOT)


def sanitized(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of metadata, with every text on one line, cut, and without links."""
    return {
        name: None if value is None else _short(value) if name in _NAMES else _sanitized(value)
        for name, value in metadata.items()
    }


def _short(value: object) -> object:
    if isinstance(value, str):
        return safe_text(value, NAME_LIMIT)
    # a list or an object is no name, and its texts were extracted when the job was read
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


class _SanitizedObject(dict[str, object]):
    """An object with sanitized keys. A template still finds a value by the key that the producer wrote."""

    def __missing__(self, name: object) -> object:
        shown = safe_text(name, NAME_LIMIT) if isinstance(name, str) else name
        if shown == name:
            raise KeyError(name)
        return self[cast("str", shown)]


def _sanitized(value: object, depth: int = 0) -> object:
    if isinstance(value, str):
        return safe_text(value, TEXT_LIMIT)
    if isinstance(value, list | dict) and depth == _MAX_DEPTH:
        return None
    if isinstance(value, list):
        return [_sanitized(it, depth + 1) for it in cast("list[object]", value)]
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value).items()
        return _SanitizedObject((safe_text(key, NAME_LIMIT), _sanitized(it, depth + 1)) for key, it in fields)
    return value


def safe_text(value: str, limit: int) -> str:
    """Return a text on one line, cut to `limit` characters, in which no mail client finds a link."""
    if len(value) <= limit and _PLAIN.fullmatch(value) and (value.isascii() or not _DOTS.search(value)):
        return value.strip()
    value = _INVISIBLE.sub("", one_line(value[: limit * 2]))
    return _LINKS.sub(lambda it: _DOTS.sub(r"\g<0> ", it[0]) if it["ip"] else f"{it[0]} ", value)[:limit].strip()
