"""Searches bytes for marked secrets in any encoding. It shares no code with the product's own search.

A marked secret is long and random, so a part of it in an output can only be from the secret. The search reads the bytes
without anything between letters and digits, so that a secret that is spaced, quoted, wrapped or split over two lines is
still in one piece; once more with its escapes decoded; and once more with the values of each field joined, so that a
secret that is split over fields or log entries is in one piece, too.

    search = LeakSearch({"code": marked(20)})
    assert search.find(worker.log.encode()) == []
"""

import math
import re
import string
from base64 import b32encode, b64encode
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from random import Random
from secrets import SystemRandom
from typing import NamedTuple
from unicodedata import normalize

ALPHANUMERIC = string.ascii_lowercase + string.digits
BITS = 45
"""A part of a secret is a leak if it holds so much of its randomness; by chance, one of 10¹³ places does."""
_SEED, _STRIDE = 6, 4
"""Characters that are looked up, at every so many places. A match of `_SEED + _STRIDE - 1` contains such a place."""
_NEAR = 24
_ZEROS = b"\0" * 64
_BETWEEN = bytes(it for it in range(256) if chr(it) not in ALPHANUMERIC)
_ESCAPE = re.compile(
    rb"%u([0-9a-f]{4})|\\+u([0-9a-f]{4})|\\+x([0-9a-f]{2})|&#x([0-9a-f]{1,6});?|[%=]([0-9a-f]{2})"
    rb"|&#([0-9]{1,7});?|\\+([0-3][0-7]{2})"
)
_BASES = (16, 16, 16, 16, 16, 10, 8)
"""Of the number in each group of `_ESCAPE`."""
_TAG = re.compile(rb"<[^<>\n]{1,200}>")
_FIELD = re.compile(rb"""([a-z_][a-z0-9_.-]*)["']?[:=] *("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|[^\s,;}\]"']+)""")


def marked(length: int, *, of: str = ALPHANUMERIC, chance: Random = SystemRandom()) -> str:  # noqa: B008 - no state
    """Return a random text, to be used as a secret."""
    return "".join(chance.choice(of) for _ in range(length))


class Leak(NamedTuple):
    """A secret, or a part of it, in an output."""

    secret: str
    """Its name."""
    encoding: str
    part: float
    """How much of the secret it is, from 0 to 1."""
    near: str
    """Letters and digits before and after it."""


class _Form(NamedTuple):
    """One secret in one encoding, as it is in the bytes without anything between letters and digits."""

    secret: str
    encoding: str
    text: bytes
    enough: int
    """Minimum number of characters of a leak."""


def _each(form: str) -> Callable[[bytes], bytes]:
    return lambda text: "".join(form.format(byte) for byte in text).encode()


