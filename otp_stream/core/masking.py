"""Addresses and names as logs and events may show them."""

from hashlib import blake2b

from .address import one_person


def mask_address(address: str) -> str:
    """Return `u***@example.com` for `user@example.com`."""
    local, at, domain = address.rpartition("@")
    return f"{local[:1]}***@{domain}" if at else "***"


def hash_address(address: str, key: bytes) -> str:
    """Return a keyed hash: equal for addresses of one person, and otherwise meaningless."""
    return blake2b(one_person(address).encode(errors="surrogatepass"), key=key, digest_size=16).hexdigest()


def keyed_hash(name: str, key: bytes) -> str:
    """Return a keyed hash of a name that may be a secret; an empty name stays empty."""
    return name and blake2b(name.encode(errors="replace"), key=key, digest_size=16).hexdigest()
