"""Finds all templates, compiles them once, and selects one by name and language.

    <folder>/<name>/subject.txt, body.txt, body.html          for every language without its own files
    <folder>/<name>/<locale>/...                              any of the three, in that language

Files in the operator's folder override the built-in ones, one by one.
"""

import re
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import (
    Environment,
    FileSystemLoader,
    StrictUndefined,
    Template,
    TemplateSyntaxError,
    nodes,
    select_autoescape,
)
from jinja2 import TemplateError as JinjaError
from jinja2.ext import Extension

from otp_stream.core.mail import ComposeError

from .compiled import CompiledVariants
from .mail_template import FILES, MailTemplate
from .sandbox import Sandbox
from .template_analysis import Parsed

LOCALE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8})*")
_PACKAGE = Path(__file__).parent.parent
BUILT_IN = next(it for it in (_PACKAGE / "templates", _PACKAGE.parent / "templates") if it.is_dir())
"""The built-in templates: in the package, or beside it in a checkout."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class TemplateLoader(FileSystemLoader):
    """Reads and parses each file once, even if many templates share it."""

    def __init__(self, roots: list[Path]) -> None:
        super().__init__(roots)
        self._parsed: dict[str, Parsed] = {}

    def parse(self, environment: Environment, path: str) -> Parsed:
        """Return a file's source and syntax tree."""
        if path not in self._parsed:
            source, _, _ = self.get_source(environment, path)
            self._parsed[path] = source, environment.parse(source, path)
        return self._parsed[path]

    def load(
        self,
        environment: Environment,
        name: str,
        globals: MutableMapping[str, Any] | None = None,  # noqa: A002 - Jinja's name
    ) -> Template:
        """Compile a file."""
        _, filename, is_current = self.get_source(environment, name)
        code = environment.compile(self.parse(environment, name)[1], name, filename)
        return environment.template_class.from_code(environment, code, globals or {}, is_current)

    def clear(self) -> None:
        """Drop the syntax trees, which a worker no longer needs once the templates are compiled."""
        self._parsed.clear()


def referenced(node: nodes.Node) -> Iterator[str]:
    """Yield the files that an `extends`, `include` or `import` may use; none if any name is computed."""
    wanted = getattr(node, "template", None)
    items = wanted.items if isinstance(wanted, nodes.List | nodes.Tuple) else [wanted]
    names = [str(it.value) for it in items if isinstance(it, nodes.Const)]
    if len(names) == len(items):
        yield from names


def normal_locale(locale: str) -> str:
    """Return the normal form of a locale: `de-at` for `de_AT`."""
    return locale.replace("_", "-").lower()


def fallbacks(locale: str) -> tuple[str, ...]:
    """Return `("de-at", "de")` for `de-AT`; nothing for an empty locale."""
    parts = normal_locale(locale).split("-") if locale else []
    return tuple("-".join(parts[:count]) for count in range(len(parts), 0, -1))


class TemplateError(Exception):
    """A template cannot be used; the text contains the file, the line and the fix."""


class Templates:
    """Every template in every language. Raises `TemplateError` if one cannot be compiled.

    With a list of `faults`, errors are added to it instead, and templates with errors are left out.
    """

    def __init__(
        self,
        override: Path | None,
        default_locale: str,
        faults: list[TemplateError] | None = None,
        extensions: Sequence[type[Extension]] = (),
    ) -> None:
        self._faults = faults
        self.referenced: set[str] = set()
        """Every file that another one extends, includes or imports by a constant name."""
        self.read: set[str] = set()
        """Every file that was compiled."""
        self._complete: set[str] = set()
        self._roots = [root for root in (override, BUILT_IN) if root is not None]
        self._default = fallbacks(default_locale)
        self._loader = TemplateLoader(self._roots)
        self._jinja = Sandbox(
            loader=self._loader,
            # a subject and a plain text must not be escaped
            autoescape=select_autoescape(enabled_extensions=("html",), default=False),
            undefined=StrictUndefined,
            extensions=extensions,
            optimized=False,  # see `Sandbox`
            auto_reload=False,
            cache_size=-1,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates = {name: self._languages(name) for name in self._names()}
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

    def parse(self, path: str) -> nodes.Template:
        """Return the syntax tree of a file."""
        return self._loader.parse(self._jinja, path)[1]

    def find(self, name: str, locale: str | None) -> MailTemplate:
        """Return the template in the closest language: `de-AT`, `de`, the default language, or without a language."""
        by_locale = self._templates.get(name)
        if by_locale is None:
            raise ComposeError(f"metadata.template: there is none named {name}; known: {', '.join(self.names)}")
        for candidate in (*fallbacks(locale or ""), *self._default):
            if candidate in by_locale:
                return by_locale[candidate]
        return by_locale[""]

    def _names(self) -> set[str]:
        folders = (folder for root in self._roots for folder in root.iterdir() if folder.is_dir())
        return {folder.name for folder in folders if NAME.fullmatch(folder.name)}

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
        for locale in ("", *paths):
            try:
                templates[locale] = self._template(name, locale, paths)
            except TemplateError as error:
                if self._faults is None:
                    raise
                self._faults.append(error)
        return templates

    def _template(self, name: str, locale: str, paths: Mapping[str, list[str]]) -> MailTemplate:
        candidates = (*fallbacks(locale), *self._default)
        folders = [folder for candidate in candidates for folder in paths.get(candidate, ())] + [name]
        subject, text, html = (self._compile(file, folders) for file in FILES)
        parse = partial(self._loader.parse, self._jinja)
        return MailTemplate(subject, text, html, CompiledVariants(self._jinja, (subject, text, html), parse))

    def _compile(self, file: str, folders: list[str]) -> Template:
        for folder in folders:
            path = f"{folder}/{file}"
            if any((root / path).is_file() for root in self._roots):
                try:
                    self._compile_referenced(path, set())
                    return self._jinja.get_template(path)
                except TemplateSyntaxError as error:
                    raise TemplateError(
                        f"template {error.name or path}, line {error.lineno}: {error.message}"
                    ) from error
                except (JinjaError, UnicodeDecodeError) as error:
                    raise TemplateError(f"template {path}: {error}") from error
        raise TemplateError(f"template {folders[-1]}/{file}: is missing; every template needs {', '.join(FILES)}")

    def _compile_referenced(self, path: str, seen: set[str]) -> None:
        """Compile a file and those that it extends or includes, which Jinja would read only for the first e-mail."""
        if path in self._complete:
            return
        seen.add(path)
        self.read.add(path)
        self._jinja.get_template(path)
        for node in self.parse(path).find_all((nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)):
            names = list(referenced(node))
            self.referenced.update(names)
            existing = [it for it in names if any((root / it).is_file() for root in self._roots)]
            if names and not existing and not getattr(node, "ignore_missing", False):
                raise TemplateError(
                    f"template {path}, line {node.lineno}: there is no file {' or '.join(names)} in the templates' "
                    "folder; correct its name or add the file"
                )
            for it in existing:
                if it not in seen:
                    self._compile_referenced(it, seen)
        self._complete.add(path)
