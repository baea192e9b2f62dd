"""The message that the composer passes to the relay."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Mail:
    """A finished message: envelope recipient and bytes (CRLF lines, not yet dot-stuffed)."""

    recipient: str = field(repr=False)
    content: bytes = field(repr=False)
    dot_safe: bool = False
    """Whether all lines are known to end with CRLF and none to begin with a dot."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """What to redact in the relay's replies."""
    tenant: str = ""
    """The tenant that sends it; empty for the default one."""
    sender: str | None = None
    """The envelope's MAIL FROM address, if it is not the relay's."""


class ComposeError(Exception):
    """A template or its data failed; the text is for an operator and contains no secret."""


class TenantRemovedError(ComposeError):
    """The job was read before its tenant was removed from `TENANTS_FILE`: it must be read again."""


class OutdatedMailError(Exception):
    """The mail was composed for another sender or relay than its tenant has now: it must be composed again."""
