"""Writes the style sheet of a layout into its style attributes: many mail programs read nothing else.

A layout is a Jinja template, which an HTML parser cannot read. So each tag of Jinja, and each entity, is replaced by a
placeholder that parsers keep, and restored afterwards.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, zip_longest
from typing import NamedTuple, NoReturn

from css_inline import CSSInliner, InlineError
from jinja2 import TemplateSyntaxError

_MARKED = re.compile(r"<style\b[^>]*\bdata-inline\b", re.IGNORECASE)
_DOCUMENT = re.compile(r"<html\b", re.IGNORECASE)
_EXTENDS = re.compile(r"\{%[-+]?\s*extends\b")
_START = re.compile("\\{[{%#]|&#?\\w+;|[\ue000\ue001]")
_RAW = re.compile(r"\{%[-+]?\s*raw\s*-?%\}.*?\{%[-+]?\s*endraw\s*[-+]?%\}", re.DOTALL)
_INSIDE = re.compile(r""""(?:\\.|[^"\\])*+"|'(?:\\.|[^'\\])*+'|[(){}\[\]%]""", re.DOTALL)
"""What can contain or hide the end of a tag of Jinja."""
_ENDS = {"{": "}}", "%": "%}"}
_STYLE = re.compile(r"<style\b.*?(?:</style\s*>|\Z)", re.DOTALL | re.IGNORECASE)
# where a parser reads no comment: in tags, in the text of these elements, and in comments
_NO_COMMENT = re.compile(
    r"<!--.*?(?:-->|\Z)|<(style|title|textarea|script)\b.*?(?:</\1\s*>|\Z)"
    r"|<(/?[a-z][^\s/>]*+)(?:[^<>\"']++|\"[^\"]*+\"|'[^']*+')*+>",
    re.DOTALL | re.IGNORECASE,
)
_ATTRIBUTE = re.compile(r"([^\s=<>\"'/]++)(?:\s*+=\s*+(\"[^\"]*+\"|'[^']*+'|[^\s>]++))?")
_DECLARATION = re.compile(r"""[;"']\s*\ue000([0-9]+)""")
"""A placeholder where a declaration begins."""
_BEFORE_VALUE = re.compile(r":[^{};]*\Z")
_AFTER_VALUE = re.compile(r"[^{};]*[;}]")
_ADDED = frozenset(["html", "head", "body", "tbody", "colgroup", "/html", "/head", "/body", "/tbody", "/colgroup"])
_MAX_VALUE = 1_000
_MAX_SHOWN = 60
_PLACEHOLDER = re.compile("(?:<!--\ue001)?\ue000([0-9]+)\ue001(?:\ue001-->)?")
"""A placeholder, alone or as a comment. It does not match a comment of the template that contains a placeholder."""
_OPENING = re.compile(r"\A\{[{%#][-+]?")
_KEPT_STYLE = re.compile(r"<head[^>]*>(<style>.*?</style>)", re.DOTALL | re.IGNORECASE)
_MARK = "<!--\ue000style\ue001-->"
"""Where the first style sheet begins; css-inline moves what is kept of it to the top."""
_KEPT = ("{", "<")
"""How the parts begin that must not be lost: tags of Jinja, and style sheets that stay as they are."""
_INLINER = CSSInliner(keep_at_rules=True, load_remote_stylesheets=False)
_SELECTOR_FIX = "<style data-inline> has Jinja only in values and in @media; move the rule into another <style>"
_ATTRIBUTE_FIX = "Jinja in an HTML tag must be inside the quotes of an attribute, because <style data-inline> is used"
_NESTING_FIX = (
    "<style data-inline> needs every tag closed and nested, in each branch of Jinja; close the tag before it, or write "
    "one tag for all branches, with Jinja in its attributes"
)
_STYLE_FIX = (
    'Jinja in a style attribute must be a value, as in style="color: {{ … }}", because <style data-inline> is used'
)
_POSITION_FIX = "<style data-inline> cannot be used with Jinja at this position; move it out of the HTML around it"


