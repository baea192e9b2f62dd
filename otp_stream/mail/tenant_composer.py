"""Composes the mails of one tenant."""

from otp_stream.core.address import wire_address
from otp_stream.core.job import Job
from otp_stream.core.mail import Mail
from otp_stream.core.masking import keyed_hash

from .identity import MailIdentity
from .message import Skeleton
from .shared_templates import SharedTemplates
from .template_data import template_data
from .templates import Templates


class TenantComposer:
    """Renders templates and builds messages for one tenant; `tenant` is its name, empty for the default one."""

    def __init__(self, tenant: str, identity: MailIdentity, templates: Templates, hash_key: bytes) -> None:
        self.tenant = tenant
        self.identity = identity
        self.templates = templates
        self._hash_key = hash_key
        self._skeleton = Skeleton(identity.sender, identity.reply_to)
        # the default tenant's address is the relay's
        sender = identity.envelope_sender or (identity.sender[1] if tenant else None)
        self._sender = wire_address(sender) if sender else None

    def compose(self, job: Job) -> Mail:
        """Return the message, always the same bytes for one job. Raises `ComposeError` if template or data fail."""
        request = job.request
        template = self.templates.find(request.metadata.template, request.metadata.locale)
        subject, text, html = template.parts(template_data(job, template.language, self.identity))
        content = self._skeleton.build(
            recipient=request.email,
            subject=subject,
            text=text,
            html=html,
            at_s=job.dated_ms // 1000,
            token=self._token(job),
        )
        # no line of the skeleton begins with a dot
        dot_safe = text.dot_safe and html.dot_safe
        return Mail(request.email, content, dot_safe, (request.otp, request.email), self.tenant, self._sender)

    def _token(self, job: Job) -> str:
        # a copy that is sent after a crash has the same token; another code with the same job id does not, because a
        # mailbox could drop it as a copy
        return keyed_hash(job.identity_text(job.id), self._hash_key)


class IsolatedComposer:
    """Composes for any tenant in a render process; compiles the templates of `first` at once, others on demand."""

    def __init__(self, hash_key: bytes, first: MailIdentity) -> None:
        self._hash_key = hash_key
        self._shared = SharedTemplates()
        self._shared.of(first)

    def compose(self, job: Job, identity: MailIdentity) -> Mail:
        """Return the message. Raises `ComposeError`, and `TemplateError` if the templates cannot be compiled."""
        return TenantComposer(job.tenant, identity, self._shared.of(identity), self._hash_key).compose(job)
