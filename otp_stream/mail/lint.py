"""Checks every template in every language, as the worker finds and renders it."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2 import TemplateError as JinjaError

from otp_stream.core.job import Job
from otp_stream.core.mail import ComposeError
from otp_stream.core.otp_job import OtpJob

from .brand import Brand
from .catalog_rules import check_catalogs
from .catalogs import FOLDER
from .file_rules import check_files
from .finding import Finding, error_finding
from .forked_renderer import failure_text, run_once
from .identity import MailIdentity
from .language import SOURCE, normal_locale
from .mail_template import MailTemplate
from .sandbox import CpuLimitError
from .sources import SourceMarkers, check_source
from .template_check import TemplateCheck
from .template_data import template_data
from .templates import LOCALE, TemplateError, Templates

__all__ = ["SAMPLE", "SAMPLE_CODE", "Finding", "lint", "lint_at_start", "lint_in_child", "sample_job"]

_START_CPU_S = 30.0
_LINT_CPU_S = 60.0
_TIMEOUT_S = 120.0
SAMPLE_CODE = "123456"
"""The code of sample jobs."""
SAMPLE: Mapping[str, Any] = {
    "userName": "Ada Lovelace",
    "purpose": "login",
    "expiryMinutes": 10,
    "request": {"place": "Berlin, Germany", "device": "Chrome on Windows"},
}
_BRAND = Brand(
    name="Lumen & Söhne",
    color="#ffd400",
    logo_url="https://www.example.com/logo.png",
    support="https://www.example.com/help",
    footer=("Lumen & Söhne GmbH", "Hauptstraße 1, 10827 Berlin"),
)
"""A brand with everything that the built-in templates show."""


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
    """Return all findings about the templates of a tenant.

    `metadata` are the keys that producers always set, with an example for each. The built-in templates are also checked
    without a brand and with a full one. Raises `MalformedError` for metadata that no job can have.
    """
    errors: list[TemplateError] = []
    templates_dir = identity.templates_dir
    templates = Templates(templates_dir, identity.default_locale, errors, (SourceMarkers,), inline=False)
    # compiled as in the worker; the others have markers, and keep tags that are not closed
    sent = cache(lambda: Templates(templates_dir, identity.default_locale, errors))
    rendered: dict[Finding, set[str]] = {}
    for it in _identities(identity):
        for locale, finding in _rendered(templates, sent, it, metadata):
            rendered.setdefault(finding, set()).add(locale)
    found = {error_finding(error) for error in errors}
    found.update(_with_languages(it, locales) for it, locales in rendered.items())
    reported = {_place(it) for it in found if it.unknown}
    found.update(it for it in _unrendered(templates, templates_dir, metadata) if _place(it) not in reported)
    return _in_order(found)


def lint_in_child(identity: MailIdentity, metadata: Mapping[str, Any]) -> list[Finding]:
    """Do the same in a child process. If a file blocks or crashes it, that is the only finding.

    Raises as `lint` does, and `OSError` if the folder cannot be read.
    """
    folder = identity.templates_dir
    if folder is None:
        return lint(identity, metadata)
    sample_job({**SAMPLE, **metadata}, 0)  # raises what `lint` would raise in the other process
    os.scandir(folder).close()
    try:
        found = run_once(lambda: [json.dumps(asdict(it)) for it in lint(identity, metadata)], _LINT_CPU_S, _TIMEOUT_S)
    except (CpuLimitError, MemoryError, ComposeError) as error:
        return [Finding(str(folder), None, "error", failure_text(error, "checking", _LINT_CPU_S))]
    return [Finding(**json.loads(it)) for it in found]


def _identities(identity: MailIdentity) -> list[MailIdentity]:
    """Return the identities for which the templates are rendered."""
    if identity.templates_dir is not None:
        return [identity]
    others = replace(identity, brand=Brand(), subject_time=False), replace(identity, brand=_BRAND, subject_time=True)
    return list(dict.fromkeys((identity, *others)))


def _rendered(
    templates: Templates, sent: Callable[[], Templates], identity: MailIdentity, metadata: Mapping[str, Any]
) -> Iterator[tuple[str, Finding]]:
    """Yield each finding with its language."""
    for name in _affected(templates, identity.templates_dir):
        checked: set[tuple[Template, ...]] = set()
        for locale in templates.languages(name):
            template = templates.get(name, locale)
            files = template.subject, template.text, template.html
            job = sample_job({**SAMPLE, **metadata, "template": name, "locale": locale or None}, 0)
            data = template_data(job, template.language, identity)
            like_worker = partial(_template, sent, name, locale)
            check = TemplateCheck(template, like_worker, locale, data, first_language=files not in checked)
            for it in check.findings():
                yield locale, it
            checked.add(files)


def _template(templates: Callable[[], Templates], name: str, locale: str) -> MailTemplate | None:
    """Return a template, `None` if it has an error."""
    found = templates()
    return found.get(name, locale) if locale in found.languages(name) else None


def _with_languages(finding: Finding, locales: set[str]) -> Finding:
    """Return a finding with its languages, if a file is for several and it is found in translations only."""
    of_folder = any(LOCALE.fullmatch(it) and normal_locale(it) in locales for it in finding.file.split("/")[1:-1])
    if of_folder or locales & {"", SOURCE}:
        return finding
    return replace(finding, text=f"{finding.text} (in {', '.join(sorted(locales))})")


def lint_at_start(templates_dir: Path, default_locale: str) -> list[Finding]:
    """Return what a worker logs about its templates at start. Runs in another process, and renders none.

    Names that producers may set in metadata are left out, unless they look misspelt. Raises `ComposeError` if the
    process crashes, `CpuLimitError`, `MemoryError`, and `OSError` if it cannot be started.
    """

    def found() -> list[str]:
        templates = Templates(templates_dir, default_locale, [], (SourceMarkers,), inline=False)
        return [json.dumps(asdict(it)) for it in _in_order(_unrendered(templates, templates_dir, {}))]

    return [Finding(**json.loads(it)) for it in run_once(found, _START_CPU_S, _TIMEOUT_S)]


def _unrendered(templates: Templates, templates_dir: Path | None, metadata: Mapping[str, Any]) -> Iterator[Finding]:
    for file in sorted(templates.read):
        with suppress(JinjaError):  # a file that does not compile, or whose layout does not, is already reported
            yield from check_source(templates, file, metadata)
    if templates_dir is not None:
        yield from check_files(templates, templates_dir)
    yield from check_catalogs(templates, templates_dir)


def _place(it: Finding) -> tuple[str, int | None, str | None]:
    return it.file, it.line, it.unknown


def _in_order(found: Iterable[Finding]) -> list[Finding]:
    return sorted(set(found), key=lambda it: (it.file, it.line or 0, it.level, it.text))


def _affected(templates: Templates, templates_dir: Path | None) -> Iterable[str]:
    """Return the templates that may use an operator's file. A shared file, such as a layout, may be used by all."""
    if templates_dir is None or (templates_dir / FOLDER).is_dir():
        return templates.names
    if any(templates.is_own_file(it) for it in templates.read if "/" not in it):
        return templates.names
    return [name for name in templates.names if (templates_dir / name).is_dir()]
