"""The templates: found, compiled once, and chosen by name and language.

    <folder>/<name>/subject.txt, body.txt, body.html          the text for every language that has none of its own
    <folder>/<name>/<locale>/...                              any of the three, in that language

The folder of the operator goes before ours, file by file.
"""

import re
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import (
    Environment,
    FileSystemLoader,
    StrictUndefined,
    Template,
    TemplateSyntaxError,
    UndefinedError,
    nodes,
    select_autoescape,
)
from jinja2 import TemplateError as JinjaError
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension

from otp_stream.core.mail import ComposeError

from .form import Forms, Parts
from .limit import MEMORY, Sandbox, TooLongError, within
from .message import Part
from .uses import Parsed

_PACKAGE = Path(__file__).parent.parent
OURS = next(it for it in (_PACKAGE / "templates", _PACKAGE.parent / "templates") if it.is_dir())
"""The built-in templates: in the package, or beside it in a checkout."""
RENDER_CPU_S = 2.0
"""Processor time for one e-mail's three templates; a usual one takes 30 µs."""
FILES = ("subject.txt", "body.txt", "body.html")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_MISSING_KEY = re.compile(r"'\w+' is undefined")
LOCALE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8})*")


class TemplateError(Exception):
    """A template cannot be used; the text names the file, the line and the cure."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One e-mail's three templates, compiled."""

    subject: Template
    text: Template
    html: Template
    forms: Forms

    def parts(self, data: Mapping[str, Any]) -> Parts:
        """Return what a message is made of. Raises `ComposeError`, whose text quotes no data."""
        if parts := self.forms.fill(data, self.render):
            return parts
        subject, text, html = self.render(data)
        return subject, Part.of(text), Part.of(html)

    def render(self, data: Mapping[str, Any]) -> tuple[str, str, str]:
        """Return subject, plain text and HTML. Raises `ComposeError`, whose text quotes no data."""
        # one dictionary for all three: to make a context costs as much as to render a short text
        given = {**self.html.globals, **data}
        return within(
            RENDER_CPU_S, lambda: (_render(self.subject, given), _render(self.text, given), _render(self.html, given))
        )


class TemplateBook:
    """Every template in every language. Raises `TemplateError` when one of them cannot be compiled.

    Where `faults` are given they are collected there instead, and what has one is left out.
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
        self._followed: set[str] = set()
        self._roots = [root for root in (override, OURS) if root is not None]
        self._default = _tongues(default_locale)
        self._files = _Loader(self._roots)
        self._jinja = Sandbox(
            loader=self._files,
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
        self._layouts = {name: self._languages(name) for name in self._names()}
        self._files.clear()

    @property
    def names(self) -> list[str]:
        """Every template's name."""
        return sorted(self._layouts)

    def languages(self, name: str) -> list[str]:
        """Every language in which any file of this template is written; `""` is the one without a folder."""
        return sorted(self._layouts[name])

    def layout(self, name: str, tongue: str) -> Layout:
        """Return the template in one of its languages."""
        return self._layouts[name][tongue]

    def shared(self) -> list[Template]:
        """Return what lies beside the templates' folders, such as `layout.html`."""
        names = [it for it in self._jinja.list_templates(("html", "txt")) if "/" not in it]
        return [self._jinja.get_template(name) for name in names]

    def is_own(self, template: Template) -> bool:
        """Tell whether a file is the operator's."""
        return self._roots[0] != OURS and Path(template.filename or "").is_relative_to(self._roots[0])

    def is_own_file(self, path: str) -> bool:
        """Tell the same of a path below the templates' folder."""
        return self._roots[0] != OURS and (self._roots[0] / path).is_file()

    def parse(self, path: str) -> nodes.Template:
        """Return the syntax tree of a file."""
        return self._files.parse(self._jinja, path)[1]

    def find(self, name: str, locale: str | None) -> Layout:
        """Return the template in the closest language: `de-AT`, then `de`, then the default, then the plain one."""
        layouts = self._layouts.get(name)
        if layouts is None:
            raise ComposeError(f"metadata.template: there is none named {name}; known: {', '.join(self.names)}")
        for tongue in (*_tongues(locale or ""), *self._default):
            if tongue in layouts:
                return layouts[tongue]
        return layouts[""]

    def _names(self) -> set[str]:
        folders = (folder for root in self._roots for folder in root.iterdir() if folder.is_dir())
        return {folder.name for folder in folders if NAME.fullmatch(folder.name)}

    def _languages(self, name: str) -> dict[str, Layout]:
        folders = [
            folder
            for root in self._roots
            for folder in sorted((root / name).glob("*"))
            if folder.is_dir() and LOCALE.fullmatch(folder.name)
        ]
        written: dict[str, list[str]] = {}
        for folder in folders:  # de-AT and de_AT are one language
            written.setdefault(normal_locale(folder.name), []).append(f"{name}/{folder.name}")
        layouts: dict[str, Layout] = {}
        for tongue in ("", *written):
            try:
                layouts[tongue] = self._layout(name, tongue, written)
            except TemplateError as error:
                if self._faults is None:
                    raise
                self._faults.append(error)
        return layouts

    def _layout(self, name: str, tongue: str, written: Mapping[str, list[str]]) -> Layout:
        places = [place for near in (*_tongues(tongue), *self._default) for place in written.get(near, ())] + [name]
        subject, text, html = (self._compile(file, places) for file in FILES)
        return Layout(
            subject, text, html, Forms(self._jinja, (subject, text, html), partial(self._files.parse, self._jinja))
        )

    def _compile(self, file: str, places: list[str]) -> Template:
        for place in places:
            path = f"{place}/{file}"
            if any((root / path).is_file() for root in self._roots):
                try:
                    self._follow(path, set())
                    return self._jinja.get_template(path)
                except TemplateSyntaxError as error:
                    raise TemplateError(
                        f"template {error.name or path}, line {error.lineno}: {error.message}"
                    ) from error
                except (JinjaError, UnicodeDecodeError) as error:
                    raise TemplateError(f"template {path}: {error}") from error
        raise TemplateError(f"template {places[-1]}/{file}: is missing; every template needs {', '.join(FILES)}")

    def _follow(self, path: str, seen: set[str]) -> None:
        """Compile what a file extends and includes: Jinja itself would not look at it before the first e-mail."""
        if path in self._followed:
            return
        seen.add(path)
        self.read.add(path)
        self._jinja.get_template(path)
        for node in self.parse(path).find_all((nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)):
            names = list(_referenced(node))
            self.referenced.update(names)
            existing = [it for it in names if any((root / it).is_file() for root in self._roots)]
            if names and not existing and not getattr(node, "ignore_missing", False):
                raise TemplateError(
                    f"template {path}, line {node.lineno}: there is no file {' or '.join(names)} in the templates' "
                    "folder; correct its name or add the file"
                )
            for near in existing:
                if near not in seen:
                    self._follow(near, seen)
        self._followed.add(path)


