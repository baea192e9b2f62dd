"""Reading what a hook sends: JSON of which only few fields are needed, and any may be missing."""

from collections.abc import Mapping
from typing import Any

from otp_stream.core.json_types import is_object

Fields = dict[str, Any]
"""A job as producers write it."""

PASSWORD_RESET: Fields = {"template": "password_reset"}


class NoCodeError(ValueError):
    """A hook that is about no code; the text names the field, and what to do."""


def member(payload: object, *path: str) -> Any:
    """Return a member of nested objects, or `None`."""
    for name in path:
        if not is_object(payload):
            return None
        payload = payload.get(name)
    return payload


def text(payload: object, *path: str) -> str:
    """Return a member that is text; empty for anything else."""
    found = member(payload, *path)
    return found.strip() if isinstance(found, str) else ""


def job(email: str, code: str, about: Mapping[str, Any], **metadata: Any) -> Fields:
    """Return a job with the metadata that has a value."""
    given = {name: it for name, it in metadata.items() if it}
    return {"email": email, "otp": code, "metadata": {**given, **about}}
