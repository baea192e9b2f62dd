"""`otp-stream dead`: what could not be sent, why, and how to send it after all.

Ends with 0; with 1 when RabbitMQ gives no answer, nobody said yes, or letters that were meant stayed; with 2 when
something is wrong with the words or the settings.
"""

import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from otp_stream.broker.hands import LettersError
from otp_stream.broker.letters import DeadLetters, Found, Pass, whoami
from otp_stream.core.dead_letter import Group, Groups, Letter, Wanted
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
        help="Which dead letters: reason=rejected, code=550 (the relay's, or none), domain=example.com (domain= for "
        "those without a recipient), template=otp, job=ID, older=10m, newer=1h (age). Several must all match.",
        show_default=False,
    ),
]
_MORE = "{} more were not read"
_UNVERIFIED = (
    "{} of them are unverified: their headers have no valid signature. They come from a previous version, a worker "
    "with another SECRET_KEY or anyone who may publish, and may be wrong"
)
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")]
All = Annotated[bool, typer.Option("--all", help="All dead letters, if no filter is given.")]


@cli.command("list")
def list_(
    which: Which = None,
    each: Annotated[bool, typer.Option("--each", help="One line for each dead letter instead of each cause.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the dead letters by cause: reason, the relay's code, the recipient's domain. No code, no address.

    Exits with 1 if some of them were not read.
    """
    wanted = _wanted(which)
    desk = _desk(say.settings())
    now_ms = _now_ms()
    counted = Groups(now_ms)
    found: list[Letter] = []

    def take(it: Found) -> None:
        if wanted.has(it.letter):
            counted.add(it.letter)
            if each:  # without it there may be more than memory holds
                found.append(it.letter)

    left = _run(desk.each(take))
    # RabbitMQ puts back what each consumer had together, and the consumers of a look in any order
    found.sort(key=lambda it: it.died_ms or 0)
    groups = counted.all()
    if as_json:
        say.write(
            {
                "queue": desk.topology.dead,
                "letters": counted.count,
                "notLookedAt": left,
                "groups": [letters.group_json(it) for it in groups],
                **({"each": [letters.letter_json(it, now_ms) for it in found]} if each else {}),
            }
        )
        raise typer.Exit(1 if left else 0)
    stale = sum(it.stale for it in groups)
    count = say.letters(counted.count)
    say.out().print(
        f"{desk.topology.dead}: {count}, {say.count(stale)} of them with a code that has expired\n", markup=False
    )
    if counted.count:
        say.out().print(letters.each_table(found, now_ms) if each else letters.group_table(groups, now_ms))
        _hint(groups)
    if counted.unverified:
        say.console.print(_UNVERIFIED.format(say.count(counted.unverified)), style="yellow", soft_wrap=True)
    if left:
        say.fail(_MORE.format(say.count(left)), 1)


def _hint(groups: list[Group]) -> None:
    """Print the command that replays the largest group worth replaying."""
    again = next((it for it in groups if it.worth_it), None)
    if again is not None:
        say.console.print(say.plain(f"Send a group again: {again.command}"), soft_wrap=True)


@cli.command()
def show(job_id: Annotated[str, typer.Argument(help="The job's id.")], as_json: AsJson = False) -> None:
    """Show a job's dead letter without its secrets. Exits with 1 if there is none."""
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
    if found and left:
        say.console.print(_MORE.format(say.count(left)), style="yellow")
    if not found:
        say.fail(f"{job_id}: no dead letter has this id{_of_those(left)}", 1)


@cli.command()
def replay(
    which: Which = None,
    fresh: Annotated[
        bool, typer.Option("--fresh-expiry", help="Also send expired codes, with a new lifetime.")
    ] = False,
    rate: Annotated[float, typer.Option(min=0, help="Maximum number of jobs per second; 0 for no limit.")] = 50,
    everything: All = False,
    dry: Dry = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Send dead letters again, with all their attempts. Those with expired codes stay in the queue.

    You can interrupt a replay at any time and start it again: no job is lost or sent twice. Headers record who replayed
    a job and when; the worker logs it.
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
    """Delete dead letters permanently."""
    wanted = _meant(which, everything)
    desk = _desk(say.settings())
    plan = _run(desk.drop(wanted, dry=True))
    if not dry and plan.dropped:
        _ask(f"Delete {say.letters(plan.dropped)} permanently ({wanted})?", yes)
        plan = _with_progress(
            "dropping", plan.dropped, lambda progress: desk.drop(wanted, progress=progress),
            lambda done: _tell("dropped", done, wanted, Pass(), as_json, dry=False, whole=False),
        )  # fmt: skip
    _tell("dropped" if not dry else "would be dropped", plan.dropped, wanted, plan, as_json, dry=dry)
    raise typer.Exit(1 if plan.left else 0)


@cli.command()
def export(
    which: Which = None,
    out: Annotated[Path | None, typer.Option(help="Output file. Default: standard output.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Include the unchanged bodies (base64), with codes and addresses.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --out: also print the number written, as JSON.")
    ] = False,
) -> None:
    """Write dead letters as JSON lines. They stay in the queue. `--raw` needs a file, which only you can read."""
    wanted = _wanted(which)
    if raw and out is None:
        say.fail("--raw: needs --out FILE, because codes must not appear on a terminal or in a log")
    written = unread = 0

    def take(it: Found) -> None:
        nonlocal written, unread
        if not wanted.has(it.letter):
            return
        told = letters.whole_json(it, _now_ms())
        if raw:
            unread += it.message.dropped > 0
            told["body"] = None if it.message.dropped else base64.b64encode(it.message.body).decode()
        typer.echo(say.as_json(told), file)
        written += 1

    with contextlib.nullcontext(sys.stdout) if out is None else _private(out) as file:
        left = _run(_desk(say.settings()).each(take))
    if out is not None and as_json:
        say.write({"letters": written, "file": str(out), "notLookedAt": left, "bodiesNotRead": unread})
    elif out is not None:
        say.console.print(say.plain(f"{say.letters(written)} in {out}"), soft_wrap=True)
    if unread:
        say.console.print(
            f"{say.count(unread)} bodies of more than 1 MiB were not read, `body` is null", style="yellow"
        )
    if left:
        say.fail(f"{say.count(left)} more were not read, and are not in it", 1)
    raise typer.Exit(1 if unread else 0)


def _desk(settings: Settings) -> DeadLetters:
    url, embedded = asyncio.run(line.find_broker(settings))
    shown_url = "the embedded broker" if embedded else settings.masked_rabbitmq_url
    return DeadLetters(
        url,
        shown_url,
        topology_of(settings),
        settings.otp_expiry_minutes,
        settings.hash_key,
        settings.old_hash_keys,
    )


def _wanted(which: list[str] | None) -> Wanted:
    try:
        return Wanted.read(which or [], _now_ms())
    except ValueError as error:
        say.fail(str(error))


def _meant(which: list[str] | None, everything: bool) -> Wanted:
    if not which and not everything:
        say.fail("Which dead letters? Give a filter (reason=rejected domain=example.com, …) or --all")
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
            say.fail(f"interrupted after {say.count(done)} of {say.count(total)}: run the same command to continue", 1)


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
        told = f"No dead letter matches{_of_those(plan.left)}: otp-stream dead list shows all"
        say.console.print(told, style="yellow", soft_wrap=True)


def _of_those(left: int) -> str:
    return f" (of those read; {say.count(left)} more were not read)" if left else ""


@contextlib.contextmanager
def _private(path: Path) -> Generator[TextIO]:
    """Write a file that only we can read; what was there before stays until all is written."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        say.fail(f"--out: {path} is not a file")
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            yield file
        fresh.replace(path)
    except OSError as error:
        say.fail(f"--out: {path}: {error.strerror}")
    finally:
        fresh.unlink(missing_ok=True)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
