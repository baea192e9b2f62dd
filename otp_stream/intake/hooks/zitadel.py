"""The HTTP provider for e-mails of Zitadel: https://zitadel.com/docs/guides/manage/customize/notification-providers."""

from collections.abc import Mapping

from .payload import PASSWORD_RESET, Fields, NoCodeError, job, member, text

_ABOUT: Mapping[str, Fields] = {
    "user.human.initialization.code.added": {"purpose": "sign_up"},
    "user.human.invite.code.added": {"purpose": "sign_up"},
    "user.human.email.code.added": {"purpose": "verify_email"},
    "user.human.password.code.added": PASSWORD_RESET,
    "user.human.otp.email.code.added": {"purpose": "login"},
    "session.otp.email.challenged": {"purpose": "login"},
}
"""What a code is for, by the type of the event. Codes of other events are sent without a purpose."""
_NANOSECONDS = 60_000_000_000
"""Nanoseconds in a minute: Go's durations have them."""
_LONGEST = 2**63
"""Go's durations are shorter."""


def zitadel_jobs(payload: object) -> list[Fields]:
    """Return the job. Raises `NoCodeError`."""
    # Zitadel makes the first letter of its argument `OTP` small
    code = next((it for name in ("code", "oTP", "otp") if (it := text(payload, "args", name))), "")
    event = text(payload, "contextInfo", "eventType")
    if not code or "passwordless" in event:  # that code is part of a link, and no one can enter it
        raise NoCodeError("args.code: is required; this e-mail of Zitadel has no code to enter")
    expiry = member(payload, "args", "expiry")
    minutes = expiry / _NANOSECONDS if isinstance(expiry, int | float) and 0 < expiry < _LONGEST else None
    name = text(payload, "args", "displayName") or text(payload, "args", "firstName")
    email = text(payload, "contextInfo", "recipientEmailAddress")
    return [job(email, code, _ABOUT.get(event, {}), userName=name, expiryMinutes=minutes)]
