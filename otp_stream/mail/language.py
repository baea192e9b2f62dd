"""The language of an e-mail: its translations, text direction, dates and times (CLDR, through Babel)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from functools import lru_cache
from gettext import NullTranslations

from babel import Locale, UnknownLocaleError
from babel.core import get_global
from babel.dates import format_skeleton, format_time, get_timezone_gmt, get_timezone_name

SOURCE = "en"
"""The language in which messages are written in templates."""
_UNTRANSLATED = NullTranslations()
_SPACES = str.maketrans("\u00a0\u202f", "  ")
"""No-break spaces, which some programs show as boxes."""
_LONGEST_ZONE = 5
"""Characters of a zone's abbreviation. Where a language has none, CLDR gives its long name."""


@dataclass(frozen=True, slots=True)
class Language:
    """One language; `tag` is that of `<html lang>`, such as `pt-BR`."""

    tag: str
    translations: NullTranslations = field(default=_UNTRANSLATED, compare=False, repr=False)
    direction: str = field(init=False)
    """`ltr` or `rtl`."""

    def __post_init__(self) -> None:
        """Look up the direction."""
        locale = _locale(normal_locale(self.tag))
        object.__setattr__(self, "direction", locale.text_direction if locale else "ltr")

    def regional(self, requested: str | None) -> str:
        """Return the locale for dates and times: the requested one if it is of this language, such as `en-gb`."""
        return _regional(self.tag, requested or "")


@lru_cache(1024)
def _regional(tag: str, requested: str) -> str:
    own, wanted = normal_locale(tag), normal_locale(requested)
    return wanted if own in fallbacks(wanted) and _locale(wanted) else own


def normal_locale(locale: str) -> str:
    """Return the normal form of a locale: `de-at` for `de_AT`."""
    return locale.replace("_", "-").lower()


@lru_cache(512)
def fallbacks(locale: str) -> tuple[str, ...]:
    """Return `("de-at", "de")` for `de-AT`; nothing for an empty locale.

    A language in another script is no fallback: `zh-TW` is written in other characters than `zh`.
    """
    parts = normal_locale(locale).split("-") if locale else []
    script = _script(parts)
    tags = (parts[:count] for count in range(len(parts), 0, -1))
    return tuple("-".join(it) for it in tags if _script(it) == script)


def _script(parts: list[str]) -> str:
    """Return the script in which a language is usually written in a territory, empty if unknown."""
    if not parts:
        return ""
    if stated := next((it for it in parts[1:] if len(it) == 4 and it.isalpha()), ""):
        return stated
    likely = get_global("likely_subtags")
    territories = [f"{parts[0]}_{it.upper()}" for it in parts[1:2]]
    found = next((likely[it] for it in (*territories, parts[0]) if it in likely), "")
    return found.split("_")[1].lower() if found else ""


@lru_cache(256)
def _locale(tag: str) -> Locale | None:
    for it in _shorter(tag):
        try:
            return Locale.parse(it, sep="-")
        except (UnknownLocaleError, ValueError):
            continue
    return None


def _shorter(tag: str) -> Iterator[str]:
    parts = tag.split("-")
    return ("-".join(parts[:count]) for count in range(len(parts), 0, -1))


@lru_cache(1024)
def moment(at_s: int, locale: str, zone: tzinfo, *, dated: bool) -> str:
    """Return a time such as `2:32 PM UTC` or `14:32 MEZ`, with its date if `dated`; seconds are cut off."""
    at = datetime.fromtimestamp(at_s, zone)
    known = _locale(locale) or Locale(SOURCE)
    shown = f"{format_time(at, 'short', tzinfo=zone, locale=known)} {_zone_name(at, known)}"
    if dated:
        date = format_skeleton("yMMMd", at, tzinfo=zone, locale=known)
        shown = str(known.datetime_formats["medium"]).format(shown, date)
    return shown.translate(_SPACES)


@lru_cache(256)
def time_of_day(at_s: int, locale: str, zone: tzinfo) -> str:
    """Return a time with seconds, such as `2:32:05 PM`."""
    at = datetime.fromtimestamp(at_s, zone)
    return format_time(at, "medium", tzinfo=zone, locale=_locale(locale) or Locale(SOURCE)).translate(_SPACES)


def _zone_name(at: datetime, locale: Locale) -> str:
    if not at.utcoffset() and (name := at.tzname()) in {"UTC", "GMT"}:
        return name
    name = get_timezone_name(at, width="short", locale=locale)
    if len(name) <= _LONGEST_ZONE and name.isalpha():
        return name
    offset = get_timezone_gmt(at, width="iso8601", locale=SOURCE)  # such as +05:30
    return f"UTC{offset[0]}{offset[1:].removeprefix('0').removesuffix(':00')}"
