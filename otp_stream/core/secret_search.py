"""Searches texts for addresses and codes in any case, width, escape or encoding.

All work is linear in the length of the text, because others control that length.
"""

import re
from binascii import a2b_base64
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import cache, cached_property, lru_cache
from itertools import compress
from typing import NamedTuple
from unicodedata import decimal, normalize

from .address import IGNORABLE, unicode_address
from .escapes import ESCAPED, ESCAPED_BY, decode_escape

SHORTEST = 4
"""Minimum number of characters of a code."""
MIN_DISTINCTIVE = 6
"""Minimum characters of a code that is almost never found within a longer number or word by chance."""
MAX_SEARCHED = 4 * 1024
"""Bytes of the largest body that is searched for its secrets: in 64 KiB of escapes, that could take 0.4 s."""
_MAX_WITHIN_WORDS = 500
"""How often a name may be part of longer words. A text with more was written to slow down the search."""

_NO_BASE64 = re.compile(r"[^A-Za-z0-9+/_-]+")
_NO_HEX = re.compile(r"[^A-Fa-f0-9]+")
_BASE64, _HEX = 6, 4
"""Bits of each character."""
_NO_ALNUM = {at: None for at in range(128) if not chr(at).isalnum()}
_TO_STANDARD = str.maketrans("-_", "+/")
SPACED = re.compile(r"(?:\d[\s.\-]{0,2}){4,64}")

# Names of roles (RFC 2142), and words of many replies. They identify no one, so they are secret only in quotes.
_WORDS = frozenset(
    "user users mail mailbox email e-mail recipient address account sender domain message host server nobody unknown "  # noqa: SIM905 - legible
    "test info admin support sales marketing abuse postmaster hostmaster webmaster noreply no-reply contact office "
    "later again try full busy slow late limit quota rate rejected refused blocked bounce spam relay system service "
    "local error invalid bad gone here such exist found available disabled inactive temporary failed policy denied "
    "hello home me no not is to the this that for from in on or and your you ok code otp".split()
)
_QUOTES_BEFORE, _QUOTES_AFTER = "<\"'([{`=", ">\"')]}`=%"


class Needle(NamedTuple):
    """One form of a secret to search for."""

    text: str
    compact: bool = False
    """Whether only letters and digits are compared, so that spaces and dashes inside it are ignored."""
    near: Callable[[str], bool] | None = None
    """Whether a character beside it makes it part of something longer; `None` if none does."""
    whole: bool = False
    """Whether a match within something longer never counts."""
    quoted: bool = False
    """Whether it counts only in quotes."""


def of_wire_address(address: str, *, shortest: int) -> list[Needle]:
    """Return the needles for the address of a job: as SMTP sends it, and with its domain in Unicode."""
    found = of_address(address, shortest=shortest)
    if written := unicode_address(address):
        found.append(Needle(_fold(written)))
    return found


def of_address(address: str, *, shortest: int) -> list[Needle]:
    """Return the needles for an address: all of it, and its local part if that has `shortest` characters."""
    if not address:
        return []
    folded = _fold(address)
    local = folded.rpartition("@")[0]
    found = [Needle(folded)]
    for name in {local, local.partition("+")[0]}:
        if len(name) >= shortest:
            compact = _compact(name)
            enough = len(compact) >= SHORTEST
            found.append(
                Needle(compact if enough else name, enough, _is_word, whole=True, quoted=name.strip() in _WORDS)
            )
    return found


def of_code(code: str) -> list[Needle]:
    """Return the needle for a code; none if it is empty."""
    folded = _fold(code)
    if not folded:
        return []
    compact = _compact(folded)
    enough = len(compact) >= SHORTEST
    needle = compact if enough else folded
    return [Needle(needle, enough, _is_digit if needle.isdigit() else _is_word)]


def _is_digit(it: str) -> bool:
    return "0" <= it <= "9"


