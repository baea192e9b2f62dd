"""Finds errors in sources: unknown names and blocks, text that is never printed.

It also maps each character of a rendered template to a file and line.
"""

import re
from bisect import bisect_right
from collections.abc import Container, Iterable, Iterator
from difflib import get_close_matches
from typing import NamedTuple

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream

from .finding import Finding
from .template_analysis import GETTEXT
from .templates import Templates

_MARKER = re.compile("\uf8fd([^\uf8fd\uf8fe]*)\uf8fe([0-9]+)\uf8fe")

NAMES = (
    "otp", "expiryMinutes", "validUntil", "validCount", "validUnit", "userName", "purpose", "action", "locale", "lang",
    "dir", "tenant", "email", "brand", "requestedAt", "requestPlace", "requestDevice", "subjectTime",
)  # fmt: skip
"""Names that a template may use for every job."""
_SHORT = {"lang", "dir"}
"""Names that too many others resemble, so they are never suggested."""


class SourceMarkers(Extension):
    """Inserts file and line before each piece of constant text, and before a message. `Rendered` removes them."""

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        """Mark all pieces except blank ones, which must stay false in a condition, and those of a message.

        The text of a message is the key of its translation, so it must not change.
        """
        in_message = False
        for token in stream:
            tag = stream.current if token.type == "block_begin" else None
            if tag is not None and tag.test("name:trans"):
                in_message = True
                yield _marker(stream, token.lineno, "")
            elif tag is not None and tag.test("name:endtrans"):
                in_message = False
            if token.type == "data" and token.value.strip() and not in_message:
                yield _marker(stream, token.lineno, token.value)
            else:
                yield token


def _marker(stream: TokenStream, line: int, text: str) -> Token:
    return Token(line, "data", f"\uf8fd{stream.name}\uf8fe{line}\uf8fe{text}")


class Place(NamedTuple):
    """A line of a file."""

    file: str
    line: int


class Rendered:
    """A rendered template; `text` is its text without markers."""

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
        """Return the file and line of the character at this position, if it is constant text."""
        found = bisect_right(self._starts, at) - 1
        if found < 0:
            return None
        file, line = self._places[found]
        return Place(file, line + self.text.count("\n", self._starts[found], at))


def without_markers(text: str) -> str:
    """Return constant text without its markers."""
    return _MARKER.sub("", text)


def likely(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that is most similar, if one is similar enough."""
    by_lower = {it.lower(): it for it in known}
    found = get_close_matches(name.lower(), by_lower, 1, cutoff)
    return by_lower[found[0]] if found else None


def misspelt(name: str, given: Container[str]) -> str | None:
    """Return the name that was probably meant; `None` for a known name, or if none is similar."""
    if name in given or name in NAMES or name in GETTEXT:
        return None
    known = [it for it in NAMES if it not in _SHORT]
    return next((it for it in known if sorted(it) == sorted(name)), None) or likely(name, known, 0.75)


def check_source(templates: Templates, file: str, given: Container[str]) -> Iterator[Finding]:
    """Check the source of one file; `given` are the keys that producers set in metadata."""
    tree = templates.parse(file).tree
    assigned = {it.name for it in tree.find_all(nodes.Name) if it.ctx != "load"}
    for it in tree.find_all(nodes.Name):
        if it.ctx == "load" and it.name not in assigned and (meant := misspelt(it.name, given)):
            text = f"'{it.name}' is unknown; did you mean {meant}?"
            yield Finding(file, it.lineno, "warning", text, it.name)
    parents = _parents(templates, tree)
    if not parents:
        return
    known = _blocks(templates, parents)
    for child in _outside_blocks(tree):
        if isinstance(child, nodes.Block):
            if child.name in known:
                continue
            if templates.is_own_file(file):
                yield Finding(file, child.lineno, "error", _unknown_block(child.name, parents[0], known))
            else:
                text = f"has no block '{child.name}', so what the built-in templates write into it is never printed"
                changed = next((it for it in parents if templates.is_own_file(it)), parents[0])
                yield Finding(changed, None, "warning", f"{text}; add the block unless that is intended")
        elif not _is_blank(child):
            text = f"this text is never printed, because the file extends {parents[0]}; write it into a block"
            yield Finding(file, _line(child), "error", text)


def _line(output: nodes.Output) -> int:
    first = output.nodes[0]
    lead = without_markers(first.data) if isinstance(first, nodes.TemplateData) else ""
    return first.lineno + lead[: len(lead) - len(lead.lstrip())].count("\n")


def _unknown_block(name: str, parent: str, known: Iterable[str]) -> str:
    meant = likely(name, known)
    hint = f"did you mean {meant}? It has" if meant else "it has"
    return f"{parent} has no block '{name}', so its content is never printed; {hint} {', '.join(known) or 'none'}"


def _parents(templates: Templates, tree: nodes.Template) -> list[str]:
    """Return the files that a file extends, nearest first; none if a name is computed."""
    found: list[str] = []
    while (it := next(tree.find_all(nodes.Extends), None)) is not None:
        if not isinstance(it.template, nodes.Const) or it.template.value in found:
            return []
        found.append(str(it.template.value))
        tree = templates.parse(found[-1]).tree
    return found


def _blocks(templates: Templates, parents: list[str]) -> list[str]:
    """Return the names of the blocks that are printed, from the outermost file on, in order."""
    known: dict[str, None] = {}
    for file in reversed(parents):
        tree = templates.parse(file).tree
        for it in tree.find_all(nodes.Block) if file == parents[-1] else _blocks_within(tree, known):
            known[it.name] = None
    return list(known)


def _blocks_within(tree: nodes.Template, known: Container[str]) -> Iterator[nodes.Block]:
    for it in _outside_blocks(tree):
        if isinstance(it, nodes.Block) and it.name in known:
            yield from it.find_all(nodes.Block)


def _outside_blocks(node: nodes.Node) -> Iterator[nodes.Block | nodes.Output]:
    """Yield the outermost blocks, and the output outside of any block."""
    for child in node.iter_child_nodes():
        if isinstance(child, nodes.Block | nodes.Output):
            yield child
        elif not isinstance(child, nodes.Macro | nodes.AssignBlock | nodes.CallBlock):
            yield from _outside_blocks(child)


def _is_blank(output: nodes.Output) -> bool:
    return all(isinstance(it, nodes.TemplateData) and not without_markers(it.data).strip() for it in output.nodes)
