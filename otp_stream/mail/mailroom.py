"""Makes the e-mail of a job."""

from functools import partial
from pathlib import Path

import structlog

from otp_stream.core.job import Job
from otp_stream.core.mail import Mail
from otp_stream.core.masking import hidden

from .apart import Apart
from .book import TemplateBook
from .harmless import harmless
from .message import Skeleton


class Mailroom:
    """Renders a job's template and builds its message.

    `sender` is (display name, address); the files in `templates_dir` go before ours, one by one; `hash_key` makes the
    Message-ID. Raises `TemplateError` when a template cannot be compiled.
    """

    def __init__(
        self, *, sender: tuple[str, str], templates_dir: Path | None, default_locale: str, hash_key: bytes
    ) -> None:
        again = partial(
            Mailroom, sender=sender, templates_dir=templates_dir, default_locale=default_locale, hash_key=hash_key
        )
        self._apart = Apart(again)
        self.book = TemplateBook(templates_dir, default_locale)
        self._skeleton = Skeleton(sender)
        self._hash_key = hash_key

    def compose(self, job: Job) -> Mail:
        """Return the message: for one job always the same bytes. Raises `ComposeError` when template or data fail."""
        ask = job.ask
        layout = self.book.find(ask.metadata.template, ask.metadata.locale)
        data = harmless(job.template_data())
        subject, text, html = layout.parts(data)
        content = self._skeleton.build(
            recipient=ask.email,
            subject=subject,
            text=text,
            html=html,
            at_s=job.dated_ms // 1000,
            token=self._token(job),
        )
        # what the skeleton adds has no line with a dot at its start
        return Mail(ask.email, content, text.tame and html.tame, (ask.otp, ask.email))

    async def compose_apart(self, job: Job) -> Mail:
        """Return the same, made in another process: what kills that one is a `ComposeError` here.

        Where there can be no other process it is made in this one: somebody waits for the code.
        """
        try:
            return await self._apart.compose(job)
        except OSError as error:
            structlog.get_logger(__name__).warning("no process for suspects", error=type(error).__name__)
            return self.compose(job)

    async def close(self) -> None:
        """End the other process."""
        await self._apart.close()

    def _token(self, job: Job) -> str:
        # from what makes it the same job: a copy made after a crash is the same message, and another code under the
        # same id is not, which a mailbox would take for a copy and drop
        return hidden(f"{job.id}\0{job.ask.email}\0{job.ask.otp}", self._hash_key)
