"""Rules for colours: the contrast of text in light and in dark mode, and boxes that stay light in dark mode.

They see colours as `#rgb`, `#rrggbb`, `rgb()` or one of CSS's basic names. Text on an image or a gradient, or with a
colour written in another way, is not checked.
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
_SEE_THROUGH = {"transparent", "none", "inherit", "initial", "unset", ""}
_SIZE = re.compile(r"([\d.]+)(px|pt)")
_BOLD = {"bold", "bolder", "600", "700", "800", "900"}
_BOLD_TAGS = {"b", "strong", "th", "h1", "h2", "h3", "h4", "h5", "h6"}
_LETTER = re.compile(r"\w")
_FIX_DARK = "write a colour for dark mode into @media (prefers-color-scheme: dark), with !important"


@dataclass(frozen=True, slots=True)
class _Look:
    """How an element shows its text; a colour that is not seen is `None`."""

    text: str | None
    ground: str | None
    size_px: float = 16
    bold: bool = False

    @property
    def needed(self) -> float:
        large = self.size_px >= (_LARGE_BOLD_PX if self.bold else _LARGE_PX)
        return _AA_LARGE if large else AA


_LIGHT_CANVAS, _DARK_CANVAS = _Look("#000000", "#ffffff"), _Look("#ffffff", "#1e1e1e")
_LINKS = {_LIGHT_CANVAS: "#0000ee", _DARK_CANVAS: "#9e9eff"}


def of_colors(page: Page) -> Iterator[Remark]:
    """Check an HTML body in light mode, and in dark mode if it has rules for it or declares to support it."""
    light = _looks(page, _LIGHT_CANVAS)
    for element, look in light.items():
        if (ratio := _too_low(element, look)) is not None:
            yield "warning", f"{_low(element, look, ratio)}; write a colour with more contrast"
    if not page.declares_dark and not page.has_dark_rules:
        return
    other = Page(page.html, dark=True)
    if [it.tag for it in other.elements] != [it.tag for it in page.elements]:  # something of it cannot be read
        return
    dark = _looks(other, _DARK_CANVAS if page.declares_dark else _LIGHT_CANVAS)
    boxes = _with_text(other)
    for (element, look), before in zip(dark.items(), light.values(), strict=True):
        if (ratio := _too_low(element, look)) is not None and look != before:
            yield "warning", f"{_low(element, look, ratio)} in dark mode; {_FIX_DARK}"
        ground = _ground(element) if element in boxes else None
        if ground and ground == before.ground and contrast(ground, "#ffffff") < _LIGHT_BOX:
            yield "warning", f"{element.shown} keeps its light background {ground} in dark mode; {_FIX_DARK}"


def _low(element: Element, look: _Look, ratio: float) -> str:
    return f"text of {element.shown} has contrast {ratio:.1f} ({look.text} on {look.ground}; AA needs {look.needed:g})"


def _looks(page: Page, canvas: _Look) -> dict[Element, _Look]:
    found: dict[Element, _Look] = {}
    for it in page.elements:
        found[it] = _look(it, found[it.parent] if it.parent else canvas, _LINKS[canvas])
    return found


def _look(element: Element, above: _Look, link: str) -> _Look:
    style = element.style
    own = style.get("color", element.attributes.get("color", "") if element.tag == "font" else "").lower()
    text = above.text if own in _SEE_THROUGH else _color(own)
    if element.tag == "a" and "href" in element.attributes and own in _SEE_THROUGH:
        text = link
    bold = style.get("font-weight", "bold" if element.tag in _BOLD_TAGS else "")
    size = _SIZE.match(style.get("font-size", ""))
    size_px = float(size[1]) * (4 / 3 if size[2] == "pt" else 1) if size else above.size_px
    ground = _ground(element)
    return _Look(text, above.ground if ground == "" else ground, size_px, bold in _BOLD if bold else above.bold)


def _ground(element: Element) -> str | None:
    """Return an element's own background: empty for none, `None` for one that is not seen."""
    value = element.attributes.get("bgcolor", "")
    for name, declared in element.style.items():
        if name in {"background", "background-color"}:
            value = declared
    image = element.style.get("background-image", "none")
    if image != "none" or _IMAGE.search(value):
        return None
    if value.lower() in _SEE_THROUGH:
        return ""
    return _color(value.lower()) or next(filter(None, map(_color, value.lower().split())), None)


def _with_text(page: Page) -> set[Element]:
    """Return the elements that show text, also in another one in them."""
    found: set[Element] = set()
    for element in page.elements:
        it = element if _shows_text(element) else None
        while it is not None and it not in found:
            found.add(it)
            it = it.parent
    return found


def _shows_text(element: Element) -> bool:
    return not element.hidden and any(_LETTER.search(it) for it in element.texts)


def _too_low(element: Element, look: _Look) -> float | None:
    """Return the contrast of an element's own text if it is too low."""
    if look.text is None or look.ground is None or not _shows_text(element):
        return None
    ratio = contrast(look.text, look.ground)
    return ratio if ratio < look.needed else None


def _color(value: str) -> str | None:
    if COLOR.fullmatch(value):
        return value
    if rgb := _RGB.fullmatch(value):
        return "#" + "".join(f"{min(int(it), 255):02x}" for it in rgb.groups())
    return _NAMES.get(value)
