"""How every command speaks: results to standard output, everything else to standard error, and never a code.

Exit codes: 0 it is as it should be; 1 it is not, or somebody who was asked does not answer; 2 wrong words or settings.
"""

import contextlib
import json
import os
import socket
import sys
import unicodedata
from typing import Annotated, Any, NoReturn

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from rich.text import Text

from otp_stream.settings import EMBEDDED_BROKER_PORT, Settings, load

console = Console(stderr=True, highlight=False)
"""For people: what goes on, what went wrong, progress."""

_PIPE_COLUMNS = 5_000
_CONNECT_S = 1.0
_NO_SIGN = "\N{REPLACEMENT CHARACTER}"

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]


def settings() -> Settings:
    """Return the settings of a command that asks the broker: `written_settings`, beside `make run` with its broker."""
    return at_demo(written_settings())


def written_settings() -> Settings:
    """Return the settings as they are written: the workers' own but for what only a worker needs.

    Ends the command with 2 where they cannot be read.
    """
    found, problems = load(worker=False)
    if problems:
        fail("\n".join(problems))
    return found


def at_demo(settings: Settings) -> Settings:
    """Return the settings, with the embedded broker of `make run` where no broker is named and that one answers."""
    if "rabbitmq_url" not in settings.model_fields_set:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", EMBEDDED_BROKER_PORT), _CONNECT_S):
            url = SecretStr(f"memory://127.0.0.1:{EMBEDDED_BROKER_PORT}")
            return settings.model_copy(update={"rabbitmq_url": url})
    return settings


def out() -> Console:
    """Return the console for results; into a pipe it writes lines as long as they are."""
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPE_COLUMNS
    return Console(highlight=False, width=wide)


def plain(text: str) -> Text:
    """Return what others have written: none of it is markup, and no terminal obeys it."""
    return Text("".join(it if it == "\n" or unicodedata.category(it)[0] != "C" else _NO_SIGN for it in text))


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


def as_json(told: object, *, indent: int | None = None) -> str:
    """Return JSON that can be written as UTF-8, whatever others have put into it."""
    return json.dumps(told, ensure_ascii=False, indent=indent).encode(errors="replace").decode()


def write(told: object) -> None:
    """Write JSON to standard output."""
    typer.echo(as_json(told, indent=2))


def fail(text: str, code: int = 2) -> NoReturn:
    """Say what is wrong, and end the command."""
    console.print(plain(text), style="red", soft_wrap=True)
    raise typer.Exit(code)
