"""An access token, and how it is read from what a source answers."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple, cast

from otp_stream.core.outcome import UnavailableReason

from .protocol import RelayUnavailableError

LIFE_S = 300.0
"""Assumed life of a token whose source gives none."""
MAX_ANSWER = 65_536
"""Bytes that a source may answer. Tokens have up to a few thousand."""
MAY_BE_TOKEN = re.compile(r"[\w+/=.~-]{40,}")
"""A token or an assertion that a server quotes, or a piece of one: as it is, or in base64."""
_TOKEN = re.compile(r"[!-~]+")
"""Other characters would end the field of the login that a token is in (RFC 7628 §3.1)."""


class Token(NamedTuple):
    """An access token, and how long it is valid from now on (seconds)."""

    value: str
    life_s: float = LIFE_S


class TokenError(RelayUnavailableError):
    """There is no valid access token; the text names the source and the fix, and holds no secret."""


def no_token(text: str, reason: UnavailableReason = "login_refused") -> TokenError:
    """Return the error with this text."""
    return TokenError(reason, f"no access token: {text}")


def read_token(data: bytes) -> Token:
    """Read a token, or a token server's answer in JSON. Raises `ValueError`, whose text holds no secret."""
    if len(data) > MAX_ANSWER:
        raise ValueError(f"holds more than {MAX_ANSWER} bytes, which is no token")
    try:
        text = data.decode("utf-8-sig").strip()  # editors on Windows write the signature
        answer = json.loads(text) if text.startswith("{") else None
    except (ValueError, RecursionError):
        raise ValueError("holds no token") from None
    if answer is not None:
        return of_answer(answer)
    if not _TOKEN.fullmatch(text):
        raise ValueError("holds no token")
    return Token(text)


def of_answer(answer: Mapping[str, Any]) -> Token:
    """Read a token server's answer (RFC 6749 §5.1). Raises `ValueError`, whose text holds no secret."""
    value, kind = answer.get("access_token"), answer.get("token_type")
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise ValueError("holds no access token")
    if isinstance(kind, str) and not kind.lower().startswith("bearer"):
        raise ValueError("holds a token of another type than Bearer")
    return Token(value, life_of(answer.get("expires_in")))


def life_of(expires_in: object) -> float:
    """Return the seconds that a token is used, by what its source answers."""
    with suppress(TypeError, ValueError, OverflowError):
        if 0 < (seconds := float(cast("Any", expires_in))) < float("inf"):
            return seconds
    return LIFE_S
