"""Finds the operator's files and folders that are never read, or have a misleading name."""

import re
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from babel import Locale, UnknownLocaleError

from .catalogs import FOLDER
from .finding import Finding
from .language import normal_locale
from .mail_template import FILES
from .sources import likely
from .templates import BUILT_IN, LOCALE, NAME, Templates

_FOLDERS = {"locale", "locales", "lang", "languages", "i18n", "translations", "po"}
"""Other names of the folder of catalogues."""
_TEXTUAL = re.compile(r"\.(html?|xhtml|txt|text|j2|jinja2?|tmpl)$", re.IGNORECASE)
_LOCALE_IN_NAME = re.compile(r"(subject|body)[._-]([A-Za-z]{2}(?:[-_][A-Za-z]{2})?)(\.txt|\.html)")
"""A file name with a language, which should be the name of its folder instead."""
_LANGUAGES = {
    "deutsch": "de", "german": "de", "english": "en", "español": "es", "espanol": "es", "spanish": "es",
    "français": "fr", "francais": "fr", "french": "fr", "italiano": "it", "italian": "it", "nederlands": "nl",
    "dutch": "nl", "polski": "pl", "polish": "pl", "português": "pt", "portugues": "pt", "portuguese": "pt",
}  # fmt: skip


def check_files(templates: Templates, root: Path) -> Iterator[Finding]:
    """Find the operator's files and folders that are never read, or have a misleading name."""
    used = templates.read | templates.referenced
    built_in = {it.name for it in BUILT_IN.iterdir()}
    for path in _entries(root):
        if path.is_dir() and path.name == FOLDER:
            yield from _check_catalogs(path)
        elif path.is_dir() and path.name.lower() in _FOLDERS and any(path.rglob("*.po")):
            yield Finding(path.name, None, "error", f"is not read; rename it to {FOLDER}")
        elif path.is_dir():
            yield from _check_template(path, used, built_in)
        elif path.suffix == ".po":
            yield Finding(path.name, None, "error", f"is not read here; move it to {FOLDER}/{path.name}")
        elif path.name in FILES:
            text = f"is not read here; move it to a template's folder, such as otp/{path.name}"
            yield Finding(path.name, None, "error", text)
        else:
            yield from _check_unexpected(path.name, path.name, [it for it in built_in if "." in it], used)


def _check_catalogs(folder: Path) -> Iterator[Finding]:
    locales: dict[str, str] = {}
    for path in _entries(folder):
        file = f"{FOLDER}/{path.name}"
        if path.is_dir():
            if any(path.rglob("*.?o")):
                code = path.name if _is_language(path.name) else "de"
                yield Finding(
                    file, None, "error", f"is not read; write one file for each language, such as {FOLDER}/{code}.po"
                )
        elif path.suffix == ".mo":
            text = f"is not read, because the worker reads .po files; run msgunfmt {path.name} -o {path.stem}.po"
            yield Finding(file, None, "error", text)
        elif path.suffix == ".po" and not _is_language(path.stem):
            code = _LANGUAGES.get(path.stem.lower())
            text = f"rename it to {code}.po" if code else "name it after a language code, such as de.po or pt_BR.po"
            yield Finding(file, None, "error", f"is named after no known language; {text}")
        elif path.suffix == ".po":
            other = locales.setdefault(normal_locale(path.stem), file)
            if other != file:
                yield Finding(file, None, "error", f"is in the same language as {other}; merge them, and remove one")
        elif path.suffix not in {".pot", ".md"}:
            yield Finding(file, None, "error", f"is not read; translations are in files such as {FOLDER}/de.po")


def _is_language(tag: str) -> bool:
    if not LOCALE.fullmatch(tag):
        return False
    try:
        Locale.parse(normal_locale(tag).partition("-")[0])
    except (UnknownLocaleError, ValueError):
        return False
    return True


def _check_template(folder: Path, used: Container[str], built_in: Iterable[str]) -> Iterator[Finding]:
    name = folder.name
    if not NAME.fullmatch(name):
        yield Finding(name, None, "error", "is not read; a template's name has only A to Z, a to z, 0 to 9, - and _")
        return
    twin = next((it for it in built_in if _plain(it) == _plain(name) and it != name), None)
    if twin:
        text = f"is a separate template and does not change {twin}; rename it to {twin} if it should"
        yield Finding(name, None, "warning", text)
    locales: dict[str, str] = {}
    for path in _entries(folder):
        file = f"{name}/{path.name}"
        if not path.is_dir():
            yield from _check_unexpected(file, path.name, FILES, used)
        elif LOCALE.fullmatch(path.name):
            yield from _check_locale(path, file, used, locales)
        elif any(_TEXTUAL.search(it.name) for it in _entries(path)) and not _has_used(path, file, used):
            code = _LANGUAGES.get(path.name.lower())
            text = f"rename it to {code}" if code else "name a language's folder after its code, such as de or de-AT"
            yield Finding(file, None, "error", f"is not read; {text}")


def _check_locale(folder: Path, shown: str, used: Container[str], locales: dict[str, str]) -> Iterator[Finding]:
    for path in _entries(folder):
        file = f"{shown}/{path.name}"
        if path.is_dir():
            if not _has_used(path, file, used):
                text = f"is not read; name the folder of a regional language {folder.name}-{path.name}, beside {shown}"
                yield Finding(file, None, "error", text)
        elif path.name in FILES:
            canonical = f"{normal_locale(folder.name)}/{path.name}"
            other = locales.setdefault(canonical, file)
            if other != file:
                yield Finding(file, None, "error", f"is not read, because {other} is the same language; remove one")
        else:
            yield from _check_unexpected(file, path.name, FILES, used)


def _check_unexpected(file: str, name: str, expected: Iterable[str], used: Container[str]) -> Iterator[Finding]:
    """Check a file unless it is used, or expected in this place."""
    if file in used or name in expected:
        return
    match = _LOCALE_IN_NAME.fullmatch(name)
    meant = f"{match[2]}/{match[1]}{match[3]}" if match else likely(name, expected, 0.75)
    if meant:
        yield Finding(file, None, "error", f"is not read; rename it to {meant}")
    elif _TEXTUAL.search(name):
        text = f"is not read: no template includes it, and its name is none of {', '.join(FILES)}"
        yield Finding(file, None, "warning", text)


def _entries(folder: Path) -> list[Path]:
    """Return the entries of a folder, except those that editors and Kubernetes create."""
    entries = sorted(folder.iterdir())
    return [it for it in entries if not it.name.startswith((".", "_", "#")) and not it.name.endswith("~")]


def _has_used(folder: Path, shown: str, used: Container[str]) -> bool:
    return any(f"{shown}/{it.name}" in used for it in _entries(folder))


def _plain(name: str) -> str:
    return re.sub(r"[-_.]", "", name).lower()
