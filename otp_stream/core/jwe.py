"""Compact JWE (RFC 7516) with A256GCM, by a shared key (`dir`) or a public key (`ECDH-ES` on P-256 or X25519).

Nothing else is read: no other algorithm, no compression, no critical header. Errors quote nothing of a token.
"""

import os
import re
from base64 import urlsafe_b64encode
from binascii import a2b_base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDH,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic_core import from_json, to_json

from .json_types import is_object

ENC = "A256GCM"
KEY_BYTES, _IV_BYTES, _TAG_BYTES, _COORDINATE_BYTES = 32, 12, 16, 32
_MAX_HEADER = 16 * 1024
"""Characters of the longest header that is read, which takes much longer than all the rest of a token."""
_TOKEN = re.compile(rb"([\w-]+)\.\.([\w-]{16})\.([\w-]*)\.([\w-]{21}[AQgw])")
"""A protected header, no encrypted key, an IV of 96 bits, a ciphertext, and a tag of 128 bits."""
_DIGITS = re.compile(rb"[\w-]*")
_LAST = {0: b"", 2: b"AQgw", 3: b"AEIMQUYcgkosw048"}
"""The last characters of base64url without padding that have no ignored bits, by the length modulo 4; 0: any."""
_TO_BASE64 = bytes.maketrans(b"-_", b"+/")

Header = Mapping[str, Any]


class JweError(ValueError):
    """A token that cannot be opened; the text completes "otpSealed: …"."""


class Key(Protocol):
    """A key that seals and, unless it is a public one, opens."""

    @property
    def kid(self) -> str:
        """Its name, which tokens state."""
        ...

    @property
    def alg(self) -> str:
        """The algorithm of its tokens, never that which a token states."""
        ...

    @property
    def can_open(self) -> bool:
        """Whether it is not only a public key."""
        ...

    def fits(self, header: Header) -> bool:
        """Return whether a token with this header may have been sealed with this kind of key."""
        ...

    def new_cipher(self) -> tuple[AESGCM, Header]:
        """Return the cipher of a new token, and what its header has to state."""
        ...

    def cipher(self, header: Header) -> AESGCM:
        """Return the cipher of a received token. Raises `JweError`."""
        ...


class Token(NamedTuple):
    """A compact JWE, decoded but not opened: nothing in it can be trusted."""

    header: dict[str, Any]
    protected: bytes
    """The header as it was received, which the tag covers."""
    iv: bytes
    ciphertext: bytes
    """With the tag."""


def seal(key: Key, header: Header, plaintext: bytes) -> bytes:
    """Return a compact JWE with these fields in its protected header, and a new IV."""
    cipher, of_cipher = key.new_cipher()
    protected = encode(to_json({"alg": key.alg, "enc": ENC, "kid": key.kid, **header, **of_cipher}))
    iv = os.urandom(_IV_BYTES)
    sealed = cipher.encrypt(iv, plaintext, protected)
    return b"%b..%b.%b.%b" % (protected, encode(iv), encode(sealed[:-_TAG_BYTES]), encode(sealed[-_TAG_BYTES:]))


def parse(token: bytes) -> Token:
    """Decode a compact JWE. Raises `JweError`."""
    found = _TOKEN.fullmatch(token)
    if found is None:
        raise JweError(
            "is not a compact JWE: header, nothing, IV (12 bytes), ciphertext and tag (16 bytes), each in base64url "
            "without padding and joined by dots"
        )
    protected, iv, ciphertext, tag = found.groups()
    if len(protected) > _MAX_HEADER:
        raise JweError("has a protected header that is too long")
    try:
        header, sealed = from_json(_decoded(protected)), _decoded(ciphertext)
    except ValueError:
        raise JweError("has a protected header that is not JSON, or a part that is not base64url") from None
    if not is_object(header):
        raise JweError("has a protected header that is not a JSON object")
    _check(header)
    return Token(header, protected, _decoded(iv), sealed + _decoded(tag))


def _check(header: dict[str, Any]) -> None:
    if header.get("enc") != ENC:
        raise JweError("must have enc A256GCM")
    if header.get("alg") not in ("dir", "ECDH-ES"):
        raise JweError("must have alg dir or ECDH-ES")
    if "zip" in header or "crit" in header:
        raise JweError("must have neither zip nor crit")
    if not isinstance(header.get("kid", ""), str):
        raise JweError("has a kid that is not a string")


def unseal(key: Key, token: Token) -> bytes:
    """Return the plaintext. Raises `JweError`."""
    if not key.fits(token.header):
        raise JweError("has another alg or curve than the key that it names")
    try:
        return key.cipher(token.header).decrypt(token.iv, token.ciphertext, token.protected)
    except InvalidTag:
        raise JweError("was changed, or was sealed with another key of the same name") from None


def encode(content: bytes) -> bytes:
    """Return base64url without padding."""
    return urlsafe_b64encode(content).rstrip(b"=")


def decode(text: str) -> bytes:
    """Decode base64url without padding. Raises `ValueError` for anything that `encode` would not return."""
    given = text.encode("ascii")
    if not _DIGITS.fullmatch(given):
        raise ValueError("is not base64url without padding")
    return _decoded(given)


