"""Limits on what one template may do: processor time, memory, and what it can reach.

What they cannot stop is one call into C that runs long within the memory it may have: Python takes signals between its
own instructions only. `range`, `*` and `**` are bounded for that reason.
"""

import os
import resource
import signal
import threading
from collections.abc import Callable, Generator, Sized
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, TypeVar

from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

T = TypeVar("T")


MEMORY = 64 << 20
"""Bytes that one piece of work may take."""
_AGAIN_S = 0.1
_LONGEST = 1_000_000
_MOST_BITS = 10_000


class TooLongError(Exception):
    """The work took more processor time than it may."""


class _Alarm:
    armed = False
    set_up = False


def within(cpu_s: float, work: Callable[[], T]) -> T:
    """Do the work, for at most `cpu_s` seconds of processor time. Raises `TooLongError`.

    Raises `MemoryError` where it takes more than `MEMORY`.

    Processor time, not time on the clock: a process that was frozen is no slow template. Outside the main thread, where
    Python takes no signals, there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    if not _Alarm.set_up:
        signal.signal(signal.SIGVTALRM, _ring)
        _Alarm.set_up = True
    _Alarm.armed = True
    # again and again: code that catches every exception would go on after the first
    signal.setitimer(signal.ITIMER_VIRTUAL, cpu_s, _AGAIN_S)
    try:
        with _bounded_memory():
            return work()
    finally:
        _Alarm.armed = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _ring(*_: object) -> None:
    if _Alarm.armed:  # one that rings late belongs to nobody
        raise TooLongError


def limit_memory(size: int) -> None:
    """Let this process have `size` bytes of address space at most, where the system knows such a limit."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _pages() -> int:
    # a third of the time that `Path.read_bytes` takes
    statm = os.open("/proc/self/statm", os.O_RDONLY)
    try:
        return int(os.read(statm, 100).partition(b" ")[0])
    finally:
        os.close(statm)


@contextmanager
def _bounded_memory() -> Generator[None]:
    """Let this process take `MEMORY` more bytes of address space at most, where Linux says how many it has."""
    try:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = _pages() * resource.getpagesize() + MEMORY
        if soft == resource.RLIM_INFINITY or limit < soft:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (OSError, ValueError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class _CodeGenerator(CodeGenerator):
    def _output_child_to_const(self, node: nodes.Expr, frame: Any, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja without a way from a template to Python's internals, files or processes, and without huge products."""

    # no constant is computed while a template is compiled, where no limit holds
    code_generator_class = _CodeGenerator
    intercepted_binops: ClassVar[frozenset[str]] = frozenset({"*", "**"})  # pyright: ignore[reportIncompatibleVariableOverride]

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Multiply or raise to a power. Raises `SecurityError` where the result is huge."""
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            is_huge = bits > _MOST_BITS
        else:
            is_huge = any(
                isinstance(count, int) and isinstance(it, Sized) and len(it) * count > _LONGEST
                for it, count in ((left, right), (right, left))
            )
        if is_huge:
            raise SecurityError("the result is too large")
        return super().call_binop(context, operator, left, right)
