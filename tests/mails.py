"""Jobs, templates and composers for tests of e-mails, and their contents as a mail client reads them."""

import email
import email.policy
import json
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from otp_stream.core.job import Job
from otp_stream.core.otp_job import OtpJob
from otp_stream.mail import Composer, MailIdentity

NOW_MS = 1_700_000_000_500


def new_composer(templates_dir: Path | None = None, *, locale: str = "en", sender: str = "Example") -> Composer:
    return Composer(identity(templates_dir, locale=locale, sender=(sender, "no-reply@example.com")), b"k" * 32)


def identity(
    templates_dir: Path | None = None,
    *,
    locale: str = "en",
    sender: tuple[str, str] = ("Example", "no-reply@example.com"),
    reply_to: tuple[str, str] | None = None,
    envelope_sender: str | None = None,
    **more: Any,
) -> MailIdentity:
    return MailIdentity(
        sender=sender,
        templates_dir=templates_dir,
        default_locale=locale,
        reply_to=reply_to,
        envelope_sender=envelope_sender,
        **more,
    )


def job(
    otp: str = "123456",
    *,
    seen_ms: int = NOW_MS,
    timestamp: int | None = NOW_MS - 500,
    job_id: str = "j-1",
    email: str = "user@example.com",
    of: str = "",
    **meta: Any,
) -> Job:
    asked = {"email": email, "otp": otp, "timestamp": timestamp, "metadata": meta}
    request = OtpJob.from_bytes(json.dumps(asked).encode())
    return Job.from_request(
        request,
        job_id=job_id,
        lane="jobs",
        first_seen_ms=seen_ms,
        attempts_made=0,
        default_expiry_minutes=15,
        tenant=of,
    )


def read(content: bytes) -> EmailMessage:
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    return message


def part(message: EmailMessage, kind: str) -> str:
    body = message.get_body((kind,))
    assert isinstance(body, EmailMessage)
    return body.get_content()


def write(root: Path, **files: str) -> Path:
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_txt", ".txt").replace("_html", ".html")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root
