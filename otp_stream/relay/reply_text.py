"""The text of a relay's reply, before its meaning is read: its beginning, and no address in it."""

import re
from collections.abc import Iterable, Mapping, Sequence

from otp_stream.core.masking import SEARCH_LIMIT

# Begins only where a word begins: the time is linear, whatever a relay sends.
_ADDRESS = re.compile(r"(?<![^\s<>\"'(),;:\[\]@])[^\s<>\"'(),;:\[\]@]+@[^\s<>\"'(),;:\[\]]+")


def beginning(text: str, status: str | None) -> str:
    """Return the words that are searched for secrets, on one line without the status, which each line may repeat.

    No word is cut, because half of a secret would not be found. Nothing here loops over lines or words: a reply may
    have 13,000 lines.
    """
    if status is not None:
        text = f"\n{text}".replace(f"\n#{status}", "\n").replace(f"\n{status}", "\n")
    text = " ".join(text.split(None, SEARCH_LIMIT)[:SEARCH_LIMIT])
    end = text.find(" ", SEARCH_LIMIT)
    return text if end < 0 else text[:end]


def without_domain(text: str, secrets: Sequence[str]) -> str:
    """Hide the recipient's domain: its words, such as `throttled.example`, are not the relay's."""
    domain = next((it.rpartition("@")[2] for it in secrets if "@" in it), "")
    if not domain or domain.lower() not in text.lower():
        return text
    return re.sub(rf"(?<![@\w.-]){re.escape(domain)}(?![\w-])", "…", text, flags=re.IGNORECASE)


def _bare(address: str) -> str:
    return address.rstrip(".!?").lower().removeprefix("from=")  # as in "from=otp@example.com."


def has_other_address(text: str, known: Iterable[str]) -> bool:
    """Return whether what looks like an address is another one, or part of a secret that the relay has changed."""
    return not {_bare(it) for it in _ADDRESS.findall(text)} <= {name.lower() for name in known}


def without_addresses(text: str, ours: Mapping[str, str]) -> str:
    """Replace our addresses by the names of their settings, and mask all others."""
    return _ADDRESS.sub(lambda it: ours.get(_bare(it[0]), "***"), text)
