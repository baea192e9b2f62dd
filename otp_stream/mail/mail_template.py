"""One template in one language: its subject, plain text and HTML, compiled."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from gettext import NullTranslations
from pathlib import Path
from typing import Any

from jinja2 import Template, UndefinedError
from jinja2.exceptions import SecurityError

from otp_stream.core.mail import ComposeError

from .compiled import CompiledVariants, Parts
from .environment import TRANSLATIONS
from .language import Language
from .message import Part
from .sandbox import MEMORY, CpuLimitError, run_limited

FILES = ("subject.txt", "body.txt", "body.html")
RENDER_CPU_S = 2.0
"""CPU time for the three files of one e-mail; usually it takes 30 µs."""
MAX_CHARACTERS = 1 << 20
"""Characters of the three files of one e-mail together: encoding a million takes up to 0.2 s."""
_MISSING_KEY = re.compile(r"'\w+' is undefined")


@dataclass(frozen=True, slots=True)
class MailTemplate:
    """The three files of an e-mail, compiled."""

    subject: Template
    text: Template
    html: Template
    language: Language
    """That of the HTML."""
    translations: tuple[NullTranslations, NullTranslations, NullTranslations]
    """Those of subject, plain text and HTML, which may be in different languages."""
    compiled: CompiledVariants
    forked: Callable[[float, Mapping[str, Any]], list[str]] | None = None
    """Calls `render_here` in another process with a limit on CPU time, because a file may be the operator's."""

    def parts(self, data: Mapping[str, Any]) -> Parts:
        """Return the parts of a message. Raises `ComposeError`, whose text contains no data."""
        if parts := self.compiled.fill(data, self.render):
            return parts
        subject, text, html = self.render(data)
        return subject, Part.of(text), Part.of(html)

    def render(self, data: Mapping[str, Any]) -> tuple[str, str, str]:
        """Return subject, plain text and HTML. Raises `ComposeError`, whose text contains no data."""
        try:
            if self.forked is not None:
                subject, text, html = self.forked(RENDER_CPU_S, data)
            else:
                subject, text, html = run_limited(RENDER_CPU_S, lambda: self.render_here(data))
        except (CpuLimitError, MemoryError) as error:
            raise ComposeError(f"template {self.html.name}: {_kind(error)}") from None
        return subject, text, html

    def render_here(self, data: Mapping[str, Any]) -> list[str]:
        """Return the same, without a limit on CPU time and memory."""
        # one dictionary for all three: a new context costs as much as rendering a short text
        given = {**self.html.globals, **data}
        files = zip((self.subject, self.text, self.html), self.translations, strict=True)
        texts = [_render(file, given, translations) for file, translations in files]
        if sum(map(len, texts)) > MAX_CHARACTERS:
            raise ComposeError(f"template {self.html.name}: prints more than {MAX_CHARACTERS:,} characters; shorten it")
        return texts


def _render(template: Template, given: dict[str, Any], translations: NullTranslations) -> str:
    given[TRANSLATIONS] = translations
    try:
        try:
            return "".join(template.root_render_func(template.new_context(given, shared=True)))
        except Exception:  # noqa: BLE001 - as `Template.render` does, so that the traceback shows the template's lines
            template.environment.handle_exception()
    except Exception as error:  # noqa: BLE001 - a template is code: it can fail in any way
        # from None and without the message, because both may contain data
        raise ComposeError(f"{_location(template, error)}: {_kind(error)}") from None


def _kind(error: Exception) -> str:
    if isinstance(error, CpuLimitError):
        return f"takes more than {RENDER_CPU_S:g} s; an endless loop?"
    if isinstance(error, MemoryError):
        return f"takes more than {MEMORY >> 20} MiB of memory"
    if isinstance(error, SecurityError):
        return "uses something that templates may not use: see docs/templates.md"
    if isinstance(error, UndefinedError) and error.message and _MISSING_KEY.fullmatch(error.message):
        return f"{error.message}; give it in metadata"
    return type(error).__name__


def _location(template: Template, error: BaseException) -> str:
    place, trace = f"template {template.name}", error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if path.suffix in {".html", ".txt"}:
            place = f"template {path.name if path.name not in FILES else template.name}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return place
