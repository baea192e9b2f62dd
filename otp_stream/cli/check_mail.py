"""One real mail, for `otp-stream check --send-to`."""

import json
import secrets
import time

from otp_stream.core.check_result import Finding, Tell
from otp_stream.core.job import OtpJob
from otp_stream.core.mail import ComposeError, Mail
from otp_stream.core.masking import mask_address
from otp_stream.core.outcome import Accepted, Deferred, Rejected, Unavailable, without_secrets
from otp_stream.mail import Mailroom
from otp_stream.mail.lint import sample_job
from otp_stream.relay import RelayConfig, SmtpRelay

_LIFE_MS = 20_000
"""So long the mail may wait for a connection."""


def made_up(address: str) -> OtpJob:
    """Return a job with a made-up code. Raises `MalformedError` for what is no address."""
    body = {"email": address, "otp": f"{secrets.randbelow(10**6):06}"}
    return OtpJob.from_bytes(json.dumps(body).encode())


async def send(ask: OtpJob, mailroom: Mailroom | None, usable: list[RelayConfig], tell: Tell) -> None:
    """Send it through the first relay that takes it, and tell what that relay said."""
    whom = mask_address(ask.email)
    if mailroom is None or not usable:
        why = "no relay takes mail" if mailroom else "the templates cannot be loaded"
        tell(Finding("problem", f"nothing was sent to {whom}: {why}", "mend what is said above"))
        return
    try:
        mail = mailroom.compose(sample_job({}, time.time_ns() // 1_000_000, email=ask.email, code=ask.otp))
    except ComposeError as error:
        tell(Finding("problem", f"nothing was sent to {whom}: {error}", "mend the template otp"))
        return
    for config in usable:
        if await _through(config, mail, whom, tell):
            return


async def _through(config: RelayConfig, mail: Mail, whom: str, tell: Tell) -> bool:
    """Returns whether the relay has spoken, so that no other needs to be asked."""
    relay = SmtpRelay(config)
    ends_ms = time.time_ns() // 1_000_000 + _LIFE_MS
    try:
        outcome = await relay.send(mail, rank=0, lane="jobs", expires_ms=ends_ms, deadline_ms=ends_ms)
    finally:
        await relay.close()
    match without_secrets(outcome, *mail.secrets):
        case Accepted(reply):
            tell(Finding("ok", f"{config.name} took a mail to {whom}: {reply}"))
        case Deferred(reply) | Rejected(reply):
            cure = "what it says is about this address or this message: try another address, see the provider's page"
            tell(Finding("problem", f"{config.name} took no mail to {whom}: {reply}", cure))
        case Unavailable(_, error):
            tell(Finding("problem", f"{config.name} takes no mail: {error}"))
            return False
        case outcome:
            error = getattr(outcome, "error", "no turn in time")
            tell(Finding("problem", f"{config.name}: whether it took the mail to {whom} is not known: {error}"))
    return True
