"""Masks and hashes addresses, and redacts addresses and codes in foreign texts such as a relay's reply.

All work is linear in the length of a text, because others control that length.
"""

import re
from binascii import a2b_base64, unhexlify
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from .address import person_key
from .secret_search import (
    MIN_DISTINCTIVE,
    SHORTEST,
    SPACED,
    Needle,
    Searched,
    contains_any,
    fold_compact,
    of_code,
    of_wire_address,
)

SHOWN = 300
"""Maximum number of characters of a text that are shown."""
SEARCH_LIMIT = 2_000
"""Characters of a text that are searched before it is cut: a secret that begins in the shown part ends within them."""
_ADDRESS_MARK = re.compile("[@%&=\\\\\uff20\ufe6b]")
"""What every address contains, as it is or escaped."""
_ADDRESS = re.compile(r"[\w.+-]@\w")
_MAX_TORN = 128
"""A longer word is cut in the middle, not dropped: it is too long for a code."""
_BYTES = bytes(range(256))
_LOWER = _BYTES.lower()
_NO_WORD = bytes(it for it in _BYTES if not chr(it).isascii() or not chr(it).isalnum())
_NO_DIGIT_64 = bytes(it for it in _NO_WORD if chr(it) not in "+/-_")
_NO_DIGIT_16 = bytes(it for it in _BYTES if chr(it) not in "0123456789abcdefABCDEF")
_STANDARD = bytes.maketrans(b"-_", b"+/")
_DIGIT = re.compile(r"\d")
_REPLY_CODE = re.compile(r"(?<!\S)([245]\d\d(?:[ -][245]\.\d{1,3}\.\d{1,3})?|[245]\.\d{1,3}\.\d{1,3})(?!\S)")
"""As relays write it, with or without the enhanced code (RFC 5321, RFC 3463)."""


def mask_address(address: str) -> str:
    """Return `u***@example.com` for `user@example.com`."""
    local, at, domain = address.rpartition("@")
    return f"{local[:1]}***@{domain}" if at else "***"


def mask_recipient(address: str, code: str) -> str:
    """Mask the address of a job, and all of it if its domain contains the code."""
    domain = address.rpartition("@")[2]
    if code.isdecimal() and _DIGIT.search(domain) is None:  # as almost always
        return mask_address(address)
    wanted = fold_compact(code)
    hidden = code and (wanted in fold_compact(domain) if wanted else code in domain)
    return "***" if hidden else mask_address(address)


def hash_address(address: str, key: bytes) -> str:
    """Return a keyed hash, which is equal for the addresses of one person."""
    return blake2b(person_key(address).encode(errors="surrogatepass"), key=key, digest_size=16).hexdigest()


def keyed_hash(name: str, key: bytes) -> str:
    """Return a keyed hash of a name that may be a secret; an empty name stays empty."""
    return name and blake2b(name.encode(errors="replace"), key=key, digest_size=16).hexdigest()


def contains_secret(text: str, address: str, code: str, *, partial: bool = False) -> bool:
    """Return whether `text` contains the address or the code, in any case or encoding.

    A number within a longer one, or a local part alone, counts only with `partial`.
    """
    if not _may_contain(text, address, code):
        return False
    # without `partial`, a local part is allowed: producers name jobs after people and search for them by that name
    needles = [*of_wire_address(address, shortest=SHORTEST if partial else len(address)), *of_code(code)]
    searched = Searched(text)
    return any(searched.spans(needles)) if partial else contains_any(searched, needles)


def mentions_address(text: str, address: str) -> bool:
    """Return whether `text` contains the whole address, in any encoding, and not only a longer one that ends alike."""
    if not contains_secret(text, address, ""):
        return False
    forms = [it.text for it in of_wire_address(address, shortest=len(address))]
    # an escaped line break in JSON ends with a letter
    whole = rf"(?:(?<![\w.+-])|(?<=\\[bfnrt]))(?:{'|'.join(map(re.escape, forms))})(?![\w-]|\.\w)"
    searched = Searched(text)
    if any(re.search(whole, it.folded) for it in searched.unescaped):
        return True
    # what is beside it may be anything, because it is decoded from other words
    return any(form in it.folded for it in searched.decoded for form in forms)


