"""`otp-stream asyncapi`: the document that a worker with these settings serves."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
import yaml

from . import output
from .settings import read_settings


def asyncapi(
    form: Annotated[Literal["yaml", "json"], typer.Option("--format", help="yaml or json")] = "yaml",
    out: Annotated[Path | None, typer.Option(help="Write to this file.", dir_okay=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Write the AsyncAPI 3 document of queues, exchanges and messages: the same as a worker's /asyncapi.yaml."""
    settings = read_settings()
    from otp_stream.app import asyncapi as make  # noqa: PLC0415 - the whole worker: other commands start without it
    from otp_stream.app import build  # noqa: PLC0415

    document = make(build(settings, []))
    if as_json or form == "json":
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    else:
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        output.fail(f"--out: {error}")
