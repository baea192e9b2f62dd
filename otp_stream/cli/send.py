"""`otp-stream send`: publish one job, or many, as a producer would.

Exits with 0 if all were sent (or published, if it does not wait), with 1 if not or if a line of a file is not a valid
job, with 2 for invalid arguments or settings, or if RabbitMQ does not answer.
"""

import asyncio
import contextlib
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, NoReturn, get_args

import typer
from aio_pika.abc import AbstractConnection
from aiormq.exceptions import ChannelAccessRefused

from otp_stream.client import CONNECTION_ERRORS, ClientError, JobEvent, NoWorkerError
from otp_stream.connection_errors import no_connection, user
from otp_stream.core.otp_job import MalformedError, Priority
from otp_stream.core.sealing_keys import SealingKeys
from otp_stream.settings import Settings

from . import amqp, batch, output
from .batch import Batch
from .output import AsJson
from .publishing import EVENTS_OFF, JobsExchange, Options, client_of, make_body, run_until_signal
from .settings import producer_settings

_MAX_SHOWN = 20
"""Invalid lines that are shown."""
_File = Annotated[
    str | None,
    typer.Option(help="Jobs as JSON lines, as producers or dead export --raw write them; -: standard input."),
]
_Wait = Annotated[
    float, typer.Option(min=0, help="Seconds to wait for the outcome (many jobs: for the next event); 0: do not wait.")
]


def send(
    email: Annotated[str | None, typer.Argument(help="The recipient; not with --file.")] = None,
    otp: Annotated[str | None, typer.Option(help="The code; six random digits if absent.")] = None,
    name: Annotated[str | None, typer.Option(help="metadata.userName")] = None,
    template: Annotated[str | None, typer.Option(help="metadata.template: otp, welcome, password_reset, …")] = None,
    locale: Annotated[str | None, typer.Option(help="metadata.locale, such as de")] = None,
    priority: Annotated[str, typer.Option(help="low, normal or high")] = "normal",
    high_lane: Annotated[bool, typer.Option("--high-lane", help="Publish to the .high queue.")] = False,
    job_id: Annotated[str | None, typer.Option(help="jobId; generated if absent.")] = None,
    expiry_minutes: Annotated[float | None, typer.Option(help="metadata.expiryMinutes")] = None,
    time_zone: Annotated[str | None, typer.Option(help="metadata.timeZone, such as Europe/Berlin")] = None,
    place: Annotated[str | None, typer.Option(help="metadata.request.place, such as Berlin, Germany")] = None,
    device: Annotated[str | None, typer.Option(help="metadata.request.device, such as Firefox on Windows")] = None,
    repeat: Annotated[int, typer.Option(min=1, max=1_000_000, help="Number of such jobs to publish.")] = 1,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Maximum number of jobs per second.")] = None,
    file: _File = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Skip lines that are not valid jobs.")] = False,
    wait: _Wait = 10,
    jobs_exchange: JobsExchange = False,
    as_json: AsJson = False,
) -> None:
    """Publish one job or many, as a producer would, and report the outcome.

    Connects to RABBITMQ_URL; if that is not set, to the embedded broker of `make run`, if it is running. If a line of
    FILE is not a valid job, nothing is published, unless you pass --skip-bad. Exits with 1 if not all jobs were sent.
    """
    if priority not in get_args(Priority):
        output.fail(f"--priority: must be one of {', '.join(get_args(Priority))}")
    metadata = _given(
        userName=name, template=template, locale=locale, expiryMinutes=expiry_minutes, timeZone=time_zone,
        request=_given(place=place, device=device) or None,
    )  # fmt: skip
    if file is not None and (email or otp or job_id or repeat > 1 or priority != "normal" or metadata):
        output.fail("--file: its lines are whole jobs; omit EMAIL, --repeat and the options for fields")
    if file is None and email is None:
        output.fail("EMAIL: is required unless you pass --file")
    settings = producer_settings()
    if wait and not settings.events:
        output.console.print(EVENTS_OFF, style="yellow")
        wait = 0
    options = Options(high_lane, rate, wait, jobs_exchange)
    if file is not None:
        jobs, skipped = _read_file(file, settings.sealing, skip_bad=skip_bad)
        _send_many(Batch(options, total=len(jobs), make=jobs.__getitem__), settings, skipped, as_json=as_json)
    job = _Job(email or "", otp, job_id, priority, metadata)
    first = job.make(0)
    if repeat > 1 or as_json:
        _send_many(Batch(options, total=repeat, make=job.make), settings, as_json=as_json)
    _send_one(settings, *first, options)


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True)
class _Job:
    """The arguments of `send`."""

    email: str
    otp: str | None
    job_id: str | None
    priority: str
    metadata: dict[str, Any]

    def make(self, _: int) -> tuple[str, bytes]:
        """Return the ID and the body of a new job; exit with 2 if no worker would accept it."""
        try:
            return make_body(self.email, self.otp, self.job_id, priority=self.priority, metadata=self.metadata)
        except MalformedError as error:
            output.fail(str(error))


def _send_one(settings: Settings, job_id: str, body: bytes, options: Options) -> NoReturn:
    try:
        text, succeeded = asyncio.run(_publish_and_follow(settings, job_id, body, options))
    except ClientError as error:
        output.fail(str(error))
    output.console.print(text, soft_wrap=True, markup=False, style="green" if succeeded else "yellow")
    raise typer.Exit(0 if succeeded else 1)


