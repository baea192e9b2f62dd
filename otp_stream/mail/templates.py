"""Finds all templates, compiles them once, and selects one by name and language.

    <folder>/<name>/subject.txt, body.txt, body.html          in English, or in any language without its own files
    <folder>/<name>/<locale>/...                              any of the three, in that language
    <folder>/locales/<locale>.po                              translations of all `{% trans %}` messages

Files in the operator's folder override the built-in ones, one by one.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateSyntaxError
from jinja2 import TemplateError as JinjaError
from jinja2.ext import Extension

from otp_stream.core.mail import ComposeError

from .catalogs import FOLDER, CatalogError, Catalogs
from .compiled import CompiledVariants, VariantCache
from .environment import environment
from .forked_renderer import ForkedRenderer
from .language import SOURCE, Language, fallbacks, normal_locale
from .loader import BUILT_IN_PREFIX, TemplateLoader, referenced
from .mail_template import FILES, MailTemplate
from .template_analysis import Parsed, ValueUses, analyze

LOCALE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8})*")
_PACKAGE = Path(__file__).parent.parent
BUILT_IN = next(it for it in (_PACKAGE / "templates", _PACKAGE.parent / "templates") if it.is_dir())
"""The built-in templates: in the package, or beside it in a checkout."""
_FOUND_LIMIT = 1_000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class TemplateError(Exception):
    """A template cannot be used; the text contains the file, the line and the fix."""


class Templates:
    """Every template in every language. Raises `TemplateError` if one cannot be compiled.

    With a list of `errors`, errors are added to it instead, and templates with errors are left out.
    """

    def __init__(
        self,
        override: Path | None,
        default_locale: str,
        errors: list[TemplateError] | None = None,
        extensions: Sequence[type[Extension]] = (),
        *,
        inline: bool = True,
    ) -> None:
        self._errors = errors
        self.referenced: set[str] = set()
        """Every file that another one extends, includes or imports by a constant name."""
        self.read: set[str] = set()
        """Every file that was compiled."""
        self._complete: set[str] = set()
        self._roots = [root for root in (override, BUILT_IN) if root is not None]
        self._default = fallbacks(default_locale)
        self._default_tag = default_locale or SOURCE
        self._loader = TemplateLoader(self._roots, inline=inline)
        self._jinja = environment(self._loader, extensions)
        self._extensions = extensions
        self._renderer = ForkedRenderer(self._render_here)
        self._existing: dict[str, bool] = {}
        self._messages: dict[str, frozenset[str]] = {}
        self._uses: dict[tuple[str, ...], ValueUses | None] = {}
        self._variants = VariantCache()
        self.catalogs = self._read_catalogs()
        self._templates = {name: self._languages(name) for name in self._names()}
        self._found: dict[tuple[str, str | None], MailTemplate] = {}
        if errors is None:  # `lint` reads the syntax trees again
            self._loader.clear()

    @property
    def names(self) -> list[str]:
        """The names of all templates."""
        return sorted(self._templates)

    def languages(self, name: str) -> list[str]:
        """Return the languages for which this template has files; `""` means those outside a language's folder."""
        return sorted(self._templates[name])

    def get(self, name: str, locale: str) -> MailTemplate:
        """Return a template in one of its languages."""
        return self._templates[name][locale]

    def shared(self) -> list[Template]:
        """Return the files outside the templates' folders, such as `layout.html`."""
        names = [it for it in self._jinja.list_templates(("html", "txt")) if "/" not in it]
        return [self._jinja.get_template(name) for name in names]

    def is_own(self, template: Template) -> bool:
        """Return whether a file is the operator's."""
        return self._roots[0] != BUILT_IN and Path(template.filename or "").is_relative_to(self._roots[0])

    def is_own_file(self, path: str) -> bool:
        """Return whether a path below the templates' folder is the operator's."""
        return self._roots[0] != BUILT_IN and (self._roots[0] / path).is_file()

    def parse(self, path: str) -> Parsed:
        """Return the source and the syntax tree of a file."""
        return self._loader.parse(self._jinja, path)

    def find(self, name: str, locale: str | None) -> MailTemplate:
        """Return the template in the closest language: `de-AT`, `de`, the default language, or without a language."""
        found = self._found.get((name, locale))
        if found is None:
            if len(self._found) >= _FOUND_LIMIT:
                self._found.clear()
            found = self._found[name, locale] = self._find(name, locale)
        return found

    def _find(self, name: str, locale: str | None) -> MailTemplate:
        by_locale = self._templates.get(name)
        if by_locale is None:
            raise ComposeError(f"metadata.template: there is none named {name}; known: {', '.join(self.names)}")
        for candidate in (*fallbacks(locale or ""), *self._default):
            if candidate in by_locale:
                return by_locale[candidate]
            for other, template in by_locale.items():
                if candidate in fallbacks(other):  # such as pt, if there is pt-BR alone
                    return template
        return by_locale[""]

    def _names(self) -> set[str]:
        folders = (folder for root in self._roots for folder in root.iterdir() if folder.is_dir())
        return {folder.name for folder in folders if NAME.fullmatch(folder.name) and folder.name != FOLDER}

    def _read_catalogs(self) -> Catalogs:
        errors: list[CatalogError] = []
        found = Catalogs(self._roots, errors)
        if self._errors is None and errors:
            raise TemplateError(str(errors[0]))
        if self._errors is not None:
            self._errors += (TemplateError(str(it)) for it in errors)
        return found

    def _languages(self, name: str) -> dict[str, MailTemplate]:
        folders = [
            folder
            for root in self._roots
            for folder in sorted((root / name).glob("*"))
            if folder.is_dir() and LOCALE.fullmatch(folder.name)
        ]
        paths: dict[str, list[str]] = {}
        for folder in folders:  # de-AT and de_AT are the same language
            paths.setdefault(normal_locale(folder.name), []).append(f"{name}/{folder.name}")
        templates: dict[str, MailTemplate] = {}
        for locale in dict.fromkeys(("", *paths, SOURCE, *self.catalogs.by_locale)):
            try:
                if template := self._template(name, locale, paths):
                    templates[locale] = template
            except TemplateError as error:
                if self._errors is None:
                    raise
                self._errors.append(error)
        return templates

    def _template(self, name: str, locale: str, paths: Mapping[str, list[str]]) -> MailTemplate | None:
        """Return a template in a language; `None` if it is not translated into this language."""
        found = [self._choose(file, name, locale, paths) for file in FILES]
        if locale and locale not in paths and not {it for _, it in found} <= set(fallbacks(locale)):
            return None
        subject, text, html = (self._compile(path) for path, _ in found)
        names = tuple(path for path, _ in found)
        if names not in self._uses:
            self._uses[names] = analyze(self._jinja, (subject, text, html), self.parse)
        one, two, three = (self._language(of, path) for path, of in found)
        translations = (one.translations, two.translations, three.translations)
        variants = CompiledVariants(self._uses[names], self._variants)
        forked = None
        # an extension, which `lint` has, may report by objects of this process
        if self._roots[0] != BUILT_IN and not self._extensions:
            forked = partial(self._run_forked, name, locale)
        return MailTemplate(subject, text, html, three, translations, variants, forked)

    def _run_forked(self, name: str, locale: str, cpu_s: float, data: Mapping[str, Any]) -> list[str]:
        return self._renderer.run(cpu_s, (name, locale, data))

    def _render_here(self, request: tuple[str, str, Mapping[str, Any]]) -> list[str]:
        name, locale, data = request
        return self._templates[name][locale].render_here(data)

    def close(self) -> None:
        """End the process in which an operator's templates are rendered. The next mail starts another one."""
        self._renderer.close()

    def _choose(self, file: str, name: str, locale: str, paths: Mapping[str, list[str]]) -> tuple[str, str]:
        """Return the path of a file in the closest language, and that language, empty if it is that of all others."""
        path = f"{name}/{file}"
        for candidate in (*fallbacks(locale), *self._default):
            for folder in paths.get(candidate, ()):
                if self._exists(f"{folder}/{file}"):
                    return f"{folder}/{file}", candidate
            # an operator's file in one language does not replace the built-in one in all others
            for it in (path, f"{BUILT_IN_PREFIX}{path}"):
                if self._exists(it) and self._is_in(candidate, it):
                    return it, candidate
        return path, ""

    def _is_in(self, locale: str, path: str) -> bool:
        """Return whether a file that is in no language's folder can be shown in a language."""
        found = self.messages(path)
        if not found:
            return locale in self._default
        translated = self.catalogs.by_locale.get(locale)
        if locale == SOURCE or translated is None:
            return locale == SOURCE
        return found <= translated.messages or SOURCE in fallbacks(locale)  # what en_GB.po lacks is English, too

    def _language(self, locale: str, path: str) -> Language:
        if translated := self.catalogs.by_locale.get(locale):
            return translated.language
        if locale in self._default[:1]:
            return Language(self._default_tag)
        return Language(locale or (SOURCE if self.messages(path) else self._default_tag))

    def _exists(self, path: str) -> bool:
        if path not in self._existing:  # each language asks for the same files
            roots, file = self._roots, path
            if path.startswith(BUILT_IN_PREFIX):
                roots, file = [BUILT_IN], path.removeprefix(BUILT_IN_PREFIX)
            self._existing[path] = any((root / file).is_file() for root in roots)
        return self._existing[path]

    def messages(self, path: str) -> frozenset[str]:
        """Return the messages that a file, or a file that it extends or includes, translates."""
        if path not in self._messages:
            self._compile(path)
            self._messages[path] = frozenset(self._all_messages(path, set()))
        return self._messages[path]

    def _all_messages(self, path: str, seen: set[str]) -> Iterable[str]:
        if path in seen or not self._exists(path):
            return
        seen.add(path)
        parsed = self.parse(path)
        yield from parsed.messages
        for node in parsed.references:
            for it in referenced(node):
                yield from self._all_messages(it, seen)

    def _compile(self, path: str) -> Template:
        if not self._exists(path):
            raise TemplateError(f"template {path}: is missing; every template needs {', '.join(FILES)}")
        try:
            self._compile_referenced(path, set())
            return self._jinja.get_template(path)
        except TemplateSyntaxError as error:
            raise TemplateError(f"template {error.name or path}, line {error.lineno}: {error.message}") from error
        except (JinjaError, UnicodeDecodeError) as error:
            raise TemplateError(f"template {path}: {error}") from error
        except RecursionError:
            raise TemplateError(f"template {path}: is nested too deeply; split its longest expression") from None
        except (SyntaxError, ValueError) as error:  # Python cannot compile the code that Jinja has generated
            text = error.msg if isinstance(error, SyntaxError) else str(error).partition(":")[0]
            raise TemplateError(f"template {path}: {text}") from None

    def _compile_referenced(self, path: str, seen: set[str]) -> None:
        """Compile a file and those that it extends or includes, which Jinja would read only for the first e-mail."""
        if path in self._complete:
            return
        seen.add(path)
        self.read.add(path)
        self._jinja.get_template(path)
        for node in self.parse(path).references:
            names = list(referenced(node))
            self.referenced.update(names)
            existing = [it for it in names if self._exists(it)]
            if names and not existing and not getattr(node, "ignore_missing", False):
                raise TemplateError(
                    f"template {path}, line {node.lineno}: there is no file {' or '.join(names)} in the templates' "
                    "folder; correct its name or add the file"
                )
            for it in existing:
                if it not in seen:
                    self._compile_referenced(it, seen)
        self._complete.add(path)
