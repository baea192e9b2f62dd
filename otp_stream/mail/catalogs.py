"""Translations of the templates' messages: one gettext catalogue for each language.

    <folder>/locales/<locale>.po        such as de.po or pt_BR.po

Messages of the operator's catalogues come before the built-in ones.
"""

import re
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field, replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from babel import Locale
from babel.messages.catalog import Catalog, Message
from babel.messages.mofile import write_mo
from babel.messages.pofile import PoFileError, read_po, write_po
from babel.support import Translations

from otp_stream.core.lenient import LOCALE

from .folder_files import UnsafeFileError, read_within
from .language import Language, fallbacks, normal_locale

FOLDER = "locales"
_UNQUOTED = re.compile(rb'^[^#"]*"(?:[^"\\]|\\.)*$')
"""A line with a text without its closing quote."""
_OVERQUOTED = re.compile(rb'^[^#"]*"(?:[^"\\]|\\.)*"\s*\S')
"""A line with a quote inside its text."""
_ZERO_BASED = re.compile(r" on \d+$")
_PRIVATE = re.compile("[\ue000-\uf8ff]")
_BOM = b"\xef\xbb\xbf"
_COUNTS = range(200)
"""Numbers with every plural form: forms repeat after 100."""
_PLACEHOLDER = re.compile(r"%(?:\((\w+)\)s)?")
"""A placeholder. The name is empty for any other `%`, which must be written as `%%`."""


class CatalogError(Exception):
    """A catalogue cannot be used; the text contains the file, the line and the fix."""


@dataclass(frozen=True, slots=True)
class Translated:
    """The translations into one language; `messages` are the English messages that are translated."""

    language: Language
    messages: frozenset[str]
    files: tuple[Path, ...] = field(default=())


class Catalogs:
    """The catalogues of some folders, the first folder's messages first. Raises `CatalogError`.

    With a list of `errors`, errors are added to it instead, and files with errors are left out.
    """

    def __init__(self, roots: list[Path], errors: list[CatalogError] | None = None) -> None:
        self.by_locale: dict[str, Translated] = {}
        for root in reversed(roots):
            # the names of temporary files of editors, and of the system's files, begin with a dot
            for path in filter(Path.is_file, sorted((root / FOLDER).glob("[!.]*.po"))):
                tag = path.stem.replace("_", "-")
                key = normal_locale(tag)
                try:
                    within = root if root in roots[:-1] else None
                    self.by_locale[key] = _read(path, tag, self.by_locale.get(key), within)
                except CatalogError as error:
                    if errors is None:
                        raise
                    errors.append(error)
        for key in sorted(self.by_locale, key=len):  # de-AT has the messages of de, too
            if parent := next((it for it in fallbacks(key)[1:] if it in self.by_locale), None):
                self.by_locale[key] = _extended(self.by_locale[key], self.by_locale[parent])

    def languages_of(self, messages: frozenset[str]) -> list[str]:
        """Return the locales into which all of these messages are translated."""
        return [locale for locale, it in self.by_locale.items() if messages and messages <= it.messages]

    def closest(self, locale: str) -> str | None:
        """Return the locale of the catalogue for a language: `pt-br` for `pt`, if there is none for `pt`."""
        if locale in self.by_locale:
            return locale
        return next((it for it in self.by_locale if locale in fallbacks(it)), None)


def read_catalog(path: Path, within: Path | None = None) -> Catalog:
    """Read a file, which must be in the operator's folder `within`, if given. Raises `CatalogError`."""
    file = f"{FOLDER}/{path.name}"
    lines = _lines(path, file, within)
    try:
        catalog = read_po(lines, locale=path.stem.replace("-", "_"), ignore_obsolete=True, abort_invalid=True)
    except PoFileError as error:
        raise CatalogError(f"{file}, line {error.lineno + 1}: {_ZERO_BASED.sub('', str(error))}; correct it") from None
    except UnicodeDecodeError as error:
        line = next((number for number, it in enumerate(lines, 1) if error.object in it), 1)
        raise CatalogError(f"{file}, line {line}: is not {error.encoding.upper()}; save the file as UTF-8") from None
    except (ValueError, LookupError, TypeError) as error:  # an unknown locale, a bad header
        raise CatalogError(f"{file}: {error}") from None
    for message in catalog:
        if message.id and (problem := _problem(message)):
            raise CatalogError(f"{file}, line {message.lineno}: {problem}")
    return catalog