def _is_word(it: str) -> bool:
    return it.isascii() and it.isalnum()


def contains_any(searched: "Searched", needles: Iterable[Needle]) -> bool:
    """Return whether the text contains any of them other than as part of something longer."""
    return any(
        bounded and not needle.quoted
        for needle in needles
        for reading in searched.readings
        for _, _, bounded, _ in reading.find(needle)
    )


def _fold(text: str) -> str:
    """Remove differences of case, of width and of the script of digits, and invisible characters."""
    return text.lower() if text.isascii() else "".join(map(_fold_one, text))


@lru_cache(4096)  # normalizing takes longer than all the rest
def _fold_one(char: str) -> str:
    if char.isascii():
        return char.lower()
    if IGNORABLE.fullmatch(char):
        return ""
    digit = decimal(char, None)
    return str(digit) if digit is not None else normalize("NFKD", char).casefold()


def fold_compact(text: str) -> str:
    """Keep letters and digits only, without differences of case, of width and of the script of digits."""
    return _compact(text.lower()) if text.isascii() else "".join(map(_fold_compact_one, text))


@lru_cache(4096)
def _fold_compact_one(char: str) -> str:
    return _compact(_fold_one(char))


def _compact(text: str) -> str:
    if text.isascii():
        return text.translate(_NO_ALNUM)
    return "".join(filter(str.isalnum, text))


class Reading:
    """A text as it is, unescaped or decoded; `place` maps a range of it to the range in the original text."""

    def __init__(self, text: str, place: Callable[[int, int], tuple[int, int]], *, decoded: bool = False) -> None:
        self.text = text
        self.place = place
        self._decoded = decoded
        """Whether what is beside a match may be anything, because it is decoded from other words."""
        self.folded = _fold(text)
        self.compact = _compact(self.folded)

    def find(self, needle: Needle) -> Iterator[tuple[int, int, bool, bool]]:
        """Yield begin and end of each match, whether it is bounded (not part of something longer), and without gaps."""
        within = self.compact if needle.compact else self.folded
        size = len(needle.text)
        at = within.find(needle.text)
        within_words = 0
        while at >= 0:
            first, last = (self._kept[at], self._kept[at + size - 1]) if needle.compact else (at, at + size - 1)
            begin, end = self._source(first), self._source(last) + 1
            before, after = self.text[begin - 1 : begin], self.text[end : end + 1]  # empty at either end of the text
            bounded = needle.near is None or self._decoded or not any(map(needle.near, before + after))
            in_quotes = (before and before in _QUOTES_BEFORE) or (after and after in _QUOTES_AFTER)
            within_words += needle.whole and not bounded
            too_often = within_words > _MAX_WITHIN_WORDS
            if too_often or ((bounded or not needle.whole) and (in_quotes or not needle.quoted)):
                yield *self.place(begin, end), bounded or too_often, last - first == size - 1
            at = within.find(needle.text, at + 1)

    @cached_property
    def _kept(self) -> list[int]:
        return [*compress(range(len(self.folded)), map(str.isalnum, self.folded))]

    @cached_property
    def _sources(self) -> list[int] | None:
        if self.text.isascii():  # else some characters fold to several, and some to none
            return None
        return [at for at, char in enumerate(self.text) for _ in _fold_one(char)]

    def _source(self, at: int) -> int:
        return at if self._sources is None else self._sources[at]


