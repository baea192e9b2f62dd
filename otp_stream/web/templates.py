"""The page of templates: which there are, and how each looks on a sample job."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import parse_qs

from otp_stream.asgi import FRAME_POLICY, POLICY, Answer, Scope
from otp_stream.core.mail import ComposeError

from .pages import render


class Email(Protocol):
    """An e-mail as its reader gets it."""

    @property
    def subject(self) -> str: ...  # noqa: D102
    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def html(self) -> str: ...  # noqa: D102


class Previews(Protocol):
    """Makes the e-mails of a sample job."""

    def languages(self) -> Mapping[str, list[str]]:
        """Return every template's name with its languages; `""` is what all others get."""
        ...

    async def make(self, name: str, language: str) -> Email:
        """Return one. Raises `ComposeError`."""
        ...


@dataclass(frozen=True, slots=True)
class TemplateDesk:
    """Answers for the templates. What is shown is what the worker sends: it has read them at its start."""

    previews: Previews
    default_locale: str

    async def page(self, scope: Scope) -> Answer:
        """Show all, and one of them whole."""
        languages = self.previews.languages()
        name, language = _chosen(scope)
        if not name:
            name = "otp" if "otp" in languages else next(iter(languages))
            language = next(iter(languages[name]))
        email, error = None, None
        try:
            email = await self.previews.make(name, language)
        except ComposeError as failed:
            error = str(failed)
        html = render(
            "templates.html",
            languages=languages,
            default_locale=self.default_locale,
            name=name,
            language=language,
            email=email,
            error=error,
        )
        return Answer(html.encode(), "text/html; charset=utf-8", policy=f"{POLICY}; frame-src 'self'")

    async def preview(self, scope: Scope) -> Answer:
        """Return the HTML part alone, for the page's frames."""
        try:
            email = await self.previews.make(*_chosen(scope))
        except ComposeError as failed:
            return Answer(f"{failed}\n".encode(), "text/plain; charset=utf-8", 404)
        # sandboxed: an e-mail runs nothing and loads nothing, in a mail reader and here
        return Answer(email.html.encode(), "text/html; charset=utf-8", policy=FRAME_POLICY)


def _chosen(scope: Scope) -> tuple[str, str]:
    asked = parse_qs(scope["query_string"].decode("latin-1"))
    return asked.get("name", [""])[0], asked.get("language", [""])[0]
