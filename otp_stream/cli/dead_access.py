"""How `otp-stream dead` reads the queue: filters, questions, progress and the exported file."""

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from otp_stream import clock
from otp_stream.core.dead_letter import DeadLettersError
from otp_stream.core.dead_letter_filter import DeadLetterFilter
from otp_stream.dead_letters import DeadLetterQueue, Summary
from otp_stream.settings import Settings

from . import interrupts, output
from .amqp import topology_of
from .audit import Act

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
        lambda: settings.sealing,
        settings.retention,
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


def run(work: Coroutine[Any, Any, T]) -> T:
    """Return the result; if the queue cannot be read, end the command with status 1."""
    try:
        return interrupts.run(work)
    except DeadLettersError as error:
        output.fail(str(error), 1)


def run_with_progress(
    name: str,
    total: int,
    act: Act,
    work: Callable[[Callable[[int, int], object]], Coroutine[Any, Any, Summary]],
    on_interrupt: Callable[[int], object],
) -> Summary:
    """Show a progress bar meanwhile; if the work is interrupted or fails, call `on_interrupt` with the number done.

    `act` is started, and kept up to date.
    """
    done = act.count = 0
    act.start()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output.console, transient=True) as bar:
        task = bar.add_task(name, total=total)

        def update(now: int, _: int) -> None:
            nonlocal done
            done = act.count = now
            bar.update(task, completed=now)

        try:
            return interrupts.run(work(update))
        except (KeyboardInterrupt, DeadLettersError) as error:
            act.result = "failed" if isinstance(error, DeadLettersError) else "interrupted"
            bar.stop()
            on_interrupt(done)
            if isinstance(error, DeadLettersError):
                output.fail(str(error), 1)
            output.fail(
                f"interrupted after {output.count(done)} of {output.count(total)}: run the same command to continue", 1
            )
