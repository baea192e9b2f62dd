"""Composes the e-mail of a job."""

from functools import partial
from pathlib import Path

from otp_stream.core.job import Job
from otp_stream.core.mail import Mail
from otp_stream.core.masking import keyed_hash

from .harmless import harmless
from .message import Skeleton
from .render_process import RenderProcess
from .templates import Templates


class Composer:
    """Renders a job's template and builds its message.

    `sender` is (display name, address); files in `templates_dir` override the built-in ones; `hash_key` is used for the
    Message-ID. Raises `TemplateError` if a template cannot be compiled.
    """

    def __init__(
        self, *, sender: tuple[str, str], templates_dir: Path | None, default_locale: str, hash_key: bytes
    ) -> None:
        make = partial(
            Composer, sender=sender, templates_dir=templates_dir, default_locale=default_locale, hash_key=hash_key
        )
        self._process = RenderProcess(make)
        self.templates = Templates(templates_dir, default_locale)
        self._skeleton = Skeleton(sender)
        self._hash_key = hash_key

    def compose(self, job: Job) -> Mail:
        """Return the message, always the same bytes for one job. Raises `ComposeError` if template or data fail."""
        request = job.request
        template = self.templates.find(request.metadata.template, request.metadata.locale)
        data = harmless(job.template_data())
        subject, text, html = template.parts(data)
        content = self._skeleton.build(
            recipient=request.email,
            subject=subject,
            text=text,
            html=html,
            at_s=job.dated_ms // 1000,
            token=self._token(job),
        )
        # no line of the skeleton begins with a dot
        return Mail(request.email, content, text.dot_safe and html.dot_safe, (request.otp, request.email))

    async def compose_isolated(self, job: Job) -> Mail:
        """Return the same message, composed in another process: if that crashes, this raises `ComposeError`.

        If no process can be started, the message is composed in this one: someone waits for the code.
        """
        try:
            return await self._process.compose(job)
        except OSError as error:
            import structlog  # noqa: PLC0415 - a third of the start of a render process, which logs nothing

            structlog.get_logger(__name__).warning(
                "cannot start a render process; composing in this one", error=type(error).__name__
            )
            return self.compose(job)

    async def close(self) -> None:
        """Stop the other process."""
        await self._process.close()

    def _token(self, job: Job) -> str:
        # a copy sent after a crash is the same message; another code with the same id is not, or a mailbox would take
        # it for a copy and drop it
        return keyed_hash(f"{job.id}\0{job.request.email}\0{job.request.otp}", self._hash_key)
