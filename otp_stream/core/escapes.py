"""The escapes of URLs, quoted-printable, JSON and HTML."""

import re
from binascii import unhexlify
from functools import lru_cache
from html import unescape

_ESCAPES = {
    "%": r"(?:%[0-9A-Fa-f]{2})+|(?:%u[0-9A-Fa-f]{4})+",
    "=": r"(?:=[0-9A-Fa-f]{2})+|=\s",
    "\\": r"(?:\\x[0-9A-Fa-f]{2})+|(?:\\u[0-9A-Fa-f]{4})+",
    "&": r"&(?:#[0-9]{1,8};?|#[xX][0-9A-Fa-f]{1,8};?|[0-9A-Za-z]{1,10};)",
}
"""By the mark that begins them."""
ESCAPED_BY = {mark: re.compile(pattern) for mark, pattern in _ESCAPES.items()}
ESCAPED = re.compile("|".join(_ESCAPES.values()))
_NO_HEX = bytes(it for it in range(256) if chr(it) not in "0123456789abcdefABCDEF")


_SHORT = 8
"""Characters of an escape that is kept with its meaning: a row of them may be a secret."""


def decode_escape(escape: str) -> str:
    """Return what an escape, or a row of them, stands for."""
    return _decode_short(escape) if len(escape) <= _SHORT else _decode(escape)


def _decode(escape: str) -> str:
    if escape[0] == "&":
        return unescape(escape)
    data = unhexlify(escape.encode().translate(None, _NO_HEX))
    return data.decode("utf-16-be", errors="replace") if escape[1] == "u" else data.decode(errors="replace")


_decode_short = lru_cache(1024)(_decode)
