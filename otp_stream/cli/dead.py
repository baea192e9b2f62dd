"""`otp-stream dead`: list, show, replay, drop and export dead letters.

Exits with 1 if RabbitMQ does not answer, the user does not confirm, or selected dead letters stayed in the queue; with
2 if an argument or a setting is invalid.
"""

import contextlib
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from otp_stream import clock
from otp_stream.core.dead_letter import DeadLetter, Group, Groups
from otp_stream.dead_letters import StoredDeadLetter, Summary, current_user

from . import dead_output, output
from .audit import audited
from .dead_access import (
    dead_letter_queue,
    parse_filter,
    require_filter,
    run,
    run_with_progress,
)
from .output import AsJson
from .output_files import output_file
from .settings import broker_settings

cli = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

Which = Annotated[
    list[str] | None,
    typer.Argument(
        help="Filters: reason=rejected, code=550 (the relay's reply code, or none), domain=example.com (domain= for "
        "those without a recipient), template=otp, job=ID, older=10m, newer=1h (age). All filters must match.",
        show_default=False,
    ),
]
_MORE = "{} more were not read"
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")]
All = Annotated[bool, typer.Option("--all", help="All dead letters, if no filter is given.")]


@cli.command("list")
def list_(
    which: Which = None,
    each: Annotated[bool, typer.Option("--each", help="One line for each dead letter instead of each cause.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the dead letters by cause: reason, the relay's code, the recipient's domain.

    Shows no code and no address. Exits with 1 if some dead letters were not read.
    """
    selected, settings = parse_filter(which), broker_settings()
    queue = dead_letter_queue(settings)
    started_ms = clock.now_ms()
    counted = Groups(started_ms)
    found: list[DeadLetter] = []

    def take(it: StoredDeadLetter) -> None:
        if selected.matches(it.dead_letter):
            counted.add(it.dead_letter)
            if each:  # without it there may be more than memory holds
                found.append(it.dead_letter)

    with audited(settings, "dead.list", selected.outline) as act:
        not_read = run(queue.for_each(take))
        act.count = counted.count
        if counted.count:
            act.target = str(selected)
    # RabbitMQ requeues the messages of each consumer together, and those of several consumers in any order
    found.sort(key=lambda it: it.died_ms or 0)
    groups = counted.all()
    if as_json:
        each_json = {"each": [dead_output.dead_letter_json(it, started_ms) for it in found]} if each else {}
        groups_json = [dead_output.group_json(it) for it in groups]
        shown = {"queue": queue.topology.dead, "deadLetters": counted.count, "notRead": not_read, "groups": groups_json}
        output.write_json(shown | each_json)
        raise typer.Exit(1 if not_read else 0)
    expired = sum(it.expired for it in groups)
    count = output.dead_letters(counted.count)
    output.results().print(
        f"{queue.topology.dead}: {count}, {output.count(expired)} of them with an expired code\n", markup=False
    )
    if counted.count:
        table = dead_output.each_table(found, started_ms) if each else dead_output.group_table(groups, started_ms)
        output.results().print(table)
        _print_replay_command(groups)
    if counted.unverified:
        output.console.print(
            dead_output.UNVERIFIED.format(output.count(counted.unverified)), style="yellow", soft_wrap=True
        )
    if not_read:
        output.fail(_MORE.format(output.count(not_read)), 1)


def _print_replay_command(groups: list[Group]) -> None:
    """Print the command that replays the largest group worth replaying."""
    group = next((it for it in groups if it.worth_replaying), None)
    if group is not None:
        output.console.print(output.plain(f"Replay a group: {group.command}"), soft_wrap=True)


@cli.command()
def show(job_id: Annotated[str, typer.Argument(help="The job's id.")], as_json: AsJson = False) -> None:
    """Show a job's dead letter without its secrets. Exits with 1 if there is none."""
    found: list[dict[str, Any]] = []

    def take(it: StoredDeadLetter) -> None:
        if it.dead_letter.job_id == job_id:
            found.append(dead_output.message_json(it, clock.now_ms()))

    settings = broker_settings()
    with audited(settings, "dead.show", "job …") as act:  # what was typed may be a code or an address
        not_read = run(dead_letter_queue(settings).for_each(take))
        act.count = len(found)
        if found:
            act.target = f"job {job_id}"
    if as_json:
        output.write_json(found)
    for fields in [] if as_json else found:
        output.results().print(dead_output.fields_table(fields))
        if fields["codeErased"]:
            output.console.print(dead_output.ERASED, style="yellow", soft_wrap=True)
    if found and not_read:
        output.console.print(_MORE.format(output.count(not_read)), style="yellow")
    if not found:
        output.fail(f"{job_id}: no dead letter has this id{dead_output.of_those_read(not_read)}", 1)


@cli.command()
def replay(
    which: Which = None,
    fresh: Annotated[
        bool, typer.Option("--fresh-expiry", help="Also send expired codes that were not erased.")
    ] = False,
    rate: Annotated[float, typer.Option(min=0, help="Maximum number of jobs per second; 0 for no limit.")] = 50,
    everything: All = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Send dead letters again, with all their attempts. Those with expired codes stay in the queue.

    You can interrupt a replay at any time and start it again: no job is lost or sent twice. Headers record who replayed
    a job and when; the worker logs it.
    """
    selected, settings = require_filter(which, everything), broker_settings()
    queue, user = dead_letter_queue(settings), current_user()
    print_result = partial(
        dead_output.print_audit, which=selected, now_ms=clock.now_ms(), as_json=as_json, fresh=fresh, dry_run=dry_run
    )
    with audited(settings, "dead.replay", selected.outline) as act:
        act.details = {"dry_run": dry_run or None, "fresh": fresh or None}
        summary = run(queue.replay(selected, by=user, fresh=fresh, dry_run=True))
        if summary.replayed or summary.expired:
            act.target = str(selected)
        stay = dead_output.staying_text(summary)
        if not dry_run and summary.replayed:
            found, rest = summary, f"; {stay}" if stay else ""
            output.confirm(f"Send {output.dead_letters(summary.replayed)} again ({selected}){rest}?", yes)
            summary = run_with_progress(
                "replaying", summary.replayed, act,
                lambda progress: queue.replay(
                    selected, by=user, fresh=fresh, rate=rate, only=found, progress=progress
                ),
                lambda done: print_result("replayed", done, summary=Summary(), finished=False),
            )  # fmt: skip
        act.count = summary.replayed
        act.details["expired"] = summary.expired or None
    print_result("would be replayed" if dry_run else "replayed", summary.replayed, summary=summary)
    if stay and not as_json:
        output.console.print(stay, style="yellow")
    raise typer.Exit(1 if summary.expired or summary.not_read else 0)


@cli.command()
def drop(
    which: Which = None,
    everything: All = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete dead letters permanently. Those that die after the question stay."""
    selected, settings = require_filter(which, everything), broker_settings()
    queue = dead_letter_queue(settings)
    print_result = partial(
        dead_output.print_audit, which=selected, now_ms=clock.now_ms(), as_json=as_json, dry_run=dry_run
    )
    with audited(settings, "dead.drop", selected.outline) as act:
        act.details = {"dry_run": dry_run or None}
        summary = run(queue.drop(selected, dry_run=True))
        if summary.dropped:
            act.target = str(selected)
        if not dry_run and summary.dropped:
            found = summary
            output.confirm(f"Delete {output.dead_letters(summary.dropped)} permanently ({selected})?", yes)
            summary = run_with_progress(
                "dropping", summary.dropped, act, lambda progress: queue.drop(selected, only=found, progress=progress),
                lambda done: print_result("dropped", done, summary=Summary(), finished=False),
            )  # fmt: skip
        act.count = summary.dropped
    print_result("would be dropped" if dry_run else "dropped", summary.dropped, summary=summary)
    raise typer.Exit(1 if summary.not_read else 0)


@cli.command()
def export(
    which: Which = None,
    out: Annotated[Path | None, typer.Option(help="Output file. Default: standard output.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Include the bodies (base64), with addresses and codes.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --out: also print the number written, as JSON.")
    ] = False,
) -> None:
    """Write dead letters as JSON lines. They stay in the queue. `--raw` needs a file, which only you can read."""
    selected, settings = parse_filter(which), broker_settings()
    if raw and out is None:
        output.fail("--raw: needs --out FILE, because codes must not appear on a terminal or in a log")
    written = unread = 0

    def take(it: StoredDeadLetter) -> None:
        nonlocal written, unread
        if not selected.matches(it.dead_letter):
            return
        unread += raw and it.message.dropped > 0
        typer.echo(output.as_json(dead_output.message_json(it, clock.now_ms(), raw=raw)), file)
        act.count = written = written + 1

    with audited(settings, "dead.export", str(selected)) as act:
        act.count, act.details = 0, {"raw": raw or None, "file": out and str(out)}
        act.start()
        with contextlib.nullcontext(sys.stdout) if out is None else output_file(out, "--out", 0o600) as file:
            not_read = run(dead_letter_queue(settings).for_each(take))
    if out is not None and as_json:
        output.write_json({"deadLetters": written, "file": str(out), "notRead": not_read, "bodiesNotRead": unread})
    elif out is not None:
        output.console.print(output.plain(f"{output.dead_letters(written)} in {out}"), soft_wrap=True)
    if unread:
        output.console.print(
            f"{output.count(unread)} bodies of more than 1 MiB were not read, `body` is null", style="yellow"
        )
    if not_read:
        output.fail(f"{output.count(not_read)} more were not read, and are not in the output", 1)
    raise typer.Exit(1 if unread else 0)
