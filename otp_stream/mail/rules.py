"""Rules for a rendered e-mail with a code. Each remark names the problem and the fix.

An error means that people cannot read the code, or that the e-mail is broken. A warning may be intended.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Literal

from .message import quoted
from .page import Element, Page

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
_OTHER_CODES = tuple("0" * length for length in range(4, 11))


def check_subject(subject: str, code: str) -> Iterator[Remark]:
    """Check a subject as the template rendered it."""
    line = subject.strip()
    if not line:
        yield "error", "is empty"
    if re.search(r"[\r\n]", line):
        yield "warning", "has a line break, which becomes a space; write it in one line"
    if len(line) > _SUBJECT_LIMIT:
        yield "warning", f"has {len(line)} characters; beyond {_SUBJECT_LIMIT}, it is folded and lists cut it off"
    if code in line:
        yield "warning", "shows the code, so that lock screens show it too; remove {{ otp }} unless that is intended"


def check_text(text: str, code: str, *, notice: bool) -> Iterator[Remark]:
    """Check a plain text; `notice` means that neither body shows the code, which may be intended."""
    yield from _check_code(text, code, "error", notice=notice)
    if _LINK.search(text):
        yield "warning", "has a link; people learn to click in e-mails that carry codes"


def check_html(page: Page, code: str, locale: str, logo_url: str, *, notice: bool) -> Iterator[Remark]:
    """Check an HTML body in a language; an empty `locale` means that the template has none."""
    yield from _check_code(visible(page), code, "warning", notice=notice)
    if any(page.find("script")):
        yield "error", "has a <script>; mail programs remove it, and filters refuse the mail"
    if loads := set(_remote_content(page, logo_url)):
        text = f"loads content from other hosts ({', '.join(sorted(loads))})"
        yield "warning", f"{text}; mail programs block it, because it can track people"
    if any(map(_is_link, page.elements)) or _LINK.search(visible(page)):
        yield "warning", "has a link; people learn to click in e-mails that carry codes"
    for it in page.find("img"):
        if "alt" not in it.attributes:
            yield "warning", f'has {it.shown} without alt; describe the image, or write alt="" if it is decoration'
    if (size := len(page.html.encode(errors="replace"))) > _GMAIL_LIMIT:
        yield "warning", f"has {size / 1000:.0f} kB; Gmail cuts it off beyond {_GMAIL_LIMIT // 1000} kB"
    if page.css_error:
        yield "warning", f"has a style attribute that cannot be read ({page.css_error}); correct it"
    yield from _check_language(page, locale)


def visible(page: Page) -> str:
    """Return the visible text of an HTML body."""
    return "\n".join(page.texts)


def check_line_breaks(content: str, code: str) -> Iterator[Remark]:
    """Check that quoted-printable, in which each line has at most 76 characters, breaks no code of usual length.

    This includes texts that would be sent as 7bit, because a single name that is not ASCII changes the encoding.
    """
    for line in content.splitlines():
        if code in line and any(one.encode() not in quoted(line.replace(code, one)) for one in _OTHER_CODES):
            yield "warning", "has the code in a line that quoted-printable breaks; start a new line before {{ otp }}"
            return


def compare_bodies(text: str, page: Page, values: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the values that only the HTML shows, and those that only the plain text shows, by name."""
    pieces = (*page.texts, *(it.attributes.get("alt", "") for it in page.find("img")))
    in_text, in_html = _words(text), _words(" ".join(pieces))
    shown = {name: words for name, value in values.items() if (words := _words(value))}
    return (
        [name for name, words in shown.items() if words in in_html and words not in in_text],
        [name for name, words in shown.items() if words in in_text and words not in in_html],
    )


def _words(text: str) -> str:
    return " ".join(text.split())


def _remote_content(page: Page, logo_url: str) -> Iterator[str]:
    for it in page.elements:
        for name, value in it.attributes.items():
            loading = name in _LOADING or (it.tag == "link" and name == "href")
            if loading and _EXTERNAL.match(value) and value != logo_url:
                yield f"<{it.tag} {name}>"
        if _STYLE_LOAD.search(it.attributes.get("style", "")):
            yield f"style of <{it.tag}>"
    if _STYLE_LOAD.search(page.css):
        yield "<style>"


def _is_link(it: Element) -> bool:
    return it.tag in {"a", "area", "form"} and any(
        _EXTERNAL.match(it.attributes.get(at, "")) for at in ("href", "action")
    )


def _check_language(page: Page, locale: str) -> Iterator[Remark]:
    declared, direction = (_root_attribute(page, it) for it in ("lang", "dir"))
    expected, lang = locale.partition("-")[0], declared.replace("_", "-").partition("-")[0].lower()
    if not lang:
        yield "warning", 'has no language; write <html lang="…">, so that screen readers pronounce the text correctly'
    elif expected and lang != expected:
        yield "warning", f'has lang="{declared}", which is not the language of this e-mail; write lang="{{{{ lang }}}}"'
    if (expected or lang) in _RIGHT_TO_LEFT and direction.lower() != "rtl":
        needed = "{{ dir }}" if expected else "rtl"
        yield "warning", f'is in a language that is written from right to left; write <html dir="{needed}">'


def _root_attribute(page: Page, name: str) -> str:
    found = [it.attributes[name] for it in page.find("html", "body") if name in it.attributes]
    return found[-1] if found else ""


def shows(text: str, code: str) -> bool:
    """Return whether a text contains the code, also with blanks or marks in it."""
    return code in re.sub(r"[\W_]+", "", text)


def _check_code(text: str, code: str, scattered: Level, *, notice: bool) -> Iterator[Remark]:
    whole = len(re.findall(rf"(?<![\w-]){re.escape(code)}(?![\w-])", text))
    if whole > 1:
        yield "warning", f"shows the code {whole} times; show it once"
    if whole:
        return
    if shows(text, code):
        yield (
            scattered,
            "does not show the code as one word, which people can select; write {{ otp }} alone",
        )
    elif notice:
        yield "warning", "does not show the code; write {{ otp }}, unless this e-mail needs none"
    else:
        yield "error", "does not show the code; write {{ otp }}"
