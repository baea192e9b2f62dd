"""Templates rendered once with placeholders, whose values are inserted for each e-mail.

Jinja and quoted-printable take most of the time to compose an e-mail, and nearly all of their output is the same each
time. The analysis of a template finds the values that get placeholders: those that it prints unchanged, and of which it
tests at most the truth and the length. If it depends on other values (`{{ "minute" if expiryMinutes == 1 }}`), there is
a variant for each of them. A template that cannot be analysed is rendered again for each e-mail.
"""

import re
from binascii import b2a_qp
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from markupsafe import escape

from .brand import Brand
from .message import MAX_PLAIN_LINE, Part, is_dot_safe, is_plain, normal, quoted
from .template_analysis import PLACEHOLDERS, ValueUses

_VARIANTS_LIMIT = 4_096
_VARIANTS_BYTES = 32 << 20
_SEEN_LIMIT = 8_192
_FIRST_PLACEHOLDER = 0xE000
_MISSING = object()
_NO_VARIANT = object()
_SPECIAL = re.compile("[&<>'\"]")
"""What `escape` replaces. The search takes a fifth of the time that `escape` does."""
_MAX_PLACEHOLDERS = 1_000
"""A template that prints more values is rendered for each e-mail, which limits the length of the result."""
_CONSTANT = {"dir", "lang"}
"""Values that are the same in all mails from one template in one language."""
_MAX_KEY = 64
"""Maximum characters of a text that gets a variant. Few e-mails share a longer one."""

Parts = tuple[str, Part, Part]
"""Subject, plain text and HTML."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A line with placeholders: `pieces` are constant at even indexes, and names of values at odd ones."""

    pieces: tuple[str, ...]

    def text(self, values: Mapping[str, str]) -> str:
        return "".join([values[it] if at % 2 else it for at, it in enumerate(self.pieces)])


class _Lines:
    """Several lines with placeholders, each with `end` after it."""

    __slots__ = ("_pieces", "_used", "longest", "repeats", "starts")

    def __init__(self, lines: Sequence[_Line], end: str) -> None:
        pieces = [""]
        for line in lines:
            pieces[-1] += line.pieces[0]
            pieces += line.pieces[1:]
            pieces[-1] += end
        self._pieces = pieces
        self._used = [(at, name) for at, name in enumerate(pieces) if at % 2]
        self.starts = {it.pieces[1] for it in lines if it.pieces[1:] and not it.pieces[0]}
        """Names of values at the beginning of a line."""
        self.longest = max((sum(map(len, it.pieces[::2])) for it in lines), default=0)
        """Maximum length of a line, without its values."""
        self.repeats = max((it.pieces[1::2].count(name) for it in lines for name in it.pieces[1::2]), default=0)
        """How often one line prints the same value at most."""

    def text(self, values: Mapping[str, str]) -> str:
        pieces = self._pieces.copy()
        for at, name in self._used:
            pieces[at] = values[name]
        return "".join(pieces)


class _PlainPart:
    """One part of a message as 7bit."""

    __slots__ = ("_dot_safe", "_lines")

    def __init__(self, lines: Sequence[_Line]) -> None:
        self._lines = _Lines(lines, "\r\n")
        self._dot_safe = not any(it.pieces[0].startswith(".") for it in lines)

    def fill(self, values: Mapping[str, str]) -> Part | None:
        lines = self._lines
        if lines.longest + lines.repeats * sum(map(len, values.values())) > MAX_PLAIN_LINE:
            return None  # a line may be too long for 7bit
        dot_safe = self._dot_safe and not any(values[it].startswith(".") for it in lines.starts)
        return Part(plain=True, content=lines.text(values).encode("ascii"), dot_safe=dot_safe)


class _QuotedPart:
    """One part of a message as quoted-printable: encoded bytes at even indexes, lines with placeholders at odd ones."""

    __slots__ = ("_dot_safe", "_lines", "_pieces")

    def __init__(self, lines: Sequence[_Line]) -> None:
        self._pieces = [b""]
        for line in lines:
            if line.pieces[1:]:
                self._pieces += b"", b""
            else:
                self._pieces[-1] += quoted(line.pieces[0] + "\n")
        # one call encodes all lines, with a line between them that no value contains
        self._lines = _Lines([it for it in lines if it.pieces[1:]], "\r\n\0\r\n")
        self._dot_safe = all(map(is_dot_safe, self._pieces))

    def fill(self, values: Mapping[str, str]) -> Part | None:
        encoded = b2a_qp(self._lines.text(values).encode(errors="replace"))
        pieces = self._pieces.copy()
        pieces[1::2] = encoded.split(b"=00\r\n")[:-1]
        return Part(plain=False, content=b"".join(pieces), dot_safe=self._dot_safe and is_dot_safe(encoded))


@dataclass(frozen=True, slots=True)
class _Variant:
    subject: _Line
    text: _PlainPart | _QuotedPart
    html: _PlainPart | _QuotedPart
    size: int
    """Bytes of its texts in a message, approximately."""

    def fill(self, values: Mapping[str, str]) -> Parts | None:
        text = self.text.fill(values)
        if _SPECIAL.search("".join(values.values())):
            html = self.html.fill({name: str(escape(value)) for name, value in values.items()})
        else:
            html = self.html.fill(values)
        return None if text is None or html is None else (self.subject.text(values), text, html)


