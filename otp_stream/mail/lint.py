"""Checks every template in every language, as the worker finds and renders it."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2 import TemplateError as JinjaError

from otp_stream.core.job import Job
from otp_stream.core.mail import ComposeError
from otp_stream.core.otp_job import OtpJob

from .identity import MailIdentity
from .inlined import inlined
from .mail_template import MailTemplate
from .nesting import Nesting
from .rules import Level, Remark, of_html, of_subject, of_text, visible
from .sources import Rendered, SourceMarkers, misspelt, of_files, of_source
from .template_data import template_data
from .templates import TemplateError, Templates

SAMPLE_CODE = "123456"
"""The code of sample jobs."""
SAMPLE: Mapping[str, Any] = {"userName": "Ada Lovelace", "purpose": "login", "expiryMinutes": 10}
_OPTIONAL = ("userName", "purpose", "locale", "tenant")
_PLACE = re.compile(r"template (?P<file>.+?)(, line (?P<line>\d+))?: (?P<text>.*)", re.DOTALL)
_UNKNOWN = re.compile(r"'(\w+)' is undefined")
_TWICE = re.compile(r"block '.+' defined twice")
_NONE = re.compile(r"\bNone\b")
_UNKNOWN_LIMIT = 50
_OTHER_EXPIRY: Mapping[str, Any] = {"expiryMinutes": 47, "validUntil": "23:58 UTC"}
_NO_EXPIRY = "does not show when the code expires; write {{ validUntil }} or {{ expiryMinutes }}"

_Parts = tuple[Rendered, Rendered, Rendered]


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """An error or warning about a file, by its path below the templates' folder; `line` if it is known."""

    file: str
    line: int | None
    level: Level
    text: str
    unknown: str | None = None
    """The unknown name, if the finding is about one."""


def sample_job(
    metadata: Mapping[str, Any],
    at_ms: int,
    *,
    tenant: str = "",
    email: str = "user@example.com",
    code: str = SAMPLE_CODE,
) -> Job:
    """Return a job that has just arrived. Raises `MalformedError` if a worker would ignore any of the metadata."""
    of_tenant = {"tenant": tenant} if tenant else {}
    job = {"email": email, "otp": code, "timestamp": at_ms, "metadata": {**of_tenant, **metadata}}
    body = json.dumps(job).encode()
    request = OtpJob.from_bytes(body)
    if any(it.what == "ignored" and it.field.startswith("metadata.") for it in request.lenient):
        request = OtpJob.from_bytes(body, strict=True)  # a person has typed the metadata, so report the error
    job_id = f"sample-{at_ms}"
    return Job.from_request(
        request,
        job_id=job_id,
        lane="jobs",
        first_seen_ms=at_ms,
        attempts_made=0,
        default_expiry_minutes=15,
        tenant=tenant,
    )


def lint(identity: MailIdentity, metadata: Mapping[str, Any]) -> list[Finding]:
    """Return all findings about the templates of one tenant.

    `metadata` are the keys that producers always set, with an example for each. Raises `MalformedError` for metadata
    that no job can have.
    """
    faults: list[TemplateError] = []
    templates_dir = identity.templates_dir
    templates = Templates(templates_dir, identity.default_locale, faults, (SourceMarkers,), inline=False)
    found = {_finding(fault) for fault in faults}
    for name in _affected(templates.names, templates_dir):
        for locale in templates.languages(name):
            template = templates.get(name, locale)
            job = sample_job({**SAMPLE, **metadata, "template": name, "locale": locale or None}, 0)
            data = template_data(job, template.language, identity)
            found.update(_TemplateCheck(template, locale, data).findings())
    reported = {_place(it) for it in found if it.unknown}
    found.update(it for it in _unrendered(templates, templates_dir, metadata) if _place(it) not in reported)
    return _in_order(found)


def lint_at_start(templates_dir: Path, default_locale: str) -> list[Finding]:
    """Return what a worker logs about its templates at start. Renders none, because that may crash the process.

    Names that producers may set in metadata are left out, unless they look misspelt.
    """
    templates = Templates(templates_dir, default_locale, [], (SourceMarkers,), inline=False)
    return _in_order(_unrendered(templates, templates_dir, {}))


