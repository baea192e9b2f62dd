"""The page of templates, each with the e-mail of a sample job."""

from collections.abc import Mapping, Sequence
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
    def sender(self) -> str: ...  # noqa: D102
    @property
    def reply_to(self) -> str: ...  # noqa: D102
    @property
    def subject(self) -> str: ...  # noqa: D102
    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def html(self) -> str: ...  # noqa: D102


class Choice(Protocol):
    """The templates of one tenant."""

    @property
    def default_locale(self) -> str: ...  # noqa: D102
    @property
    def languages(self) -> Mapping[str, list[str]]:
        """Every template's name with its languages."""
        ...


class Previews(Protocol):
    """Composes the e-mails of a sample job."""

    @property
    def tenants(self) -> Sequence[str]:
        """The names of all tenants but the default one."""
        ...

    def choice(self, tenant: str) -> Choice:
        """Return the templates of a tenant; `""` is the default one. Raises `ComposeError` for an unknown tenant."""
        ...

    async def make(self, tenant: str, name: str, language: str) -> Email:
        """Return the e-mail of a job with this locale, none if it is empty. Raises `ComposeError`."""
        ...


@dataclass(frozen=True, slots=True)
class TemplatesView:
    """Shows the templates as the worker has loaded them."""

    previews: Previews

    async def page(self, request: Request) -> Response:
        """Return the page with the previews of one of a tenant's templates."""
        tenant, name, language = _selected(request)
        try:
            choice = self.previews.choice(tenant)
        except ComposeError as failed:
            return _not_found(failed)
        if not name:
            name = "otp" if "otp" in choice.languages else next(iter(choice.languages))
        email, error = None, None
        try:
            email = await self.previews.make(tenant, name, language)
        except ComposeError as failed:
            error = str(failed)
        html = render(
            "templates.html",
            tenants=self.previews.tenants,
            names=list(choice.languages),
            languages=sorted({it for languages in choice.languages.values() for it in languages}),
            translated=not language or language in choice.languages.get(name, ()),
            default_locale=choice.default_locale,
            tenant=tenant,
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
            return _not_found(failed)
        return HTMLResponse(email.html, headers=FRAME)


def _selected(request: Request) -> tuple[str, str, str]:
    asked = request.query_params
    return asked.get("tenant", ""), asked.get("name", ""), asked.get("language", "")


def _not_found(failed: ComposeError) -> Response:
    return PlainTextResponse(f"{failed}\n", 404)
