"""The HTTP courier of Ory Kratos: https://www.ory.com/docs/kratos/emails-sms/sending-emails-smtp."""

from collections.abc import Mapping

from .payload import PASSWORD_RESET, Fields, NoCodeError, job, member, text

_KINDS: Mapping[str, tuple[str, Fields]] = {
    "login_code_valid": ("login_code", {"purpose": "login"}),
    "registration_code_valid": ("registration_code", {"purpose": "sign_up"}),
    "verification_code_valid": ("verification_code", {"purpose": "verify_email"}),
    "recovery_code_valid": ("recovery_code", PASSWORD_RESET),
}
"""The field with the code, and what it is for, by template type."""


def kratos_jobs(payload: object) -> list[Fields]:
    """Return the job in a body that has `recipient`, `template_type` and `template_data`. Raises `NoCodeError`."""
    kind = text(payload, "template_type")
    if kind not in _KINDS:
        raise NoCodeError(
            f"template_type: must be {', '.join(_KINDS)}; other e-mails of Kratos have no code: use its method `code`"
        )
    field, about = _KINDS[kind]
    code = text(payload, "template_data", field) or text(payload, field)
    if not code:
        raise NoCodeError(f"template_data.{field}: is required; see docs/http.md for the body of the courier")
    traits = member(payload, "template_data", "identity", "traits") or member(payload, "template_data", "traits")
    name = text(traits, "name") or text(traits, "name", "first")
    locale = text(payload, "template_data", "transient_payload", "locale") or text(traits, "locale")
    minutes = member(payload, "template_data", "expires_in_minutes")
    email = text(payload, "recipient") or text(payload, "template_data", "to")
    return [job(email, code, about, locale=locale, userName=name, expiryMinutes=minutes)]
