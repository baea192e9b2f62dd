"""Checks that each template can be rendered in each language with sample data."""

import time
from collections.abc import Mapping
from email import message_from_bytes
from typing import Any

from otp_stream.core.check_result import CheckResult, Report
from otp_stream.core.mail import ComposeError
from otp_stream.mail.composer import Composer
from otp_stream.mail.lint import SAMPLE, SAMPLE_CODE, sample_job

_SAMPLES: tuple[Mapping[str, Any], ...] = (
    {**SAMPLE, "userName": "Zoë <Ada>", "tenant": "shop-17"},
    {},  # producers may leave out every optional field
)


def check_templates(composer: Composer, report: Report) -> None:
    """Report which templates fail on sample data, or do not contain the code."""
    good: list[str] = []
    for name in composer.templates.names:
        for language in composer.templates.languages(name):
            shown = f"{name} ({language})" if language else name
            metadata: dict[str, Any] = {"template": name, **({"locale": language} if language else {})}
            if failure := _render(composer, shown, metadata):
                report(failure)
            else:
                good.append(shown)
    if good:
        report(CheckResult("ok", f"rendered with sample data: {', '.join(good)}"))


def _render(composer: Composer, shown: str, metadata: Mapping[str, Any]) -> CheckResult | None:
    for sample in _SAMPLES:
        try:
            content = composer.compose(sample_job({**sample, **metadata}, time.time_ns() // 1_000_000)).content
        except ComposeError as error:
            if "give it in metadata" in str(error):
                return CheckResult("note", f"{shown} needs more than the sample data: {error}")
            return CheckResult("problem", f"{shown} cannot be rendered: {error}", "correct that line of the template")
        texts = [part.get_payload(decode=True) for part in message_from_bytes(content).walk()]
        if not all(SAMPLE_CODE.encode() in text for text in texts if isinstance(text, bytes)):
            text = f"{shown} does not contain the code in both text and HTML"
            return CheckResult("warning", text, "add {{ otp }} there")
    return None
