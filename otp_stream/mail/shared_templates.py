"""Compiled templates, shared by all tenants with the same folder and the same default locale."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from .identity import MailIdentity
from .templates import Templates, fallbacks

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
            self.compiled[key] = earlier or Templates(identity.templates_dir, identity.default_locale)
        return self.compiled[key]


def fingerprint(folder: Path) -> Fingerprint:
    """Return the state of all files of a folder."""
    # `**` does not follow links to folders; Kubernetes mounts a ConfigMap as such links
    paths: set[Path] = set()
    for pattern in ("**/*", "*/*", "*/*/*"):
        with suppress(OSError):  # a folder was deleted meanwhile
            paths.update(folder.glob(pattern))
    found: list[tuple[str, int, int, int]] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:  # deleted meanwhile, or a link to nothing, such as an editor's lock
            continue
        found.append((str(path), status.st_mtime_ns, status.st_size, status.st_ino))
    return frozenset(found)