class VariantCache:
    """The variants of all templates in all languages that were used last, usually about 8 kB each."""

    def __init__(self) -> None:
        self.variants: OrderedDict[object, _Variant | None] = OrderedDict()
        self.seen: OrderedDict[object, None] = OrderedDict()
        self._size = 0

    def see(self, shape: object) -> None:
        """Note that a mail of this shape was rendered."""
        self.seen[shape] = None
        if len(self.seen) > _SEEN_LIMIT:
            self.seen.popitem(last=False)

    def add(self, shape: object, variant: _Variant | None) -> None:
        """Keep a variant, and evict the oldest ones beyond a number or size."""
        self.variants[shape] = variant
        self._size += variant.size if variant else 0
        while len(self.variants) > _VARIANTS_LIMIT or self._size > _VARIANTS_BYTES:
            _, oldest = self.variants.popitem(last=False)
            self._size -= oldest.size if oldest else 0


class CompiledVariants:
    """The variants of one template in one language. `uses` is its analysis.

    A variant is built when it is needed for the second time, so that a value that differs in each e-mail builds none.
    """

    def __init__(self, uses: ValueUses | None, cache: VariantCache) -> None:
        uses = uses or ValueUses()
        # a template that tests more than the length of a code would need a variant for each code
        self._usable = bool(uses.printed) and not uses.other & {"otp", "email"}
        self._placeholders = tuple(sorted((uses.printed | uses.tested | uses.measured) - uses.other - _CONSTANT))
        self._measured = uses.measured
        self._keys = tuple(sorted(uses.other - _CONSTANT))
        self._cache = cache

    def fill(
        self, given: Mapping[str, Any], render: Callable[[Mapping[str, Any]], tuple[str, str, str]]
    ) -> Parts | None:
        """Return the parts of a message, or `None` if it must be rendered. `render` is called to build variants."""
        if not self._usable:
            return None
        values: dict[str, str] = {}
        shape: list[object] = [self]
        for name in self._placeholders:
            value: object = given.get(name, _MISSING)
            if not value or not isinstance(value, str):
                # no placeholder: the template may print "0" or "None" for it, or another text
                if (key := _key(value)) is _NO_VARIANT:
                    return None
                shape.append(key)
                continue
            if not value.isprintable():
                return None
            values[name] = value
            shape.append(len(value) if name in self._measured else None)
            shape.append(value.isascii())
        for name in self._keys:
            if (key := _key(given.get(name, _MISSING))) is _NO_VARIANT:
                return None
            shape.append(key)
        variant = self._variant(tuple(shape), given, values, render)
        return variant.fill(values) if variant else None

    def _variant(
        self,
        shape: tuple[object, ...],
        given: Mapping[str, Any],
        values: Mapping[str, str],
        render: Callable[[Mapping[str, Any]], tuple[str, str, str]],
    ) -> _Variant | None:
        # as few look-ups as possible: each computes the hash of the shape again
        found = self._cache.variants.get(shape, _MISSING)
        if found is not _MISSING:
            if len(self._cache.variants) > _VARIANTS_LIMIT // 2:
                self._cache.variants.move_to_end(shape)
            return cast("_Variant | None", found)
        if shape not in self._cache.seen:
            self._cache.see(shape)
            return None
        variant = self._make(given, values, render)
        self._cache.add(shape, variant)
        return variant

    def _make(
        self,
        given: Mapping[str, Any],
        values: Mapping[str, str],
        render: Callable[[Mapping[str, Any]], tuple[str, str, str]],
    ) -> _Variant | None:
        placeholders = {
            name: chr(character) * (len(value) if name in self._measured else 1)
            for character, (name, value) in enumerate(values.items(), _FIRST_PLACEHOLDER)
        }
        if any(PLACEHOLDERS.search(_text(given.get(name))) for name in self._keys):
            return None
        subject, text, html = render({**given, **placeholders})
        printed = subject + text + html
        if "\0" in printed:  # it would separate lines: see `_QuotedPart`
            return None
        if sum(map(printed.count, placeholders.values())) > _MAX_PLACEHOLDERS:
            return None
        ascii_ = {name for name, value in values.items() if value.isascii()}
        text_part, html_part = (_part(content, placeholders, ascii_) for content in (text, html))
        size = len(printed.encode(errors="replace")) * (1 if printed.isascii() else 3)
        return _Variant(_line(subject, placeholders), text_part, html_part, size)


def _key(value: object) -> object:
    """Return a key that is equal only for values that a template prints in the same way."""
    match value:
        case str():
            return value if len(value) <= _MAX_KEY else _NO_VARIANT
        case None | bool() | int() | float():
            return type(value), repr(value)
        case Brand():
            return value
        case _:  # a list or an object; a missing value has a variant, too
            return _MISSING if value is _MISSING else _NO_VARIANT


def _text(value: object) -> str:
    """Return all characters of a value that a template may print."""
    return (
        "".join((value.name, value.logo_url, value.support, *value.footer)) if isinstance(value, Brand) else str(value)
    )


def _line(line: str, placeholders: Mapping[str, str]) -> _Line:
    if not placeholders:
        return _Line((line,))
    names = {placeholder: name for name, placeholder in placeholders.items()}
    pieces = re.split(f"({'|'.join(placeholders.values())})", line)
    return _Line(tuple(names[it] if at % 2 else it for at, it in enumerate(pieces)))


def _part(content: str, placeholders: Mapping[str, str], ascii_: set[str]) -> _PlainPart | _QuotedPart:
    lines = [_line(line, placeholders) for line in normal(content).removesuffix("\n").split("\n")]
    constant = "".join(it for line in lines for it in (*line.pieces[::2], "\n"))
    plain = is_plain(constant) and all(name in ascii_ for line in lines for name in line.pieces[1::2])
    return _PlainPart(lines) if plain else _QuotedPart(lines)
