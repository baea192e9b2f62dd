"""The page of templates, each with the e-mail of a sample job."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from otp_stream.asgi import FRAME, PAGE_WITH_FRAMES
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

    async def page(self, request: Request) -> Response:
        """Return the page with the list of templates and a preview of one."""
        languages = self.previews.languages()
        name, language = _selected(request)
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
        return HTMLResponse(html, headers=PAGE_WITH_FRAMES)

    async def preview(self, request: Request) -> Response:
        """Return the HTML part of an e-mail, for the page's frames."""
        try:
            email = await self.previews.make(*_selected(request))
        except ComposeError as failed:
            return PlainTextResponse(f"{failed}\n", 404)
        return HTMLResponse(email.html, headers=FRAME)


def _selected(request: Request) -> tuple[str, str]:
    return request.query_params.get("name", ""), request.query_params.get("language", "")