def _unrendered(templates: Templates, templates_dir: Path | None, metadata: Mapping[str, Any]) -> Iterator[Finding]:
    for file in sorted(templates.read):
        with suppress(JinjaError):  # a file that does not compile, or whose layout does not, is already reported
            yield from (Finding(*flaw) for flaw in of_source(templates, file, metadata))
    if templates_dir is not None:
        yield from (Finding(*flaw) for flaw in of_files(templates, templates_dir))


def _place(it: Finding) -> tuple[str, int | None, str | None]:
    return it.file, it.line, it.unknown


def _in_order(found: Iterable[Finding]) -> list[Finding]:
    return sorted(set(found), key=lambda it: (it.file, it.line or 0, it.level, it.text))


def _affected(names: Iterable[str], templates_dir: Path | None) -> Iterable[str]:
    """Return the templates that may use an operator's file. A shared file, such as a layout, may be used by all."""
    if templates_dir is None or any(it.suffix in {".html", ".txt"} for it in templates_dir.iterdir()):
        return names
    return [name for name in names if (templates_dir / name).is_dir()]


@dataclass(slots=True)
class _TemplateCheck:
    """The check of one template in one language."""

    template: MailTemplate
    locale: str
    data: dict[str, Any]

    def findings(self) -> Iterable[Finding]:
        found: set[Finding] = set()
        full = self._render({}, found)
        self._render(dict.fromkeys(_OPTIONAL), found, f", for a job without {', '.join(_OPTIONAL)}")
        # the longest code, and a lifetime in the singular
        self._render(
            {"otp": "A1" * 32, "expiryMinutes": 1}, found, ", for a code of 64 letters that is valid for one minute"
        )
        if full is None:
            return found
        for key in _OPTIONAL:
            if bare := self._render({key: None}, found):
                found.update(self._printed_none(full, bare, key))
                found.update(_nesting(bare[2]))
        subject, text, html = full
        found.update(_about(self.template.subject, of_subject(subject.text, SAMPLE_CODE)))
        found.update(_about(self.template.text, of_text(text.text, SAMPLE_CODE)))
        found.update(_about(self.template.html, of_html(inlined(html.text), SAMPLE_CODE, self.locale)))
        found.update(_nesting(html))
        if other := self._render(_OTHER_EXPIRY, found):
            if other[1].text == text.text:
                found.add(Finding(str(self.template.text.name), None, "warning", _NO_EXPIRY))
            if visible(other[2].text) == visible(html.text):
                found.add(Finding(str(self.template.html.name), None, "warning", _NO_EXPIRY))
        return found

    def _render(self, changes: Mapping[str, Any], found: set[Finding], when: str = "") -> _Parts | None:
        """Return the three parts. An unknown name is reported and gets a value, so that the next one can be found."""
        for _ in range(_UNKNOWN_LIMIT):
            try:
                subject, text, html = self.template.render({**self.data, **changes})
            except ComposeError as error:
                unknown = _UNKNOWN.search(str(error))
                if unknown is None:
                    found.add(_finding(ComposeError(f"{error}{when}")))
                    return None
                found.add(replace(_finding(error, _unknown_name(unknown[1])), unknown=unknown[1]))
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


def _finding(error: Exception, text: str = "") -> Finding:
    match = _PLACE.fullmatch(str(error))
    if match is None:
        return Finding("", None, "error", text or str(error))
    text = text or _TWICE.sub(r"\g<0>; remove one or rename it", match["text"])
    return Finding(match["file"], int(match["line"]) if match["line"] else None, "error", text)


def _nesting(html: Rendered) -> Iterable[Finding]:
    for at, text in Nesting().check(html.text):
        if place := html.place(at):
            yield Finding(place.file, place.line, "error", text)


def _about(template: Template, remarks: Iterable[Remark]) -> Iterable[Finding]:
    return (Finding(str(template.name), None, level, text) for level, text in remarks)
