"""IANA's time zones, from the package tzdata, so that every system knows the same names."""

from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from zoneinfo import ZoneInfo


@cache
def time_zone_names() -> frozenset[str]:
    """Return every name, such as `Europe/Berlin`. The first call reads them from a file."""
    return frozenset(files("tzdata").joinpath("zones").read_text(encoding="ascii").split())


def find_time_zone(name: str) -> ZoneInfo | None:
    """Return the zone with this name, or `None` if IANA has none. Each zone is read from its file once."""
    # not ZoneInfo's own check, which depends on the file system: it may ignore case, or contain other files
    return _zone(name) if name in time_zone_names() else None


@cache
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def similar_time_zone(name: str) -> str | None:
    """Return the name that was probably meant: one that differs in case or spelling, or has a continent before it."""
    folded = {it.casefold().replace("_", " "): it for it in sorted(time_zone_names())}
    text = name[:100].casefold().replace("_", " ")
    if text in folded:
        return folded[text]
    longer = [it for key, it in folded.items() if key.endswith(f"/{text}")]  # a city without its continent
    close = get_close_matches(text, folded, 1, 0.8)
    return longer[0] if longer else folded[close[0]] if close else None