class _Loader(FileSystemLoader):
    """Reads and parses each file once, although many templates share it."""

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
        """Forget the syntax trees: a worker does not need them once the templates are compiled."""
        self._parsed.clear()


def _referenced(node: nodes.Node) -> Iterator[str]:
    """Return the names that an `extends`, `include` or `import` may take; none where any of them is computed."""
    wanted = getattr(node, "template", None)
    items = wanted.items if isinstance(wanted, nodes.List | nodes.Tuple) else [wanted]
    names = [str(it.value) for it in items if isinstance(it, nodes.Const)]
    if len(names) == len(items):
        yield from names


def normal_locale(locale: str) -> str:
    """Return the one form of a language: `de-at` for `de_AT`."""
    return locale.replace("_", "-").lower()


def _tongues(locale: str) -> tuple[str, ...]:
    """Return `("de-at", "de")` for `de-AT`; nothing for nothing."""
    parts = normal_locale(locale).split("-") if locale else []
    return tuple("-".join(parts[:count]) for count in range(len(parts), 0, -1))


def _render(template: Template, given: dict[str, Any]) -> str:
    try:
        try:
            return "".join(template.root_render_func(template.new_context(given, shared=True)))
        except Exception:  # noqa: BLE001 - as `Template.render` does, so that the trace shows the template's lines
            template.environment.handle_exception()
    except Exception as error:  # noqa: BLE001 - a template is code: it can fail in any way
        # from None, and only the kind: the message may quote what the template was given
        raise ComposeError(f"{_place(template, error)}: {_kind(error)}") from None


def _kind(error: Exception) -> str:
    if isinstance(error, TooLongError):
        return f"takes more than {RENDER_CPU_S:g} s; an endless loop?"
    if isinstance(error, MemoryError):
        return f"takes more than {MEMORY >> 20} MiB of memory"
    if isinstance(error, SecurityError):
        return "uses something that templates may not use: see docs/templates.md"
    if isinstance(error, UndefinedError) and error.message and _MISSING_KEY.fullmatch(error.message):
        return f"{error.message}; give it in metadata"
    return type(error).__name__


def _place(template: Template, error: BaseException) -> str:
    place, trace = f"template {template.name}", error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if path.suffix in {".html", ".txt"}:
            place = f"template {path.name if path.name not in FILES else template.name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return place
