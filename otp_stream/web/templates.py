"""The page of templates, each with the e-mail of a sample job."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import parse_qs

from otp_stream.asgi import FRAME_POLICY, POLICY, Answer, Scope
from otp_stream.core.mail import ComposeError

from .pages import render


class Email(Protocol):
    """A composed e-mail."""

    @property
    def subject(self) -> str: ...  # noqa: D102
    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def html(self) -> str: ...  # noqa: D102


class Previews(Protocol):
    """Composes the e-mails of a sample job."""

    def languages(self) -> Mapping[str, list[str]]:
        """Return every template's name with its languages; `""` is the default for all other languages."""
        ...

    async def make(self, name: str, language: str) -> Email:
        """Return the e-mail. Raises `ComposeError`."""
        ...


@dataclass(frozen=True, slots=True)
class TemplatesView:
    """Shows the templates as the worker has loaded them at its start."""

    previews: Previews
    default_locale: str

    async def page(self, scope: Scope) -> Answer:
        """Return the page with the list of templates and a preview of one."""
        languages = self.previews.languages()
        name, language = _selected(scope)
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
        """Return the HTML part of an e-mail, for the page's frames."""
        try:
            email = await self.previews.make(*_selected(scope))
        except ComposeError as failed:
            return Answer(f"{failed}\n".encode(), "text/plain; charset=utf-8", 404)
        # sandboxed: as in a mail client, an e-mail must not run scripts or load anything
        return Answer(email.html.encode(), "text/html; charset=utf-8", policy=FRAME_POLICY)


def _selected(scope: Scope) -> tuple[str, str]:
    query = parse_qs(scope["query_string"].decode("latin-1"))
    return query.get("name", [""])[0], query.get("language", [""])[0]
