"""`otp-stream templates`: list, preview and check templates."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from otp_stream.core.mail import ComposeError
from otp_stream.core.otp_job import MalformedError
from otp_stream.mail import Composer, TemplateError
from otp_stream.mail.lint import SAMPLE, sample_job
from otp_stream.mail.lint import lint as find
from otp_stream.mail.mail_template import FILES
from otp_stream.mail.preview import preview as read
from otp_stream.mail.templates import Templates
from otp_stream.settings import Settings

from . import output
from .output import AsJson
from .settings import read_settings

cli = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="List, preview and check templates.")

_SENDER = ("otp-stream", "no-reply@example.com")
_Data = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="KEY=VALUE", help="A key of metadata, such as userName=Zoë. Repeatable."),
]


@cli.command("list")
def list_(as_json: AsJson = False) -> None:
    """List every template in every language, and which files are from TEMPLATES_DIR."""
    settings = read_settings()
    templates = _templates(settings)
    rows = _rows(templates)
    shared = [{"file": it.name, "own": templates.is_own(it)} for it in templates.shared()]
    if as_json:
        output.write_json({"templates": rows, "shared": shared})
        return
    table = Table("Template", "Locale", *FILES, box=None, caption=" ", pad_edge=False, header_style="bold")
    for row in rows:
        places = [_starred(str(Path(it["file"]).parent), own=it["own"]) for it in row["files"].values()]
        table.add_row(
            *map(output.plain, (row["template"], row["locale"] or f"others ({settings.default_locale})", *places))
        )
    output.results().print(table)
    files = ", ".join(_starred(str(it["file"]), own=bool(it["own"])) for it in shared)
    output.results().print(
        f"Shared by all: {files}\n* from TEMPLATES_DIR; all others are built in", markup=False, soft_wrap=True
    )


@cli.command()
def preview(
    name: Annotated[str, typer.Argument(help="otp, welcome, password_reset, …")],
    locale: Annotated[str | None, typer.Option(help="Language, such as de or de-AT.")] = None,
    form: Annotated[Literal["text", "html", "eml"], typer.Option("--format", help="eml: the whole message.")] = "text",
    data: _Data = None,
    out: Annotated[Path | None, typer.Option(help="Write to this file.", dir_okay=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Compose the e-mail of a sample job, as the worker does, and write all of it or one part."""
    settings = read_settings()
    sender = settings.sender if settings.sender_email else _SENDER
    try:
        job = sample_job({**SAMPLE, **_read(data), "template": name, "locale": locale}, time.time_ns() // 1_000_000)
        composer = Composer(
            sender=sender,
            templates_dir=settings.templates_dir,
            default_locale=settings.default_locale,
            hash_key=settings.hash_key,
        )
        if name not in composer.templates.names:
            output.fail(f"NAME: there is no template {name}; known: {', '.join(composer.templates.names)}")
        content = composer.compose(job).content
    except MalformedError as error:
        output.fail(str(error).replace("metadata.template", "NAME").replace("metadata.", "--data "))
    except (TemplateError, ComposeError, OSError) as error:
        output.fail(str(error).replace("give it in metadata", "give it with --data"), 1)
    if as_json:
        shown = read(content)
        output.write_json({"subject": shown.subject, "text": shown.text, "html": shown.html})
    else:
        _put(content if form == "eml" else _part(content, form), out)


@cli.command()
def lint(data: _Data = None, as_json: AsJson = False) -> None:
    """Check all templates in all languages for errors, and for what makes an e-mail with a code hard to read or use.

    Exits with 1 if there are errors. Whether to follow a warning is your decision.
    """
    settings = read_settings()
    try:
        found = find(settings.templates_dir, settings.default_locale, _read(data))
    except MalformedError as error:
        output.fail(str(error).replace("metadata.", "--data "))
    errors = sum(it.level == "error" for it in found)
    if as_json:
        findings = [{"file": it.file, "line": it.line, "level": it.level, "text": it.text} for it in found]
        output.write_json({"errors": errors, "warnings": len(found) - errors, "findings": findings})
    else:
        for it in found:
            place = f"{it.file}:{it.line}" if it.line else it.file
            style = "red" if it.level == "error" else "yellow"
            output.results().print(f"{place}: {it.level}: {it.text}", style=style, markup=False, soft_wrap=True)
        output.results().print(f"errors: {errors}, warnings: {len(found) - errors}")
    if errors:
        raise typer.Exit(1)


def _starred(text: str, *, own: bool) -> str:
    return f"{text} *" if own else text


def _templates(settings: Settings) -> Templates:
    try:
        return Templates(settings.templates_dir, settings.default_locale)
    except (TemplateError, OSError) as error:
        output.fail(f"{error}. otp-stream templates lint lists all errors", 1)


def _rows(templates: Templates) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in templates.names:
        for locale in templates.languages(name):
            it = templates.get(name, locale)
            files = {
                part: {"file": template.name, "own": templates.is_own(template)}
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
    subject, text, html = read(content)
    return (html if form == "html" else f"Subject: {subject}\n\n{text}").encode(errors="replace")


def _put(content: bytes, out: Path | None) -> None:
    if out is None:
        sys.stdout.buffer.write(content)
        return
    try:
        out.write_bytes(content)
    except OSError as error:
        output.fail(f"--out: {error}")
