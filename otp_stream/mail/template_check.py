"""Checks one template in one language, by rendering it with and without the optional values of a job."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import Template

from otp_stream.core.mail import ComposeError

from .brand import Brand
from .client_rules import check_client_support
from .color_rules import check_colors
from .finding import Finding, error_finding
from .mail_template import MailTemplate
from .nesting import Nesting
from .page import Page
from .rules import Remark, check_html, check_line_breaks, check_subject, check_text, compare_bodies, shows, visible
from .sources import Rendered, misspelt
from .templates import BUILT_IN

_OPTIONAL: Mapping[str, Mapping[str, Any]] = {
    "userName": {"userName": None},
    "purpose": {"purpose": None, "action": ""},
    "locale": {"locale": None},
    "tenant": {"tenant": None},
    "request": {"requestPlace": "", "requestDevice": ""},
}
"""The keys of metadata that a job may lack, each with what it changes."""
_NONE_OF_THEM = {name: value for it in _OPTIONAL.values() for name, value in it.items()}
_LONGEST = {"otp": "A1" * 32, "expiryMinutes": 1, "validCount": 1, "validUnit": "minute"}
"""The longest code, and a lifetime in the singular."""
_OTHER_EXPIRY = {"expiryMinutes": 47, "validUntil": "23:58 UTC", "validCount": 47, "validUnit": "minute"}
_NO_EXPIRY = "does not show when the code expires; write {{ validUntil }} or {{ expiryMinutes }}"
_IN_BOTH = ("validUntil", "userName", "requestPlace", "requestDevice")
_UNKNOWN = re.compile(r"'(\w+)' is undefined")
_UNKNOWN_LIMIT = 50
_NONE = re.compile(r"\bNone\b")

_Parts = tuple[Rendered, Rendered, Rendered]


@dataclass(slots=True)
class TemplateCheck:
    """Checks one template in one language; `data` are the values of a sample job."""

    template: MailTemplate
    sent: Callable[[], MailTemplate | None]
    """Return the template with its style sheet inlined; `None` if that fails, which is reported elsewhere."""
    locale: str
    data: dict[str, Any]
    first_language: bool = True
    """Whether its files have not been checked in another language. Only then, optional values are left out, too."""

    def findings(self) -> set[Finding]:
        """Return everything that is found."""
        found: set[Finding] = set()
        full = self._render({}, found)
        if full is None:
            return found
        if self.first_language:
            self._check_optional(full, found)
        found.update(_nesting(full[2]))
        found.update(self._check_parts(full, self._render(_OTHER_EXPIRY, found) if self.first_language else None))
        return found

    def _check_optional(self, full: _Parts, found: set[Finding]) -> None:
        self._render(_NONE_OF_THEM, found, f", for a job without {', '.join(_OPTIONAL)}")
        self._render(_LONGEST, found, ", for a code of 64 characters that is valid for one minute")
        for key, changes in _OPTIONAL.items():
            if bare := self._render(changes, found):
                found.update(self._printed_none(full, bare, key))
                if bare[2].text != full[2].text:
                    found.update(_nesting(bare[2]))

    def _check_parts(self, full: _Parts, other: _Parts | None) -> Iterator[Finding]:
        """Check the three parts; `other` have another time of expiry."""
        subject, text, html = (it.text for it in full)
        code = str(self.data["otp"])
        brand: Brand = self.data["brand"]
        page = Page(self._as_sent(html, {}))
        # the built-in e-mails all have a code, so an operator's version of one has it, too
        built_in = (BUILT_IN / str(self.template.html.name)).is_file()
        notice = not built_in and not shows(text, code) and not shows(visible(page), code)
        yield from _about(self.template.subject, check_subject(subject, code))
        yield from _about(self.template.text, check_text(text, code, notice=notice), check_line_breaks(text, code))
        of_page = (
            check_html(page, code, self.locale, brand.logo_url, notice=notice),
            check_line_breaks(page.html, code),
            check_colors(page),
            check_client_support(page),
        )
        yield from _about(self.template.html, *of_page)
        if not self.first_language:
            return
        without_expiry = [
            template
            for template, is_same in (
                (self.template.text, other is not None and other[1].text == text),
                (
                    self.template.html,
                    other is not None and visible(Page(self._as_sent(other[2].text, _OTHER_EXPIRY))) == visible(page),
                ),
            )
            if is_same
        ]
        for it in without_expiry if not notice else ():
            yield Finding(str(it.name), None, "warning", _NO_EXPIRY)
        shown = {name: str(self.data[name] or "") for name in _IN_BOTH[bool(without_expiry) :]}
        shown |= {"brand.name": brand.name, "brand.contact": brand.contact}
        only_html, only_text = compare_bodies(text, page, shown)
        yield from _unlike(self.template.text, only_html, "HTML")
        yield from _unlike(self.template.html, only_text, "plain text")

    def _as_sent(self, html: str, changes: Mapping[str, Any]) -> str:
        """Return the HTML with its style sheet inlined."""
        template = self.sent() if "data-inline" in html else None
        return template.render({**self.data, **changes})[2] if template else html

    def _render(self, changes: Mapping[str, Any], found: set[Finding], when: str = "") -> _Parts | None:
        """Return the three parts. An unknown name is reported and gets a value, so that the next one can be found."""
        for _ in range(_UNKNOWN_LIMIT):
            try:
                subject, text, html = self.template.render({**self.data, **changes})
            except ComposeError as error:
                unknown = _UNKNOWN.search(str(error))
                if unknown is None:
                    found.add(error_finding(ComposeError(f"{error}{when}")))
                    return None
                found.add(replace(error_finding(error, _unknown_name(unknown[1])), unknown=unknown[1]))
                self.data[unknown[1]] = "x"
            else:
                return Rendered(subject), Rendered(text), Rendered(html)
        return None

    def _printed_none(self, full: _Parts, bare: _Parts, key: str) -> Iterable[Finding]:
        for template, with_it, without in zip(
            (self.template.subject, self.template.text, self.template.html), full, bare, strict=True
        ):
            if len(_NONE.findall(without.text)) > len(_NONE.findall(with_it.text)):
                text = f"prints None for a job without {key}; write {{% if {key} %}} around it"
                yield Finding(str(template.name), None, "error", text)


def _unknown_name(name: str) -> str:
    if meant := misspelt(name, ()):
        return f"'{name}' is unknown, so a job without it is not sent; did you mean {meant}?"
    return (
        f"'{name}' is unknown: a job without it is not sent. If producers always set it in metadata, add "
        f'--data {name}=EXAMPLE; otherwise write {{{{ {name} | default("…") }}}}'
    )


def _nesting(html: Rendered) -> Iterable[Finding]:
    for at, text in Nesting().check(html.text):
        if place := html.place(at):
            yield Finding(place.file, place.line, "error", text)


def _about(template: Template, *remarks: Iterable[Remark]) -> Iterable[Finding]:
    return (Finding(str(template.name), None, level, text) for it in remarks for level, text in it)


def _unlike(template: Template, names: list[str], other: str) -> Iterable[Finding]:
    if names:
        shown = ", ".join(f"{{{{ {it} }}}}" for it in names)
        yield Finding(
            str(template.name), None, "warning", f"does not show {shown}, as the {other} does; show it in both"
        )
