"""The secrets that a server was shown. It may quote each of them in any later answer, and on any later connection."""

import re
from collections.abc import Iterable, Iterator

from .masking import SEARCH_LIMIT, SHOWN, scrub

_KEPT = 16
"""An access token lives for about an hour, and a password is changed less often: older ones are of no use."""
# begins only where a word begins: the time is linear, whatever a server sends
_LONG_WORD = re.compile(rf"(?<!\S)\S{{{SHOWN},}}")


class ShownSecrets:
    """The last passwords and access tokens that one server was shown."""

    def __init__(self) -> None:
        self._secrets: dict[str, None] = {}

    def __iter__(self) -> Iterator[str]:
        """Iterate over them, the latest last."""
        return iter(tuple(self._secrets))

    def add(self, *secrets: str | None) -> None:
        """Remember what is shown next, in place of the oldest ones."""
        for secret in filter(None, secrets):
            self._secrets.pop(secret, None)
            self._secrets[secret] = None
        while len(self._secrets) > _KEPT:
            del self._secrets[next(iter(self._secrets))]

    def redact(self, text: str, limit: int = SEARCH_LIMIT) -> str:
        """Return a text of the server on one line, without them, cut to `limit`."""
        return scrub(without_long_words(text, self), *self, limit=limit)


def without_long_words(text: str, secrets: Iterable[str]) -> str:
    """Redact what may be a long token, in any form. `scrub` would not find one that is cut at its limit."""
    return _LONG_WORD.sub("***", text) if any(len(it) > SHOWN for it in secrets) else text
