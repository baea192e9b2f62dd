"""Make producers' texts harmless: what a stranger may have typed must add no message and no link to our mail."""

import re
from collections.abc import Mapping
from typing import Any, cast

from otp_stream.core.address import INVISIBLE

from .message import one_line

NAME_LIMIT = 100
"""Maximum characters of a name, a purpose or a tenant. A longer one is probably a message."""
TEXT_LIMIT = 500
"""Maximum characters of any other text of metadata."""
_OURS = {"email", "otp", "expiryMinutes", "validUntil", "locale"}
_NAMES = {"userName", "purpose", "tenant"}
_DEEPEST = 5

_PLAIN = re.compile(r"[\w ,'-]*")
_INVISIBLE = re.compile(f"[{INVISIBLE}]+")
_IGNORED = "\u034f\u180b-\u180f\u200c\u200d\ufe00-\ufe0f\U000e0000-\U000e0fff"
"""Parts of names and emoji that are removed when a domain is looked up (UTS 46)."""
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


def harmless(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a template is given, with every text of metadata on one line, bounded, and without links."""
    made = dict(data)
    for name, value in data.items():
        if value is not None and name not in _OURS:
            made[name] = _short(value) if name in _NAMES else _harmless(value)
    return made


def _short(value: object) -> object:
    if isinstance(value, str):
        return text(value, NAME_LIMIT)
    # a list or an object was never a name; its texts were extracted when the job was read
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


class _Named(dict[str, object]):
    """An object whose names are harmless, too. A template still finds a value by the name that its producer gave it."""

    def __missing__(self, name: object) -> object:
        shown = text(name, NAME_LIMIT) if isinstance(name, str) else name
        if shown == name:
            raise KeyError(name)
        return self[cast("str", shown)]


def _harmless(value: object, depth: int = 0) -> object:
    if isinstance(value, str):
        return text(value, TEXT_LIMIT)
    if isinstance(value, list | dict) and depth == _DEEPEST:
        return None
    if isinstance(value, list):
        return [_harmless(it, depth + 1) for it in cast("list[object]", value)]
    if isinstance(value, dict):
        return _Named(
            (text(key, NAME_LIMIT), _harmless(it, depth + 1)) for key, it in cast("dict[str, object]", value).items()
        )
    return value


def text(value: str, limit: int) -> str:
    """Return a text on one line, without what a mail client would make a link of, and cut to `limit` characters."""
    if len(value) <= limit and _PLAIN.fullmatch(value) and (value.isascii() or not _DOTS.search(value)):
        return value.strip()
    value = _INVISIBLE.sub("", one_line(value[: limit * 2]))
    return _LINKS.sub(lambda it: _DOTS.sub(r"\g<0> ", it[0]) if it["ip"] else f"{it[0]} ", value)[:limit].strip()
