"""How an address may be shown: enough to recognise one's own, too little to learn another's."""


def mask_address(address: str) -> str:
    """Return `u***@example.com` for `user@example.com`."""
    local, at, domain = address.rpartition("@")
    return f"{local[:1]}***@{domain}" if at else "***"


def scrub(text: str, *secrets: str, limit: int = 300) -> str:
    """Return `text` on one line, within `limit` characters, with every secret in it blotted out."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return " ".join(text.split())[:limit]
