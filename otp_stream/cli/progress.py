"""A bar for what is published and one for what has ended: on a terminal, and nowhere else."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from time import monotonic
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import output

_LOOK_S = 0.1


class Going(Protocol):
    """Jobs on their way."""

    published: int

    @property
    def ended(self) -> int:
        """Jobs whose end is known."""
        ...


@contextmanager
def shown(jobs: Going, total: int | None) -> Generator[Callable[[], None]]:
    """Show how far they are; yields what looks again, at most ten times a second."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=output.console, transient=True, disable=not output.console.is_terminal) as bar:
        published, ended = bar.add_task("published", total=total), bar.add_task("ended", total=total)
        looked = 0.0

        def look() -> None:
            nonlocal looked
            if monotonic() - looked >= _LOOK_S:
                looked = monotonic()
                bar.update(published, completed=jobs.published)
                bar.update(ended, completed=jobs.ended, total=total or jobs.published)

        yield look
