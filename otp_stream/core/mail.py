"""The finished message that goes from the composer to the relay."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Mail:
    """A finished message: envelope recipient and bytes (CRLF lines, not yet dot-stuffed)."""

    recipient: str = field(repr=False)
    content: bytes = field(repr=False)
    dot_safe: bool = False
    """Whether it is known that all lines end with CRLF and none begins with a dot."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """What to redact in texts of the relay."""


class ComposeError(Exception):
    """A template or its data failed; the text is for an operator and holds no secret."""