class Searched:
    """A text that is searched for secrets."""

    def __init__(self, text: str) -> None:
        self._text = text

    @cached_property
    def unescaped(self) -> list[Reading]:
        """The text as it is, and unescaped."""
        readings = [Reading(self._text, lambda first, last: (first, last))]
        for _ in range(3):  # an escape may be escaped
            if ESCAPED_BY.keys().isdisjoint(readings[-1].text) or not ESCAPED.search(readings[-1].text):
                break
            readings.append(_unescaped(readings[-1], ESCAPED))
        return [*readings, *self._unescaped_by_one]

    @property
    def _unescaped_by_one(self) -> Iterator[Reading]:
        """The text unescaped in one way only, because what looks like another escape may be a part of a secret."""
        marks = [mark for mark in ESCAPED_BY if mark in self._text]
        if len(marks) > 1:
            original = Reading(self._text, lambda first, last: (first, last))
            for mark in marks:
                yield _unescaped(original, ESCAPED_BY[mark])

    @cached_property
    def decoded(self) -> list[Reading]:
        """The text decoded from base64 and from hexadecimal digits."""
        return [*_decoded(self._text, _NO_BASE64, _BASE64), *_decoded(self._text, _NO_HEX, _HEX)]

    @property
    def readings(self) -> list[Reading]:
        """All forms of the text to search."""
        return [*self.unescaped, *self.decoded]

    def spans(self, needles: Iterable[Needle]) -> Iterator[tuple[int, int]]:
        """Yield begin and end of each match, in any order."""
        for needle in needles:
            for reading in self.readings:
                for start, end, bounded, close in reading.find(needle):
                    if bounded or close:
                        yield start, end


def _unescaped(reading: Reading, escaped: re.Pattern[str]) -> Reading:
    # most texts contain no secret, so where each character is from is found only for a match
    sources = cache(lambda: _sources(reading.text, escaped))

    def place(first: int, last: int) -> tuple[int, int]:
        return reading.place(_source(first)[0], _source(last - 1)[1])

    def _source(index: int) -> tuple[int, int]:
        starts, ranges = sources()
        part = bisect_right(starts, index) - 1
        start, end, length = ranges[part]
        if length == end - start:  # not an escape
            return start + index - starts[part], start + index - starts[part] + 1
        return start, end

    return Reading(escaped.sub(lambda it: decode_escape(it[0]), reading.text), place)


def _sources(text: str, escaped: re.Pattern[str]) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Return where each part of the unescaped text begins, and its begin and end in `text` with its own length."""
    starts: list[int] = []
    ranges: list[tuple[int, int, int]] = []
    at = size = 0
    for start, end, length in [
        *((*it.span(), len(decode_escape(it[0]))) for it in escaped.finditer(text)),
        (len(text), len(text), 0),
    ]:
        if start > at:
            starts.append(size)
            ranges.append((at, start, start - at))
            size += start - at
        if length:
            starts.append(size)
            ranges.append((start, end, length))
            size += length
        at = end
    return starts, ranges


def _decoded(text: str, others: re.Pattern[str], bits: int) -> Iterator[Reading]:
    """Yield the text decoded as base64 (6 bits a character) or hexadecimal (4), once for each possible first digit."""
    digits = others.sub("", text)
    if len(digits) * bits < 8 * SHORTEST:
        return
    places = cache(lambda: [at for at, char in enumerate(text) if not others.match(char)])
    for offset in range(4 if bits == _BASE64 else 2):
        yield _decoded_from(offset, _bytes_of(digits[offset:], bits), bits, places)


def _decoded_from(offset: int, data: bytes, bits: int, places: Callable[[], list[int]]) -> Reading:
    decoded = data.decode(errors="surrogateescape")

    def place(first: int, last: int) -> tuple[int, int]:
        before = len(decoded[:first].encode(errors="surrogateescape"))
        after = len(decoded[:last].encode(errors="surrogateescape"))
        end = min(offset - (-after * 8 // bits), len(places()))
        return places()[offset + before * 8 // bits], places()[end - 1] + 1

    return Reading(decoded, place, decoded=True)


def _bytes_of(digits: str, bits: int) -> bytes:
    if bits == _BASE64:
        digits = digits.translate(_TO_STANDARD) + "AAA"
        return a2b_base64(digits[: len(digits) // 4 * 4])
    return bytes.fromhex(digits[: len(digits) // 2 * 2])
