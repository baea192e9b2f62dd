"""Every command of `otp-stream`."""

import asyncio
import logging
import sys
from typing import Annotated, Any, Literal, get_args

import typer

from otp_stream import __version__
from otp_stream.core.job import Priority

from . import dead, producer, say, tables
from . import demo as demo_room

cli = typer.Typer(name="otp-stream", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
cli.add_typer(dead.cli, name="dead", help="What could not be sent: look at it, send it again, forget it.")
cli.add_typer(tables.cli, name="tables")


def main() -> None:
    """Run the command line."""
    for name in ("aiormq", "aio_pika"):  # these show whole messages, and with them codes
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    cli()


@cli.callback(invoke_without_command=True)
def _about(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """One-time-code jobs on RabbitMQ become e-mails that a relay has accepted."""
    if version:
        sys.stdout.write(f"otp-stream {__version__}\n")
        raise typer.Exit
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")
        raise typer.Exit(2)


@cli.command()
def send(
    email: Annotated[str, typer.Argument(help="The recipient.")],
    otp: Annotated[str | None, typer.Option(help="The code; six random digits if absent.")] = None,
    name: Annotated[str | None, typer.Option(help="metadata.userName")] = None,
    template: Annotated[str | None, typer.Option(help="metadata.template: otp, welcome, password_reset, …")] = None,
    locale: Annotated[str | None, typer.Option(help="metadata.locale, such as de")] = None,
    priority: Annotated[str, typer.Option(help="low, normal or high")] = "normal",
    high_lane: Annotated[bool, typer.Option("--high-lane", help="Publish to the high lane.")] = False,
    job_id: Annotated[str | None, typer.Option(help="jobId; made if absent.")] = None,
    expiry_minutes: Annotated[float | None, typer.Option(help="metadata.expiryMinutes")] = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for what becomes of it; 0 does not wait.")] = 10,
) -> None:
    """Publish one job as a producer would, and tell what becomes of it.

    The broker is RABBITMQ_URL; where it is not set, the embedded one of `make run`, if it answers.
    """
    if priority not in get_args(Priority):
        say.fail(f"--priority: must be one of {', '.join(get_args(Priority))}")
    metadata: dict[str, Any] = {
        "userName": name, "template": template, "locale": locale, "expiryMinutes": expiry_minutes
    }  # fmt: skip
    try:
        job = producer.make_job(email=email, otp=otp, job_id=job_id, priority=priority, metadata=metadata)
        told = asyncio.run(producer.publish(job, high_lane=high_lane, wait_s=wait))
    except producer.ProducerError as error:
        say.fail(str(error))
    say.console.print(told.text, soft_wrap=True, style="green" if told.good else "yellow")
    if not told.good:
        raise typer.Exit(1)


@cli.command()
def demo(
    port: Annotated[int, typer.Option(help="HTTP port of page and inbox; the next free one if it is taken.")] = 8000,
    samples: Annotated[bool, typer.Option(help="Publish sample jobs.")] = True,
    log_level: Annotated[Literal["debug", "info", "warning", "error"], typer.Option(help="LOG_LEVEL")] = "info",
) -> None:
    """Run the worker on an embedded broker with an embedded mail inbox, on sample jobs. Ctrl-C ends it."""
    demo_room.run(port=port, samples=samples, log_level=log_level)
