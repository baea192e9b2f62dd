"""`otp-stream check`: all that a worker needs, looked at without sending or consuming anything.

Ends with 0 when nothing is a problem, with 1 when something is, with 2 for wrong words.
"""

import asyncio
import logging
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Annotated

import typer

from otp_stream.core.check_result import Finding, Level, Tell
from otp_stream.core.job import MalformedError, OtpJob

from . import say
from .say import AsJson

_MARKS: dict[Level, str] = {"ok": "green", "note": "dim", "warning": "yellow", "problem": "bold red"}


@dataclass(slots=True)
class Report:
    """What was found, by what it is about, in the order in which that is shown."""

    findings: dict[str, list[Finding]] = field(default_factory=dict[str, list[Finding]])

    def about(self, subject: str) -> Tell:
        """Return where to tell of a subject."""
        return self.findings.setdefault(subject, []).append

    def count(self) -> Counter[Level]:
        """Return how many findings there are of each level."""
        return Counter(finding.level for found in self.findings.values() for finding in found)


def check(
    send_to: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Send one real mail with a made-up code there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look whether a worker with these settings would run: settings, RabbitMQ, relays, Redis, templates, clock.

    Nothing is made, sent or consumed, but for --send-to. Ends with 1 when something is a problem.
    """
    # what goes wrong is told as a finding: a library's own lines would come between, and may say more than they should
    logging.disable()
    from . import check_mail  # noqa: PLC0415 - the list of commands needs none of the rooms

    try:
        ask = check_mail.made_up(send_to) if send_to is not None else None
    except MalformedError as error:
        say.fail(str(error).replace("email", "--send-to", 1))
    report = Report()
    with say.console.status("looking …"):
        asyncio.run(look(report, ask))
    counted = report.count()
    if as_json:
        _write(report)
    else:
        _show(report)
    if counted["problem"]:
        raise typer.Exit(1)


async def look(report: Report, ask: OtpJob | None) -> None:
    """Look at everything; `ask` is a job to be sent as well."""
    from . import check_mail  # noqa: PLC0415 - as above
    from . import check_systems as parts  # noqa: PLC0415

    known = parts.Known.read()
    parts.settings(known, report.about("Settings"))
    mailroom = parts.templates(known, report.about("Templates"))
    rabbit = parts.broker(known, report.about("RabbitMQ"))
    smtp = [
        parts.relay(known, number, config, report.about(f"Relay {number}"))
        for number, config in enumerate(known.relays, 1)
    ]
    redis = parts.redis(known, report.about("Redis"))
    seen, redis_clock, usable = await asyncio.gather(rabbit, redis, asyncio.gather(*smtp))
    parts.clock(redis_clock, seen, report.about("Clock"))
    if ask is not None:
        takers = [config for config in usable if config is not None]
        await check_mail.send(ask, mailroom, takers, report.about("Mail"))


def _write(report: Report) -> None:
    counted = report.count()
    say.write(
        {
            "ok": not counted["problem"],
            "problems": counted["problem"],
            "warnings": counted["warning"],
            "findings": [
                {"about": subject, **asdict(finding)} for subject, found in report.findings.items() for finding in found
            ],
        }
    )


def _show(report: Report) -> None:
    out, counted = say.out(), report.count()
    for subject, found in report.findings.items():
        out.print(subject, style="bold", markup=False)
        for finding in found:
            out.print(f"  {finding.level:<8} ", style=_MARKS[finding.level], end="")
            out.print(finding.text, markup=False, soft_wrap=True)
            if finding.cure and finding.level != "ok":
                out.print(f"           {finding.cure}", style="cyan", markup=False, soft_wrap=True)
    problems, warnings = (
        f"{counted[level] or 'no'} {level}{'' if counted[level] == 1 else 's'}" for level in ("problem", "warning")
    )
    style = "red" if counted["problem"] else "yellow" if counted["warning"] else "green"
    out.print(f"{problems}, {warnings}", style=style)