def _decoded(digits: bytes) -> bytes:
    """Decode the digits of base64url. Each content has one form only: raises `ValueError` for another one."""
    more = len(digits) % 4
    if more and digits[-1:] not in _LAST.get(more, ()):
        raise ValueError("is not base64url as it is encoded")
    return a2b_base64(digits.translate(_TO_BASE64) + b"==")


@dataclass(frozen=True, slots=True)
class SharedKey:
    """A key of 256 bits that producers and workers share (`dir`)."""

    kid: str
    secret: bytes = field(repr=False)
    alg: str = field(default="dir", init=False)
    can_open: bool = field(default=True, init=False)
    _cipher: AESGCM = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_cipher", AESGCM(self.secret))

    def fits(self, header: Header) -> bool:
        """Return whether a token was sealed with a shared key."""
        return header["alg"] == self.alg

    def new_cipher(self) -> tuple[AESGCM, Header]:
        """Return the cipher, which is that of every token."""
        return self._cipher, {}

    def cipher(self, header: Header) -> AESGCM:  # noqa: ARG002 - as `Key` has it
        """Return the cipher, which is that of every token."""
        return self._cipher


@dataclass(frozen=True, slots=True)
class PairKey:
    """A key pair, or its public half (`ECDH-ES`): a new pair for each token agrees with it on the token's key."""

    kid: str
    curve: str
    """`P-256` or `X25519`."""
    public: bytes
    """The point: x and y of P-256, x of X25519."""
    private: EllipticCurvePrivateKey | X25519PrivateKey | None = field(default=None, repr=False, compare=False)
    alg: str = field(default="ECDH-ES", init=False)

    @property
    def can_open(self) -> bool:
        """Whether its private half is here."""
        return self.private is not None

    @property
    def public_jwk(self) -> dict[str, str]:
        """The members of its public half."""
        return _public_jwk(self.curve, self.public)

    def fits(self, header: Header) -> bool:
        """Return whether a token was sealed with a public key of this curve."""
        epk = header.get("epk")
        return (
            header["alg"] == self.alg
            and is_object(epk)
            and epk.get("crv") == self.curve
            and epk.get("kty") == ("OKP" if self.curve == "X25519" else "EC")
        )

    def new_cipher(self) -> tuple[AESGCM, Header]:
        """Return the cipher of a new token, with the public half of its pair."""
        if self.curve == "X25519":
            pair = X25519PrivateKey.generate()
            shared = pair.exchange(X25519PublicKey.from_public_bytes(self.public))
            point = pair.public_key().public_bytes_raw()
        else:
            pair = generate_private_key(SECP256R1())
            shared = pair.exchange(ECDH(), p256_point(self.public))
            point = public_point(pair)
        return AESGCM(_agreed(shared, b"", b"")), {"epk": _public_jwk(self.curve, point)}

    def cipher(self, header: Header) -> AESGCM:
        """Return the cipher of a received token. Raises `JweError`."""
        if self.private is None:
            raise JweError("was sealed with a public key whose private half is not here")
        try:
            point = _point(header["epk"], ("x",) if self.curve == "X25519" else ("x", "y"))
            party_u, party_v = (decode(header.get(name, "")) for name in ("apu", "apv"))
            if isinstance(self.private, X25519PrivateKey):
                shared = self.private.exchange(X25519PublicKey.from_public_bytes(point))
            else:
                shared = self.private.exchange(ECDH(), p256_point(point))
        except (ValueError, LookupError, AttributeError):  # cryptography refuses points off the curve
            raise JweError("has an epk, apu or apv that is not valid") from None
        return AESGCM(_agreed(shared, party_u, party_v))


def _point(epk: dict[str, str], names: tuple[str, ...]) -> bytes:
    parts = [decode(epk[name]) for name in names]
    if any(len(part) != _COORDINATE_BYTES for part in parts):
        raise ValueError("has a coordinate of a wrong length")
    return b"".join(parts)


def public_point(pair: EllipticCurvePrivateKey) -> bytes:
    """Return x and y of a pair's public half."""
    return pair.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def p256_point(point: bytes) -> EllipticCurvePublicKey:
    """Return the public key of x and y. Raises `ValueError` if they are not on the curve."""
    return EllipticCurvePublicKey.from_encoded_point(SECP256R1(), b"\x04" + point)


def _public_jwk(curve: str, point: bytes) -> dict[str, str]:
    x, y = point[:_COORDINATE_BYTES], point[_COORDINATE_BYTES:]
    jwk = {"kty": "EC" if y else "OKP", "crv": curve, "x": encode(x).decode()}
    return {**jwk, "y": encode(y).decode()} if y else jwk


def _agreed(shared: bytes, party_u: bytes, party_v: bytes) -> bytes:
    """Derive the token's key from a shared secret."""
    return concat_kdf(shared, ENC.encode(), party_u, party_v, 8 * KEY_BYTES)


def concat_kdf(shared: bytes, algorithm: bytes, party_u: bytes, party_v: bytes, bits: int) -> bytes:
    """Derive a key of up to 256 bits, which takes one round (RFC 7518 §4.6.2)."""
    info = b"".join([len(it).to_bytes(4, "big") + it for it in (algorithm, party_u, party_v)])
    return sha256(b"\0\0\0\1" + shared + info + bits.to_bytes(4, "big")).digest()[: bits // 8]
