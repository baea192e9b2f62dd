"""`otp-stream dead`: what could not be sent, why, and how to send it after all.

Ends with 0; with 1 when RabbitMQ gives no answer, nobody said yes, or letters that were meant stayed; with 2 when
something is wrong with the words or the settings.
"""

import asyncio
import base64
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from otp_stream.broker.hands import LettersError
from otp_stream.broker.letters import DeadLetters, Found, Pass, whoami
from otp_stream.core.letter import Group, Wanted, grouped
from otp_stream.core.times import iso
from otp_stream.settings import Settings

from . import letters, line, say
from .amqp import topology_of
from .say import AsJson

cli = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
T = TypeVar("T")

Which = Annotated[
    list[str] | None,
    typer.Argument(
        help="Which letters: reason=rejected, code=550 (the relay's), domain=example.com, template=otp, job=ID, "
        "older=10m, newer=1h (since they died). Several must all hold.",
        show_default=False,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
All = Annotated[bool, typer.Option("--all", help="Every letter, where nothing else says which.")]


@cli.command("list")
def list_(
    which: Which = None,
    each: Annotated[bool, typer.Option("--each", help="A line for each letter, not for each cause.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the dead letters by cause: reason, the relay's code, the recipient's domain. No code, no address."""
    wanted = _wanted(which)
    desk = _desk(say.settings())
    found, left = _run(desk.look())
    found = [letter for letter in found if wanted.has(letter)]
    now_ms = _now_ms()
    groups = grouped(found, now_ms)
    if as_json:
        say.write(
            {
                "queue": desk.topology.dead,
                "letters": len(found),
                "notLookedAt": left,
                "groups": [letters.group_json(it) for it in groups],
                **({"each": [letters.letter_json(it, now_ms) for it in found]} if each else {}),
            }
        )
        return
    stale = sum(it.stale for it in groups)
    say.out().print(
        f"{desk.topology.dead}: {say.letters(len(found))}, {say.count(stale)} of them with a code that has expired\n",
        markup=False,
    )
    if found:
        say.out().print(letters.each_table(found, now_ms) if each else letters.group_table(groups, now_ms))
        _hint(groups)
    if left:
        say.console.print(f"{say.count(left)} more were not looked at", style="yellow")


def _hint(groups: list[Group]) -> None:
    """Say how the largest group is sent again of those that would not only die once more."""
    again = next((it for it in groups if it.worth_it), None)
    if again is not None:
        say.console.print(say.plain(f"Send a group again: {again.command}"), soft_wrap=True)


@cli.command()
def show(job_id: Annotated[str, typer.Argument(help="The job's id.")], as_json: AsJson = False) -> None:
    """Show everything about a job's letter but its secrets. Ends with 1 when there is none."""
    found: list[dict[str, Any]] = []

    def take(it: Found) -> None:
        if it.letter.job_id == job_id:
            found.append(letters.whole_json(it, _now_ms()))

    left = _run(_desk(say.settings()).each(take))
    if as_json:
        say.write(found)
    for letter in [] if as_json else found:
        table = Table(box=None, show_header=False, pad_edge=False, caption=" ")
        for name, value in letter.items():
            shown = json.dumps(value, ensure_ascii=False, indent=2) if isinstance(value, dict) else str(value)
            table.add_row(name, say.plain(shown))
        say.out().print(table)
    if not found:
        say.fail(f"{job_id}: no dead letter has this id{_of_those(left)}", 1)


@cli.command()
def replay(
    which: Which = None,
    fresh: Annotated[
        bool, typer.Option("--fresh-expiry", help="Send expired codes, too: their life begins anew.")
    ] = False,
    rate: Annotated[float, typer.Option(min=0, help="Letters a second at most; 0 as fast as it goes.")] = 50,
    everything: All = False,
    dry: Dry = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Send dead letters on their way again, with all their attempts. Expired codes stay where they are.

    It may be interrupted at any moment, and begun again: nothing is lost and nothing sent twice. Each letter carries
    who replayed it and when; the worker's log says so.
    """
    wanted = _meant(which, everything)
    settings = say.settings()
    desk = _desk(settings)
    plan = _run(desk.replay(wanted, by=whoami(), fresh=fresh, dry=True))
    stay = f"; {say.count(plan.stale)} with an expired code stay (--fresh-expiry sends them, too)" if plan.stale else ""
    if not dry and plan.replayed:
        _ask(f"Send {say.letters(plan.replayed)} again ({wanted}){stay}?", yes)
        plan = _with_progress(
            "replaying", plan.replayed,
            lambda progress: desk.replay(wanted, by=whoami(), fresh=fresh, rate=rate, progress=progress),
            lambda done: _tell("replayed", done, wanted, Pass(), as_json, fresh=fresh, dry=False, whole=False),
        )  # fmt: skip
    _tell("replayed" if not dry else "would be replayed", plan.replayed, wanted, plan, as_json, fresh=fresh, dry=dry)
    if stay and not as_json:
        say.console.print(stay.removeprefix("; "), style="yellow")
    raise typer.Exit(1 if plan.stale or plan.left else 0)


@cli.command()
def drop(
    which: Which = None,
    everything: All = False,
    dry: Dry = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Forget dead letters, for good."""
    wanted = _meant(which, everything)
    desk = _desk(say.settings())
    plan = _run(desk.drop(wanted, dry=True))
    if not dry and plan.dropped:
        _ask(f"Forget {say.letters(plan.dropped)} for good ({wanted})?", yes)
        plan = _with_progress(
            "dropping", plan.dropped, lambda progress: desk.drop(wanted, progress=progress),
            lambda done: _tell("dropped", done, wanted, Pass(), as_json, dry=False, whole=False),
        )  # fmt: skip
    _tell("dropped" if not dry else "would be dropped", plan.dropped, wanted, plan, as_json, dry=dry)
    raise typer.Exit(1 if plan.left else 0)


@cli.command()
def export(
    which: Which = None,
    out: Annotated[Path | None, typer.Option(help="The file; standard output if absent.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="With the bodies as they came (base64), codes and addresses included.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --out, too: how many were written.")] = False,
) -> None:
    """Write dead letters as JSON lines. They stay where they are. `--raw` needs a file, which only you can read."""
    wanted = _wanted(which)
    if raw and out is None:
        say.fail("--raw: needs --out FILE, because codes must not show on a terminal or in a log")
    lines: list[str] = []

    def take(it: Found) -> None:
        if wanted.has(it.letter):
            told = letters.whole_json(it, _now_ms()) | (
                {"body": base64.b64encode(it.message.body).decode()} if raw else {}
            )
            lines.append(say.as_json(told) + "\n")

    left = _run(_desk(say.settings()).each(take))
    if out is None:
        typer.echo("".join(lines), nl=False)
    else:
        _write_private(out, "".join(lines))
        if as_json:
            say.write({"letters": len(lines), "file": str(out), "notLookedAt": left})
        else:
            say.console.print(say.plain(f"{say.letters(len(lines))} in {out}"), soft_wrap=True)
    if left:
        say.fail(f"{say.count(left)} more were not looked at, and are not in it", 1)


def _desk(settings: Settings) -> DeadLetters:
    url, embedded = asyncio.run(line.find_broker(settings))
    shown_url = "the embedded broker" if embedded else settings.masked_rabbitmq_url
    return DeadLetters(url, shown_url, topology_of(settings), settings.otp_expiry_minutes, settings.hash_key)


def _wanted(which: list[str] | None) -> Wanted:
    try:
        return Wanted.read(which or [], _now_ms())
    except ValueError as error:
        say.fail(str(error))


def _meant(which: list[str] | None, everything: bool) -> Wanted:
    if not which and not everything:
        say.fail("Which letters? Name them (reason=rejected domain=example.com, …), or say --all")
    return _wanted(which)


def _ask(question: str, yes: bool) -> None:
    if not yes and not typer.confirm(question, err=True):
        raise typer.Exit(1)


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except LettersError as error:
        say.fail(str(error), 1)


def _with_progress(
    name: str,
    total: int,
    work: Callable[[Callable[[int, int], object]], Coroutine[Any, Any, Pass]],
    broken_off: Callable[[int], object],
) -> Pass:
    done = 0
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # it leaves its line for the audit, too
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=say.console, transient=True) as bar:
        task = bar.add_task(name, total=total)

        def tell(now: int, _: int) -> None:
            nonlocal done
            done = now
            bar.update(task, completed=now)

        try:
            return asyncio.run(work(tell))
        except (KeyboardInterrupt, LettersError) as error:
            bar.stop()
            broken_off(done)
            if isinstance(error, LettersError):
                say.fail(str(error), 1)
            say.fail(f"interrupted after {say.count(done)} of {say.count(total)}: the same command goes on", 1)


def _tell(
    what: str,
    number: int,
    wanted: Wanted,
    plan: Pass,
    as_json: bool,
    *,
    fresh: bool = False,
    dry: bool,
    whole: bool = True,
) -> None:
    audit = {
        "at": iso(_now_ms()), "by": whoami(), "did": what, "letters": number, "which": str(wanted),
        "expiredStay": plan.stale, "freshExpiry": fresh, "notLookedAt": plan.left, "dryRun": dry, "finished": whole,
    }  # fmt: skip
    if as_json:
        say.write(audit)
        return
    # one line that can be kept
    audit_line = " ".join(f"{name}={json.dumps(value)}" for name, value in audit.items())
    say.out().print(say.plain(audit_line), soft_wrap=True)
    if whole and not number and not plan.stale:
        told = f"No dead letter is meant by that{_of_those(plan.left)}: otp-stream dead list shows all"
        say.console.print(told, style="yellow", soft_wrap=True)


def _of_those(left: int) -> str:
    return f" of those that were looked at; {say.count(left)} more were not" if left else ""


def _write_private(path: Path, text: str) -> None:
    """Write a file that only we can read; what was there before stays until all is written."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        say.fail(f"--out: {path} is no file")
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        say.fail(f"--out: {path}: {error.strerror}")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
