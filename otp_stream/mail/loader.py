"""Reads and compiles template files."""

from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, Template, nodes

from .template_analysis import Parsed


class TemplateLoader(FileSystemLoader):
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
        """Drop the syntax trees, which a worker no longer needs once the templates are compiled."""
        self._parsed.clear()


def referenced(node: nodes.Node) -> Iterator[str]:
    """Return the files that an `extends`, `include` or `import` may use; none if any name is computed."""
    wanted = getattr(node, "template", None)
    items = wanted.items if isinstance(wanted, nodes.List | nodes.Tuple) else [wanted]
    names = [str(it.value) for it in items if isinstance(it, nodes.Const)]
    if len(names) == len(items):
        yield from names
