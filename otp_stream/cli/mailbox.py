"""A mailbox that somebody's mail is routed to: it hands over the text of what comes in, and keeps nothing."""

import asyncio
import email
import email.policy
from collections.abc import Callable
from email.message import EmailMessage

from aiosmtpd.smtp import SMTP, Envelope, Session

_MOST_BYTES = 1_000_000


class Mailbox:
    """An SMTP server on `host:port`, from `start` on; it takes every mail, for a route may change the address."""

    def __init__(self, host: str, port: int, took: Callable[[str], None]) -> None:
        self.host, self.port = host, port
        self._took = took
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises `OSError` where the port is taken."""
        self._server = await asyncio.get_running_loop().create_server(self._speak, self.host, self.port)

    # aiosmtpd calls this by its name

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: ARG002, N802, D102
        message = email.message_from_bytes(envelope.original_content or b"", policy=email.policy.default)
        self._took("\n".join(_texts(message)))
        return "250 2.0.0 seen"

    def _speak(self) -> SMTP:
        loop = asyncio.get_running_loop()
        return SMTP(self, hostname="livecheck", enable_SMTPUTF8=True, data_size_limit=_MOST_BYTES, loop=loop)


def _texts(message: EmailMessage) -> list[str]:
    """Return the parts that a person would read."""
    found: list[str] = []
    for kind in ("plain", "html"):
        part = message.get_body((kind,))
        if isinstance(part, EmailMessage):
            try:
                found.append(part.get_content())
            except (LookupError, ValueError):  # a charset nobody knows: that is not our mail
                continue
    return found