class _Tag(NamedTuple):
    text: str
    at: int
    line: int
    within: int
    """Start of the HTML tag, comment or element that contains it and that a parser reads as a whole; else `at`."""
    styled: bool
    """Whether it is in a style sheet that is inlined."""

    @property
    def fixed(self) -> bool:
        """Whether its text must stay as it is, without added line breaks."""
        return self.styled or not self.text.startswith("{")


class _Spans:
    """Parts of a text that do not overlap."""

    def __init__(self, found: Iterable[re.Match[str]]) -> None:
        spans = [it.span() for it in found]
        self._starts = [start for start, _ in spans]
        self._ends = [end for _, end in spans]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def start(self, at: int) -> int:
        """Return the start of the part that contains this position, otherwise the position."""
        place = bisect_right(self._starts, at) - 1
        return self._starts[place] if place >= 0 and at < self._ends[place] else at


def inlined(source: str) -> str:
    """Return a template with the rules of its `<style data-inline>` in style attributes; any other as it is.

    Only a file with `<html>` is changed, and none that extends another one: a parser adds or removes tags in a part of
    a document. Rules in `@media` stay in the style sheet. Tags of Jinja stay on their lines, so that errors name the
    right one. Raises `TemplateSyntaxError` for Jinja in a position where a parser would lose it.
    """
    if not _MARKED.search(source):
        return source
    spans = list(_jinja(source))
    bare = _blanked(source, spans)
    marked = _MARKED.search(bare)
    if not marked or not _DOCUMENT.search(bare) or any(_EXTENDS.match(source, start) for start, _ in spans):
        return source
    others = _Spans(it for it in _STYLE.finditer(bare) if not _MARKED.match(it[0]))
    spans = sorted([*others, *(it for it in spans if others.start(it[0]) == it[0])])
    bare = _blanked(source, spans)
    styles, uncommented = _Spans(_STYLE.finditer(bare)), _Spans(_NO_COMMENT.finditer(bare))
    tags: list[_Tag] = []
    line = at = 0
    for start, end in spans:
        line += source.count("\n", at, start)
        tags.append(_Tag(source[start:end], start, line, uncommented.start(start), styles.start(start) < start))
        at = start

    def placeholder(number: int) -> str:
        tag = tags[number]
        if tag.styled and tag.text.startswith("{#"):
            return ""
        text = f"\ue000{number}\ue001"
        # a comment stays where it is, even in a table outside of a cell
        is_comment = tag.text.startswith(_KEPT) and tag.within == tag.at
        return f"<!--\ue001{text}\ue001-->" if is_comment else text

    protected = _MARKED.sub(lambda it: _MARK + it[0], _replaced(source, spans, placeholder), count=1)
    _check_attributes(protected, tags)
    try:
        html = _INLINER.inline(protected)
    except InlineError as error:
        line = source.count("\n", 0, marked.start()) + 1
        fix = "correct its rules, or a style attribute"
        raise TemplateSyntaxError(f"<style data-inline> cannot be used: {error}; {fix}", line) from None
    _check_nesting(html, bare)
    _check_order(html, bare, tags)
    if kept := _KEPT_STYLE.search(html):  # move it back, so that its lines keep their numbers
        html = (html[: kept.start(1)] + html[kept.end(1) :]).replace(_MARK, kept[1], 1)
    return _restored(html.replace(_MARK, ""), tags)


