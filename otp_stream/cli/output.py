"""The output of every command: results to standard output, everything else to standard error, and never a code.

Exit codes: 0 for success; 1 for a negative result, or if a server does not answer; 2 for invalid arguments or settings.
"""

import json
import os
import sys
import unicodedata
from collections.abc import Callable, Generator
from contextlib import contextmanager
from time import monotonic
from typing import Annotated, Any, NoReturn, Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from otp_stream.urls import read_url

console = Console(stderr=True, highlight=False)
"""For people: progress, warnings and errors."""

_PIPE_COLUMNS = 5_000
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]


_INTERVAL_S = 0.1


def results() -> Console:
    """Return the console for results; it does not wrap the lines that it writes to a pipe."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPE_COLUMNS
    return Console(highlight=False, width=width)


def plain(text: str) -> Text:
    """Return text of other origin without markup and without characters that control a terminal."""
    return Text("".join(it if it == "\n" or unicodedata.category(it)[0] != "C" else _REPLACEMENT for it in text))


def table(numbers: str, rows: list[Any], first: str, *more: str) -> Table:
    """Return a table whose first column is text, and all others numbers."""
    made = Table(first, box=None, caption=" ", pad_edge=False, header_style="bold")
    for title in (numbers, *more):
        made.add_column(title, justify="right")
    for row in rows:
        made.add_row(*map(plain, row))
    return made


def count(number: int) -> str:
    """Return `12 345`."""
    return f"{number:,}".replace(",", " ")


def dead_letters(number: int) -> str:
    """Return `1 dead letter`, `2 dead letters`."""
    return f"{count(number)} dead letter{'' if number == 1 else 's'}"


def as_json(value: object, *, indent: int | None = None) -> str:
    """Return JSON without characters that control a terminal or cannot be encoded: they are escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return "\n".join(it if it.isprintable() else "".join(map(_escaped, it)) for it in text.split("\n"))


def _escaped(char: str) -> str:
    if unicodedata.category(char)[0] != "C":
        return char
    return json.dumps(char)[1:-1] if not char.isascii() else f"\\u{ord(char):04x}"


def write_json(value: object) -> None:
    """Write JSON to standard output."""
    typer.echo(as_json(value, indent=2))


def fail(text: str, code: int = 2) -> NoReturn:
    """Print an error and exit the command."""
    console.print(plain(text), style="red", soft_wrap=True)
    raise typer.Exit(code)


class Declined(typer.Exit):
    """The user does not confirm. The command exits with 1."""


def confirm(question: str, yes: bool) -> None:
    """Ask, unless `--yes` was given; any other reply than yes raises `Declined`."""
    if not yes and not typer.confirm(question, err=True):
        raise Declined(1)


class Jobs(Protocol):
    """Jobs that are being published and followed."""

    published: int

    @property
    def ended(self) -> int:
        """Jobs whose final outcome is known."""
        ...


@contextmanager
def shown(jobs: Jobs, total: int | None) -> Generator[Callable[[], None]]:
    """Show the progress; yields a function that updates it, at most ten times a second."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        published, ended = bar.add_task("published", total=total), bar.add_task("ended", total=total)
        updated = 0.0

        def update() -> None:
            nonlocal updated
            if monotonic() - updated >= _INTERVAL_S:
                updated = monotonic()
                bar.update(published, completed=jobs.published)
                bar.update(ended, completed=jobs.ended, total=total or jobs.published)

        yield update


def _api_url(url: str | None) -> str | None:
    if url is not None:
        try:
            login = read_url(url, {"http", "https"}, "http://rabbitmq.example.com:15672").username
        except ValueError as error:
            fail(f"--management-url {error}")
        if login is not None:
            fail("--management-url must not contain user and password: those of RABBITMQ_URL are used")
    return url


ManagementUrl = Annotated[
    str | None,
    typer.Option(
        "--management-url",
        callback=_api_url,
        help="URL of the management API. Default: http://HOST:15672 (amqps: https, 15671).",
    ),
]
