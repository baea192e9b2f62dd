"""Jinja without access to Python's internals, files or processes, and without huge results."""

from collections.abc import Sized
from typing import Any, ClassVar

from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MAX_LENGTH = 1_000_000
_MAX_BITS = 10_000


class _CodeGenerator(CodeGenerator):
    def _output_child_to_const(self, node: nodes.Expr, frame: Any, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of all templates.

    `range`, `*` and `**` are bounded, because a signal cannot interrupt one long call of C code: see `run_limited`.
    """

    # no constant is computed while a template is compiled, where no limit applies
    code_generator_class = _CodeGenerator
    intercepted_binops: ClassVar[frozenset[str]] = frozenset({"*", "**"})  # pyright: ignore[reportIncompatibleVariableOverride]

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Multiply or raise to a power. Raises `SecurityError` if the result is huge."""
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            is_huge = bits > _MAX_BITS
        else:
            is_huge = any(
                isinstance(count, int) and isinstance(it, Sized) and len(it) * count > _MAX_LENGTH
                for it, count in ((left, right), (right, left))
            )
        if is_huge:
            raise SecurityError("the result is too large")
        return super().call_binop(context, operator, left, right)