def _lines(path: Path, file: str, within: Path | None) -> list[bytes]:
    if not LOCALE.fullmatch(path.stem):
        raise CatalogError(f"{file}: is not named after a language; rename it, as in de.po or pt_BR.po")
    try:
        content = (read_within(within, path) if within else path.read_bytes()).removeprefix(_BOM)
    except UnsafeFileError as error:
        raise CatalogError(f"{file} {error}") from None
    if b"\0" in content:
        raise CatalogError(f"{file}: is not text in UTF-8; save the file as UTF-8")
    lines = content.splitlines(keepends=True)
    for number, it in enumerate(lines, 1):  # Babel would cut off its last character, or print the quote
        if _UNQUOTED.search(it):
            raise CatalogError(f"{file}, line {number}: has no closing quote; write it")
        if _OVERQUOTED.search(it):
            raise CatalogError(f'{file}, line {number}: has a quote inside the text; write it as \\"')
    return lines


def _problem(message: Message) -> str | None:
    if unknown := _placeholders(message.string) - _placeholders(message.id):
        name = unknown.pop()
        placeholder = f"%({name})s is not in the message; use only the placeholders of the message"
        return placeholder if name else "has a % that is not part of a placeholder; write it as %%"
    if any(map(_PRIVATE.search, texts(message))):
        return "contains a private-use character, which each program shows differently; remove it"
    return None


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
    """Return a placeholder of a message that its translation lacks, in all forms if it is a plural."""
    if not is_translated(message):
        return None
    return min(_placeholders(message.id) - _placeholders(message.string), default=None)


def _read(path: Path, tag: str, built_in: Translated | None, within: Path | None) -> Translated:
    status = path.stat()
    it = _read_once(path, tag, within, (status.st_mtime_ns, status.st_size, status.st_ino))
    # a copy, because `_extended` adds to it; it shares the messages
    it = replace(it, language=replace(it.language, translations=copy(it.language.translations)))
    return _extended(it, built_in) if built_in else it


@lru_cache(64)
def _read_once(path: Path, tag: str, within: Path | None, _state: object) -> Translated:
    """Read a catalogue, such as a built-in one, once for the folders of all tenants, and again if it has changed."""
    catalog = read_catalog(path, within)
    for message in list(catalog):  # otherwise, some forms of an unfinished plural would be in English
        if message.id and not is_translated(message):
            catalog.delete(message.id, message.context)
    return Translated(Language(tag, _translations(path, catalog)), frozenset(map(source_text, catalog)), (path,))


def _translations(path: Path, catalog: Catalog) -> Translations:
    compiled = BytesIO()
    try:
        write_mo(compiled, catalog)
        compiled.seek(0)
        translations = Translations(compiled)
        if {translations.plural(it) for it in _COUNTS} <= set(range(catalog.num_plurals)):
            return translations
        problem = f"Plural-Forms yields a form that is not less than nplurals={catalog.num_plurals}"
    except (ValueError, LookupError, ArithmeticError) as error:
        problem = str(error)
    raise CatalogError(f"{FOLDER}/{path.name}: {problem}; correct its header, as in de.po of the built-in templates")


def _extended(first: Translated, second: Translated) -> Translated:
    """Return translations that fall back to those of another file."""
    first.language.translations.add_fallback(second.language.translations)
    return replace(first, messages=first.messages | second.messages, files=(*first.files, *second.files))


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