def _jinja(source: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each tag of Jinja, each entity, and each character that placeholders are made of."""
    at = 0
    while found := _START.search(source, at):
        at = _end(source, found)
        yield found.start(), at


def _end(source: str, opening: re.Match[str]) -> int:
    start, kind = opening.start(), opening[0][1:]
    if kind not in {"{", "%", "#"} or opening[0][0] != "{":
        return opening.end()
    if kind == "#":
        end = source.find("#}", opening.end())
        return end + 2 if end >= 0 else len(source)
    if raw := _RAW.match(source, start):
        return raw.end()
    depth = 0
    for it in _INSIDE.finditer(source, opening.end()):
        if not depth and source.startswith(_ENDS[kind], it.start()):
            return it.start() + 2
        depth += (it[0] in "([{") - (it[0] in ")]}")
    return len(source)


def _blanked(source: str, spans: list[tuple[int, int]]) -> str:
    """Return a text of the same length, with letters in place of the spans."""
    return _replaced(source, spans, lambda number: "j" * (spans[number][1] - spans[number][0]))


def _replaced(source: str, spans: Iterable[tuple[int, int]], placeholder: Callable[[int], str]) -> str:
    pieces: list[str] = []
    at = 0
    for number, (start, end) in enumerate(spans):
        pieces += source[at:start], placeholder(number)
        at = end
    return "".join(pieces) + source[at:]


def _elements(html: str) -> Iterator[re.Match[str]]:
    """Yield each HTML tag, except those that a parser may add and those with text that is not HTML."""
    for it in _NO_COMMENT.finditer(html):
        if it[2] and it[2].lower() not in _ADDED:
            yield it


def _check_attributes(html: str, tags: list[_Tag]) -> None:
    """Check that no tag of Jinja is where a parser expects the name of an attribute or of a property."""
    for element in _elements(html):
        if "\ue000" not in element[0]:
            continue
        for it in _ATTRIBUTE.finditer(element[0], element.end(2) - element.start()):
            if placeholder := _PLACEHOLDER.search(it[1]):
                _refuse(tags[int(placeholder[1])], _ATTRIBUTE_FIX)
            if it[1].lower() == "style" and (placeholder := _DECLARATION.search(it[2] or "")):
                _refuse(tags[int(placeholder[1])], _STYLE_FIX)


def _check_nesting(html: str, bare: str) -> None:
    """Check that the parser has neither added nor moved an HTML tag, because it sees all branches of Jinja at once."""
    for before, after in zip_longest(_elements(bare), _elements(html)):
        if before is None or after is None or before[2].lower() != after[2].lower():
            at = before.start() if before else len(bare.rstrip())
            shown = f"<{before[2]}>" if before else "the end"
            raise TemplateSyntaxError(f"{shown}: {_NESTING_FIX}", bare.count("\n", 0, at) + 1)


def _check_order(html: str, bare: str, tags: list[_Tag]) -> None:
    """Check that each tag of Jinja is there once, in order; a value in a rule may be missing or repeated."""
    placeholders = [int(it[1]) for it in _PLACEHOLDER.finditer(html)]
    # a parser sorts the attributes of an HTML tag
    found = [number for _, same in groupby(placeholders, lambda it: tags[it].within) for number in sorted(same)]
    for styled, fix, opening in ((True, _SELECTOR_FIX, "{%"), (False, _POSITION_FIX, _KEPT)):
        checked = [it.styled == styled and it.text.startswith(opening) for it in tags]
        expected = [number for number, it in enumerate(checked) if it]
        for wanted, there in zip_longest(expected, (it for it in found if checked[it])):
            if wanted != there:
                _refuse(tags[there if wanted is None else wanted], fix)
    for number in {it for it, tag in enumerate(tags) if tag.styled and tag.text.startswith("{{")}.difference(found):
        tag = tags[number]
        end = tag.at + len(tag.text)
        before, after = bare[max(0, tag.at - _MAX_VALUE) : tag.at], bare[end : end + _MAX_VALUE]
        if not _BEFORE_VALUE.search(before) or not _AFTER_VALUE.match(after):
            _refuse(tag, _SELECTOR_FIX)


def _refuse(tag: _Tag, fix: str) -> NoReturn:
    shown = tag.text if len(tag.text) <= _MAX_SHOWN else f"{tag.text[:_MAX_SHOWN]} …"
    raise TemplateSyntaxError(f"{' '.join(shown.split())}: {fix}", tag.line + 1)


def _restored(html: str, tags: list[_Tag]) -> str:
    pieces: list[str] = []
    line = at = 0
    for placeholder in _PLACEHOLDER.finditer(html):
        tag = tags[int(placeholder[1])]
        between, text = html[at : placeholder.start()], tag.text
        line += between.count("\n")
        if line < tag.line and not tag.fixed:
            text = _OPENING.sub("\\g<0>" + "\n" * (tag.line - line), text)
        line += text.count("\n")
        pieces += between, text
        at = placeholder.end()
    return "".join(pieces) + html[at:]
