"""Compiled templates, shared by all tenants with the same folder and the same default locale."""

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from stat import S_ISDIR
from types import MappingProxyType

from otp_stream.core.mail import ComposeError

from .folder_files import UnsafeFileError, reported_reads
from .forked_renderer import failure_text, run_once
from .identity import MailIdentity
from .sandbox import CpuLimitError
from .templates import TemplateError, Templates, fallbacks

_COMPILE_CPU_S = 10.0
"""CPU time for the templates of one folder; a hundred of them with all translations take 2 s."""
_TIMEOUT_S = 120.0
_LINKED_LEVELS = 2

Fingerprint = frozenset[tuple[str, int, int, int]]
"""Path, time of the last change, size and inode of each file of a folder."""
Key = tuple[Path | None, tuple[str, ...], Fingerprint]
"""Folder, default locale, and the state of the folder."""


class SharedTemplates:
    """Compiles templates. Those of `earlier` are used again if nothing in their folder has changed."""

    def __init__(self, earlier: Mapping[Key, Templates] = MappingProxyType({})) -> None:
        self._earlier = earlier
        self._fingerprints: dict[Path, Fingerprint] = {}
        self.compiled: dict[Key, Templates] = {}

    def key(self, identity: MailIdentity) -> Key:
        """Return a key that is equal for identities that share templates. Reads each folder once."""
        folder = identity.templates_dir
        if folder is not None and folder not in self._fingerprints:
            # before its files are read, so that a change in between is noticed the next time
            self._fingerprints[folder] = fingerprint(folder)
        seen = self._fingerprints[folder] if folder is not None else frozenset[tuple[str, int, int, int]]()
        return folder, fallbacks(identity.default_locale), seen

    def of(self, identity: MailIdentity) -> Templates:
        """Return the templates. Raises `TemplateError`, and `OSError` if the folder cannot be read."""
        key = self.key(identity)
        if key not in self.compiled:
            earlier = self._earlier.get(key)
            self.compiled[key] = earlier or _compiled(identity.templates_dir, identity.default_locale)
        return self.compiled[key]


def _compiled(folder: Path | None, default_locale: str) -> Templates:
    """Compile templates. Those of an operator are first compiled in another process, which a file may block or crash.

    If no process can be started, they are compiled in this one only, because mails wait for them. Raises
    `TemplateError`, and `OSError` if the folder cannot be read.
    """
    if folder is None:
        return Templates(None, default_locale)
    files: list[str] = []
    try:
        problem, *files = run_once(partial(_check, folder, default_locale), _COMPILE_CPU_S, _TIMEOUT_S)
    except (CpuLimitError, MemoryError, ComposeError) as error:
        problem = f"{folder}: {failure_text(error, 'compiling', _COMPILE_CPU_S)}"
    except OSError:
        return Templates(folder, default_locale)
    if problem:
        raise TemplateError(problem)

    checked = frozenset(files)

    def refuse_others(file: str) -> None:
        if file not in checked:
            raise UnsafeFileError("has changed while it was read")

    with reported_reads(refuse_others):
        return Templates(folder, default_locale)


def _check(folder: Path, default_locale: str) -> list[str]:
    """Return what is wrong with the templates of a folder, empty if nothing is, and each file that was read."""
    files: list[str] = []
    try:
        with reported_reads(files.append), suppress(OSError):  # the worker will get and report the same error
            Templates(folder, default_locale)
    except TemplateError as error:
        return [str(error)]
    return ["", *files]


def fingerprint(folder: Path) -> Fingerprint:
    """Return the state of all files of a folder.

    Links to folders are followed in the first two levels only: Kubernetes mounts a ConfigMap as such links.
    """
    found: list[tuple[str, int, int, int]] = []
    # without recursion, because folders can be nested more deeply than Python's calls
    waiting: list[tuple[str, int, bool]] = [(str(folder), 1, False)]
    while waiting:
        path, level, linked = waiting.pop()
        # the folder was deleted meanwhile, or its path is too long
        with suppress(OSError), os.scandir(path) as entries:
            for entry in entries:
                try:
                    status = entry.stat()
                except OSError:  # deleted meanwhile, or a link to nothing, such as an editor's lock
                    continue
                found.append((entry.path, status.st_mtime_ns, status.st_size, status.st_ino))
                by_link = linked or entry.is_symlink()
                if S_ISDIR(status.st_mode) and (level <= _LINKED_LEVELS or not by_link):
                    waiting.append((entry.path, level + 1, by_link))
    return frozenset(found)
