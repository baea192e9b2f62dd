"""Searches a relay's reply for wordings. A relay, or the server behind it, chooses the text, so the work is bounded."""

import re

CLASSIFIED = 1_024
"""Characters of a reply that are searched for wordings and kept: two lines of 512 octets (RFC 5321 §4.5.3.1.5). The
decisive words of known replies are within 400. Some relays write their policy before them, in a separate line."""
_WORD = r"\b"


class Wording:
    r"""Alternative patterns, in any case. One that begins with `\b` has no other alternative beside its groups.

    Python skips an alternative at once if its first letter is another one, but not with IGNORECASE or behind `\b`:
    that takes four times as long. So the text is searched in lower case, and the beginning of a word is found once.
    """

    def __init__(self, *patterns: str) -> None:
        self.patterns = patterns
        of_words = "|".join(it.removeprefix(_WORD) for it in patterns if it.startswith(_WORD))
        alternatives = [it for it in patterns if not it.startswith(_WORD)]
        if of_words:
            alternatives.append(f"{_WORD}(?:{of_words})")
        self._compiled = re.compile(_lower("|".join(alternatives)))

    def search(self, text: str) -> re.Match[str] | None:
        """Return the first match in the beginning of `text`."""
        return self._compiled.search(text[:CLASSIFIED].lower())


def _lower(pattern: str) -> str:
    """Convert a pattern to lower case, except for its escapes, of which some differ by their case only."""
    return re.sub(r"\\.|[A-Z]+", lambda it: it[0] if it[0].startswith("\\") else it[0].lower(), pattern)
