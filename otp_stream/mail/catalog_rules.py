"""Finds missing, incorrect and unused translations."""

import re
from collections.abc import Iterable, Iterator, Sized
from contextlib import suppress
from pathlib import Path

from babel.messages.catalog import Catalog
from jinja2 import TemplateError as JinjaError
from jinja2 import nodes

from .catalogs import FOLDER, CatalogError, is_translated, missing_placeholder, read_catalog, source_text, texts
from .finding import Finding
from .language import normal_locale
from .loader import BUILT_IN_PREFIX
from .mail_template import FILES
from .sources import without_markers
from .templates import BUILT_IN, TemplateError, Templates

_LONGEST = 60
_TAG = re.compile(r"</?\w[^>]*>?")
_NO_TEXT = re.compile(r"<[^>]*>|&#?\w+;")


def check_catalogs(templates: Templates, root: Path | None) -> Iterator[Finding]:
    """Check the catalogues against the templates: the operator's in `root`, or the built-in ones without it."""
    own = _own_catalogs(root or BUILT_IN)
    by_file: dict[str, frozenset[str]] = {}
    for file in sorted(templates.read):
        with suppress(JinjaError):  # already reported
            by_file[file] = templates.parse(file).messages
    used = {message for it in by_file.values() for message in it}
    for path, catalog in own.items():
        yield from _check_catalog(f"{FOLDER}/{path.name}", catalog, used)
        if root is not None:
            yield from _check_unfinished(templates, path, catalog)
    if root is None:
        yield from _check_built_in(templates, used)
        return
    locales = {normal_locale(it.stem) for it in own}
    for file, it in by_file.items():
        if templates.is_own_file(file):
            with suppress(JinjaError, TemplateError):  # of a file that it extends: already reported
                yield from _check_file(templates, file, it, locales) if it else _check_untranslated(templates, file)


def _own_catalogs(root: Path) -> dict[Path, Catalog]:
    """Return the catalogues that can be read."""
    found: dict[Path, Catalog] = {}
    for path in sorted((root / FOLDER).glob("*.po")):
        try:
            found[path] = read_catalog(path)
        except CatalogError:  # already reported
            continue
    return found


def _check_catalog(file: str, catalog: Catalog, used: set[str]) -> Iterator[Finding]:
    unused = [it for it in catalog if it.id and source_text(it) not in used]
    if unused:
        text = f"{_count(unused)} used by no template, such as {_shown(source_text(unused[0]))}"
        yield Finding(
            file, unused[0].lineno, "warning", f"{text}; correct it to the text of the template, or remove it"
        )
    for it in catalog:
        if name := missing_placeholder(it):
            text = f"the translation of {_shown(source_text(it))} lacks %({name})s; add it"
            yield Finding(file, it.lineno, "warning", text)
        if is_translated(it) and any(_tags(one) != _tags(source_text(it)) for one in texts(it)):
            text = f"the translation of {_shown(source_text(it))} has other HTML tags than the message; use the same"
            yield Finding(file, it.lineno, "error", text)


def _check_unfinished(templates: Templates, path: Path, catalog: Catalog) -> Iterator[Finding]:
    """Check that an operator's catalogue completes every built-in template of which it translates a message."""
    locale, file = normal_locale(path.stem), f"{FOLDER}/{path.name}"
    translated = templates.catalogs.by_locale[locale].messages
    for it in catalog:
        if it.id and it.fuzzy and source_text(it) in translated:
            text = f"the translation of {_shown(source_text(it))} is fuzzy, so the built-in one is sent"
            yield Finding(file, it.lineno, "warning", f"{text}; correct it, and remove the fuzzy flag")
    listed = {source_text(it) for it in catalog if it.id}
    of_own = _all_messages(templates, filter(templates.is_own_file, templates.read))
    lost: list[str] = []
    missing: set[str] = set()
    for name in templates.names:
        needed = _all_messages(templates, (f"{BUILT_IN_PREFIX}{name}/{it}" for it in FILES))
        if (listed & needed) - of_own and not needed <= translated:
            lost.append(name)
            missing |= needed - translated
    if lost:
        text = f"{_count(missing)} missing, fuzzy or not translated, so {', '.join(lost)} cannot be sent in {locale}"
        yield Finding(file, None, "error", f"{text}; translate {_shown(min(missing))}")


