"""Validators of the brand settings. They return the value to use, or raise `ValueError` with the fix."""

import re
from urllib.parse import urlsplit

from otp_stream.core.address import IGNORABLE, INVISIBLE, is_address, wire_address
from otp_stream.time_zones import find_time_zone, similar_time_zone

MAX_NAME = 60
MAX_URL = 1_000
MAX_SUPPORT = 200
MAX_FOOTER = 500
MAX_FOOTER_LINES = 6
_LOGO_EXAMPLE = "https://www.example.com/logo.png"
_SUPPORT_EXAMPLE = "help@example.com, https://example.com/help or +1 555 0100"
# U+FFFD replaces a character that was lost before
_REFUSED = re.compile(rf"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufffd{INVISIBLE}\U000e0000-\U000e007f]")
"""Control characters and invisible ones, which could make one text look like another."""
_COLOR = re.compile(r"#([0-9A-Fa-f]{3}|[0-9A-Fa-f]{6})")
_URL = re.compile(r"[!#$%&()*+,./0-9:;=?@A-Z\[\]_a-z~-]+")
_LABEL = r"[0-9A-Za-z]([0-9A-Za-z-]{0,61}[0-9A-Za-z])?"
_HOST = re.compile(rf"({_LABEL}\.)+{_LABEL}")
_LOCAL_PART = re.compile(r"[^?&=%#'`/{|}]+")
"""A local part that means the same in a `mailto:` link."""
_NOT_IN_A_NUMBER = re.compile(r"""[<>"`{}|\\@]|:(?! )|[^\W\d_]\.[^\W\d_]""")
"""Characters of markup, of a scheme or of a host name, which no telephone number contains."""
_MIN_DIGITS = 3


def brand_name(value: str | None) -> str | None:
    """Accept a name on one line."""
    return value and _one_line(value, MAX_NAME)


def brand_color(value: str | None) -> str | None:
    """Accept `#rgb` or `#rrggbb`."""
    if value is not None and not _COLOR.fullmatch(value):
        raise ValueError("must be a colour such as #2f5fd0: # and six hexadecimal digits, or three")
    return value and value.lower()


def brand_logo_url(value: str | None) -> str | None:
    """Accept an `https://` URL."""
    return value and _https_url(value, MAX_URL, _LOGO_EXAMPLE)


def brand_support(value: str | None) -> str | None:
    """Accept an e-mail address, an `https://` URL or a telephone number."""
    if value is None:
        return None
    text = re.sub(r"^(mailto|tel):", "", _one_line(value, MAX_SUPPORT), flags=re.IGNORECASE).strip()
    if "://" in text:
        return _https_url(text, MAX_SUPPORT, "https://example.com/help")
    if "@" in text:
        return _address(text)
    if _NOT_IN_A_NUMBER.search(text) or sum(map(str.isdigit, text)) < _MIN_DIGITS:
        raise ValueError(f"must be an e-mail address, a URL that starts with https://, or a telephone number: "
                         f"{_SUPPORT_EXAMPLE}")  # fmt: skip
    return text


def brand_footer(value: str | None) -> str | None:
    r"""Accept a few lines; `\n` written as two characters also starts a new line."""
    if value is None:
        return None
    text = re.sub(r"\r\n?|\\r\\n|\\n", "\n", value)
    lines = [_visible(it) for line in text.split("\n") if (it := line.strip())]
    if len(lines) > MAX_FOOTER_LINES:
        raise ValueError(f"must have {MAX_FOOTER_LINES} lines or fewer")
    return _short("\n".join(lines), MAX_FOOTER) or None


def time_zone(value: str) -> str:
    """Accept the name of a time zone."""
    if find_time_zone(value) is None:
        similar = similar_time_zone(value)
        fix = f"did you mean {similar}?" if similar else "see https://www.iana.org/time-zones"
        raise ValueError(f"must be an IANA name such as Europe/Berlin or UTC; {fix}")
    return value


def _one_line(value: str, longest: int) -> str:
    if re.search(r"[\r\n\u2028\u2029]", value):
        raise ValueError("must be one line")
    return _short(_visible(value), longest)


def _visible(value: str) -> str:
    if re.search(r"[\ud800-\udfff]", value):  # Python decodes bytes of a variable that are not UTF-8 to these
        raise ValueError("must be text in UTF-8")
    if _REFUSED.search(value):
        raise ValueError("contains a control character or an invisible one; remove it, or type the text again")
    if not IGNORABLE.sub("", value).strip():
        raise ValueError("contains no visible character")
    return value


def _short(value: str, longest: int) -> str:
    if len(value) > longest:
        raise ValueError(f"must have {longest} characters or fewer")
    return value


def _https_url(value: str, longest: int, example: str) -> str:
    _short(value, longest)
    if not value.lower().startswith("https://"):
        raise ValueError(f"must start with https://, as in {example}")
    if not _URL.fullmatch(value):
        raise ValueError(
            f"contains a space, a quote or another character that is not allowed in a URL such as {example}; encode "
            f"it (%20 for a space), and a host as xn--…"
        )
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError:  # from None, because its text quotes the URL
        raise ValueError(f"has an invalid host or port; write a URL such as {example}") from None
    if "@" in parts.netloc:
        raise ValueError("must not contain a user or a password: every recipient would see it")
    if not host or not _HOST.fullmatch(host) or port == 0:
        raise ValueError(f"must contain a public host name, as in {example}")
    return value


def _address(text: str) -> str:
    local, _, domain = (wire_address(text) if is_address(text) else "").rpartition("@")
    if not _LOCAL_PART.fullmatch(local) or not _HOST.fullmatch(domain):
        raise ValueError("must be one e-mail address without a name, such as help@example.com")
    return text
