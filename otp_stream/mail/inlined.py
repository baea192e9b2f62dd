"""Writes the style sheet of a layout into its style attributes: many mail programs read nothing else.

A layout is a Jinja template, which no HTML parser reads. So each tag of Jinja, and each entity, is replaced by a word
that parsers keep, and put back afterwards.
"""

import re
from typing import NamedTuple

from css_inline import CSSInliner

_MARKED = re.compile(r"<style\b[^>]*\bdata-inline\b")
_JINJA = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}|&#?\w+;", re.DOTALL)
_STYLE = re.compile(r"<style\b.*?</style>", re.DOTALL | re.IGNORECASE)
# where a parser reads no comment: in tags, in the text of these elements, and in comments
_NO_COMMENT = re.compile(
    r"<!--.*?-->|<(style|title|textarea)\b.*?</\1>|<(?:[^<>\"']|\"[^\"]*\"|'[^']*')*>", re.DOTALL | re.IGNORECASE
)
_WORD = re.compile("(?:<!--)?\ue000([0-9]+)\ue001(?:-->)?")
_OPENING = re.compile(r"\A\{[{%#][-+]?")
_INLINER = CSSInliner(keep_at_rules=True, load_remote_stylesheets=False)


class _Tag(NamedTuple):
    text: str
    line: int
    fixed: bool
    """Whether it keeps its text: it is in a style sheet, which moves to the top."""


def inlined(source: str) -> str:
    """Return a template with the rules of its `<style data-inline>` in style attributes; any other as it is.

    Rules in `@media` stay in the style sheet. Tags of Jinja stay on their lines, so that errors name the right one.
    """
    if not _MARKED.search(source):
        return source
    tags: list[_Tag] = []
    bare = _JINJA.sub(lambda it: "j" * len(it[0]), source)  # of the same length
    styles = [it.span() for it in _STYLE.finditer(bare)]
    words = [it.span() for it in _NO_COMMENT.finditer(bare)]

    def protect(found: re.Match[str]) -> str:
        at = found.start()
        is_in_style = any(start < at < end for start, end in styles)
        tags.append(_Tag(found[0], source.count("\n", 0, at), is_in_style or found[0].startswith("&")))
        word = f"\ue000{len(tags) - 1}\ue001"
        # a comment stays where it is, even in a table outside of a cell
        is_block = found[0].startswith(("{%", "{#")) and not any(start < at < end for start, end in words)
        return f"<!--{word}-->" if is_block else word

    return _restored(_INLINER.inline(_JINJA.sub(protect, source)), tags)


def _restored(html: str, tags: list[_Tag]) -> str:
    pieces: list[str] = []
    line = at = 0
    for word in _WORD.finditer(html):
        tag = tags[int(word[1])]
        between, text = html[at : word.start()], tag.text
        line += between.count("\n")
        if line < tag.line and not tag.fixed:
            text = _OPENING.sub("\\g<0>" + "\n" * (tag.line - line), text)
        line += text.count("\n")
        pieces += between, text
        at = word.end()
    return "".join(pieces) + html[at:]
