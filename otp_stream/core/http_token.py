"""The tokens of the web pages and of the HTTP intake: who has one, and what it allows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest
from typing import Literal

Role = Literal["viewer", "operator", "producer"]
"""`viewer` sees all pages, with the causes of dead letters; `operator` also replays them and probes relays; `producer`
sends jobs over HTTP, and sees no page."""


@dataclass(frozen=True, slots=True)
class HttpToken:
    """A token, of which only the SHA-256 digest is kept."""

    name: str
    """Who uses it: a person or a program."""
    role: Role
    digest: bytes = field(repr=False)
    expires_ms: int | None = None
    """When it expires, milliseconds since 1970; `None`: never."""
    user_header: str | None = None
    """The header in which a proxy, which alone has this token, names the user that it has authenticated."""
    tenant: str = ""
    """The tenant for which a producer sends; empty for the default one."""

    def is_valid(self, now_ms: int) -> bool:
        """Return whether it has not expired."""
        return self.expires_ms is None or now_ms < self.expires_ms


def digest_of(token: str) -> bytes:
    """Return the digest under which a token is kept.

    It needs no salt and no slow hash: a random token of 128 bits cannot be guessed, however fast the hash is.
    """
    return sha256(token.encode(errors="surrogatepass")).digest()


def find_token(tokens: Sequence[HttpToken], sent: str, now_ms: int) -> HttpToken | None:
    """Return the valid token that was sent, or `None`. The time that it takes does not depend on what was sent."""
    if not sent:
        return None
    digest, found = digest_of(sent), None
    for token in tokens:
        if compare_digest(token.digest, digest):
            found = token
    return found if found and found.is_valid(now_ms) else None
