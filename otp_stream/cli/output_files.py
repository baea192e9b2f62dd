"""Files that commands write. In a folder of all users, a link could have another file replaced."""

import contextlib
import os
from collections.abc import Generator
from errno import EINVAL, ELOOP
from pathlib import Path
from typing import TextIO

from . import output


@contextlib.contextmanager
def replaced_file(path: Path, mode: int = 0o666) -> Generator[TextIO]:
    """Write a file in UTF-8, which replaces an existing one when it is complete. Raises `OSError`, also for a link."""
    if path.is_symlink():
        raise OSError(ELOOP, "is a link; name the file itself")
    path = path.parent.resolve() / path.name  # even if it is a link by now, only the link is replaced
    if path.exists() and not path.is_file():
        raise OSError(EINVAL, "is not a file")
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def output_file(path: Path, option: str, mode: int = 0o666) -> Generator[TextIO]:
    """Do the same for an option of a command, which ends with 2 if the file cannot be written."""
    try:
        with replaced_file(path, mode) as file:
            yield file
    except OSError as error:
        output.fail(f"{option}: {path}: {error.strerror or type(error).__name__}")
