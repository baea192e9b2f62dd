"""Makes a sample e-mail of every template in every language."""

import time
from collections.abc import Mapping
from email import message_from_bytes
from typing import Any

from otp_stream.core.check_result import Finding, Tell
from otp_stream.core.mail import ComposeError
from otp_stream.mail.lint import SAMPLE, SAMPLE_CODE, sample_job
from otp_stream.mail.mailroom import Mailroom

_SAMPLES: tuple[Mapping[str, Any], ...] = (
    {**SAMPLE, "userName": "Zoë <Ada>", "tenant": "shop-17"},
    {},  # what producers may leave out, they leave out
)


def checkup(mailroom: Mailroom, tell: Tell) -> None:
    """Tell which templates fail on sample data, or print no code."""
    good: list[str] = []
    for name in mailroom.book.names:
        for tongue in mailroom.book.languages(name):
            shown = f"{name} ({tongue})" if tongue else name
            metadata: dict[str, Any] = {"template": name, **({"locale": tongue} if tongue else {})}
            if found := _try(mailroom, shown, metadata):
                tell(found)
            else:
                good.append(shown)
    if good:
        tell(Finding("ok", f"rendered with sample data: {', '.join(good)}"))


def _try(mailroom: Mailroom, shown: str, metadata: Mapping[str, Any]) -> Finding | None:
    for given in _SAMPLES:
        try:
            content = mailroom.compose(sample_job({**given, **metadata}, time.time_ns() // 1_000_000)).content
        except ComposeError as error:
            if "give it in metadata" in str(error):
                return Finding("note", f"{shown} wants more than the sample data: {error}")
            return Finding("problem", f"{shown} cannot be rendered: {error}", "mend that line of the template")
        texts = [part.get_payload(decode=True) for part in message_from_bytes(content).walk()]
        if not all(SAMPLE_CODE.encode() in text for text in texts if isinstance(text, bytes)):
            return Finding(
                "warning", f"{shown} does not print the code in both text and HTML", "{{ otp }} belongs there"
            )
    return None
