"""Looks through every template in every language, as the worker would find and fill them."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Template

from otp_stream.core.job import Job, OtpJob, carry
from otp_stream.core.mail import ComposeError

from .book import Layout, TemplateBook, TemplateError
from .rules import Level, Remark, of_html, of_subject, of_text

SAMPLE_CODE = "123456"
"""Nobody's."""
SAMPLE: Mapping[str, Any] = {"userName": "Ada Lovelace", "purpose": "login", "expiryMinutes": 10}
_OPTIONAL = ("userName", "purpose", "locale", "tenant")
_PLACE = re.compile(r"template (?P<file>.+?)(, line (?P<line>\d+))?: (?P<text>.*)", re.DOTALL)
_UNKNOWN = re.compile(r"'(\w+)' is undefined")
_NONE = re.compile(r"\bNone\b")
_MOST_UNKNOWN = 50

_Rendered = tuple[str, str, str]


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """Something about a file, as it is named below the templates' folder; `line` where it is known."""

    file: str
    line: int | None
    level: Level
    text: str


def sample_job(
    metadata: Mapping[str, Any], at_ms: int, *, email: str = "user@example.com", code: str = SAMPLE_CODE
) -> Job:
    """Return a job as if it had just come in. Raises `MalformedError` where a worker would."""
    job = {"email": email, "otp": code, "timestamp": at_ms, "metadata": dict(metadata)}
    ask = OtpJob.from_bytes(json.dumps(job).encode())
    job_id = f"sample-{at_ms}"
    return carry(ask, job_id=job_id, lane="jobs", first_seen_ms=at_ms, attempts_made=0, default_expiry_minutes=15)


def lint(templates_dir: Path | None, default_locale: str, metadata: Mapping[str, Any]) -> list[Finding]:
    """Return everything that was found; `metadata` are keys that producers always give, with an example each.

    Raises `MalformedError` for metadata that no job can have.
    """
    faults: list[TemplateError] = []
    book = TemplateBook(templates_dir, default_locale, faults)
    found = {_finding(fault) for fault in faults}
    for name in book.names:
        for tongue in book.languages(name):
            data = sample_job({**SAMPLE, **metadata, "template": name, "locale": tongue or None}, 0).template_data()
            found.update(_Look(book.layout(name, tongue), tongue, dict(data)).findings())
    return sorted(found, key=lambda it: (it.file, it.line or 0, it.level, it.text))


@dataclass(slots=True)
class _Look:
    """A look at one template in one language."""

    layout: Layout
    tongue: str
    data: dict[str, Any]

    def findings(self) -> Iterable[Finding]:
        found: set[Finding] = set()
        full = self._render({}, found)
        self._render(dict.fromkeys(_OPTIONAL), found, f", for a job without {', '.join(_OPTIONAL)}")
        # as long as a code may be, and the life of one that has another grammatical number
        self._render({"otp": "A1" * 32, "expiryMinutes": 1}, found, ", for a code of 64 letters that lives one minute")
        if full is None:
            return found
        for key in _OPTIONAL:
            if bare := self._render({key: None}, found):
                found.update(self._holes(full, bare, key))
        subject, text, html = full
        found.update(_about(self.layout.subject, of_subject(subject, SAMPLE_CODE)))
        found.update(_about(self.layout.text, of_text(text, SAMPLE_CODE)))
        found.update(_about(self.layout.html, of_html(html, SAMPLE_CODE, self.tongue)))
        return found

    def _render(self, changes: Mapping[str, Any], found: set[Finding], when: str = "") -> _Rendered | None:
        """Return the three parts; what is unknown is noted, and then given, so that the next can be found."""
        for _ in range(_MOST_UNKNOWN):
            try:
                return self.layout.render({**self.data, **changes})
            except ComposeError as error:
                unknown = _UNKNOWN.search(str(error))
                if unknown is None:
                    found.add(_finding(ComposeError(f"{error}{when}")))
                    return None
                found.add(_finding(error, _cure(unknown[1])))
                self.data[unknown[1]] = "x"
        return None

    def _holes(self, full: _Rendered, bare: _Rendered, key: str) -> Iterable[Finding]:
        for template, with_it, without in zip(
            (self.layout.subject, self.layout.text, self.layout.html), full, bare, strict=True
        ):
            if len(_NONE.findall(without)) > len(_NONE.findall(with_it)):
                text = f"prints None for a job without {key}; write {{% if {key} %}} around it"
                yield Finding(str(template.name), None, "error", text)


def _cure(name: str) -> str:
    return (
        f"'{name}' is unknown: a job without it is not sent. If producers always give it in metadata, say so with "
        f'--data {name}=EXAMPLE; otherwise write {{{{ {name} | default("…") }}}}'
    )


def _finding(error: Exception, text: str = "") -> Finding:
    match = _PLACE.fullmatch(str(error))
    if match is None:
        return Finding("", None, "error", text or str(error))
    return Finding(match["file"], int(match["line"]) if match["line"] else None, "error", text or match["text"])


def _about(template: Template, remarks: Iterable[Remark]) -> Iterable[Finding]:
    return (Finding(str(template.name), None, level, text) for level, text in remarks)
