"""An HTML body as mail programs see it: its elements, and the styles that apply to them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

from css_inline import CSSInliner, InlineError

_VOID = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
)
_RAW = frozenset({"iframe", "noembed", "noframes", "xmp"})
"""Their content is text, as that of script and style, which every version of Python knows."""
_UNSEEN = frozenset({"style", "script", "title", "template"})
_INLINER = CSSInliner(keep_style_tags=True, keep_link_tags=True, load_remote_stylesheets=False)
_DECLARATION = re.compile(r"([\w-]+)\s*:\s*((?:\([^)]*\)|\"[^\"]*\"|'[^']*'|[^;(\"'])*)")
_IMPORTANT = re.compile(r"\s*!\s*important\s*$", re.IGNORECASE)
_STYLE = re.compile(r"(<style\b[^>]*>)(.*?)(?=</style>)", re.DOTALL | re.IGNORECASE)
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_DARK = re.compile(r"@media\b[^{;]*\bprefers-color-scheme\s*:\s*dark[^{;]*\{", re.IGNORECASE)
_SCHEME = re.compile(r"(?<![\w-])color-scheme\s*:([^;}]*)", re.IGNORECASE)
_NOTHING = re.compile(r"0(\.0*)?(px|pt|em|rem|%)?")


@dataclass(slots=True, eq=False)
class Element:
    """One element; `style` are the declarations that apply to it, from style sheets and its own attribute."""

    tag: str
    attributes: dict[str, str]
    style: dict[str, str]
    parent: "Element | None"
    hidden: bool
    texts: list[str] = field(default_factory=list[str])
    """Its own pieces of text."""

    @property
    def shown(self) -> str:
        """The start tag as findings show it."""
        name = self.attributes.get("class")
        return f'<{self.tag} class="{name}">' if name else f"<{self.tag}>"


class Page:
    """The elements of an HTML body in light or dark mode, in order.

    css-inline evaluates the style sheets. It ignores `@media`; in dark mode, the rules of
    `@media (prefers-color-scheme: dark)` apply as if they were outside of it. Those of any other `@media` never do.
    """

    def __init__(self, html: str, *, dark: bool = False) -> None:
        self.html = html
        source = _STYLE.sub(lambda it: it[1] + _with_dark_rules(it[2]), html) if dark else html
        self.css_error = ""
        """Why a style attribute cannot be read, so that no style sheet applies; empty if all can."""
        try:
            source = _INLINER.inline(source)
        except InlineError as error:
            self.css_error = str(error)
        reader = _Reader(source)
        self.elements = reader.elements
        self.texts = reader.texts
        """The pieces of text that people see."""
        self.css = "\n".join(_COMMENT.sub("", text) for it in self.find("style") for text in it.texts)

    def find(self, *tags: str) -> Iterator[Element]:
        """Yield the elements with these names."""
        return (it for it in self.elements if it.tag in tags)

    @property
    def has_dark_rules(self) -> bool:
        """Whether there are rules for dark mode."""
        return bool(_DARK.search(self.css))

    @property
    def declares_dark(self) -> bool:
        """Whether `color-scheme` names dark mode, so that mail programs do not change the colours themselves."""
        metas = (it.attributes for it in self.find("meta"))
        declared = [it.get("content", "") for it in metas if it.get("name", "").lower() == "color-scheme"]
        return any("dark" in it for it in (*declared, *_SCHEME.findall(self.css)))


def _with_dark_rules(css: str) -> str:
    """Return a style sheet whose rules for dark mode always apply."""
    found = _DARK.search(css)
    if found is None:
        return css
    depth = 1
    for end in range(found.end(), len(css)):
        depth += {"{": 1, "}": -1}.get(css[end], 0)
        if depth == 0:
            return css[: found.start()] + css[found.end() : end] + _with_dark_rules(css[end + 1 :])
    return css


def declarations(style: str) -> dict[str, str]:
    """Return the declarations of a `style` attribute; an important one is not overridden by a later one."""
    found: dict[str, str] = {}
    important: set[str] = set()
    for it in _DECLARATION.finditer(_COMMENT.sub("", style)):
        name, value = it[1].lower(), it[2].strip()
        is_important = bool(_IMPORTANT.search(value))
        if name in important and not is_important:
            continue
        if is_important:
            important.add(name)
        found.pop(name, None)  # the order shows whether `background` or `background-color` is the last one
        found[name] = _IMPORTANT.sub("", value)
    return found


class _Reader(HTMLParser):
    """Parses the HTML that css-inline writes, in which every element is closed, or after an error the original."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.texts: list[str] = []
        self._open: list[Element] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Add an element."""
        attributes = {name: value or "" for name, value in attrs}
        style = declarations(attributes.get("style", ""))
        parent = self._open[-1] if self._open else None
        hidden = (parent is not None and parent.hidden) or tag in _UNSEEN or _is_hidden(attributes, style)
        it = Element(tag, attributes, style, parent, hidden)
        self.elements.append(it)
        if tag not in _VOID:
            self._open.append(it)
        if tag in _RAW:
            self.set_cdata_mode(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close an element."""
        if any(it.tag == tag for it in self._open):
            while self._open.pop().tag != tag:
                pass

    def handle_data(self, data: str) -> None:
        """Add a piece of text to its element."""
        if self._open:
            self._open[-1].texts.append(data)
        if not self._open or not self._open[-1].hidden:
            self.texts.append(data)


def _is_hidden(attributes: dict[str, str], style: dict[str, str]) -> bool:
    return (
        "hidden" in attributes
        or style.get("display") == "none"
        or style.get("visibility") in {"hidden", "collapse"}
        or bool(_NOTHING.fullmatch(style.get("font-size", "")))
    )
