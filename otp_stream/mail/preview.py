"""Previews of templates with a sample job, for the command line and the web page."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, NamedTuple

from otp_stream.core.mail import ComposeError

from .composer import Composer
from .lint import SAMPLE, sample_job


class Preview(NamedTuple):
    """An e-mail as its recipient sees it."""

    subject: str
    text: str
    html: str


def preview(content: bytes) -> Preview:
    """Parse a message that `Composer` has built."""
    message = message_from_bytes(content, policy=policy.default)
    return Preview(message["subject"], _part(message, "plain"), _part(message, "html"))


@dataclass(frozen=True, slots=True)
class Previews:
    """Builds previews outside the worker's process, because templates may fail in any way.

    Each is built once: redelivered jobs need that process, and must not wait because of visitors of the page.
    """

    composer: Composer
    default_locale: str
    _made: dict[tuple[str, str], Preview | str] = field(default_factory=dict[tuple[str, str], Preview | str])
    """Each preview, or why it failed."""

    def languages(self) -> Mapping[str, list[str]]:
        """Return the languages of each template by its name; `""` is used for all other languages."""
        default = self.default_locale.replace("_", "-").lower()
        found: dict[str, list[str]] = {}
        for name in self.composer.templates.names:
            locales = self.composer.templates.languages(name)
            has_default = any(f"{default}-".startswith(f"{it}-") for it in locales if it)
            found[name] = [it for it in locales if it or not has_default]
        return found

    async def make(self, name: str, language: str) -> Preview:
        """Return the e-mail of a sample job. Raises `ComposeError`, also for an unknown template."""
        if language not in self.languages().get(name, ()):
            raise ComposeError(f"there is no template {name!r} in {language!r}")
        if (name, language) not in self._made:
            metadata: dict[str, Any] = {**SAMPLE, "template": name, "locale": language or None}
            try:
                mail = await self.composer.compose_isolated(sample_job(metadata, time.time_ns() // 1_000_000))
                self._made[name, language] = preview(mail.content)
            except ComposeError as error:
                self._made[name, language] = str(error)
        made = self._made[name, language]
        if isinstance(made, str):
            raise ComposeError(made)
        return made


def _part(message: EmailMessage, kind: str) -> str:
    body = message.get_body((kind,))
    assert isinstance(body, EmailMessage)  # noqa: S101 - every message has both
    text: str = body.get_content()
    return text
