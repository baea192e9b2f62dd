"""One real mail, for `otp-stream check --send-to`."""

import json
import secrets
import time

from otp_stream.core.check_result import CheckResult, Report
from otp_stream.core.mail import ComposeError, Mail
from otp_stream.core.masking import mask_address
from otp_stream.core.otp_job import OtpJob
from otp_stream.core.outcome import Accepted, Deferred, Rejected, Unavailable, without_secrets
from otp_stream.mail import Composer
from otp_stream.mail.lint import sample_job
from otp_stream.relay import RelayConfig, SmtpRelay

_LIFE_MS = 20_000
"""How long the mail may wait for a connection."""


def make_request(address: str) -> OtpJob:
    """Return a job with a random code. Raises `MalformedError` for an invalid address."""
    body = {"email": address, "otp": f"{secrets.randbelow(10**6):06}"}
    return OtpJob.from_bytes(json.dumps(body).encode())


async def send(request: OtpJob, composer: Composer | None, usable: list[RelayConfig], report: Report) -> None:
    """Send it through the first relay that answers, and report the reply."""
    recipient = mask_address(request.email)
    if composer is None or not usable:
        why = "no relay accepts mail" if composer else "the templates cannot be loaded"
        report(CheckResult("problem", f"nothing was sent to {recipient}: {why}", "fix the problems above"))
        return
    try:
        mail = composer.compose(sample_job({}, time.time_ns() // 1_000_000, email=request.email, code=request.otp))
    except ComposeError as error:
        report(CheckResult("problem", f"nothing was sent to {recipient}: {error}", "correct the template otp"))
        return
    for config in usable:
        if await _send_through(config, mail, recipient, report):
            return


async def _send_through(config: RelayConfig, mail: Mail, recipient: str, report: Report) -> bool:
    """Return whether the relay may have the mail or has refused it, so that no other one is tried."""
    relay = SmtpRelay(config)
    ends_ms = time.time_ns() // 1_000_000 + _LIFE_MS
    try:
        outcome = await relay.send(mail, rank=0, lane="jobs", expires_ms=ends_ms, deadline_ms=ends_ms)
    finally:
        await relay.close()
    match without_secrets(outcome, *mail.secrets):
        case Accepted(reply):
            report(CheckResult("ok", f"{config.name} accepted a mail to {recipient}: {reply}"))
        case Deferred(reply) | Rejected(reply):
            fix = "the reply is about this address or this message: try another address, or search the provider's help"
            report(CheckResult("problem", f"{config.name} refused a mail to {recipient}: {reply}", fix))
        case Unavailable(_, error):
            report(CheckResult("problem", f"{config.name} accepts no mail: {error}"))
            return False
        case outcome:
            error = getattr(outcome, "error", "no free connection in time")
            text = f"{config.name}: it is unknown whether the mail to {recipient} was accepted: {error}"
            report(CheckResult("problem", text))
    return True
