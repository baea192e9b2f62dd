"""Progress bars for published and ended jobs, if standard error is a terminal."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from time import monotonic
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import output

_INTERVAL_S = 0.1


class Jobs(Protocol):
    """Jobs that are being published and followed."""

    published: int

    @property
    def ended(self) -> int:
        """Jobs whose final outcome is known."""
        ...


@contextmanager
def shown(jobs: Jobs, total: int | None) -> Generator[Callable[[], None]]:
    """Show the progress; yields a function that updates it, at most ten times a second."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=output.console, transient=True, disable=not output.console.is_terminal) as bar:
        published, ended = bar.add_task("published", total=total), bar.add_task("ended", total=total)
        updated = 0.0

        def update() -> None:
            nonlocal updated
            if monotonic() - updated >= _INTERVAL_S:
                updated = monotonic()
                bar.update(published, completed=jobs.published)
                bar.update(ended, completed=jobs.ended, total=total or jobs.published)

        yield update