async def _publish_and_follow(settings: Settings, job_id: str, body: bytes, options: Options) -> tuple[str, bool]:
    """Return the result as text, and whether the job was sent, or published if its outcome cannot be known."""
    queue = settings.rabbitmq_queue_name + (".high" if options.high_lane else "")
    event: JobEvent | None = None
    async with client_of(settings, jobs_exchange=options.jobs_exchange) as client, AsyncExitStack() as stack:
        events = None
        if options.wait_s:
            with contextlib.suppress(NoWorkerError):
                events = await stack.enter_async_context(client.follow(job_id))
        began = monotonic()
        await client.publish(body, high_lane=options.high_lane)
        if events is None:
            return f"published {job_id} to {queue}", True
        try:
            async with asyncio.timeout(options.wait_s):
                async for newest in events:
                    event = newest
        except TimeoutError:
            last = _text(event) if event else await _queue_state(settings, queue)
            return f"{job_id} was published to {queue}; after {options.wait_s:g} s: {last}", False
        except ClientError as error:
            return f"{job_id} was published to {queue}; {error}", False
        took_ms = round((monotonic() - began) * 1000)
        return f"{job_id}: {_text(event)}, after {took_ms} ms", event is not None and event.outcome == "sent"


def _text(event: JobEvent | None) -> str:
    return " ".join(filter(None, (event.outcome, event.error))) if event else ""


async def _queue_state(settings: Settings, queue: str) -> str:
    """Return what RabbitMQ reports about a job without any event."""

    async def inspect(connection: AbstractConnection) -> tuple[int, int]:
        async with connection.channel() as channel:
            found = (await channel.declare_queue(queue, passive=True)).declaration_result
            return found.message_count or 0, found.consumer_count or 0

    try:
        waiting, consumers = await amqp.connected(settings, inspect)
    except ChannelAccessRefused:  # since 4.2.6 and 4.3, a passive declare takes a permission for the queue
        name = user(settings.amqp_url)
        return f"no event, and RabbitMQ does not report the state of the queue to {name}; run otp-stream check"
    except CONNECTION_ERRORS as error:
        return f"{settings.masked_rabbitmq_url} {no_connection(error, settings.amqp_url)}"
    if not consumers:
        return "no worker consumes this queue; start one"
    if waiting:
        return f"{waiting} jobs wait in the queue, and workers consume it"
    return "it is in flight in a worker, or waits for a retry; the worker's /readyz shows whether the relay takes mail"


def _read_file(file: str, keys: SealingKeys, *, skip_bad: bool) -> tuple[list[tuple[str, bytes]], int]:
    """Return the jobs, and the number of invalid lines."""
    try:
        jobs, bad = batch.read(sys.stdin.buffer if file == "-" else Path(file).read_bytes().splitlines(), keys)
    except OSError as error:
        output.fail(f"--file: {file} cannot be read: {error.strerror}")
    for text in bad[:_MAX_SHOWN]:
        output.console.print(text, style="yellow", markup=False, soft_wrap=True)
    if len(bad) > _MAX_SHOWN:
        output.console.print(f"… and {output.count(len(bad) - _MAX_SHOWN)} more such lines", style="yellow")
    if bad and not skip_bad:
        output.fail("nothing was published: correct these lines, or skip them with --skip-bad", 1)
    if not jobs:
        output.fail(f"--file: there is no job in {'standard input' if file == '-' else file}", 1)
    return jobs, len(bad)


def _send_many(jobs: Batch, settings: Settings, skipped: int = 0, *, as_json: bool) -> NoReturn:
    """Publish, print the totals, and exit."""

    async def work() -> None:
        async with client_of(settings, jobs_exchange=jobs.options.jobs_exchange) as client:
            await jobs.run(client, iter(range(jobs.total)), update)

    try:
        with output.shown(jobs, jobs.total) as update:
            finished = run_until_signal(work())
    except ClientError as error:
        output.fail(str(error))
    if as_json:
        output.write_json(_json(jobs, skipped, finished=finished))
    else:
        for text in jobs.outcomes.lines():
            output.results().print(text, markup=False, soft_wrap=True)
    _print_totals(jobs, skipped, finished=finished)
    raise typer.Exit(0 if finished and jobs.succeeded else 1)


def _json(jobs: Batch, skipped: int, *, finished: bool) -> dict[str, Any]:
    return {
        "jobs": jobs.total,
        "published": jobs.published,
        **jobs.outcomes.as_json(),
        "noEnd": jobs.published - jobs.ended if jobs.followed else None,
        "skippedLines": skipped,
        "seconds": round(jobs.seconds, 3),
        "interrupted": not finished,
        "error": jobs.error,
    }


def _print_totals(jobs: Batch, skipped: int, *, finished: bool) -> None:
    published = f"{output.count(jobs.published)} of {output.count(jobs.total)} published"
    took = f", {jobs.seconds:.1f} s" if finished else ", then interrupted"
    output.console.print(f"{published}{took}{f', {skipped} lines skipped' if skipped else ''}", soft_wrap=True)
    unknown = jobs.published - jobs.ended
    if jobs.followed and unknown > 0:
        after = f" after {jobs.options.wait_s:g} s without an event" if finished and jobs.error is None else ""
        output.console.print(f"outcome unknown: {output.count(unknown)}{after}", style="yellow")
    if jobs.error:
        output.console.print(jobs.error, style="red", markup=False, soft_wrap=True)
