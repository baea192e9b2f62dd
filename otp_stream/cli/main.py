"""Every command of `otp-stream`."""

import json
import logging
import os
import signal
import sys
from errno import ENOSPC
from pathlib import Path
from typing import Annotated, Literal

import typer
import yaml

from otp_stream import __version__

from . import (
    check,
    dead,
    forget,
    livecheck,
    load,
    relay,
    sealing,
    send,
    tables,
    templates,
    tenants,
    tokens,
    topology,
)
from .output_files import output_file
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
        text = json.dumps(document, indent=2) + "\n"
    else:
        text = yaml.safe_dump(document, sort_keys=False, width=120)
    if out is None:
        typer.echo(text, nl=False)
        return
    with output_file(out, "--out") as file:
        file.write(text)


cli = typer.Typer(name="otp-stream", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
cli.add_typer(dead.cli, name="dead", help="Jobs that could not be sent: list, show, replay, drop, export.")
cli.add_typer(relay.cli, name="relay", help="Make a running worker probe its mail relays.")
cli.add_typer(sealing.cli, name="sealing", help="Make keys that seal codes, and show the public ones.")
cli.add_typer(tables.cli, name="tables")
cli.add_typer(topology.cli, name="topology")
cli.add_typer(templates.cli, name="templates")
cli.add_typer(tenants.cli, name="tenants")
cli.add_typer(tokens.cli, name="tokens")
cli.command()(check.check)
cli.command()(send.send)
cli.command()(livecheck.livecheck)
cli.command()(load.load)
cli.command()(forget.forget)
cli.command()(asyncapi)


def main() -> None:
    """Run the command line."""
    for name in ("aiormq", "aio_pika", "pamqp"):  # these show whole messages and headers, and with them codes
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    _open_missing_streams()
    try:
        cli()
    except OSError as error:
        if error.errno != ENOSPC:
            raise
        # Python writes what is buffered when the process ends, which would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(f"otp-stream: the output cannot be written: {error.strerror}")


def _open_missing_streams() -> None:
    """Open /dev/null for each standard stream that the process was started without: Python sets it to `None`."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w" if number else "r", encoding="utf-8"))  # noqa: SIM115 - kept


@cli.callback(invoke_without_command=True)
def _about(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Turn one-time-code jobs on RabbitMQ into e-mails that a mail relay has accepted."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # until here Ctrl-C ended the process, without a traceback
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if version:
        sys.stdout.write(f"otp-stream {__version__}\n")
        raise typer.Exit
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")
        raise typer.Exit(2)


@cli.command()
def demo(
    port: Annotated[int, typer.Option(help="HTTP port of page and inbox; another one if it is in use.")] = 8000,
    samples: Annotated[bool, typer.Option(help="Publish sample jobs.")] = True,
    log_level: Annotated[Literal["debug", "info", "warning", "error"], typer.Option(help="LOG_LEVEL")] = "info",
) -> None:
    """Run the worker with an embedded broker, an embedded mail inbox and sample jobs. Ctrl-C stops it."""
    from . import demo as embedded  # noqa: PLC0415 - it imports the whole worker: other commands start without it

    embedded.run(port=port, samples=samples, log_level=log_level)
