"""Reads the files of templates: each once, with its style sheet inlined."""

from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, Template, TemplateSyntaxError, nodes

from .inlined import inlined
from .template_analysis import GETTEXT, Parsed

BUILT_IN_PREFIX = "built-in/"
"""Before the path of a built-in file that the operator's file of the same path must not override."""


class TemplateLoader(FileSystemLoader):
    """Reads and parses each file once, even if many templates share it."""

    def __init__(self, roots: list[Path], *, inline: bool) -> None:
        super().__init__(roots)
        self._built_in = FileSystemLoader(roots[-1])
        self._inline = inline
        self._parsed: dict[str, Parsed] = {}

    def get_source(self, environment: Environment, template: str) -> tuple[str, str, Callable[[], bool]]:
        """Return the source of a file, its path, and a function that is not used."""
        if template.startswith(BUILT_IN_PREFIX):
            return self._built_in.get_source(environment, template.removeprefix(BUILT_IN_PREFIX))
        return super().get_source(environment, template)

    def parse(self, environment: Environment, path: str) -> Parsed:
        """Return a file's source and syntax tree."""
        if path not in self._parsed:
            source, _, _ = self.get_source(environment, path)
            tree = environment.parse(source, path)  # first of all, because an error names a column of this source
            changed = _inlined(source, path)
            if self._inline and changed != source:
                source, tree = changed, environment.parse(changed, path)
            self._parsed[path] = source, tree
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


def messages(tree: nodes.Template) -> Iterator[str]:
    """Yield each message that a file translates, in English."""
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name in GETTEXT and call.args:
            message = call.args[1 if "pgettext" in call.node.name else 0]
            if isinstance(message, nodes.Const):
                yield str(message.value)
