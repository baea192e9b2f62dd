"""`otp-stream check`: check everything that a worker needs, without sending or consuming anything.

Exits with 0 if there is no problem, with 1 if there is one, with 2 for invalid arguments.
"""

import asyncio
import logging
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Annotated

import typer

from otp_stream.checks.clock import check_clock
from otp_stream.core.check_result import CheckResult, Level, Report
from otp_stream.core.otp_job import MalformedError, OtpJob

from . import output
from .output import AsJson

_STYLES: dict[Level, str] = {"ok": "green", "note": "dim", "warning": "yellow", "problem": "bold red"}


@dataclass(slots=True)
class CheckReport:
    """The results by subject, in the order in which they are shown."""

    results: dict[str, list[CheckResult]] = field(default_factory=dict[str, list[CheckResult]])

    def about(self, subject: str) -> Report:
        """Return the function that adds a result about a subject."""
        return self.results.setdefault(subject, []).append

    def count(self) -> Counter[Level]:
        """Return the number of results of each level."""
        return Counter(it.level for results in self.results.values() for it in results)


def check(
    send_to: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Send one real mail with a test code here.")
    ] = None,
    dkim_selector: Annotated[
        str | None, typer.Option(metavar="NAME", help="Selector of the relay's DKIM key, to check its record.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check everything that a worker with these settings needs: settings, templates, RabbitMQ, relays, Redis, clock.

    Also checks what receivers ask for in the DNS records of the sender's domain: SPF, DKIM, DMARC, MX.

    Declares, sends and consumes nothing, except with --send-to. Exits with 1 if there is a problem.
    """
    # failures are reported as results: log lines of libraries would disturb the output, and may contain secrets
    logging.disable()
    from . import check_systems  # noqa: PLC0415 - to list the commands must not import the subject packages

    try:
        request = check_systems.make_request(send_to) if send_to is not None else None
    except MalformedError as error:
        output.fail(str(error).replace("email", "--send-to", 1))
    report = CheckReport()
    with output.console.status("checking …"):
        asyncio.run(run_checks(report, request, dkim_selector))
    counted = report.count()
    if as_json:
        write_report(report)
    else:
        show_report(report)
    if counted["problem"]:
        raise typer.Exit(1)


async def run_checks(report: CheckReport, request: OtpJob | None, dkim_selector: str | None = None) -> None:
    """Run every check; `request` is a job to be sent as well."""
    from . import check_systems  # noqa: PLC0415 - as above

    checked = check_systems.CheckedSettings.read()
    check_systems.settings(checked, report.about("Settings"))
    composer = check_systems.templates(checked, report.about("Templates"))
    rabbitmq = check_systems.rabbitmq(checked, report.about("RabbitMQ"))
    smtp = [
        check_systems.relay(checked, number, config, report.about(f"Relay {number}"))
        for number, config in enumerate(checked.relays, 1)
    ]
    sender = check_systems.sender_domain(checked, dkim_selector, report.about("Sender"))
    redis = check_systems.redis(checked, report.about("Redis"))
    status, redis_ahead_s, usable, _ = await asyncio.gather(rabbitmq, redis, asyncio.gather(*smtp), sender)
    await check_systems.tracing(report.about)
    check_clock(redis_ahead_s, status and status.ahead_s, report.about("Clock"))
    if request is not None:
        accepting = [config for config in usable if config is not None]
        await check_systems.send_mail(request, composer, accepting, report.about("Mail"))


def write_report(report: CheckReport) -> None:
    """Write the results as JSON."""
    counted = report.count()
    output.write_json(
        {
            "ok": not counted["problem"],
            "problems": counted["problem"],
            "warnings": counted["warning"],
            "results": [
                {"about": subject, **asdict(it)} for subject, results in report.results.items() for it in results
            ],
        }
    )


def show_report(report: CheckReport) -> None:
    """Print the results by subject, and their number."""
    out, counted = output.results(), report.count()
    for subject, results in report.results.items():
        out.print(subject, style="bold", markup=False)
        for it in results:
            out.print(f"  {it.level:<8} ", style=_STYLES[it.level], end="")
            out.print(output.plain(it.text), soft_wrap=True)
            if it.fix and it.level != "ok":
                out.print(f"           {it.fix}", style="cyan", markup=False, soft_wrap=True)
    problems, warnings = (
        f"{counted[level] or 'no'} {level}{'' if counted[level] == 1 else 's'}" for level in ("problem", "warning")
    )
    style = "red" if counted["problem"] else "yellow" if counted["warning"] else "green"
    out.print(f"{problems}, {warnings}", style=style)
