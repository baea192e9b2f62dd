"""How `otp-stream dead` reads the queue: filters, questions, progress and the exported file."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Any, TextIO, TypeVar

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from otp_stream import clock
from otp_stream.core.dead_letter import DeadLettersError
from otp_stream.core.dead_letter_filter import DeadLetterFilter
from otp_stream.dead_letters import DeadLetterQueue, Summary
from otp_stream.settings import Settings

from . import output
from .amqp import topology_of

T = TypeVar("T")


def dead_letter_queue(settings: Settings) -> DeadLetterQueue:
    """Return the deployment's dead-letter queue."""
    return DeadLetterQueue(
        lambda: settings.amqp_url,
        topology_of(settings),
        settings.otp_expiry_minutes,
        settings.hash_key,
        settings.old_hash_keys,
        "the embedded broker" if settings.embedded else None,
    )


def parse_filter(which: list[str] | None) -> DeadLetterFilter:
    """Return the filter that the arguments describe; an invalid one ends the command."""
    try:
        return DeadLetterFilter.parse(which or [], clock.now_ms())
    except ValueError as error:
        output.fail(str(error))


def require_filter(which: list[str] | None, everything: bool) -> DeadLetterFilter:
    """Return the filter of a command that changes the queue: it needs a filter or `--all`."""
    if not which and not everything:
        output.fail("Which dead letters? Give a filter (reason=rejected domain=example.com, …) or --all")
    return parse_filter(which)


def confirm(question: str, yes: bool) -> None:
    """Ask, unless `--yes` was given; any other reply than yes ends the command with status 1."""
    if not yes and not typer.confirm(question, err=True):
        raise typer.Exit(1)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Return the result; if the queue cannot be read, end the command with status 1."""
    try:
        return asyncio.run(work)
    except DeadLettersError as error:
        output.fail(str(error), 1)


def run_with_progress(
    name: str,
    total: int,
    work: Callable[[Callable[[int, int], object]], Coroutine[Any, Any, Summary]],
    on_interrupt: Callable[[int], object],
) -> Summary:
    """Show a progress bar meanwhile; if the work is interrupted or fails, call `on_interrupt` with the number done."""
    done = 0
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that SIGTERM prints the audit line, too
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output.console, transient=True) as bar:
        task = bar.add_task(name, total=total)

        def update(now: int, _: int) -> None:
            nonlocal done
            done = now
            bar.update(task, completed=now)

        try:
            return asyncio.run(work(update))
        except (KeyboardInterrupt, DeadLettersError) as error:
            bar.stop()
            on_interrupt(done)
            if isinstance(error, DeadLettersError):
                output.fail(str(error), 1)
            output.fail(
                f"interrupted after {output.count(done)} of {output.count(total)}: run the same command to continue", 1
            )


@contextlib.contextmanager
def private_file(path: Path) -> Generator[TextIO]:
    """Write a file that only the user can read. It replaces an existing one when it is complete."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        output.fail(f"--out: {path} is not a file")
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        output.fail(f"--out: {path}: {error.strerror}")
    finally:
        temporary.unlink(missing_ok=True)
