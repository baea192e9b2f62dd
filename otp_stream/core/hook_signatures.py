"""Signatures of hooks: HMAC-SHA256 over a timestamp and the body, compared in constant time.

A captured request is accepted again within `TOLERANCE_S`; it is the same job then, so no second mail is sent.
"""

import binascii
import hmac
import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

TOLERANCE_S = 300
"""How much a timestamp may differ from our clock, as Standard Webhooks and Zitadel's own library have it."""
MAX_SIGNATURES = 16
"""Signatures in a header. A server sends one for each of its keys; each is decoded and compared with each of ours."""
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


@dataclass(frozen=True, slots=True)
class HookSignature:
    """What the headers of a request say about its signature."""

    prefix: str
    """What is signed before the body."""
    timestamp: str
    given: Sequence[bytes]
    """Signatures, of which one must be ours: a server sends one for each of its keys."""

    def verify(self, body: bytes, keys: Sequence[bytes], now_s: float) -> None:
        """Verify a body with these keys at this time. Raises `SignatureError`."""
        signed = self.prefix.encode() + body
        expected = [hmac.digest(key, signed, sha256) for key in keys]
        matches = [hmac.compare_digest(ours, theirs) for theirs in self.given for ours in expected]
        if not any(matches):
            raise SignatureError("the signature is not made with a secret that is set here, or the body was changed")
        _check_time(self.timestamp, now_s)


def read_webhook(headers: Mapping[str, str]) -> HookSignature:
    """Read a signature as Standard Webhooks says: https://www.standardwebhooks.com.

    Raises `SignatureError`.
    """
    webhook_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    # Supabase Auth with several secrets writes `, ` between their signatures, where Standard Webhooks has a space
    parts = headers.get("webhook-signature", "").split(maxsplit=MAX_SIGNATURES)
    pairs = [it.rstrip(",").partition(",") for it in parts]
    given = [signature for version, _, signature in pairs if version == "v1"]
    if not webhook_id or not timestamp or not given:
        raise SignatureError("webhook-id, webhook-timestamp and webhook-signature: are required")
    _check_number(len(parts), "webhook-signature")
    return HookSignature(f"{webhook_id}.{timestamp}.", timestamp, tuple(map(_from_base64, given)))


def read_zitadel(headers: Mapping[str, str]) -> HookSignature:
    """Read the header `ZITADEL-Signature: t=seconds,v1=hex,…`.

    Raises `SignatureError`.
    """
    parts = headers.get("zitadel-signature", "").split(",", MAX_SIGNATURES + 1)
    pairs = [it.partition("=") for it in parts]
    timestamp = next((value for name, _, value in pairs if name.strip() == "t"), "")
    given = [value for name, _, value in pairs if name.strip() == "v1"]
    if not timestamp or not given:
        raise SignatureError("zitadel-signature: is required, with t and v1")
    _check_number(len(parts) - 1, "zitadel-signature")
    return HookSignature(f"{timestamp}.", timestamp, tuple(map(_from_hex, given)))


def _check_number(signatures: int, header: str) -> None:
    if signatures > MAX_SIGNATURES:
        raise SignatureError(f"{header}: has more than {MAX_SIGNATURES} signatures")


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
