"""The settings of one tenant that shape its mails."""

from dataclasses import dataclass
from pathlib import Path

from otp_stream.core.address import is_address, wire_address

from .brand import Brand

_NO_BRAND = Brand()


@dataclass(frozen=True, slots=True, kw_only=True)
class MailIdentity:
    """The settings of one tenant that shape its mails; `sender` and `reply_to` are (display name, address).

    Raises `ValueError`, which begins with the name of the field, for an address that cannot be in a header.
    """

    sender: tuple[str, str]
    templates_dir: Path | None
    """The folder whose files override the built-in ones."""
    default_locale: str
    reply_to: tuple[str, str] | None = None
    envelope_sender: str | None = None
    """Where bounces go: the envelope's MAIL FROM address, if it is not the sender's."""
    brand: Brand = _NO_BRAND
    time_zone: str = "UTC"
    """IANA name of the time zone in which times are printed, unless the job names one."""
    subject_time: bool = False
    """Whether the subject of `otp` contains the time of the request."""

    def __post_init__(self) -> None:
        """Check the addresses, so that none of them can add a header or a command."""
        if self.sender[1]:  # a process that sends no mail needs none
            _check("sender", self.sender[1])
        if self.reply_to is not None:
            _check("reply_to", self.reply_to[1])
        if self.envelope_sender is not None:
            _check("envelope_sender", self.envelope_sender)


def _check(name: str, address: str) -> None:
    try:
        wire = wire_address(address) if is_address(address) else ""
    except ValueError:
        wire = ""
    if not is_address(wire):
        raise ValueError(f"{name}: must be one address such as no-reply@example.com")
