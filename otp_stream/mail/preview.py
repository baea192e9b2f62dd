"""Previews of templates with a sample job, for the command line and the web page."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from otp_stream.core.mail import ComposeError

from .composer import Composer
from .lint import SAMPLE, sample_job
from .tenant_composer import TenantComposer

PREVIEWED: Mapping[str, Any] = {**SAMPLE, "request": {"place": "Berlin, Germany", "device": "Firefox on Linux"}}
"""The metadata of jobs in previews: every optional part of the built-in e-mails is shown."""


class Preview(NamedTuple):
    """An e-mail as its recipient sees it."""

    sender: str
    """Empty if none is set."""
    reply_to: str
    subject: str
    text: str
    html: str


_MOST_MADE = 500
"""Maximum number of stored previews, of 18 KB each: 1,000 tenants have 39,000 with the built-in templates alone."""
_Made = WeakKeyDictionary[TenantComposer, dict[tuple[str, str], Preview | str]]
"""Each preview, or why it failed, by template and language. A tenant that has changed gets new ones."""


class Choice(NamedTuple):
    """What can be previewed as one tenant."""

    default_locale: str
    languages: Mapping[str, list[str]]
    """The languages of each template by its name."""


def preview(content: bytes) -> Preview:
    """Parse a message that `Composer` has built."""
    message = message_from_bytes(content, policy=policy.default)
    sender, reply_to = (str(message[it] or "") for it in ("From", "Reply-To"))
    html, text = _part(message, "html"), _part(message, "plain")
    return Preview(sender if sender != "<>" else "", reply_to, message["subject"], text, html)


@dataclass(frozen=True, slots=True)
class Previews:
    """Builds previews outside the worker's process, because templates may fail in any way.

    Each is built once, until there are too many, and one at a time: redelivered jobs need that process, and must not
    wait because of visitors of the page.
    """

    composer: Composer
    _made: _Made = field(default_factory=_Made)
    _making: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def tenants(self) -> list[str]:
        """The names of all tenants but the default one."""
        return self.composer.tenants

    def choice(self, tenant: str) -> Choice:
        """Return what can be previewed. Raises `ComposeError` for an unknown tenant."""
        return _choice(self.composer.of(tenant))

    async def make(self, tenant: str, name: str, language: str) -> Preview:
        """Return the e-mail of a sample job with a locale, none if `language` is empty.

        Raises `ComposeError`, also for an unknown tenant or template, or a language that no template has.
        """
        composer = self.composer.of(tenant)
        languages = _choice(composer).languages
        if name not in languages:
            raise ComposeError(f"there is no template named {name}; known: {', '.join(languages)}")
        if language and not any(language in it for it in languages.values()):
            raise ComposeError(f"no template is in {language}; choose one of the languages")
        shown = self._made.get(composer, {}).get((name, language))
        if shown is None:
            async with self._making:
                shown = self._made.get(composer, {}).get((name, language))  # another visitor may have asked for it
                if shown is None:
                    shown = await self._make(tenant, name, language)
                    if sum(map(len, self._made.values())) >= _MOST_MADE:
                        self._made.clear()
                    self._made.setdefault(composer, {})[name, language] = shown
        if isinstance(shown, str):
            raise ComposeError(shown)
        return shown

    async def _make(self, tenant: str, name: str, language: str) -> Preview | str:
        """Return the e-mail, or why it cannot be composed."""
        metadata: dict[str, Any] = {**PREVIEWED, "template": name, "locale": language or None}
        try:
            job = sample_job(metadata, time.time_ns() // 1_000_000, tenant=tenant)
            return preview((await self.composer.compose_isolated(job)).content)
        except ComposeError as error:
            return str(error)


def _choice(composer: TenantComposer) -> Choice:
    templates = composer.templates
    languages = {name: [it for it in templates.languages(name) if it] for name in templates.names}
    return Choice(composer.identity.default_locale, languages)


def _part(message: EmailMessage, kind: str) -> str:
    body = message.get_body((kind,))
    assert isinstance(body, EmailMessage)  # noqa: S101 - every message has both
    text: str = body.get_content()
    return text
