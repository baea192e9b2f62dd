"""`otp-stream templates`: list, copy, create, preview and check templates."""

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from otp_stream.configs import mail_identity, tenant_identities
from otp_stream.core.mail import ComposeError
from otp_stream.core.otp_job import MalformedError
from otp_stream.mail import MailIdentity, TemplateError
from otp_stream.mail.lint import Finding, sample_job
from otp_stream.mail.lint import lint_in_child as find
from otp_stream.mail.loader import BUILT_IN_PREFIX
from otp_stream.mail.mail_template import FILES
from otp_stream.mail.preview import PREVIEWED
from otp_stream.mail.preview import preview as read
from otp_stream.mail.shared_templates import SharedTemplates
from otp_stream.mail.templates import Templates, normal_locale
from otp_stream.mail.tenant_composer import TenantComposer
from otp_stream.settings import Settings, read_tenants

from . import output, template_files
from .output import AsJson
from .output_files import output_file
from .screenshot import ScreenshotError, take_screenshot
from .settings import read_settings

cli = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", help="List, copy, create, preview and check templates."
)
cli.command()(template_files.copy)
cli.command()(template_files.new)

_Data = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="KEY=VALUE", help="A key of metadata, such as userName=Zoë. Repeatable."),
]
_Tenant = Annotated[str, typer.Option(metavar="NAME", help="A tenant of TENANTS_FILE; otherwise the default one.")]


@cli.command("list")
def list_(tenant: _Tenant = "", as_json: AsJson = False) -> None:
    """List every template in every language, and mark the files from TEMPLATES_DIR."""
    identity = _identity(read_settings(), tenant)
    templates = _templates(identity)
    rows = _rows(templates)
    shared = [{"file": it.name, "own": templates.is_own(it)} for it in templates.shared()]
    if as_json:
        output.write_json({"templates": rows, "shared": shared})
        return
    table = Table("Template", "Locale", *FILES, box=None, caption=" ", pad_edge=False, header_style="bold")
    for row in rows:
        places = [_starred(str(Path(it["file"]).parent), own=it["own"]) for it in row["files"].values()]
        table.add_row(
            *map(output.plain, (row["template"], row["locale"] or f"others ({identity.default_locale})", *places))
        )
    output.results().print(table)
    files = ", ".join(_starred(str(it["file"]), own=bool(it["own"])) for it in shared)
    output.results().print(
        f"Shared by all: {files}\n* from {'templates_dir' if tenant else 'TEMPLATES_DIR'}; all others are built in",
        markup=False,
        soft_wrap=True,
    )


