"""Validators of the settings of the HTTP intake. Each returns the value, or raises `ValueError` without the secret."""

from pydantic import SecretStr

from otp_stream.core.hook_signatures import webhook_keys

from .validators import MAKE_KEY, MIN_KEY, listed


def intake_token(value: SecretStr | None) -> SecretStr | None:
    """Accept a comma list of tokens that fit into a header and are long enough."""
    for token in listed(value):
        if len(token) < MIN_KEY or not token.isascii() or not token.isprintable() or " " in token:
            raise ValueError(
                f"must have {MIN_KEY} ASCII characters or more, no spaces, in each token of a comma list; {MAKE_KEY}"
            )
    return value


def supabase_secret(value: SecretStr | None) -> SecretStr | None:
    """Accept secrets of Standard Webhooks."""
    if value is not None:
        webhook_keys(value.get_secret_value())
    return value


def zitadel_key(value: SecretStr | None) -> SecretStr | None:
    """Accept a comma list of keys that are long enough."""
    if value is not None and min(map(len, listed(value)), default=0) < MIN_KEY:
        raise ValueError(f"must have {MIN_KEY} characters or more, in each key of a comma list")
    return value
