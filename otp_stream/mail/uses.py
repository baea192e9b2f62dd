"""What templates do with the values that they are given, read from the templates themselves."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from jinja2 import Environment, Template, nodes
from jinja2 import TemplateError as JinjaError

BLANKS = re.compile("[\ue000-\uf8ff]")
"""Private characters, which stand for values in a form: no text has them."""

# Whatever is not here (loops, assignments, macros, calls, captured blocks) may change what it prints on its way.
_CLEAR = (
    nodes.Template, nodes.Block, nodes.Extends, nodes.Include, nodes.Output, nodes.If, nodes.CondExpr,
    nodes.Literal, nodes.Compare, nodes.Operand, nodes.Test, nodes.Filter, nodes.Keyword,
    nodes.BinExpr, nodes.UnaryExpr, nodes.Concat, nodes.Getattr, nodes.Getitem,
)  # fmt: skip


Parsed = tuple[str, nodes.Template]
"""The source of a file and its syntax tree."""


class _UnclearError(Exception):
    """It cannot be told beforehand."""


@dataclass(slots=True)
class Uses:
    """Names, by their use. One name can have several."""

    printed: set[str] = field(default_factory=set[str])
    asked: set[str] = field(default_factory=set[str])
    """Whether there is anything in them: `{% if userName %}`."""
    measured: set[str] = field(default_factory=set[str])
    """How long they are: `{{ otp | length }}`."""
    other: set[str] = field(default_factory=set[str])

    def visit(self, node: nodes.Node, *, asked: bool = False) -> None:
        """Note every use in a part of a template. Raises `_UnclearError`."""
        match node:
            case nodes.Name(name=name, ctx="load"):
                (self.asked if asked else self.other).add(name)
            case nodes.Filter(name="length", node=nodes.Name(name=name)):
                self.measured.add(name)
            case nodes.Filter(name="random"):
                raise _UnclearError
            case nodes.Output():
                for shown in node.nodes:
                    if isinstance(shown, nodes.Name):
                        self.printed.add(shown.name)
                    else:
                        self.visit(shown)
            case _ if isinstance(node, _CLEAR):
                for child in node.iter_child_nodes():
                    self.visit(child, asked=_is_asked(node, child, asked=asked))
            case _:
                raise _UnclearError


def uses_of(jinja: Environment, templates: Iterable[Template], parse: Callable[[str], Parsed]) -> Uses | None:
    """Return how templates, and those that they extend or include, use names; `None` where that is unclear."""
    uses = Uses()
    try:
        for template in templates:
            name = str(template.name)
            _read(uses, jinja, name, parse, escapes=_escapes(jinja, name))
    except (_UnclearError, JinjaError, RecursionError):
        return None
    return uses


def _read(uses: Uses, jinja: Environment, name: str, parse: Callable[[str], Parsed], *, escapes: bool) -> None:
    source, tree = parse(name)
    if BLANKS.search(source) or _escapes(jinja, name) != escapes:
        raise _UnclearError
    for near in tree.find_all((nodes.Extends, nodes.Include)):
        if not isinstance(near.template, nodes.Const):
            raise _UnclearError
        _read(uses, jinja, str(near.template.value), parse, escapes=escapes)
    uses.visit(tree)


def _escapes(jinja: Environment, name: str) -> bool:
    how = jinja.autoescape
    return how if isinstance(how, bool) else how(name)


def _is_asked(node: nodes.Node, child: nodes.Node, *, asked: bool) -> bool:
    if isinstance(node, nodes.If | nodes.CondExpr):
        return child is node.test
    return asked and isinstance(node, nodes.Not | nodes.And | nodes.Or)
