"""Signatures of hooks: HMAC-SHA256 over a timestamp and the body, compared in constant time.

A captured request is accepted again within `TOLERANCE_S`; it is the same job then, so no second mail is sent.
"""

import binascii
import hmac
import re
from base64 import b64decode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256

TOLERANCE_S = 300
"""How much a timestamp may differ from our clock, as Standard Webhooks and Zitadel's own library have it."""
_PREFIX = "whsec_"
_SHORTEST = 16
"""Minimum bytes of a secret of Standard Webhooks."""


class SignatureError(ValueError):
    """A request that is not signed with one of our keys, or was signed too long ago."""


def webhook_keys(text: str) -> list[bytes]:
    """Return the keys in secrets such as `v1,whsec_…`, separated by `|` or spaces. Raises `ValueError`."""
    secrets = [it for it in re.split(r"[\s|,]+", text) if it not in {"", "v1"}]
    keys = [_from_base64(it.removeprefix(_PREFIX)) if it.startswith(_PREFIX) else b"" for it in secrets]
    if min(map(len, keys), default=0) < _SHORTEST:
        raise ValueError("must be a secret such as v1,whsec_… with 16 bytes or more in base64; several separated by |")
    return keys


def verify_webhook(headers: Mapping[str, str], body: bytes, keys: Sequence[bytes], now_s: float) -> None:
    """Verify a request as Standard Webhooks says: https://www.standardwebhooks.com.

    Raises `SignatureError`.
    """
    webhook_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    # Supabase Auth with several secrets writes `, ` between their signatures, where Standard Webhooks has a space
    parts = [it.rstrip(",").partition(",") for it in headers.get("webhook-signature", "").split()]
    given = [signature for version, _, signature in parts if version == "v1"]
    if not webhook_id or not timestamp or not given:
        raise SignatureError("webhook-id, webhook-timestamp and webhook-signature: are required")
    _verify(f"{webhook_id}.{timestamp}.".encode() + body, keys, map(_from_base64, given))
    _check_time(timestamp, now_s)


def verify_zitadel(headers: Mapping[str, str], body: bytes, keys: Sequence[bytes], now_s: float) -> None:
    """Verify the header `ZITADEL-Signature: t=seconds,v1=hex,…`.

    Raises `SignatureError`.
    """
    parts = [it.partition("=") for it in headers.get("zitadel-signature", "").split(",")]
    timestamp = next((value for name, _, value in parts if name.strip() == "t"), "")
    given = [value for name, _, value in parts if name.strip() == "v1"]
    if not timestamp or not given:
        raise SignatureError("zitadel-signature: is required, with t and v1")
    _verify(f"{timestamp}.".encode() + body, keys, map(_from_hex, given))
    _check_time(timestamp, now_s)


def _verify(signed: bytes, keys: Sequence[bytes], given: Iterable[bytes]) -> None:
    expected = [hmac.digest(key, signed, sha256) for key in keys]
    matches = [hmac.compare_digest(ours, theirs) for theirs in given for ours in expected]
    if not any(matches):
        raise SignatureError("the signature is not made with a secret that is set here, or the body was changed")


def _check_time(timestamp: str, now_s: float) -> None:
    """Check the signed time, after the signature, so that no stranger learns about our clock."""
    if not timestamp.isascii() or not timestamp.isdecimal() or abs(now_s - int(timestamp[:12])) > TOLERANCE_S:
        raise SignatureError(
            f"the request was signed more than {TOLERANCE_S} seconds ago, or one of two clocks is wrong"
        )


def _from_base64(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError):  # other characters than ASCII
        return b""


def _from_hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""
