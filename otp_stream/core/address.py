"""E-mail addresses: validation, the form that SMTP sends, and a key that identifies one person."""

import re
from contextlib import suppress
from unicodedata import normalize

import idna

_DOTS = ".\u3002\uff0e\uff61"
"""Full stops that UTS 46 reads as the dot of a domain."""
INVISIBLE = "\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"
"""Direction marks and other invisible characters. ZWJ and ZWNJ are not here: names contain them."""
IGNORABLES = f"{INVISIBLE}\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200c\u200d\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8"
IGNORABLE = re.compile(f"[{IGNORABLES}\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]")
"""Unicode's Default_Ignorable_Code_Point: also joiners, fillers and variation selectors."""
# every character, for `str.strip`: a regular expression for the end of a text would start at each blank inside it
_STRIPPED = "".join(re.findall(rf"[\s{IGNORABLES}]", "".join(map(chr, range(0x10000)))))
# Looser than RFC 5321 on purpose: some mobile carriers hand out addresses such as `foo.@docomo.ne.jp`.
# It only has to keep everything within the angle brackets of `RCPT TO:<…>` and off new header lines. U+FFFD
# replaces a lost character, so the rest is another address. UTS 46 handles the invisible characters of a domain.
_REFUSED = '@\\s<>"(),:;\\\\\\x00-\\x20\\x7f-\\x9f\ufffd'
_ADDRESS = re.compile(rf"[^{_REFUSED}{INVISIBLE}]{{1,64}}@[^{_REFUSED}]{{1,255}}")
_GREEK_QUESTION_MARK = "\u037e"
"""Becomes a semicolon in NFC."""
_LOCAL, _DOMAIN = f"[^{_REFUSED}{INVISIBLE}{_GREEK_QUESTION_MARK}]{{1,64}}", f"[^{_REFUSED}]{{0,254}}"
ADDRESS_PATTERN = rf"^\s*{_LOCAL}@{_DOMAIN}[^{_REFUSED}{_DOTS}][{_DOTS}]*\s*$"
"""For JSON Schema. It cannot state which domains IDNA 2008 allows."""


def trimmed(value: str) -> str:
    """Strip blanks and invisible characters, which copying from a web page may add."""
    return value.strip() if value.isascii() else value.strip(_STRIPPED)


def is_address(value: str) -> bool:
    """Return whether the text is exactly one address."""
    return len(value) <= 254 and _ADDRESS.fullmatch(value) is not None


def wire_address(address: str) -> str:
    """Return the address as SMTP sends it: domain as lower-case A-labels (IDNA 2008), local part in NFC.

    The mapping of case and width is that of browsers (UTS 46, non-transitional): `ß`, `ς`, ZWJ and ZWNJ stay what they
    are, because other registrants own the domains without them. Dots at the end are removed: they change nothing in
    DNS, and SMTP has none. Raises `ValueError` for a domain that IDNA 2008 does not allow, without quoting it.
    """
    if address.isascii() and address.islower() and address[-1] != ".":
        return address
    local, at, domain = address.rpartition("@")
    return f"{normalize('NFC', local)}{at}{wire_domain(domain)}"


def wire_domain(domain: str) -> str:
    """Return a domain or a host name as lower-case A-labels. Raises `ValueError` as `wire_address` does."""
    domain = domain.rstrip(_DOTS)
    if not domain.isascii():
        try:
            # joiners and soft hyphens at the end may hide dots
            domain = idna.encode(domain, uts46=True).decode().rstrip(".")
        except UnicodeError:  # what idna raises
            raise ValueError("must have a domain that IDNA 2008 allows") from None
    return domain.lower()


def unicode_address(address: str) -> str | None:
    """Return a wire address with its domain in U-labels, as people write it, or `None` if that is the same."""
    local, _, domain = address.rpartition("@")
    if "xn--" not in domain:
        return None
    with suppress(UnicodeError):  # what idna raises
        return f"{local}@{idna.decode(domain)}"
    return None


def person_key(address: str) -> str:
    """Return a key that is equal for all addresses that presumably reach one person.

    It is the wire form without invisible characters and differences of case and of compatibility characters
    (full-width, circled and ligature letters). Tags such as `+news` stay: only the receiving server knows what
    they mean.
    """
    if address.isascii():
        return address.lower().rstrip(".")
    with suppress(ValueError):  # an invalid address has a key, too
        address = wire_address(address)
    address = IGNORABLE.sub("", address)
    return normalize("NFKC", normalize("NFKC", address).lower())
