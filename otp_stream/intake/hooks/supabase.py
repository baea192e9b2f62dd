"""The "send email" hook of Supabase Auth: https://supabase.com/docs/guides/auth/auth-hooks/send-email-hook."""

from collections.abc import Mapping

from .payload import PASSWORD_RESET, Fields, NoCodeError, job, text

_ABOUT: Mapping[str, Fields] = {
    "signup": {"purpose": "sign_up"},
    "invite": {"purpose": "sign_up"},
    "magiclink": {"purpose": "login"},
    "email": {"purpose": "login"},
    "recovery": PASSWORD_RESET,
    "email_change": {"purpose": "change_email"},
    "reauthentication": {"purpose": "change_password"},
}


def supabase_jobs(payload: object) -> list[Fields]:
    """Return one job; for a change of the address that both mailboxes confirm, two. Raises `NoCodeError`.

    `token` is then for the current address, and `token_new` for the new one, although the names of the hashes say the
    opposite.
    """
    action = text(payload, "email_data", "email_action_type")
    current, new = (
        text(payload, "user", "email"),
        text(payload, "user", "new_email") or text(payload, "user", "email_new"),
    )
    code, new_code = text(payload, "email_data", "token"), text(payload, "email_data", "token_new")
    about = _ABOUT.get(action, {})
    locale = text(payload, "user", "user_metadata", "locale")
    name = text(payload, "user", "user_metadata", "full_name") or text(payload, "user", "user_metadata", "name")
    if action != "email_change":
        found = [(current, code)]
    elif code and new_code:
        found = [(current, code), (new, new_code)]
    else:
        found = [(new or current, new_code or code)]
    if not found[0][1]:
        raise NoCodeError(
            "email_data.token: is empty, so this e-mail has no code; turn this notification of Supabase Auth off"
        )
    return [job(email, its_code, about, locale=locale, userName=name) for email, its_code in found]
