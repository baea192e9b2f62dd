"""Rules for colours: the contrast of text in light and in dark mode, and boxes that stay light in dark mode.

They recognise colours written as `#rgb`, `#rrggbb`, `rgb()` or one of CSS's basic names. Text on an image or a
gradient, or with a colour written in another way, is not checked.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .contrast import AA, COLOR, contrast
from .page import Element, Page
from .rules import Remark

_AA_LARGE = 3.0
"""Minimum contrast of large text by level AA."""
_LARGE_PX = 24.0
_LARGE_BOLD_PX = 18.66
_LIGHT_BOX = 1.6
"""Contrast with white below which a background is light."""
_NAMES = {
    "black": "#000000", "silver": "#c0c0c0", "gray": "#808080", "grey": "#808080", "white": "#ffffff",
    "maroon": "#800000", "red": "#ff0000", "purple": "#800080", "fuchsia": "#ff00ff", "green": "#008000",
    "lime": "#00ff00", "olive": "#808000", "yellow": "#ffff00", "navy": "#000080", "blue": "#0000ff",
    "teal": "#008080", "aqua": "#00ffff", "orange": "#ffa500",
}  # fmt: skip
_RGB = re.compile(r"rgba?\(\s*(\d+)[\s,]+(\d+)[\s,]+(\d+)\s*(?:[,/]\s*(?:1|1\.0+|100%)\s*)?\)")
_IMAGE = re.compile(r"url\(|gradient\(")
_TRANSPARENT = {"transparent", "none", "inherit", "initial", "unset", ""}
_SIZE = re.compile(r"([\d.]+)(px|pt)")
_BOLD = {"bold", "bolder", "600", "700", "800", "900"}
_BOLD_TAGS = {"b", "strong", "th", "h1", "h2", "h3", "h4", "h5", "h6"}
_LETTER = re.compile(r"\w")
_FIX_DARK = "write a colour for dark mode into @media (prefers-color-scheme: dark), with !important"


@dataclass(frozen=True, slots=True)
class _TextStyle:
    """How an element shows its text; a colour that is not recognised is `None`."""

    text: str | None
    background: str | None
    size_px: float = 16
    bold: bool = False

    @property
    def needed(self) -> float:
        large = self.size_px >= (_LARGE_BOLD_PX if self.bold else _LARGE_PX)
        return _AA_LARGE if large else AA


_LIGHT_CANVAS, _DARK_CANVAS = _TextStyle("#000000", "#ffffff"), _TextStyle("#ffffff", "#1e1e1e")
_LINKS = {_LIGHT_CANVAS: "#0000ee", _DARK_CANVAS: "#9e9eff"}


def check_colors(page: Page) -> Iterator[Remark]:
    """Check an HTML body in light mode, and in dark mode if it has rules for it or declares to support it."""
    light = _text_styles(page, _LIGHT_CANVAS)
    for element, style in light.items():
        if (ratio := _too_low(element, style)) is not None:
            yield "warning", f"{_contrast_text(element, style, ratio)}; write a colour with more contrast"
    if not page.declares_dark and not page.has_dark_rules:
        return
    other = Page(page.html, dark=True)
    if [it.tag for it in other.elements] != [it.tag for it in page.elements]:  # its HTML cannot be read
        return
    dark = _text_styles(other, _DARK_CANVAS if page.declares_dark else _LIGHT_CANVAS)
    boxes = _elements_with_text(other)
    for (element, style), before in zip(dark.items(), light.values(), strict=True):
        if (ratio := _too_low(element, style)) is not None and style != before:
            yield "warning", f"{_contrast_text(element, style, ratio)} in dark mode; {_FIX_DARK}"
        background = _background(element) if element in boxes else None
        if background and background == before.background and contrast(background, "#ffffff") < _LIGHT_BOX:
            yield "warning", f"{element.shown} keeps its light background {background} in dark mode; {_FIX_DARK}"


def _contrast_text(element: Element, style: _TextStyle, ratio: float) -> str:
    colors = f"{style.text} on {style.background}; AA needs {style.needed:g}"
    return f"text of {element.shown} has contrast {ratio:.1f} ({colors})"


def _text_styles(page: Page, canvas: _TextStyle) -> dict[Element, _TextStyle]:
    found: dict[Element, _TextStyle] = {}
    for it in page.elements:
        found[it] = _text_style(it, found[it.parent] if it.parent else canvas, _LINKS[canvas])
    return found


def _text_style(element: Element, inherited: _TextStyle, link: str) -> _TextStyle:
    style = element.style
    own = style.get("color", element.attributes.get("color", "") if element.tag == "font" else "").lower()
    text = inherited.text if own in _TRANSPARENT else _color(own)
    if element.tag == "a" and "href" in element.attributes and own in _TRANSPARENT:
        text = link
    bold = style.get("font-weight", "bold" if element.tag in _BOLD_TAGS else "")
    size = _SIZE.match(style.get("font-size", ""))
    size_px = float(size[1]) * (4 / 3 if size[2] == "pt" else 1) if size else inherited.size_px
    background = _background(element)
    shown = inherited.background if background == "" else background
    return _TextStyle(text, shown, size_px, bold in _BOLD if bold else inherited.bold)


def _background(element: Element) -> str | None:
    """Return an element's own background: empty for none, `None` for one that is not recognised."""
    value = element.attributes.get("bgcolor", "")
    for name, declared in element.style.items():
        if name in {"background", "background-color"}:
            value = declared
    image = element.style.get("background-image", "none")
    if image != "none" or _IMAGE.search(value):
        return None
    if value.lower() in _TRANSPARENT:
        return ""
    return _color(value.lower()) or next(filter(None, map(_color, value.lower().split())), None)


def _elements_with_text(page: Page) -> set[Element]:
    """Return the elements that show text, themselves or in an element that they contain."""
    found: set[Element] = set()
    for element in page.elements:
        it = element if _shows_text(element) else None
        while it is not None and it not in found:
            found.add(it)
            it = it.parent
    return found


def _shows_text(element: Element) -> bool:
    return not element.hidden and any(_LETTER.search(it) for it in element.texts)


def _too_low(element: Element, style: _TextStyle) -> float | None:
    """Return the contrast of an element's own text if it is too low."""
    if style.text is None or style.background is None or not _shows_text(element):
        return None
    ratio = contrast(style.text, style.background)
    return ratio if ratio < style.needed else None


def _color(value: str) -> str | None:
    if COLOR.fullmatch(value):
        return value
    if rgb := _RGB.fullmatch(value):
        return "#" + "".join(f"{min(int(it), 255):02x}" for it in rgb.groups())
    return _NAMES.get(value)
