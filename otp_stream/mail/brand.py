"""The brand in the e-mails of a tenant: its name, colour, logo, contact and footer."""

from dataclasses import dataclass, field

from .contrast import readable

LIGHT = ("#ffffff", "#f2f4f8")
"""The backgrounds of card and page in `layout.html`."""
DARK = ("#1a2130", "#0f1420")
"""The same in dark mode."""
_COLOR = "#2f5fd0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Brand:
    """The brand of one tenant, `brand` in templates. Every text may be empty."""

    name: str = ""
    color: str = ""
    """`#rgb` or `#rrggbb`."""
    logo_url: str = ""
    support: str = ""
    """An e-mail address, a URL or a telephone number."""
    footer: tuple[str, ...] = ()
    """Lines, such as a postal address."""
    accent: str = field(init=False)
    """The colour, or a darker one that has enough contrast on a light background."""
    accent_dark: str = field(init=False)
    """The colour, or a lighter one that has enough contrast on a dark background."""

    def __post_init__(self) -> None:
        """Compute the colours that have enough contrast."""
        object.__setattr__(self, "accent", readable(self.color or _COLOR, LIGHT))
        object.__setattr__(self, "accent_dark", readable(self.color or _COLOR, DARK))

    @property
    def contact(self) -> str:
        """`support` as the e-mails show it, without the scheme of a URL."""
        return self.support.removeprefix("https://").rstrip("/")
