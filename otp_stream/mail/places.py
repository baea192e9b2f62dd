"""The source of each character of a rendered template: a file and a line."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream

_MARKER = re.compile("\uf8fd([^\uf8fd\uf8fe]*)\uf8fe([0-9]+)\uf8fe")


class SourceMarkers(Extension):
    """Precedes each piece of constant text with its file and line, which `Rendered` removes again."""

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        """Mark the pieces with text: a blank piece must stay false in a condition."""
        for token in stream:
            if token.type == "data" and token.value.strip():
                yield Token(token.lineno, "data", f"\uf8fd{stream.name}\uf8fe{token.lineno}\uf8fe{token.value}")
            else:
                yield token


class Place(NamedTuple):
    """A line of a file."""

    file: str
    line: int


class Rendered:
    """A rendered template without the markers; `text` is the text of the e-mail."""

    def __init__(self, marked: str) -> None:
        pieces = _MARKER.split(marked)
        self.text = "".join(pieces[::3])
        self._starts: list[int] = []
        self._places: list[Place] = []
        length = len(pieces[0])
        for file, line, text in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
            self._starts.append(length)
            self._places.append(Place(file, int(line)))
            length += len(text)

    def place(self, at: int) -> Place | None:
        """Return the source of the character at this position."""
        found = bisect_right(self._starts, at) - 1
        if found < 0:
            return None
        file, line = self._places[found]
        return Place(file, line + self.text.count("\n", self._starts[found], at))


def without_markers(text: str) -> str:
    """Return constant text without its markers."""
    return _MARKER.sub("", text)
