"""`python tools/translations.py [LOCALE …]`: extract the messages of the templates and update all catalogues.

`templates/locales/messages.pot` lists the messages. A new message is added to each catalogue without a translation, a
changed one as fuzzy; `make check` fails until a translator has written it. LOCALE adds a catalogue for a language.
"""

import sys
from pathlib import Path

from babel import Locale
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir

from otp_stream.mail.catalogs import catalog_bytes, catalog_for, read_catalog

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
    content = catalog_bytes(template)
    (LOCALES / "messages.pot").write_bytes(content)
    for locale in {*new, *(it.stem for it in LOCALES.glob("*.po"))}:
        path = LOCALES / f"{locale}.po"
        catalog = read_catalog(path) if path.exists() else catalog_for(content, Locale.parse(locale))
        catalog.update(template)
        path.write_bytes(catalog_bytes(catalog))


if __name__ == "__main__":
    main(sys.argv[1:])