def is_secret_id(job_id: str, address: str, code: str) -> bool:
    """Return whether a job's id contains the address or the code, or what looks like any other address.

    A code of six characters or more also counts as part of something longer, such as a user's number: in a UUID, that
    is a coincidence once in half a million jobs. A shorter one would be found in every few hundredth.
    """
    if _ADDRESS_MARK.search(job_id) and any(_ADDRESS.search(it.folded) for it in Searched(job_id).unescaped):
        return True
    if not _may_contain(job_id, address, code):
        return False
    within = len(code) >= MIN_DISTINCTIVE and contains_secret(job_id, "", code, partial=True)
    return within or contains_secret(job_id, address, code)


def _may_contain(text: str, address: str, code: str) -> bool:
    """Return `False` if a quick look rules a secret out, as for almost every job id."""
    if not (text.isascii() and code.isascii() and address.isascii()):
        return True
    if "%" in text or "=" in text or "\\" in text or "&" in text:  # every escape contains one of these
        return True
    local = address.rpartition("@")[0]
    if len(without_tag := local.partition("+")[0]) >= SHORTEST:
        local = without_tag
    elif len(local) < SHORTEST:
        if "xn--" in address:  # the Unicode form of the address shares no text with it
            return True
        local = address
    wanted_code, wanted_local = _letters_and_digits(code), _letters_and_digits(local)
    # as almost every template's name; an encoded secret is longer than the secret
    if (not code or len(wanted_code) > len(text)) and (not local or len(wanted_local) > len(text)):
        return False
    raw = text.encode()
    # an encoded secret may begin at any digit: all alignments are decoded in one call
    digits = raw.translate(_STANDARD, _NO_DIGIT_64) + b"AAA"
    aligned = b"".join([digits[at : at + (len(digits) - at) // 4 * 4] for at in range(4)])
    digits = raw.translate(None, _NO_DIGIT_16)
    pairs = digits[: len(digits) // 2 * 2] + digits[1 : 1 + (len(digits) - 1) // 2 * 2]
    readings = (raw + a2b_base64(aligned) + unhexlify(pairs)).translate(_LOWER, _NO_WORD)
    return bool((code and wanted_code in readings) or (local and wanted_local in readings))


def _letters_and_digits(text: str) -> bytes:
    return text.encode().translate(_LOWER, _NO_WORD)


def cut(text: str) -> str:
    """Cut a line to `SHOWN` characters without a torn word at the end: half of a code cannot be redacted later."""
    if len(text) <= SHOWN:
        return text
    start, _, torn = text[:SHOWN].rpartition(" ")
    return start if len(torn) <= _MAX_TORN else text[:SHOWN]


def scrub(text: str, *secrets: str, limit: int = SHOWN) -> str:
    """Return `text` on one line of printable characters, with every secret redacted, cut to `limit`."""
    text = " ".join(text.split())[: max(SEARCH_LIMIT, limit)]
    # a shorter secret is no code, and ordinary words contain it
    needles = [it for secret in secrets if len(secret) >= SHORTEST for it in _needles(secret)]
    # the replies that accept a mail are searched for nothing
    text = _redacted(text, needles, limit) if needles else text[:limit]
    # others, such as escape sequences, could control a terminal
    return (
        text if text.isprintable() else "".join(it if it.isprintable() else "\N{REPLACEMENT CHARACTER}" for it in text)
    )


def _redacted(text: str, needles: Sequence[Needle], limit: int) -> str:
    parts: list[str] = []
    at = 0
    for start, end in _merged(Searched(text).spans(needles)):
        if start >= limit:
            break
        parts += text[at:start], "***"
        at = end
    return "".join([*parts, text[at:limit]])


def scrub_suspects(text: str, *secrets: str, limit: int = SHOWN) -> str:
    """Redact as `scrub` does, and also every word that may be an address or a code."""
    parts = _REPLY_CODE.split(scrub(text, *secrets, limit=SEARCH_LIMIT))
    parts[::2] = map(_without_suspects, parts[::2])
    return " ".join(filter(None, parts))[:limit]


def _without_suspects(text: str) -> str:
    spaced = SPACED.sub(lambda found: " *** " if any(map(str.isspace, found[0].strip())) else found[0], text)
    return " ".join("***" if _suspect(word) else word for word in spaced.split())


def _suspect(word: str) -> bool:
    return len(word) >= SHORTEST and ("@" in word or any(map(str.isdigit, word)))


def _needles(secret: str) -> list[Needle]:
    _, at, domain = secret.rpartition("@")
    needles = of_wire_address(secret, shortest=2) if at else []
    # a password may contain an @, too
    return needles if "." in domain and at else [*needles, *of_code(secret)]


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged
