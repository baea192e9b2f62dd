"""Rules about HTML and CSS that common mail programs do not support, and without which the e-mail looks wrong.

The table is from the caniemail.com data of 2025-09-09 (npm package `caniemail` 2.0.2), for Apple Mail (macOS, iOS),
Gmail (web, iOS, Android), Outlook (Windows) and Yahoo (web, iOS, Android). A feature without which an e-mail only looks
plainer, such as round corners, is not in it. `python tools/client_support.py FILE` compares it with newer data.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from .page import Page
from .rules import Remark


class Feature(NamedTuple):
    """A feature of HTML or CSS, and the mail programs that support it on no platform."""

    slug: str
    """Of its page, https://www.caniemail.com/features/<slug>/."""
    clients: str
    fix: str
    pattern: str = ""
    """What it looks like in CSS; empty for an element or attribute."""


_BOTH = "Gmail, Outlook"
_THREE = "Gmail, Outlook, Yahoo"
_TABLE = "use a table"
_PLAIN = "write the computed value"
_TEXT = "use text instead"

STYLES = {
    "position": Feature("css-position", _BOTH, _TABLE, r"(?<![\w-])position\s*:\s*(?!static)\w"),
    "float": Feature("css-float", "Outlook", _TABLE, r"(?<![\w-])float\s*:\s*(?!none)\w"),
    "display: flex": Feature("css-display-flex", "Outlook", _TABLE, r"(?<![\w-])display\s*:\s*(inline-)?flex"),
    "display: grid": Feature("css-display-grid", _THREE, _TABLE, r"(?<![\w-])display\s*:\s*(inline-)?grid"),
    "background-image": Feature(
        "css-background-image",
        "Outlook",
        "set a background colour, too",
        r"(?<![\w-])background(-image)?\s*:[^;}]*url\(",
    ),
    "linear-gradient": Feature(
        "css-linear-gradient", "Outlook, Yahoo", "set a background colour, too", r"linear-gradient\("
    ),
    "rgba()": Feature("css-rgba", "Outlook", "write the colour as #rrggbb", r"\brgba\("),
    "var()": Feature("css-variables", _THREE, _PLAIN, r"\bvar\("),
    "calc()": Feature("css-unit-calc", "Outlook, Yahoo", _PLAIN, r"\bcalc\("),
    "light-dark()": Feature("css-function-light-dark", _THREE, "use @media rules", r"\blight-dark\("),
    "rem": Feature("css-unit-rem", "Outlook, Yahoo", "write px", r"[\d.]rem\b"),
    "transform": Feature("css-transform", _THREE, "leave it out", r"(?<![\w-])transform\s*:"),
    "opacity": Feature("css-opacity", "Outlook", "write the mixed colour", r"(?<![\w-])opacity\s*:"),
    "visibility": Feature("css-visibility", _BOTH, "write display: none, too", r"(?<![\w-])visibility\s*:\s*hidden"),
    "@font-face": Feature("css-at-font-face", "Gmail, Yahoo", "use fonts that devices already have", r"@font-face"),
    "@import": Feature("css-at-import", "Gmail, Yahoo", "write the rules into the style sheet", r"@import"),
    "animation": Feature("css-animation", _THREE, "leave it out", r"(?<![\w-])animation(-name)?\s*:"),
    "::before": Feature("css-pseudo-element-before", _THREE, "write the text into the HTML", r":before\b"),
    "::after": Feature("css-pseudo-element-after", _THREE, "write the text into the HTML", r":after\b"),
}
ELEMENTS = {
    "form": Feature("html-form", "Outlook", _TEXT),
    "input": Feature("html-input-text", "Outlook", _TEXT),
    "select": Feature("html-select", "Outlook", _TEXT),
    "textarea": Feature("html-textarea", "Outlook", _TEXT),
    "audio": Feature("html-audio", _THREE, _TEXT),
    "video": Feature("html-video", _THREE, _TEXT),
    "object": Feature("html-object", _THREE, _TEXT),
    "svg": Feature("html-svg", _THREE, "use <img> with a PNG file"),
    "picture": Feature("html-picture", _THREE, "use <img>"),
    "dialog": Feature("html-dialog", "Outlook, Yahoo", _TEXT),
    "link": Feature("html-link", "Gmail, Yahoo", "write the rules into <style>"),
}
ATTRIBUTES = {"hidden": Feature("html-hidden", _THREE, 'write style="display: none"')}
_PATTERNS = {name: re.compile(it.pattern, re.IGNORECASE) for name, it in STYLES.items()}


def check_client_support(page: Page) -> Iterator[Remark]:
    """Check an HTML body."""
    css = "\n".join((page.css, *(it.attributes.get("style", "") for it in page.elements)))
    tags = {it.tag for it in page.elements if it.tag != "link" or it.attributes.get("rel", "").lower() == "stylesheet"}
    attributes = {name for it in page.elements for name in it.attributes}
    for name, it in STYLES.items():
        if _PATTERNS[name].search(css):
            yield _remark(name, it)
    yield from (_remark(f"<{name}>", it) for name, it in ELEMENTS.items() if name in tags)
    yield from (_remark(f"the attribute {name}", it) for name, it in ATTRIBUTES.items() if name in attributes)


def _remark(name: str, it: Feature) -> Remark:
    return "warning", f"uses {name}, which {it.clients} do not support; {it.fix}"