@cli.command()
def preview(
    name: Annotated[str, typer.Argument(help="otp, welcome, password_reset, …")],
    locale: Annotated[str | None, typer.Option(help="Language, such as de or de-AT.")] = None,
    form: Annotated[Literal["text", "html", "eml"], typer.Option("--format", help="eml: the whole message.")] = "text",
    data: _Data = None,
    tenant: _Tenant = "",
    out: Annotated[Path | None, typer.Option(help="Write to this file.", dir_okay=False)] = None,
    png: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a screenshot of the HTML, taken with Chromium.", dir_okay=False),
    ] = None,
    width: Annotated[int, typer.Option(min=200, max=2000, help="Width of the screenshot, in pixels.")] = 320,
    dark: Annotated[bool, typer.Option("--dark", help="Take the screenshot in dark mode.")] = False,
    browser: Annotated[str | None, typer.Option(metavar="PATH", help="Chromium or Chrome for the screenshot.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compose the e-mail of a sample job as the worker does, and write it, one part of it, or a screenshot."""
    settings = read_settings()
    identity = _identity(settings, tenant)
    if not identity.sender[1]:
        identity = replace(identity, sender=(identity.brand.name, "no-reply@example.com"))
    metadata = {**PREVIEWED, **_read(data), "template": name}
    if locale:
        metadata["locale"] = locale
    try:
        job = sample_job(metadata, time.time_ns() // 1_000_000, tenant=tenant)
        templates = SharedTemplates().of(identity)
        composer = TenantComposer(tenant, identity, templates, settings.hash_key)
        if name not in composer.templates.names:
            output.fail(f"NAME: there is no template {name}; known: {', '.join(composer.templates.names)}")
        content = composer.compose(job).content
    except MalformedError as error:
        output.fail(str(error).replace("metadata.template", "NAME").replace("metadata.", "--data "))
    except (TemplateError, ComposeError, OSError) as error:
        output.fail(str(error).replace("give it in metadata", "give it with --data"), 1)
    if png is not None:
        _put(_screenshot(read(content).html, width, browser, dark=dark), png, "--png")
    elif as_json:
        shown = read(content)
        output.write_json({"subject": shown.subject, "text": shown.text, "html": shown.html})
    else:
        _put(content if form == "eml" else _part(content, form), out, "--out")


@cli.command()
def lint(
    data: _Data = None,
    tenant: Annotated[
        str | None, typer.Option(metavar="NAME", help="A tenant of TENANTS_FILE; otherwise all of them.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check all templates in all languages for errors, and for what makes an e-mail with a code hard to read or use.

    Exits with 1 if there are errors. A warning may be intended.
    """
    found = _findings(_identities_to_lint(read_settings(), tenant), _read(data))
    errors = sum(it.level == "error" for _, it in found)
    if as_json:
        findings = [
            {"tenant": of or None, "file": it.file, "line": it.line, "level": it.level, "text": it.text}
            for of, it in found
        ]
        output.write_json({"errors": errors, "warnings": len(found) - errors, "findings": findings})
    else:
        for of, it in found:
            place = f"tenant {of}: {it.file}" if of else it.file
            place = f"{place}:{it.line}" if it.line else place
            style = "red" if it.level == "error" else "yellow"
            text = output.plain(f"{place}: {it.level}: {it.text}")  # names of files may contain anything
            output.results().print(text, style=style, soft_wrap=True)
        output.results().print(f"errors: {errors}, warnings: {len(found) - errors}")
    if errors:
        raise typer.Exit(1)


def _starred(text: str, *, own: bool) -> str:
    return f"{text} *" if own else text


def _identities(settings: Settings) -> dict[str, MailIdentity]:
    """Return the identities of all tenants by name, the default one first, by the name `""`."""
    tenants, problems = read_tenants(settings)
    if problems:
        output.fail("\n".join(problems))
    return {"": mail_identity(settings), **tenant_identities(tenants)}


def _identity(settings: Settings, tenant: str) -> MailIdentity:
    if not tenant:
        return mail_identity(settings)
    identities = _identities(settings)
    if tenant not in identities:
        known = ", ".join(sorted(filter(None, identities)))
        output.fail(f"--tenant: there is no tenant {tenant} in TENANTS_FILE; known: {known or 'none'}")
    return identities[tenant]


def _identities_to_lint(settings: Settings, tenant: str | None) -> Mapping[str, MailIdentity]:
    """Return one tenant, or the default one and the first of each other folder and default locale."""
    if tenant is not None:
        return {tenant: _identity(settings, tenant)}
    found: dict[tuple[Path | None, str], tuple[str, MailIdentity]] = {}
    for name, it in _identities(settings).items():
        if not name or it.templates_dir is not None:
            found.setdefault((it.templates_dir, normal_locale(it.default_locale)), (name, it))
    return dict(found.values())


def _findings(identities: Mapping[str, MailIdentity], metadata: Mapping[str, str]) -> list[tuple[str, Finding]]:
    """Return all findings, each with its tenant."""
    found: list[tuple[str, Finding]] = []
    for tenant, it in identities.items():
        try:
            found += [(tenant, finding) for finding in find(it, metadata)]
        except MalformedError as error:
            output.fail(str(error).replace("metadata.", "--data "))
        except OSError as error:
            output.fail(f"{it.templates_dir} cannot be read ({error.strerror})", 1)
    return found


def _templates(identity: MailIdentity) -> Templates:
    try:
        return SharedTemplates().of(identity)
    except (TemplateError, OSError) as error:
        output.fail(f"{error}. otp-stream templates lint lists all errors", 1)


def _rows(templates: Templates) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in templates.names:
        for locale in templates.languages(name):
            it = templates.get(name, locale)
            files = {
                part: {"file": str(template.name).removeprefix(BUILT_IN_PREFIX), "own": templates.is_own(template)}
                for part, template in zip(FILES, (it.subject, it.text, it.html), strict=True)
            }
            rows.append({"template": name, "locale": locale or None, "files": files})
    return rows


def _read(pairs: list[str] | None) -> Mapping[str, str]:
    """Return metadata from KEY=VALUE."""
    found: dict[str, str] = {}
    for pair in pairs or ():
        key, given, value = pair.partition("=")
        if not given or not key:
            output.fail(f"--data: must look like KEY=VALUE, not {pair}")
        found[key] = value
    return found


def _part(content: bytes, form: str) -> bytes:
    """Return one part of a message, decoded; the text with its subject."""
    shown = read(content)
    return (shown.html if form == "html" else f"Subject: {shown.subject}\n\n{shown.text}").encode(errors="replace")


def _screenshot(html: str, width: int, browser: str | None, *, dark: bool) -> bytes:
    try:
        return take_screenshot(html, width=width, dark=dark, browser=browser)
    except ScreenshotError as error:
        output.fail(f"--png: {error}", 1)


def _put(content: bytes, out: Path | None, option: str) -> None:
    if out is None:
        if sys.stdout.isatty():  # a template must not control the terminal of the person who previews it
            content = output.plain(content.decode(errors="replace").replace("\r\n", "\n")).plain.encode(
                errors="replace"
            )
        sys.stdout.buffer.write(content)
        return
    with output_file(out, option) as file:
        file.buffer.write(content)
