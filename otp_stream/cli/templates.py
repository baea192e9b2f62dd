"""`otp-stream templates`: which there are, how they look, and what is wrong with them."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from otp_stream.core.job import MalformedError
from otp_stream.core.mail import ComposeError
from otp_stream.mail import Mailroom, TemplateError
from otp_stream.mail.book import FILES, TemplateBook
from otp_stream.mail.lint import SAMPLE, sample_job
from otp_stream.mail.lint import lint as find
from otp_stream.mail.preview import preview as read
from otp_stream.settings import Settings

from . import say
from .say import AsJson

cli = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Templates: which there are, preview, lint.")

_SENDER = ("otp-stream", "no-reply@example.com")
_Data = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="KEY=VALUE", help="A key of metadata, such as userName=Zoë; more than once."),
]


@cli.command("list")
def list_(as_json: AsJson = False) -> None:
    """List every template in every language, and which files are from TEMPLATES_DIR."""
    settings = say.written_settings()
    book = _book(settings)
    rows = _rows(book)
    shared = [{"file": it.name, "own": book.is_own(it)} for it in book.shared()]
    if as_json:
        say.write({"templates": rows, "shared": shared})
        return
    made = Table("Template", "Locale", *FILES, box=None, caption=" ", pad_edge=False, header_style="bold")
    for row in rows:
        places = [_mark(str(Path(it["file"]).parent), own=it["own"]) for it in row["files"].values()]
        made.add_row(
            *map(say.plain, (row["template"], row["locale"] or f"others ({settings.default_locale})", *places))
        )
    say.out().print(made)
    told = ", ".join(_mark(str(it["file"]), own=bool(it["own"])) for it in shared)
    say.out().print(f"Shared by all: {told}\n* from TEMPLATES_DIR, all else built in", markup=False, soft_wrap=True)


@cli.command()
def preview(
    name: Annotated[str, typer.Argument(help="otp, welcome, password_reset, …")],
    locale: Annotated[str | None, typer.Option(help="Language, such as de or de-AT.")] = None,
    form: Annotated[Literal["text", "html", "eml"], typer.Option("--format", help="eml: the whole message.")] = "text",
    data: _Data = None,
    out: Annotated[Path | None, typer.Option(help="Write to this file.", dir_okay=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Make the e-mail of a sample job, as the worker would, and write it or one part of it."""
    settings = say.written_settings()
    sender = settings.sender if settings.sender_email else _SENDER
    try:
        job = sample_job({**SAMPLE, **_read(data), "template": name, "locale": locale}, time.time_ns() // 1_000_000)
        room = Mailroom(
            sender=sender,
            templates_dir=settings.templates_dir,
            default_locale=settings.default_locale,
            hash_key=settings.hash_key,
        )
        if name not in room.book.names:
            say.fail(f"NAME: there is no template {name}; known: {', '.join(room.book.names)}")
        content = room.compose(job).content
    except MalformedError as error:
        say.fail(str(error).replace("metadata.template", "NAME").replace("metadata.", "--data "))
    except (TemplateError, ComposeError, OSError) as error:
        say.fail(str(error).replace("give it in metadata", "give it with --data"), 1)
    if as_json:
        told = read(content)
        say.write({"subject": told.subject, "text": told.text, "html": told.html})
    else:
        _put(content if form == "eml" else _part(content, form), out)


@cli.command()
def lint(data: _Data = None, as_json: AsJson = False) -> None:
    """Look for what keeps a template from being sent, in any language, and for what makes it a bad code e-mail.

    Ends with 1 when there are errors; warnings are told, and for you to decide.
    """
    settings = say.written_settings()
    try:
        found = find(settings.templates_dir, settings.default_locale, _read(data))
    except MalformedError as error:
        say.fail(str(error).replace("metadata.", "--data "))
    errors = sum(it.level == "error" for it in found)
    if as_json:
        findings = [{"file": it.file, "line": it.line, "level": it.level, "text": it.text} for it in found]
        say.write({"errors": errors, "warnings": len(found) - errors, "findings": findings})
    else:
        for it in found:
            place = f"{it.file}:{it.line}" if it.line else it.file
            style = "red" if it.level == "error" else "yellow"
            say.out().print(f"{place}: {it.level}: {it.text}", style=style, markup=False, soft_wrap=True)
        say.out().print(f"errors: {errors}, warnings: {len(found) - errors}")
    if errors:
        raise typer.Exit(1)


def _mark(text: str, *, own: bool) -> str:
    return f"{text} *" if own else text


def _book(settings: Settings) -> TemplateBook:
    try:
        return TemplateBook(settings.templates_dir, settings.default_locale)
    except (TemplateError, OSError) as error:
        say.fail(f"{error}; otp-stream templates lint finds them all", 1)


def _rows(book: TemplateBook) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in book.names:
        for tongue in book.languages(name):
            layout = book.layout(name, tongue)
            files = {
                part: {"file": template.name, "own": book.is_own(template)}
                for part, template in zip(FILES, (layout.subject, layout.text, layout.html), strict=True)
            }
            rows.append({"template": name, "locale": tongue or None, "files": files})
    return rows


def _read(pairs: list[str] | None) -> Mapping[str, str]:
    """Return metadata from KEY=VALUE."""
    found: dict[str, str] = {}
    for pair in pairs or ():
        key, given, value = pair.partition("=")
        if not given or not key:
            say.fail(f"--data: must look like KEY=VALUE, not {pair}")
        found[key] = value
    return found


def _part(content: bytes, form: str) -> bytes:
    """Return one part of a message as a person reads it; the text with its subject."""
    subject, text, html = read(content)
    return (html if form == "html" else f"Subject: {subject}\n\n{text}").encode(errors="replace")


def _put(content: bytes, out: Path | None) -> None:
    if out is None:
        sys.stdout.buffer.write(content)
        return
    try:
        out.write_bytes(content)
    except OSError as error:
        say.fail(f"--out: {error}")
