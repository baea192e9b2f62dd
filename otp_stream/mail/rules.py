"""Rules for a rendered e-mail with a code. Each remark names the problem and the fix.

An error keeps people from reading the code, or breaks the e-mail; a warning is for the operator to decide.
"""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Literal

Level = Literal["error", "warning"]
Remark = tuple[Level, str]

_SUBJECT_LIMIT = 78
"""RFC 5322 §2.1.1: maximum length of a line that every program shows unfolded."""
_GMAIL_LIMIT = 102_000
"""Bytes of HTML beyond which Gmail clips the mail."""
_RIGHT_TO_LEFT = {"ar", "ckb", "dv", "fa", "he", "ps", "sd", "ug", "ur", "yi"}
_LOADING = {"src", "srcset", "background", "poster", "data"}
_EXTERNAL = re.compile(r"\s*(https?:)?//", re.IGNORECASE)
_STYLE_LOAD = re.compile(r"(url\(|@import)[\s'\"]*(https?:)?//", re.IGNORECASE)
_LINK = re.compile(r"\bhttps?://", re.IGNORECASE)


def of_subject(subject: str, code: str) -> Iterator[Remark]:
    """Check a subject as the template rendered it."""
    line = subject.strip()
    if not line:
        yield "error", "is empty"
    if re.search(r"[\r\n]", line):
        yield "warning", "has a line break, which becomes a space; write it in one line"
    if len(line) > _SUBJECT_LIMIT:
        yield "warning", f"has {len(line)} characters; beyond {_SUBJECT_LIMIT} it is folded and cut off in lists"
    if code in line:
        yield "warning", "shows the code, so that lock screens show it too; leave {{ otp }} out unless you want that"


def of_text(text: str, code: str) -> Iterator[Remark]:
    """Check a plain text."""
    yield from _code(text, code, "error")
    if _LINK.search(text):
        yield "warning", "has a link; people learn to click in e-mails that carry codes"


def visible(html: str) -> str:
    """Return the visible text of an HTML body."""
    page = _Page()
    page.feed(html)
    page.close()
    return "\n".join(page.texts)


def of_html(html: str, code: str, locale: str) -> Iterator[Remark]:
    """Check an HTML body in a language; an empty `locale` means that the template has none."""
    page = _Page()
    page.feed(html)
    page.close()
    yield from _code("\n".join(page.texts), code, "warning")
    if "script" in page.tags:
        yield "error", "has a <script>; mail programs remove it, and filters refuse the mail"
    if page.loads:
        yield "warning", f"loads from elsewhere ({', '.join(sorted(page.loads))}); it is blocked, and tracks people"
    if page.links or any(_LINK.search(it) for it in page.texts):
        yield "warning", "has a link; people learn to click in e-mails that carry codes"
    if (size := len(html.encode(errors="replace"))) > _GMAIL_LIMIT:
        yield "warning", f"has {size / 1000:.0f} kB; Gmail cuts it off beyond {_GMAIL_LIMIT // 1000} kB"
    yield from _language(page, locale)


def _language(page: "_Page", locale: str) -> Iterator[Remark]:
    expected, lang = locale.partition("-")[0], (page.lang or "").replace("_", "-").partition("-")[0].lower()
    if not lang:
        yield "warning", 'has no language; write <html lang="…">, so that screen readers pronounce it correctly'
    elif expected and lang != expected:
        yield "warning", f'has lang="{page.lang}" in the e-mail for {locale}'
    if (expected or lang) in _RIGHT_TO_LEFT and page.direction != "rtl":
        yield "warning", f'is in {expected or lang}, which runs from right to left; write <html dir="rtl">'


def _code(text: str, code: str, scattered: Level) -> Iterator[Remark]:
    whole = len(re.findall(rf"(?<![\w-]){re.escape(code)}(?![\w-])", text))
    if whole > 1:
        yield "warning", f"shows the code {whole} times; show it once"
    if whole:
        return
    if code in re.sub(r"[\W_]+", "", text):
        yield (
            scattered,
            "does not show the code as one word, which people can select; write {{ otp }} alone",
        )
    else:
        yield "error", "does not show the code; write {{ otp }}"


class _Page(HTMLParser):
    """The facts about an HTML body that the rules need."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.loads: set[str] = set()
        self.links = False
        self.lang: str | None = None
        self.direction: str | None = None
        self._unseen = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record a start tag."""
        self.tags.add(tag)
        self._unseen += tag in {"style", "script", "title"}
        for name, value in attrs:
            content = value or ""
            outside = bool(_EXTERNAL.match(content))
            if (name in _LOADING or (tag == "link" and name == "href")) and outside:
                self.loads.add(f"<{tag} {name}>")
            if name == "style" and _STYLE_LOAD.search(content):
                self.loads.add(f"style of <{tag}>")
            self.links |= tag in {"a", "area", "form"} and name in {"href", "action"} and outside
            if tag in {"html", "body"}:
                self.lang = value if name == "lang" else self.lang
                self.direction = content.lower() if name == "dir" else self.direction

    def handle_endtag(self, tag: str) -> None:
        """Record an end tag."""
        self._unseen -= tag in {"style", "script", "title"}

    def handle_data(self, data: str) -> None:
        """Record a text."""
        if self._unseen <= 0:
            self.texts.append(data)
        elif _STYLE_LOAD.search(data):
            self.loads.add("<style>")
