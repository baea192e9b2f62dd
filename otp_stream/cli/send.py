"""`otp-stream send`: one job, or many, as a producer would publish them.

Ends with 0 when all were sent (published, where nobody waits), with 1 when not or when a file holds lines that are no
jobs, with 2 when something is wrong with the words or the settings, or the broker does not answer.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import typer

from otp_stream.core.otp_job import Priority
from otp_stream.settings import load

from . import batch, line, output, producer, progress
from .batch import Batch, Ready
from .line import EVENTS_OFF, ProducerError
from .output import AsJson
from .settings import producer_settings

_SHOWN = 20
"""Bad lines that are told one by one."""


def send(
    email: Annotated[str | None, typer.Argument(help="The recipient; not with --file.")] = None,
    otp: Annotated[str | None, typer.Option(help="The code; six random digits if absent.")] = None,
    name: Annotated[str | None, typer.Option(help="metadata.userName")] = None,
    template: Annotated[str | None, typer.Option(help="metadata.template: otp, welcome, password_reset, …")] = None,
    locale: Annotated[str | None, typer.Option(help="metadata.locale, such as de")] = None,
    priority: Annotated[str, typer.Option(help="low, normal or high")] = "normal",
    high_lane: Annotated[bool, typer.Option("--high-lane", help="Publish to the high lane.")] = False,
    job_id: Annotated[str | None, typer.Option(help="jobId; made if absent.")] = None,
    expiry_minutes: Annotated[float | None, typer.Option(help="metadata.expiryMinutes")] = None,
    repeat: Annotated[int, typer.Option(min=1, max=1_000_000, help="Publish so many such jobs.")] = 1,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Jobs a second, at most.")] = None,
    file: Annotated[
        str | None, typer.Option(help="Jobs as JSON lines, as producers write them or dead export --raw; - reads them.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Pass over lines that are no jobs.")] = False,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for what becomes of it, or for more news; 0 does not wait.")
    ] = 10,
    as_json: AsJson = False,
) -> None:
    """Publish a job as a producer would, or many, and tell what becomes of them.

    The broker is RABBITMQ_URL; where it is not set, the embedded one of `make run`, if it answers. A FILE with a line
    that no worker would take is not published at all, unless --skip-bad. Ends with 1 when not all were sent.
    """
    if priority not in get_args(Priority):
        output.fail(f"--priority: must be one of {', '.join(get_args(Priority))}")
    metadata: dict[str, Any] = {
        "userName": name, "template": template, "locale": locale, "expiryMinutes": expiry_minutes
    }  # fmt: skip
    if wait and not load()[0].events:
        output.console.print(EVENTS_OFF, style="yellow")
        wait = 0
    if file is not None:
        if email or otp or job_id or repeat > 1 or priority != "normal" or any(metadata.values()):
            output.fail("--file: its lines say everything about their jobs; leave EMAIL, the fields and --repeat out")
        _send_file(file, skip_bad=skip_bad, high_lane=high_lane, rate=rate, wait_s=wait, as_json=as_json)
        return
    if email is None:
        output.fail("EMAIL: is required, or --file")
    fields: dict[str, Any] = {
        "email": email, "otp": otp, "job_id": job_id, "priority": priority, "metadata": metadata
    }  # fmt: skip
    try:
        job = producer.make_job(**fields)
        if repeat == 1 and not as_json:
            told = asyncio.run(producer.publish(job, producer_settings(), high_lane=high_lane, wait_s=wait))
            output.console.print(told.text, soft_wrap=True, markup=False, style="green" if told.good else "yellow")
            if not told.good:
                raise typer.Exit(1)
            return
    except ProducerError as error:
        output.fail(str(error))

    def make(_: int) -> Ready:
        job = producer.make_job(**fields)
        return Ready(job["jobId"], json.dumps(job).encode())

    _finish(Batch(repeat, make), high_lane=high_lane, rate=rate, wait_s=wait, as_json=as_json)


def _send_file(file: str, *, skip_bad: bool, high_lane: bool, rate: float | None, wait_s: float, as_json: bool) -> None:
    try:
        jobs, bad = batch.read(sys.stdin.buffer if file == "-" else Path(file).read_bytes().splitlines())
    except OSError as error:
        output.fail(f"--file: {file} cannot be read: {error.strerror}")
    for text in bad[:_SHOWN]:
        output.console.print(text, style="yellow", markup=False, soft_wrap=True)
    if len(bad) > _SHOWN:
        output.console.print(f"… and {output.count(len(bad) - _SHOWN)} more such lines", style="yellow")
    if bad and not skip_bad:
        output.fail("nothing was published: mend these lines, or pass over them with --skip-bad", 1)
    if not jobs:
        output.fail(f"--file: there is no job in {'standard input' if file == '-' else file}", 1)
    many = Batch(len(jobs), jobs.__getitem__)
    _finish(many, high_lane=high_lane, rate=rate, wait_s=wait_s, as_json=as_json, skipped=len(bad))


def _finish(
    many: Batch, *, high_lane: bool, rate: float | None, wait_s: float, as_json: bool, skipped: int = 0
) -> NoReturn:
    """Publish, tell the sum, and end the command."""
    finished = False
    try:
        with progress.shown(many, many.total) as look:
            work = many.go(producer_settings(), high_lane=high_lane, rate=rate, wait_s=wait_s, look=look)
            finished = line.run(work)
    except ProducerError as error:
        output.fail(str(error))
    if as_json:
        output.write_json(_told(many, skipped, finished=finished))
    else:
        for text in many.ends.lines():
            output.results().print(text, markup=False, soft_wrap=True)
    _comment(many, skipped, finished=finished, wait_s=wait_s)
    raise typer.Exit(0 if finished and many.good else 1)


def _told(many: Batch, skipped: int, *, finished: bool) -> dict[str, Any]:
    return {
        "jobs": many.total,
        "published": many.published,
        **many.ends.told(),
        "noEnd": many.published - many.ended if many.followed else None,
        "skippedLines": skipped,
        "seconds": round(many.seconds, 3),
        "interrupted": not finished,
        "trouble": many.trouble,
    }


def _comment(many: Batch, skipped: int, *, finished: bool, wait_s: float) -> None:
    published = f"{output.count(many.published)} of {output.count(many.total)} published"
    took = f", {many.seconds:.1f} s" if finished else ", then stopped"
    output.console.print(f"{published}{took}{f', {skipped} lines passed over' if skipped else ''}", soft_wrap=True)
    open_ends = many.published - many.ended
    if many.followed and open_ends > 0:
        after = f" after {wait_s:g} s without news" if finished and many.trouble is None else ""
        output.console.print(f"no end known of {output.count(open_ends)}{after}", style="yellow")
    if many.trouble:
        output.console.print(many.trouble, style="red", markup=False, soft_wrap=True)
