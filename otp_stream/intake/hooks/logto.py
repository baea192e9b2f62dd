"""The HTTP e-mail connector of Logto: https://docs.logto.io/integrations/http-email."""

from collections.abc import Mapping

from .payload import PASSWORD_RESET, Fields, NoCodeError, job, text

_ABOUT: Mapping[str, Fields] = {
    "SignIn": {"purpose": "login"},
    "Register": {"purpose": "sign_up"},
    "ForgotPassword": PASSWORD_RESET,
    "MfaVerification": {"purpose": "login"},
    "BindMfa": {"purpose": "add_device"},
    "BindNewIdentifier": {"purpose": "verify_email"},
}
"""What a code is for, by Logto's type. Codes of other types are sent without a purpose."""


def logto_jobs(payload: object) -> list[Fields]:
    """Return the job. Raises `NoCodeError`."""
    code = text(payload, "payload", "code")
    if not code:
        raise NoCodeError("payload.code: is required; this e-mail of Logto, such as an invitation, has no code")
    name = text(payload, "payload", "user", "name")
    about = _ABOUT.get(text(payload, "type"), {})
    return [job(text(payload, "to"), code, about, locale=text(payload, "payload", "locale"), userName=name)]
