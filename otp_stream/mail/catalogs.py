"""Translations of the templates' messages: one gettext catalogue for each language.

    <folder>/locales/<locale>.po        such as de.po or pt_BR.po

Messages of the operator's catalogues come before the built-in ones.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from babel import Locale
from babel.messages.catalog import Catalog, Message
from babel.messages.mofile import write_mo
from babel.messages.pofile import PoFileError, read_po, write_po
from babel.support import Translations

from .language import Language, fallbacks, normal_locale

FOLDER = "locales"
_UNQUOTED = re.compile(rb'^[^#"]*"(?:[^"\\]|\\.)*$')
"""A line with a text without its closing quote."""
_PLACEHOLDER = re.compile(r"%(?:\((\w+)\)s)?")
"""A placeholder; empty for a `%` that is none, which would have to be `%%`."""


class CatalogError(Exception):
    """A catalogue cannot be used; the text contains the file, the line and the fix."""


@dataclass(frozen=True, slots=True)
class Translated:
    """What is translated into one language; `messages` are the English messages that are."""

    language: Language
    messages: frozenset[str]
    files: tuple[Path, ...] = field(default=())


class Catalogs:
    """The catalogues of some folders, the first folder's messages first. Raises `CatalogError`.

    With a list of `faults`, errors are added to it instead, and files with errors are left out.
    """

    def __init__(self, roots: list[Path], faults: list[CatalogError] | None = None) -> None:
        self.by_locale: dict[str, Translated] = {}
        for root in reversed(roots):
            for path in sorted((root / FOLDER).glob("*.po")):
                tag = path.stem.replace("_", "-")
                key = normal_locale(tag)
                try:
                    self.by_locale[key] = _read(path, tag, self.by_locale.get(key))
                except CatalogError as error:
                    if faults is None:
                        raise
                    faults.append(error)

    def languages_of(self, messages: frozenset[str]) -> list[str]:
        """Return the locales into which all of these messages are translated."""
        return [locale for locale, it in self.by_locale.items() if messages and messages <= it.messages]

    def closest(self, locale: str) -> str | None:
        """Return the locale of the catalogue for a language: `pt-br` for `pt`, if there is none for `pt`."""
        if locale in self.by_locale:
            return locale
        return next((it for it in self.by_locale if locale in fallbacks(it)), None)


def read_catalog(path: Path) -> Catalog:
    """Read a file. Raises `CatalogError`."""
    try:
        with path.open("rb") as file:
            lines = file.readlines()
        if line := next((number for number, it in enumerate(lines, 1) if _UNQUOTED.search(it)), None):
            # Babel would cut off its last character
            raise CatalogError(f"{FOLDER}/{path.name}, line {line}: has no closing quote; write it")
        locale = path.stem.replace("-", "_")
        catalog = read_po(lines, locale=locale, ignore_obsolete=True, abort_invalid=True)
    except PoFileError as error:
        raise CatalogError(f"{FOLDER}/{path.name}, line {error.lineno + 1}: {error}; correct that line") from None
    except (ValueError, LookupError, TypeError) as error:  # another encoding, an unknown locale, a bad header
        raise CatalogError(f"{FOLDER}/{path.name}: {error}") from None
    for message in catalog:
        if message.id and (unknown := _placeholders(message.string) - _placeholders(message.id)):
            text = f"%({unknown.pop()})s is not in the message; use its placeholders alone"
            raise CatalogError(f"{FOLDER}/{path.name}, line {message.lineno}: {text}")
    return catalog


def _placeholders(texts: str | Iterable[str] | None) -> set[str]:
    joined = texts if isinstance(texts, str) else " ".join(texts or ())
    return set(_PLACEHOLDER.findall(joined.replace("%%", "")))


def texts(message: Message) -> tuple[str, ...]:
    """Return the translation of a message, in every plural form."""
    return tuple(message.string) if isinstance(message.string, list | tuple) else (message.string or "",)


def source_text(message: Message) -> str:
    """Return a message in English, in the singular."""
    return str(message.id[0] if isinstance(message.id, tuple) else message.id)


def missing_placeholder(message: Message) -> str | None:
    """Return a placeholder of a message that its translation lacks: of a plural, that all its forms lack."""
    if not is_translated(message):
        return None
    return min(_placeholders(message.id) - _placeholders(message.string), default=None)


def _read(path: Path, tag: str, built_in: Translated | None) -> Translated:
    catalog = read_catalog(path)
    compiled = BytesIO()
    write_mo(compiled, catalog)  # without fuzzy messages
    compiled.seek(0)
    translations = Translations(compiled)
    done = {source_text(it) for it in catalog if is_translated(it)}
    if built_in is not None:
        translations.add_fallback(built_in.language.translations)
        done |= built_in.messages
    return Translated(Language(tag, translations), frozenset(done), (path, *(built_in.files if built_in else ())))


def is_translated(message: Message) -> bool:
    """Return whether a message has a finished translation, in every plural form."""
    if not message.id or message.fuzzy:
        return False
    return all(texts(message))


def catalog_for(template: bytes, locale: Locale) -> Catalog:
    """Return an empty catalogue for a language; `template` is a `.pot` file."""
    catalog = Catalog(locale=locale, charset="utf-8", fuzzy=False)
    catalog.update(read_po(BytesIO(template)))
    return catalog


def catalog_bytes(catalog: Catalog) -> bytes:
    """Return a `.po` or `.pot` file. Its header does not change from day to day."""
    header = ["MIME-Version: 1.0", "Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: 8bit"]
    if catalog.locale:
        header = [f"Language: {catalog.locale_identifier}", f"Plural-Forms: {catalog.plural_forms}", *header]
    lines = ['msgid ""', 'msgstr ""', *(f'"{it}\\n"' for it in header)]
    messages = BytesIO()
    write_po(messages, catalog, width=120, include_lineno=False, ignore_obsolete=True, omit_header=True)
    return ("\n".join(lines) + "\n\n").encode() + messages.getvalue()
