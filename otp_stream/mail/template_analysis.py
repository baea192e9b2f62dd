"""Analyzes how templates use their values: printed, tested, measured, or otherwise."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

from jinja2 import Environment, Template, nodes
from jinja2 import TemplateError as JinjaError

PLACEHOLDERS = re.compile("[\ue000-\uf8ff]")
"""Private-use characters, which no text contains, as placeholders for values."""

# Other nodes (loops, assignments, macros, calls, captured blocks) may change a value before it is printed.
_TRANSPARENT = (
    nodes.Template, nodes.Block, nodes.Extends, nodes.Include, nodes.Output, nodes.If, nodes.CondExpr,
    nodes.Literal, nodes.Compare, nodes.Operand, nodes.Test, nodes.Filter, nodes.Keyword,
    nodes.BinExpr, nodes.UnaryExpr, nodes.Concat, nodes.Getattr, nodes.Getitem,
)  # fmt: skip

GETTEXT = {"gettext", "_", "ngettext", "pgettext", "npgettext"}
"""The functions that translate a message."""


@dataclass(frozen=True)
class Parsed:
    """A file that was parsed. What its syntax tree contains is searched once, because each language asks for it."""

    source: str
    tree: nodes.Template

    @cached_property
    def references(self) -> list[nodes.Node]:
        """Each `extends`, `include` and `import`."""
        return list(self.tree.find_all((nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)))

    @cached_property
    def messages(self) -> frozenset[str]:
        """The messages that it translates, in English."""
        found: set[str] = set()
        for call in self.tree.find_all(nodes.Call):
            if isinstance(call.node, nodes.Name) and call.node.name in GETTEXT and call.args:
                message = call.args[1 if "pgettext" in call.node.name else 0]
                if isinstance(message, nodes.Const):
                    found.add(str(message.value))
        return frozenset(found)


class _UnclearError(Exception):
    """The uses of a value cannot be determined from the source."""


@dataclass(slots=True)
class ValueUses:
    """Names of values by their use. A name can have several uses."""

    printed: set[str] = field(default_factory=set[str])
    tested: set[str] = field(default_factory=set[str])
    """Tested for truth: `{% if userName %}`."""
    measured: set[str] = field(default_factory=set[str])
    """Used by their length: `{{ otp | length }}`."""
    other: set[str] = field(default_factory=set[str])

    def visit(self, node: nodes.Node, *, tested: bool = False) -> None:
        """Add every use in a part of a template. Raises `_UnclearError`."""
        match node:
            case nodes.Name(name=name, ctx="load"):
                (self.tested if tested else self.other).add(name)
            case nodes.Filter(name="length", node=nodes.Name(name=name)):
                self.measured.add(name)
            case nodes.Filter(name="random"):
                raise _UnclearError
            case nodes.Output():
                for shown in node.nodes:
                    self._visit_printed(shown)
            case _ if isinstance(node, _TRANSPARENT):
                for child in node.iter_child_nodes():
                    self.visit(child, tested=_is_tested(node, child, tested=tested))
            case _:
                raise _UnclearError

    def _visit_printed(self, node: nodes.Node) -> None:
        match node:
            case nodes.Name(name=name):
                self.printed.add(name)
            case nodes.Call(node=nodes.Name(name=name), args=args, kwargs=named, dyn_args=None, dyn_kwargs=None) if (
                name in GETTEXT
            ):
                # a translation prints its values unchanged; what is not constant selects the message
                for it in args:
                    self.visit(it)
                for it in named:
                    self._visit_printed(it.value)
            case _:
                self.visit(node)


def analyze(jinja: Environment, templates: Iterable[Template], parse: Callable[[str], Parsed]) -> ValueUses | None:
    """Return how templates, and the files that they extend or include, use values; `None` if that is unclear."""
    uses = ValueUses()
    try:
        for template in templates:
            name = str(template.name)
            _read(uses, jinja, name, parse, escapes=_escapes(jinja, name))
    except (_UnclearError, JinjaError, RecursionError):
        return None
    return uses


def _read(uses: ValueUses, jinja: Environment, name: str, parse: Callable[[str], Parsed], *, escapes: bool) -> None:
    parsed = parse(name)
    if PLACEHOLDERS.search(parsed.source) or _escapes(jinja, name) != escapes:
        raise _UnclearError
    for node in parsed.references:
        if not isinstance(node, nodes.Extends | nodes.Include):
            continue
        if not isinstance(node.template, nodes.Const):
            raise _UnclearError
        _read(uses, jinja, str(node.template.value), parse, escapes=escapes)
    uses.visit(parsed.tree)


def _escapes(jinja: Environment, name: str) -> bool:
    how = jinja.autoescape
    return how if isinstance(how, bool) else how(name)


def _is_tested(node: nodes.Node, child: nodes.Node, *, tested: bool) -> bool:
    if isinstance(node, nodes.If | nodes.CondExpr):
        return child is node.test
    return tested and isinstance(node, nodes.Not | nodes.And | nodes.Or)
