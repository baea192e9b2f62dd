"""Checks that the tags of an HTML body are closed and nested, by HTML's rules about void and optional tags."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import NamedTuple


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_VOID = _words("area base br col embed hr img input link meta param source track wbr")
_OPTIONAL_END = _words("html head body p li dt dd option optgroup tr td th thead tbody tfoot colgroup caption rt rp")
_OPTIONAL_START = frozenset({"html", "head", "body", "tbody", "colgroup"})
_ENDS_PARAGRAPH = _words(
    "address article aside blockquote center details div dl fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 "
    "header hr main menu nav ol p pre section table ul"
)
_CELLS = frozenset({"td", "th"})
_SECTIONS = frozenset({"thead", "tbody", "tfoot"})
_LISTS = frozenset({"ul", "ol", "menu", "dl", "table", "td", "th"})
_TABLE = frozenset({"table"})
_ENDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "li": (frozenset({"li"}), _LISTS),
    "dt": (frozenset({"dt", "dd"}), _LISTS),
    "dd": (frozenset({"dt", "dd"}), _LISTS),
    "td": (_CELLS, _TABLE),
    "th": (_CELLS, _TABLE),
    "tr": (_CELLS | {"tr"}, _TABLE),
    **dict.fromkeys(_SECTIONS, (_CELLS | _SECTIONS | {"tr", "caption", "colgroup"}, _TABLE)),
    **dict.fromkeys(
        _ENDS_PARAGRAPH, (frozenset({"p"}), frozenset({"table", "td", "th", "caption", "button", "object"}))
    ),
}
"""The elements that a start tag ends, and the elements beyond which it ends none."""
_FOREIGN = frozenset({"svg", "math"})
_CONDITION = re.compile(r"\s*\[if\b", re.IGNORECASE)
_CONDITION_END = re.compile(r"<!\[endif\]\s*$|^\s*\[if[^\]]*\]>\s*(<!-*)?\s*$", re.IGNORECASE)
"""The end of a part for Outlook only, or a comment that also starts a part for other programs."""


class Flaw(NamedTuple):
    """An error with its fix, and its position in the body in characters."""

    at: int
    text: str


@dataclass(slots=True)
class _Open:
    tag: str
    at: int


class Nesting(HTMLParser):
    """Collects the flaws of one HTML body."""

    def __init__(self) -> None:
        super().__init__()
        self.flaws: list[Flaw] = []
        self._open: list[_Open] = []
        self._reported: list[str] = []
        """Reported elements, whose end tags close nothing now, which is not a second flaw."""
        self._html = ""
        self._starts: list[int] = []

    def check(self, html: str) -> list[Flaw]:
        """Return every flaw, in order."""
        self._html = html
        self._starts = [0, *(it.end() for it in re.finditer("\n", html))]
        self.flaws.extend(_unfinished_comments(html))
        self.feed(html)
        if self.rawdata.startswith("<") and not self.rawdata.startswith("<!"):
            self.flaws.append(Flaw(self._at(), "this tag is not finished; write the missing quote or >"))
        self.close()
        self._pop_to(0, "the end of the body")
        return sorted(set(self.flaws))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open an element, which may end others."""
        for name, _ in attrs:
            if set(name) & set("\"'<"):
                self._report(f"<{tag}> has an attribute without its closing quote; write the missing quote")
                break
        closers, beyond = _ENDS.get(tag, (frozenset[str](), frozenset[str]()))
        ended = None
        for place in range(len(self._open) - 1, -1, -1):
            if self._open[place].tag in beyond:
                break
            if self._open[place].tag in closers:
                ended = place
        if ended is not None and not self._is_foreign():
            self._pop_to(ended, f"<{tag}>", kept=tag in _ENDS_PARAGRAPH)
        if tag not in _VOID:
            self._open.append(_Open(tag, self._at()))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open an element, because HTML ignores the slash of <div/>, except in SVG, MathML and Office's own tags."""
        if ":" not in tag and tag not in _FOREIGN and not self._is_foreign():
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        """Close the nearest element of this name, and the elements that are still open in it."""
        if tag in _VOID:
            self._report(f"</{tag}> is not a tag; <{tag}> has no end, so remove it")
            return
        for place in range(len(self._open) - 1, -1, -1):
            it = self._open[place].tag
            if it == tag:
                self._pop_to(place + 1, f"</{tag}>")
                self._open.pop()
                return
            if it in {"table", *_CELLS} and tag not in _TABLE | _CELLS | _SECTIONS | {"tr", "body", "html"}:
                break  # an end tag in a cell closes nothing outside it
        if tag in self._reported:
            self._reported.remove(tag)
        elif tag == "p":
            self._report("</p> closes nothing: the paragraph has ended before, at a block such as <div> or <table>")
        elif tag not in _OPTIONAL_START:
            self._report(f"</{tag}> closes nothing; remove it, or open <{tag}> before it")

    def handle_comment(self, data: str) -> None:
        """Check a comment that Outlook reads."""
        # newer releases of Python also call this for <![if !mso]>, which is no comment and has its own end
        is_comment = self._html.startswith("<!--", self._at())
        if is_comment and _CONDITION.match(data) and not _CONDITION_END.search(data):
            self._report("this comment for Outlook has no end for it; write <![endif]--> in place of -->")

    def _pop_to(self, size: int, by: str, *, kept: bool = False) -> None:
        """Close the elements beyond `size`. With `kept`, those that must be closed stay open."""
        ended, self._open = self._open[size:], self._open[:size]
        for it in ended:
            if it.tag in _OPTIONAL_END:
                continue
            if kept:
                self._open.append(it)
                continue
            self.flaws.append(Flaw(it.at, f"<{it.tag}> is still open at {by}; write </{it.tag}> before that"))
            self._reported.append(it.tag)

    def _is_foreign(self) -> bool:
        return any(it.tag in _FOREIGN for it in self._open)

    def _report(self, text: str) -> None:
        self.flaws.append(Flaw(self._at(), text))

    def _at(self) -> int:
        line, column = self.getpos()
        return self._starts[line - 1] + column


def _unfinished_comments(html: str) -> Iterator[Flaw]:
    at = 0
    while (begin := html.find("<!--", at)) >= 0:
        end = html.find("-->", begin + 2)
        if end < 0:
            yield Flaw(begin, "this comment is not finished, so what follows it is not shown; write -->")
            return
        at = end + 3
