"""What a one-time code looks like."""

import re

from .address import IGNORABLE, IGNORABLES, trimmed

# U+FFFD replaces a lost character, so the rest is another code. A code with invisible characters is refused, too: no
# one could type it.
_REFUSED = "\\s\\x00-\\x20\\x7f-\\x9f\ufffd"
_CODE = re.compile(rf"[^{_REFUSED}]{{4,64}}")
CODE_PATTERN = rf"^\s*[^{_REFUSED}{IGNORABLES}]{{4,64}}\s*$"
"""For JSON Schema, whose regular expressions have no characters beyond U+FFFF in common."""
CODE_RULE = "must have 4 to 64 characters, without spaces or control characters inside"


def check_code(value: str) -> str:
    """Return the code in a text. Raises `ValueError`."""
    value = trimmed(value)
    if not _CODE.fullmatch(value) or (not value.isascii() and IGNORABLE.search(value)):
        raise ValueError(CODE_RULE)
    return value


def read_code(value: object) -> str | None:
    """Return the code that a job gets for its `otp`, or `None`."""
    try:
        return check_code(value) if isinstance(value, str) else None
    except ValueError:
        return None
