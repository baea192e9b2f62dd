"""Our message headers, and their MAC. Anyone can publish `x-otp-*` headers, but only a worker can sign them."""

from collections.abc import Mapping, MutableMapping, Sequence
from hashlib import blake2b
from hmac import compare_digest
from json import JSONEncoder
from typing import Any

ATTEMPT, JOB_ID, FIRST_SEEN = "x-otp-attempt", "x-otp-job-id", "x-otp-first-seen"
UNCERTAIN = "x-otp-uncertain"
LANE, MOVES, SUSPECT = "x-otp-lane", "x-otp-moves", "x-otp-suspect"
REASON, ERROR, REPLY_CODE = "x-otp-reason", "x-otp-error", "x-otp-reply-code"
DIED_AT, ALLOWED_AT = "x-otp-died-at", "x-otp-allowed-at"
ERASED = "x-otp-code-erased"
REPLAYED_AT, REPLAYED_BY, FRESH = "x-otp-replayed-at", "x-otp-replayed-by", "x-otp-fresh"
MAC = "x-otp-mac"
OURS = "x-otp-"
"""The prefix of our headers; headers of a producer that begin with it are dropped."""
_PURPOSE = b"x-otp-mac"
_encode = JSONEncoder(sort_keys=True).encode


def sign(headers: MutableMapping[str, Any], body: bytes, key: bytes) -> None:
    """Add the MAC over our headers and the body. It does not cover headers that the broker and tracers change."""
    headers[MAC] = _mac(_ours(headers), body, key)


def verified(headers: Mapping[str, Any], body: bytes, keys: Sequence[bytes]) -> dict[str, Any] | None:
    """Return our headers if one of the keys signed them together with the body, else `None`."""
    mac = headers.get(MAC)
    if not isinstance(mac, str) or not mac.isascii():
        return None
    ours = _ours(headers)
    if any(type(value) not in (str, int) for value in ours.values()):
        return None
    return ours if any(compare_digest(mac, _mac(ours, body, key)) for key in keys) else None


def _ours(headers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in headers.items() if name.startswith(OURS) and name != MAC}


def _mac(ours: Mapping[str, Any], body: bytes, key: bytes) -> str:
    content = _encode(ours).encode()
    digest = blake2b(len(content).to_bytes(8, "big"), key=key, person=_PURPOSE, digest_size=16)
    digest.update(content)
    digest.update(body)
    return digest.hexdigest()
