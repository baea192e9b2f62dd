"""Contrast of colours by WCAG 2.2: `#rrggbb` texts in, ratios from 1 to 21 out."""

import re

AA = 4.5
"""Minimum contrast of text by level AA (WCAG 2.2, 1.4.3)."""
COLOR = re.compile(r"#([0-9A-Fa-f]{3}|[0-9A-Fa-f]{6})")
_STEPS = 50


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def readable(color: str, backgrounds: tuple[str, ...]) -> str:
    """Return the colour itself if it has AA contrast on all backgrounds, otherwise the closest mix that has.

    It is mixed with black or white, whichever has more contrast on the first background.
    """
    end = max("#000000", "#ffffff", key=lambda it: contrast(it, backgrounds[0]))
    mixes = (_mixed(color, end, step / _STEPS) for step in range(_STEPS + 1))
    return next((it for it in mixes if all(contrast(it, ground) >= AA for ground in backgrounds)), end)


def _mixed(color: str, other: str, share: float) -> str:
    pairs = zip(_channels(color), _channels(other), strict=True)
    return "#" + "".join(f"{round(mine + (theirs - mine) * share):02x}" for mine, theirs in pairs)


def _channels(color: str) -> tuple[int, ...]:
    digits = color.removeprefix("#")
    if len(digits) == 3:
        digits = "".join(it * 2 for it in digits)
    return tuple(int(digits[at : at + 2], 16) for at in (0, 2, 4))


def _luminance(color: str) -> float:
    red, green, blue = (
        it / 12.92 if it <= 0.04045 else ((it + 0.055) / 1.055) ** 2.4
        for it in (channel / 255 for channel in _channels(color))
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
