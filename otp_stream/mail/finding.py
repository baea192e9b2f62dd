"""The findings of `lint`."""

import re
from dataclasses import dataclass

from .rules import Level

_PLACE = re.compile(r"(?:template )?(?P<file>[^:]+?)(, line (?P<line>\d+))?: (?P<text>.*)", re.DOTALL)
_TWICE = re.compile(r"block '.+' defined twice")


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """An error or warning about a file, by its path below the templates' folder; `line` if it is known."""

    file: str
    line: int | None
    level: Level
    text: str
    unknown: str | None = None
    """The unknown name, if the finding is about one."""


def error_finding(error: Exception, text: str = "") -> Finding:
    """Return the finding for a `TemplateError`, `CatalogError` or `ComposeError`; `text` replaces its text."""
    match = _PLACE.fullmatch(str(error))
    if match is None:
        return Finding("", None, "error", text or str(error))
    text = text or _TWICE.sub(r"\g<0>; remove one or rename it", match["text"])
    return Finding(match["file"], int(match["line"]) if match["line"] else None, "error", text)