def _all_messages(templates: Templates, files: Iterable[str]) -> set[str]:
    """Return the messages of files that can be compiled, and of those that they extend or include."""
    found: set[str] = set()
    for it in files:
        with suppress(JinjaError, TemplateError):  # missing, or already reported
            found |= templates.messages(it)
    return found


def _check_built_in(templates: Templates, used: set[str]) -> Iterator[Finding]:
    for locale, it in templates.catalogs.by_locale.items():
        if missing := sorted(used - it.messages):
            text = f"{_count(missing)} missing, fuzzy or not translated, such as {_shown(missing[0])}"
            yield Finding(f"{FOLDER}/{it.files[0].name}", None, "error", f"{text}; translate it for {locale}")


def _check_file(templates: Templates, file: str, messages: frozenset[str], locales: set[str]) -> Iterator[Finding]:
    """Check one of the operator's files; `locales` are those of the operator's catalogues."""
    *_, folder, _ = ("", *file.split("/"))
    incomplete: dict[str, str] = {}
    for locale, it in templates.catalogs.by_locale.items():
        missing = sorted(messages - it.messages)
        if not missing or (file.count("/") > 1 and locale != normal_locale(folder)):
            continue
        if locale in locales or _is_lost(templates, locale):
            text = f"{_count(missing)} not translated into {locale}, so {_sent_instead(templates, file)}"
            fix = f"translate {_shown(missing[0])} in {FOLDER}/{it.files[0].name}"
            yield Finding(file, None, "error", f"{text}; {fix}")
        else:
            incomplete[locale] = it.files[0].name
    if incomplete:
        text = f"is not translated into {', '.join(incomplete)}, so {_sent_instead(templates, file)} there"
        example = next(iter(incomplete.values()))
        yield Finding(
            file, None, "warning", f"{text}; add catalogues such as {FOLDER}/{example} unless that is intended"
        )


def _is_lost(templates: Templates, locale: str) -> bool:
    """Return whether a shared file makes a built-in template unavailable in a language."""
    return any(locale not in templates.languages(it) for it in templates.names if (BUILT_IN / it).is_dir())


def _sent_instead(templates: Templates, file: str) -> str:
    return "the built-in file is sent" if _overrides_translated(templates, file) else "the e-mail is sent in English"


def _overrides_translated(templates: Templates, file: str) -> bool:
    name = file.rpartition("/")[2]
    return (
        "/" in file
        and name in FILES
        and (BUILT_IN / file).is_file()
        and bool(templates.messages(BUILT_IN_PREFIX + file))
    )


def _check_untranslated(templates: Templates, file: str) -> Iterator[Finding]:
    """Check a file without messages."""
    folder, _, name = file.partition("/")
    if name not in FILES:  # shared, or in the folder of a language
        return
    if templates.messages(file):
        if _has_text(templates.parse(file).tree):
            text = "has text without {% trans %}, but extends a file that is translated, so e-mails mix languages"
            yield Finding(file, None, "warning", f"{text}; write {{% trans %}}…{{% endtrans %}} around it")
    elif _overrides_translated(templates, file):
        kept = [it for it in templates.languages(folder) if it and _uses_built_in(templates, folder, it, file)]
        if kept:
            text = f"has no {{% trans %}}, so the built-in file is sent in {', '.join(kept)}"
            example = f"{folder}/{kept[0]}/{name}"
            fix = f"add {{% trans %}}, or files such as {example}, or set DEFAULT_LOCALE to its language"
            yield Finding(file, None, "warning", f"{text}; {fix}")


def _uses_built_in(templates: Templates, name: str, locale: str, file: str) -> bool:
    it = templates.get(name, locale)
    return BUILT_IN_PREFIX + file in {str(part.name) for part in (it.subject, it.text, it.html)}


def _has_text(tree: nodes.Template) -> bool:
    data = " ".join(without_markers(it.data) for it in tree.find_all(nodes.TemplateData))
    return any(it.isalpha() for it in _NO_TEXT.sub("", data))


def _tags(text: str) -> list[str]:
    return sorted(_TAG.findall(text))


def _count(messages: Sized) -> str:
    return f"{len(messages)} messages are" if len(messages) > 1 else "one message is"


def _shown(message: str) -> str:
    return repr(message if len(message) <= _LONGEST else f"{message[:_LONGEST]}…")
