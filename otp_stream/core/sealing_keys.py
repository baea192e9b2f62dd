"""The keys of `SEALING_KEYS`: a JWK Set (RFC 7517). The first key seals, every key opens."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal, assert_never, cast

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key, generate_private_key
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from .jwe import (
    KEY_BYTES,
    JweError,
    Key,
    PairKey,
    SharedKey,
    Token,
    decode,
    encode,
    p256_point,
    public_point,
    seal,
    unseal,
)

MAKE_KEYS = "make one with: otp-stream sealing new"
_MAX_KEYS = 16
_MAX_KID = 200
_MIN_VARIETY = 12
"""Minimum number of different bytes in a shared key; 32 random ones have 26 or more in all but one of 10^6."""
_SUPPORTED = "supported are oct with 256 bits, EC with P-256, and OKP with X25519"
_THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{43}")
_CURVES = {"oct": None, "EC": "P-256", "OKP": "X25519"}
_ALGORITHMS = {"oct": ("A256GCM", "dir"), "EC": ("ECDH-ES",), "OKP": ("ECDH-ES",)}


class NoKeyError(LookupError):
    """No key opens a token; the text completes "otpSealed: …"."""


@dataclass(frozen=True, slots=True)
class SealingKeys:
    """The keys of a deployment, or of a producer."""

    keys: tuple[Key, ...] = ()

    def __bool__(self) -> bool:
        """Whether there are any, so that codes are sealed."""
        return bool(self.keys)

    @property
    def first(self) -> Key:
        """The key that seals."""
        return self.keys[0]

    def seal(self, header: dict[str, Any], plaintext: bytes) -> bytes:
        """Return a compact JWE."""
        return seal(self.first, header, plaintext)

    def open(self, token: Token) -> bytes:
        """Return the plaintext of a token. Raises `JweError`, or `NoKeyError`."""
        kid = token.header.get("kid")
        if kid is not None:
            key = next((it for it in self.keys if it.kid == kid and it.can_open), None)
            if key is None:
                raise NoKeyError(_missing(kid))
            return unseal(key, token)
        for key in self.keys:
            if key.can_open and key.fits(token.header):
                try:
                    return unseal(key, token)
                except JweError:
                    continue
        raise NoKeyError("names no key (kid), and no key in SEALING_KEYS opens it")

    def public(self) -> dict[str, Any]:
        """Return the public halves as a JWK Set, for producers."""
        pairs = (it for it in self.keys if isinstance(it, PairKey))
        return {"keys": [{**it.public_jwk, "kid": it.kid, "use": "enc", "alg": it.alg} for it in pairs]}


NO_KEYS = SealingKeys()


def read_keys(text: str, *, sealing_only: bool = False) -> SealingKeys:
    """Read a JWK Set, or one JWK, of keys that open.

    With `sealing_only`, for producers, public keys are accepted, too. Raises `ValueError`, which names a key by its
    position and quotes nothing of it.
    """
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"must be a JWK Set or a JWK, in JSON; {MAKE_KEYS}") from None
    return keys_of(content, sealing_only=sealing_only)


def keys_of(content: Any, *, sealing_only: bool = False) -> SealingKeys:
    """Read a decoded JWK Set or JWK, as `read_keys` does."""
    fields = cast("Mapping[str, Any]", content) if isinstance(content, Mapping) else {"keys": None}
    found: Any = fields.get("keys", [fields])
    if not isinstance(found, list) or not found:
        raise ValueError(f'must be a JWK Set, {{"keys": [...]}}, with one key or more; {MAKE_KEYS}')
    jwks = cast("list[Any]", found)
    if len(jwks) > _MAX_KEYS:
        raise ValueError(f"has more than {_MAX_KEYS} keys; remove those with which nothing is sealed any more")
    keys: list[Key] = []
    for number, jwk in enumerate(jwks, 1):
        try:
            keys.append(_read_key(jwk, sealing_only=sealing_only))
        except ValueError as error:
            raise ValueError(f"key {number}: {error}") from None
        if any(it.kid == keys[-1].kid for it in keys[:-1]):
            raise ValueError(f"key {number}: has the same kid as another key; give each its own")
    return SealingKeys(tuple(keys))


def _read_key(found: Any, *, sealing_only: bool) -> Key:
    if not isinstance(found, dict):
        raise ValueError("is not a JSON object")  # noqa: TRY004 - a problem of the setting, not of the program
    jwk = cast("dict[str, Any]", found)
    kty = jwk.get("kty")
    kind = kty if isinstance(kty, str) else ""
    curve = _CURVES.get(kind, "")
    if curve == "" or jwk.get("crv") != curve:
        raise ValueError(f"has another kty or crv than can be used: {_SUPPORTED}")
    if jwk.get("use", "enc") != "enc":
        raise ValueError("has a use other than enc")
    if jwk.get("alg") not in (None, *_ALGORITHMS[kind]):
        raise ValueError(f"has another alg than {' or '.join(_ALGORITHMS[kind])}; leave it out")
    if jwk.get("enc") not in (None, "A256GCM"):
        raise ValueError("has another enc than A256GCM; leave it out")
    key = _shared_key(jwk) if curve is None else _pair_key(jwk, curve)
    if not (key.can_open or sealing_only):
        raise ValueError("is a public key; a worker needs the private one, with d")
    return key


def _kid(jwk: dict[str, Any], *required: str) -> str:
    """Return the kid; if absent, the thumbprint (RFC 7638)."""
    kid = jwk.get("kid")
    if kid is None:
        canonical = json.dumps({name: jwk[name] for name in sorted(required)}, separators=(",", ":"))
        return encode(sha256(canonical.encode()).digest()).decode()
    if not isinstance(kid, str) or not 0 < len(kid) <= _MAX_KID or not kid.isprintable():
        raise ValueError(f"has a kid that is not a text of 1 to {_MAX_KID} printable characters")
    return kid


def _part(jwk: dict[str, Any], name: str) -> bytes:
    try:
        content = decode(jwk[name])
    except (LookupError, ValueError, AttributeError):
        content = b""
    if len(content) != KEY_BYTES:
        raise ValueError(f"{name} must be {KEY_BYTES} bytes in base64url without padding")
    return content


def _shared_key(jwk: dict[str, Any]) -> SharedKey:
    secret = _part(jwk, "k")
    if len(set(secret)) < _MIN_VARIETY:
        raise ValueError(f"k is not random; {MAKE_KEYS}")
    return SharedKey(_kid(jwk, "k", "kty"), secret)


def _pair_key(jwk: dict[str, Any], curve: str) -> PairKey:
    names = ("x",) if curve == "X25519" else ("x", "y")
    public = b"".join(_part(jwk, name) for name in names)
    if curve == "P-256":
        try:
            p256_point(public)
        except ValueError:
            raise ValueError("x and y are not on the curve P-256") from None
    kid = _kid(jwk, "kty", "crv", *names)
    if "d" not in jwk:
        return PairKey(kid, curve, public)
    secret = _part(jwk, "d")
    try:
        private = (
            X25519PrivateKey.from_private_bytes(secret)
            if curve == "X25519"
            else derive_private_key(int.from_bytes(secret, "big"), SECP256R1())
        )
    except ValueError:
        raise ValueError(f"d is not valid for {curve}") from None
    found = private.public_key().public_bytes_raw() if isinstance(private, X25519PrivateKey) else public_point(private)
    if found != public:
        raise ValueError(f"d does not belong to {' and '.join(names)}")
    return PairKey(kid, curve, public, private)


def _missing(kid: str) -> str:
    """Return why no key opens a token. Its kid may be a producer's mistake, but no code is as long as a thumbprint."""
    looks_made = _THUMBPRINT.fullmatch(kid) is not None
    return f"is sealed with a key that is not in SEALING_KEYS{f' (kid {kid})' if looks_made else ''}"


def new_jwk(kind: Literal["oct", "p256", "x25519"]) -> dict[str, str]:
    """Return a new private key as a JWK, with its thumbprint as `kid`."""
    match kind:
        case "oct":
            jwk, names = {"kty": "oct", "k": encode(os.urandom(KEY_BYTES)).decode()}, ("k", "kty")
        case "p256":
            pair = generate_private_key(SECP256R1())
            secret = pair.private_numbers().private_value.to_bytes(KEY_BYTES, "big")
            jwk = {**PairKey("", "P-256", public_point(pair)).public_jwk, "d": encode(secret).decode()}
            names = ("kty", "crv", "x", "y")
        case "x25519":
            other = X25519PrivateKey.generate()
            public = PairKey("", "X25519", other.public_key().public_bytes_raw()).public_jwk
            jwk, names = {**public, "d": encode(other.private_bytes_raw()).decode()}, ("kty", "crv", "x")
        case _:
            assert_never(kind)
    return {**jwk, "kid": _kid(dict(jwk), *names), "use": "enc"}
