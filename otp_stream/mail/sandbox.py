"""Jinja without access to Python's internals, files or processes, without huge results, and with limited CPU time.

The limits on CPU time and memory cannot stop one long call of C code that stays within the memory limit: Python handles
signals only between its own instructions. So operators' templates run in child processes: see `forked_renderer`.
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

_MAX_LENGTH = 1_000_000
_MAX_BITS = 10_000

T = TypeVar("T")
MEMORY = 64 << 20
"""Bytes that one e-mail or the compilation of one folder may allocate, and by which a child process may grow."""
_REPEAT_S = 0.1


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

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Refuse attributes of classes, too: `cycler.reset` changes any object that is passed to it."""
        return not isinstance(obj, type) and super().is_safe_attribute(obj, attr, value)

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


class CpuLimitError(Exception):
    """The work took too much CPU time."""


class _Alarm:
    armed = False
    set_up = False


def run_limited(cpu_s: float, work: Callable[[], T]) -> T:
    """Return the result of `work`. Raises `CpuLimitError` after `cpu_s` seconds, `MemoryError` beyond `MEMORY` bytes.

    CPU time, not elapsed time: if the process was stopped, that is not the template's fault. Outside the main thread,
    where Python handles no signals, there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        return work()
    if not _Alarm.set_up:
        signal.signal(signal.SIGVTALRM, _on_alarm)
        _Alarm.set_up = True
    _Alarm.armed = True
    # repeated, because a template that catches every exception would continue after the first one
    signal.setitimer(signal.ITIMER_VIRTUAL, cpu_s, _REPEAT_S)
    try:
        with _bounded_memory():
            return work()
    finally:
        _Alarm.armed = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _on_alarm(*_: object) -> None:
    if _Alarm.armed:  # a late signal must not interrupt other code
        raise CpuLimitError


def limit_memory(size: int) -> None:
    """Limit the address space of this process to `size` bytes, if the system supports it."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def address_space() -> int:
    """Return the size of this process in bytes. Raises `OSError` where there is no /proc."""
    return _pages() * resource.getpagesize()


def _pages() -> int:
    # takes a third of the time of `Path.read_bytes`
    statm = os.open("/proc/self/statm", os.O_RDONLY)
    try:
        return int(os.read(statm, 100).partition(b" ")[0])
    finally:
        os.close(statm)


@contextmanager
def _bounded_memory() -> Generator[None]:
    """Limit the address space of this process to `MEMORY` more bytes than now. Linux only."""
    try:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = address_space() + MEMORY
        if soft == resource.RLIM_INFINITY or limit < soft:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (OSError, ValueError):
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
