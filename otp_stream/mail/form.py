"""Forms: a layout rendered once with blanks in it, and filled in for each mail.

Jinja and quoted-printable take most of the time in which an e-mail is made, and nearly all of what they write is the
same in each. Which values only fill blanks is read from the templates: those that they print as they are, and may ask
for their truth and length, but nothing else. Whatever else a layout depends on (`{{ "minute" if expiryMinutes == 1 }}`)
has a form for each value. What cannot be read so clearly is rendered anew for each mail.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, Template
from markupsafe import escape

from .message import MAX_PLAIN_LINE, Part, is_plain, is_tame, normal, quoted
from .uses import BLANKS, Parsed, Uses, uses_of

_FORMS = 128
_SEEN = 512
_FIRST_BLANK = 0xE000
_MISSING = object()
_NO_FORM = object()
_LONG = 64
"""Characters of a text beyond which it is no word that many mails share, but somebody's own."""

Parts = tuple[str, Part, Part]
"""Subject, plain text and HTML."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A line with blanks: `pieces` are constant at even places, and the name of a value at odd ones."""

    pieces: tuple[str, ...]

    def text(self, values: Mapping[str, str]) -> str:
        return "".join([values[it] if at % 2 else it for at, it in enumerate(self.pieces)])


@dataclass(frozen=True, slots=True)
class _FormPart:
    """One part of a message; `pieces` are finished bytes, and lines that are not."""

    plain: bool
    pieces: tuple[bytes | _Line, ...]
    tame: bool
    """Whether what is finished of it is."""

    def fill(self, values: Mapping[str, str]) -> Part | None:
        finished: list[bytes] = []
        tame = self.tame
        for piece in self.pieces:
            if isinstance(piece, bytes):
                finished.append(piece)
                continue
            line = piece.text(values)
            if not self.plain:
                encoded = quoted(line + "\n")
                tame = tame and is_tame(encoded)
            elif len(line) <= MAX_PLAIN_LINE:
                encoded = line.encode("ascii") + b"\r\n"
                tame = tame and not line.startswith(".")
            else:
                return None
            finished.append(encoded)
        return Part(self.plain, b"".join(finished), tame)


@dataclass(frozen=True, slots=True)
class _Form:
    subject: _Line
    text: _FormPart
    html: _FormPart

    def fill(self, values: Mapping[str, str]) -> Parts | None:
        text = self.text.fill(values)
        html = self.html.fill({name: str(escape(value)) for name, value in values.items()})
        return None if text is None or html is None else (self.subject.text(values), text, html)


class Forms:
    """The forms of one layout; `templates` are its subject, plain text and HTML, `parse` reads a file.

    A form is made when it is wanted for the second time: a value that differs in each mail shall not have one each.
    """

    def __init__(self, jinja: Environment, templates: Iterable[Template], parse: Callable[[str], Parsed]) -> None:
        uses = uses_of(jinja, templates, parse) or Uses()
        # who asks more of the code than its length wants a form for each
        self._clear = bool(uses.printed) and not uses.other & {"otp", "email"}
        self._blanks = tuple(sorted((uses.printed | uses.asked | uses.measured) - uses.other))
        self._measured = uses.measured
        self._keys = tuple(sorted(uses.other))
        self._forms: OrderedDict[object, _Form | None] = OrderedDict()
        self._seen: OrderedDict[object, None] = OrderedDict()

    def fill(
        self, given: Mapping[str, Any], render: Callable[[Mapping[str, Any]], tuple[str, str, str]]
    ) -> Parts | None:
        """Return the parts of a message; `None` where this mail has to be rendered. `render` makes the forms."""
        if not self._clear:
            return None
        values: dict[str, str] = {}
        shape: list[object] = []
        for name in self._blanks:
            value: object = given.get(name, _MISSING)
            if not value or not isinstance(value, str):
                # not for a blank: a text may have "0" or "None" there, or another form altogether
                shape.append(_key(value))
                continue
            if not value.isprintable():
                return None
            values[name] = value
            shape.append(len(value) if name in self._measured else None)
            shape.append(value.isascii())
        for name in self._keys:
            value = given.get(name, _MISSING)
            shape.append(_key(value))
        if _NO_FORM in shape:
            return None
        key = tuple(shape)
        form = self._form(key, given, values, render)
        return form.fill(values) if form else None

    def _form(
        self,
        shape: tuple[object, ...],
        given: Mapping[str, Any],
        values: Mapping[str, str],
        render: Callable[[Mapping[str, Any]], tuple[str, str, str]],
    ) -> _Form | None:
        if shape in self._forms:
            return self._forms[shape]
        if shape not in self._seen:
            _keep(self._seen, shape, None, _SEEN)
            return None
        form = self._make(given, values, render)
        _keep(self._forms, shape, form, _FORMS)
        return form

    def _make(
        self,
        given: Mapping[str, Any],
        values: Mapping[str, str],
        render: Callable[[Mapping[str, Any]], tuple[str, str, str]],
    ) -> _Form | None:
        marks = {
            name: chr(mark) * (len(value) if name in self._measured else 1)
            for mark, (name, value) in enumerate(values.items(), _FIRST_BLANK)
        }
        if any(BLANKS.search(str(given.get(name))) for name in self._keys):
            return None
        subject, text, html = render({**given, **marks})
        ascii_ = {name for name, value in values.items() if value.isascii()}
        return _Form(_line(subject, marks), _part(text, marks, ascii_), _part(html, marks, ascii_))


def _key(value: object) -> object:
    """Return what stands for a value in the shape of a form: equal for what is printed alike, and nothing else."""
    match value:
        case str():
            return value if len(value) <= _LONG else _NO_FORM
        case None | bool() | int() | float():
            return type(value), repr(value)
        case _:  # a list or an object; a value that is missing has a form, too
            return _MISSING if value is _MISSING else _NO_FORM


def _keep(cache: OrderedDict[Any, Any], key: object, value: object, limit: int) -> None:
    cache[key] = value
    if len(cache) > limit:
        cache.popitem(last=False)


def _line(line: str, marks: Mapping[str, str]) -> _Line:
    if not marks:
        return _Line((line,))
    names = {mark: name for name, mark in marks.items()}
    pieces = re.split(f"({'|'.join(marks.values())})", line)
    return _Line(tuple(names[it] if at % 2 else it for at, it in enumerate(pieces)))


def _part(content: str, marks: Mapping[str, str], ascii_: set[str]) -> _FormPart:
    content = normal(content)
    lines = [_line(line, marks) for line in content.removesuffix("\n").split("\n")]
    constant = "".join(it for line in lines for it in (*line.pieces[::2], "\n"))
    plain = is_plain(constant) and all(name in ascii_ for line in lines for name in line.pieces[1::2])
    pieces: list[bytes | _Line] = []
    for line in lines:
        first, *more = line.pieces
        if more:
            pieces.append(line)
            continue
        text = first + "\n"
        finished = text.replace("\n", "\r\n").encode("ascii") if plain else quoted(text)
        if pieces and isinstance(before := pieces[-1], bytes):
            pieces[-1] = before + finished
        else:
            pieces.append(finished)
    return _FormPart(plain, tuple(pieces), all(is_tame(it) for it in pieces if isinstance(it, bytes)))
