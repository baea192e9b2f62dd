"""Languages of templates, such as `de-AT`, and what they fall back to."""

import re

LOCALE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{1,8})*")


def normal_locale(locale: str) -> str:
    """Return the normal form of a locale: `de-at` for `de_AT`."""
    return locale.replace("_", "-").lower()


def fallbacks(locale: str) -> tuple[str, ...]:
    """Return `("de-at", "de")` for `de-AT`; nothing for an empty locale."""
    parts = normal_locale(locale).split("-") if locale else []
    return tuple("-".join(parts[:count]) for count in range(len(parts), 0, -1))
