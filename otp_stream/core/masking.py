"""How an address may be shown: enough to recognise one's own, too little to learn another's."""

import re
from collections.abc import Container, Iterable, Iterator
from hashlib import blake2b
from typing import Any, cast
from urllib.parse import unquote

_SHORTEST = 4
"""Characters of a code."""


def mask_address(address: str) -> str:
    """Return `u***@example.com` for `user@example.com`."""
    local, at, domain = address.rpartition("@")
    return f"{local[:1]}***@{domain}" if at else "***"


def hash_address(address: str, key: bytes) -> str:
    """Return a keyed hash: equal for equal addresses, tells nothing else."""
    return blake2b(address.lower().encode(errors="surrogatepass"), key=key, digest_size=16).hexdigest()


def hidden(name: str, key: bytes) -> str:
    """Return a keyed hash of what somebody has called a thing, where it may be a secret; nothing for nothing."""
    return name and blake2b(name.encode(errors="replace"), key=key, digest_size=16).hexdigest()


def tells(text: str, address: str, code: str) -> bool:
    """Whether `text` holds the address, or the code: a number within a longer one, or a word in a word, is chance."""
    if "%" in text:
        text = f"{text} {unquote(text)}"
    if address and address.casefold() in text.casefold():
        return True
    if not code or code not in text:
        return False
    near = "0-9" if code.isdigit() else "0-9A-Za-z"
    return re.search(rf"(?<![{near}]){re.escape(code)}(?![{near}])", text) is not None


def suspects(body: Any, *, apart: Container[str]) -> Iterator[str]:
    """Yield the words of a body that may be an address or a code, whatever their field is called.

    `apart` are the names of fields that are passed over.
    """
    left: list[Any] = [body]
    while left:  # not by recursion: a body may be nested as deep as it likes
        value = left.pop()
        if isinstance(value, dict):
            left += [inner for name, inner in cast("dict[str, Any]", value).items() if name not in apart]
        elif isinstance(value, list):
            left += cast("list[Any]", value)
        elif isinstance(value, str | int | float):
            for word in str(value).split():
                if len(word) >= _SHORTEST and ("@" in word or any(map(str.isdigit, word))):
                    yield word


def holds_any(text: str, secrets: Iterable[str]) -> bool:
    """Whether `text` tells any of these addresses and codes."""
    return any(tells(text, it if "@" in it else "", it) for it in secrets)


def scrub(text: str, *secrets: str, limit: int = 300) -> str:
    """Return `text` on one line of printable characters, `limit` at most, with every secret in it blotted out."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    text = " ".join(text.split())[:limit]
    # a terminal obeys some characters; words have none of them
    return (
        text if text.isprintable() else "".join(it if it.isprintable() else "\N{REPLACEMENT CHARACTER}" for it in text)
    )
