"""Reads the files of templates: each once, with its style sheet inlined."""

import time
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from types import CodeType
from typing import Any

from jinja2 import Environment, FileSystemLoader, Template, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.loaders import split_template_path

from .folder_files import UnsafeFileError, read_within
from .inlined import inlined
from .template_analysis import Parsed

BUILT_IN_PREFIX = "built-in/"
"""Prefix of the path of a built-in file that the operator's file of the same path must not override."""

_FILE_CPU_S = 1.0
"""CPU time to compile one file, usually 5 ms. Nothing else in the worker runs during the calls of C code in it."""

_Key = tuple[str, str, bool, frozenset[str]]
"""A built-in file: its path and source, and how it is read."""
_TREES: dict[_Key | None, Parsed] = {}
"""Built-in files, which are the same for all folders of operators. Parsing and compiling them takes 25 ms."""
_CODE: dict[_Key | None, CodeType] = {}


class TemplateLoader(FileSystemLoader):
    """Reads and parses each file once, even if many templates share it."""

    def __init__(self, roots: list[Path], *, inline: bool) -> None:
        super().__init__(roots)
        self._built_in = FileSystemLoader(roots[-1])
        self._own = [Path(root) for root in roots[:-1]]
        self._inline = inline
        self._parsed: dict[str, Parsed] = {}

    def get_source(self, environment: Environment, template: str) -> tuple[str, str, Callable[[], bool]]:
        """Return the source of a file, its path, and a function that is not used."""
        if template.startswith(BUILT_IN_PREFIX):
            return self._built_in.get_source(environment, template.removeprefix(BUILT_IN_PREFIX))
        file = Path(*split_template_path(template))
        for root in self._own:
            if (root / file).is_file():
                try:
                    content = read_within(root, root / file).decode()
                except UnsafeFileError as error:
                    raise SecurityError(f"{template} {error}") from None
                return content.replace("\r\n", "\n").replace("\r", "\n"), str(root / file), lambda: True
        return self._built_in.get_source(environment, template)

    def parse(self, environment: Environment, path: str) -> Parsed:
        """Return a file's source and syntax tree."""
        if path not in self._parsed:
            source, filename, _ = self.get_source(environment, path)
            key = self._key(environment, path, source, filename)
            if key not in _TREES:
                parsed = self._parse(environment, path, source)
                if key is None:
                    self._parsed[path] = parsed
                    return parsed
                _TREES[key] = parsed
            self._parsed[path] = _TREES[key]
        return self._parsed[path]

    def _parse(self, environment: Environment, path: str, source: str) -> Parsed:
        tree = environment.parse(source, path)  # first, because an error must name a line of this source
        changed = _inlined(source, path)
        if self._inline and changed != source:
            return Parsed(changed, environment.parse(changed, path))
        return Parsed(source, tree)

    def _key(self, environment: Environment, path: str, source: str, filename: str) -> _Key | None:
        if not Path(filename).is_relative_to(self._built_in.searchpath[0]):
            return None
        return path, source, self._inline, frozenset(environment.extensions)

    def load(
        self,
        environment: Environment,
        name: str,
        globals: MutableMapping[str, Any] | None = None,  # noqa: A002 - Jinja's name
    ) -> Template:
        """Compile a file."""
        source, filename, is_current = self.get_source(environment, name)
        key = self._key(environment, name, source, filename)
        code = _CODE.get(key)
        if code is None:
            began = time.thread_time()
            code = environment.compile(self.parse(environment, name).tree, name, filename)
            if key is None and time.thread_time() - began > _FILE_CPU_S:
                raise SecurityError(f"{name} takes more than {_FILE_CPU_S:g} s to compile; shorten it")
            if key is not None:
                _CODE[key] = code
        return environment.template_class.from_code(environment, code, globals or {}, is_current)

    def clear(self) -> None:
        """Drop the syntax trees, which a worker no longer needs once the templates are compiled."""
        self._parsed.clear()


def _inlined(source: str, path: str) -> str:
    if not path.endswith(".html"):
        return source
    try:
        return inlined(source)
    except TemplateSyntaxError as error:
        error.name = path
        raise


def referenced(node: nodes.Node) -> Iterator[str]:
    """Yield the files that an `extends`, `include` or `import` may use; none if any name is computed."""
    wanted = getattr(node, "template", None)
    items = wanted.items if isinstance(wanted, nodes.List | nodes.Tuple) else [wanted]
    names = [str(it.value) for it in items if isinstance(it, nodes.Const)]
    if len(names) == len(items):
        yield from names
