"""Whether other users of this machine can read or change the files with secrets."""

import os
from collections.abc import Iterable
from pathlib import Path
from stat import S_IROTH, S_IWGRP, S_IWOTH, S_IXOTH

from otp_stream.core.check_result import CheckResult, Report


def check_file_permissions(files: Iterable[Path], report: Report) -> None:
    """Report files with secrets that others can read, and those that others can change."""
    files = sorted(set(files), key=str)
    if readable := [it for it in files if _others(it, S_IROTH)]:
        text = f"every user of this machine can read secrets in {_names(readable)}"
        fix = f"chmod o= {_names(readable, ' ')} (not needed in a container, where no one else is)"
        report(CheckResult("warning", text, fix))
    if changeable := [it for it in files if _others(it, S_IWOTH | S_IWGRP) or _is_foreign(it)]:
        text = f"other users of this machine can change {_names(changeable)}, and so redirect codes"
        fix = f"chown the files to root or the worker's user, and chmod go-w {_names(changeable, ' ')}"
        report(CheckResult("warning", text, fix))


def _others(file: Path, bits: int) -> bool:
    """Return whether a file has any of these mode bits, and others can open the folders in which it is."""
    try:
        folders = file.resolve().parents
        return bool(file.stat().st_mode & bits) and all(it.stat().st_mode & S_IXOTH for it in folders)
    except OSError:  # it does not exist, or it is not ours: the settings report that
        return False


def _is_foreign(file: Path) -> bool:
    try:
        return file.stat().st_uid not in {0, os.geteuid()}
    except OSError:
        return False


def _names(files: Iterable[Path], separator: str = ", ") -> str:
    return separator.join(map(str, files))
