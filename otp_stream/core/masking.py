"""How an address may be shown: enough to recognise one's own, too little to learn another's."""

import re
from hashlib import blake2b
from urllib.parse import unquote


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
