"""Reads files of operators' folders, and no other files by a link."""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256
from pathlib import Path
from stat import S_ISREG

_MAX_BYTES = 1 << 20
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""Opening a named pipe would otherwise wait for its writer."""
_REPORT: ContextVar[Callable[[str], None] | None] = ContextVar("report", default=None)
"""Called for each file that is read; see `reported_reads`."""


class UnsafeFileError(Exception):
    """A file must not be read; the text says what to change, without the name of the file."""


def read_within(root: Path, file: Path) -> bytes:
    """Return the content of a file in a folder. Raises `UnsafeFileError`, and `OSError` if it cannot be read.

    Anyone who may write templates could otherwise have a file of secrets printed into an e-mail, or fill the memory.
    What is checked is the file that was opened: a link could lead to another one a moment later.
    """
    with os.fdopen(os.open(file, _FLAGS), "rb") as opened:
        if not S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise UnsafeFileError("is not a file; remove it")
        if not _path(opened.fileno(), file).is_relative_to(root.resolve()):
            raise UnsafeFileError("is a link to a file outside the templates' folder; copy the file into the folder")
        content = opened.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise UnsafeFileError(f"is larger than {_MAX_BYTES >> 20} MiB; shorten it")
    if report := _REPORT.get():
        report(f"{sha256(content).hexdigest()} {file}")
    return content


@contextmanager
def reported_reads(report: Callable[[str], None]) -> Generator[None]:
    """Call `report` with digest and path of each file that is read meanwhile. It may raise `UnsafeFileError`."""
    before = _REPORT.set(report)
    try:
        yield
    finally:
        _REPORT.reset(before)


def _path(descriptor: int, file: Path) -> Path:
    """Return the path of an open file, by the kernel (Linux); elsewhere the present path of `file`."""
    try:
        return Path(f"/proc/self/fd/{descriptor}").readlink()
    except OSError:
        return file.resolve()