def _shifted(encode: Callable[[bytes], bytes], bits: int, shift: int) -> Callable[[bytes], bytes]:
    """Return an encoding at a position in a longer text, without the digits that also depend on what is around it."""

    def encoded(text: bytes) -> bytes:
        return encode(b"\0" * shift + text)[-(-8 * shift // bits) : 8 * (shift + len(text)) // bits]

    return encoded


_BASE64 = {f"base64 at {shift}": _shifted(b64encode, 6, shift) for shift in range(3)}
_ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "clear": bytes,
    "hex": lambda text: text.hex().encode(),  # also `%37%33`, `=37=33` and `37 33`
    "escaped bytes": _each("x{:02x}"),  # `\x37\x33` and `&#x37;&#x33;`
    "hex numbers": _each("0x{:x}"),
    "unicode escapes": _each("u{:04x}"),
    "decimal numbers": _each("{}"),  # `&#55;&#51;` and `[55, 51]`
    "octal numbers": _each("{:03o}"),
    **_BASE64,
    **{f"base32 at {shift}": _shifted(b32encode, 5, shift) for shift in range(5)},
}


def _twice(first: Callable[[bytes], bytes], then: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda text: then(first(text))


_ENCODINGS |= {f"{first}, {then}": _twice(_BASE64[first], _BASE64[then]) for first in _BASE64 for then in _BASE64} | {
    f"{name}, hex": _twice(_BASE64[name], _ENCODINGS["hex"]) for name in _BASE64
}


class LeakSearch:
    """Searches for secrets, given by their names."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._seeds: defaultdict[bytes, list[tuple[_Form, int]]] = defaultdict(list)
        for name, secret in secrets.items():
            for form in _forms(name, secret):
                for at in range(len(form.text) - _SEED + 1):
                    self._seeds[form.text[at : at + _SEED]].append((form, at))

    def find(self, data: bytes) -> list[Leak]:
        """Return every leak in the bytes, the most complete one of each secret and encoding."""
        best: dict[tuple[str, str], Leak] = {}
        for reading in _readings(data):
            for leak in self._find_in(reading):
                known = best.get(leak[:2])
                if known is None or leak.part > known.part:
                    best[leak[:2]] = leak
        return sorted(best.values())

    def _find_in(self, reading: bytes) -> Iterator[Leak]:
        seeds = self._seeds
        for at in range(0, len(reading) - _SEED + 1, _STRIDE):
            if (seed := reading[at : at + _SEED]) in seeds:
                for form, offset in seeds[seed]:
                    yield from _matched(reading, at, form, offset)


def _forms(name: str, secret: str) -> Iterator[_Form]:
    """Yield each encoding of a secret, of its upper case and its lower case, and of these reversed."""
    compact = _compact(secret.encode())
    bits = math.log2(10 if compact.isdigit() else 36)
    assert bits * len(compact) >= BITS, f"{name} is too short to be unambiguous"
    share = math.ceil(BITS / bits) / len(compact)
    known: set[bytes] = set()
    for written in (secret, secret.lower(), secret.upper()):
        for encoding, encode in _ENCODINGS.items():
            for order, text in (("", written.encode()), (", reversed", written.encode()[::-1])):
                encoded = _compact(encode(text))
                if encoded not in known:
                    known.add(encoded)
                    yield _Form(name, f"{encoding}{order}", encoded, math.ceil(len(encoded) * share))


def _matched(reading: bytes, at: int, form: _Form, offset: int) -> Iterator[Leak]:
    """Yield the longest match around a seed, if it is long enough."""
    before = 0
    while before < min(at, offset) and reading[at - before - 1] == form.text[offset - before - 1]:
        before += 1
    start = at - before
    size = before + _SEED
    longest = min(len(form.text) - offset + before, len(reading) - start)
    while size < longest and reading[start + size] == form.text[offset - before + size]:
        size += 1
    if size >= max(form.enough, _SEED + _STRIDE - 1):
        near = reading[max(start - _NEAR, 0) : start] + b" *** " + reading[start + size : start + size + _NEAR]
        yield Leak(form.secret, form.encoding, round(size / len(form.text), 2), near.decode())


def _compact(data: bytes) -> bytes:
    """Return the letters, in lower case, and the digits."""
    return data.lower().translate(None, _BETWEEN)


def _readings(data: bytes) -> Iterator[bytes]:
    """Yield letters and digits of the bytes; those of a text also normalized, without markup, unescaped, by field."""
    data = data.replace(_ZEROS, b"")
    yield _compact(data)
    if b"\0" in data:  # no text: what is wholly escaped is found by the encodings themselves
        return
    if not data.isascii():
        yield _compact(normalize("NFKC", data.decode(errors="replace")).encode())
    if _TAG.search(data):
        yield _compact(_TAG.sub(b"", data))
    yield from _unescaped(data.lower())
    fields: list[tuple[bytes, bytes]] = _FIELD.findall(data.lower())
    yield _compact(b"".join(value for _, value in fields))
    joined: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for name, value in fields:
        joined[name].append(value)
    yield _compact(b"".join(value for values in joined.values() for value in values))


def _unescaped(folded: bytes) -> Iterator[bytes]:
    for _ in range(3):  # an escape may be escaped
        folded, count = _ESCAPE.subn(_decoded, folded)
        if not count:
            return
        folded = folded.lower()
        yield _compact(folded)


def _decoded(escape: re.Match[bytes]) -> bytes:
    base = _BASES[(escape.lastindex or 1) - 1]
    return chr(min(int(escape[escape.lastindex or 1], base), 0x10FFFF)).encode(errors="replace")
