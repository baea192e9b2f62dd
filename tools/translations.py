"""`python tools/translations.py [LOCALE …]`: extract the messages of the templates and update all catalogues.

`templates/locales/messages.pot` lists the messages. A new message is added to each catalogue without a translation, a
changed one as fuzzy; `make check` fails until a translator has written it. LOCALE adds a catalogue for a language.
"""

import sys
from pathlib import Path

from babel import Locale
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po, write_po

TEMPLATES = Path(__file__).parent.parent / "templates"
LOCALES = TEMPLATES / "locales"
METHODS = [("**.html", "jinja2"), ("**.txt", "jinja2")]
OPTIONS = {"**": {"trimmed": "true", "newstyle_gettext": "true", "trim_blocks": "true", "lstrip_blocks": "true"}}


def extracted() -> Catalog:
    """Return the messages of the built-in templates, with the files that use them."""
    catalog = Catalog(project="otp-stream", charset="utf-8", fuzzy=False)
    options = {pattern: OPTIONS["**"] for pattern, _ in METHODS}
    found = extract_from_dir(TEMPLATES, METHODS, options, comment_tags=("NOTE:",), strip_comment_tags=True)
    for file, _, message, comments, context in sorted(found, key=lambda it: (it[0], it[1])):
        # without lines, which change too often
        catalog.add(message, None, [(file, 0)], auto_comments=comments, context=context)
    return catalog


def main(new: list[str]) -> None:
    """Write `messages.pot`, and the catalogues of all languages and of `new` ones."""
    template = extracted()
    _write(LOCALES / "messages.pot", template)
    for locale in {*new, *(it.stem for it in LOCALES.glob("*.po"))}:
        path = LOCALES / f"{locale}.po"
        catalog = Catalog(locale=Locale.parse(locale), charset="utf-8", fuzzy=False)
        if path.exists():
            with path.open("rb") as file:
                catalog = read_po(file, locale=locale)
        catalog.update(template)
        _write(path, catalog)


def _write(path: Path, catalog: Catalog) -> None:
    """Write a catalogue with a header that does not change from day to day."""
    header = ["MIME-Version: 1.0", "Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: 8bit"]
    if catalog.locale:
        header = [f"Language: {catalog.locale_identifier}", f"Plural-Forms: {catalog.plural_forms}", *header]
    with path.open("wb") as file:
        file.write(("\n".join(['msgid ""', 'msgstr ""', *(f'"{it}\\n"' for it in header)]) + "\n\n").encode())
        write_po(file, catalog, width=120, include_lineno=False, ignore_obsolete=True, omit_header=True)


if __name__ == "__main__":
    main(sys.argv[1:])
