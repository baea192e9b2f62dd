"""An SMTP server to which the mail of a recipient is routed: it passes on the text of each mail, and keeps nothing."""

import asyncio
import email
import email.policy
from collections.abc import Callable
from email.message import EmailMessage

from aiosmtpd.smtp import SMTP, Envelope, Session

_MOST_BYTES = 1_000_000


class Mailbox:
    """An SMTP server on `host:port`, once started; accepts every recipient: a route may change the address."""

    def __init__(self, host: str, port: int, on_mail: Callable[[str], None]) -> None:
        self.host, self.port = host, port
        self._on_mail = on_mail
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises `OSError` if the port is in use."""
        self._server = await asyncio.get_running_loop().create_server(self._session, self.host, self.port)

    # aiosmtpd calls this method by its name

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: ARG002, N802, D102
        message = email.message_from_bytes(envelope.original_content or b"", policy=email.policy.default)
        self._on_mail("\n".join(_texts(message)))
        return "250 2.0.0 seen"

    def _session(self) -> SMTP:
        loop = asyncio.get_running_loop()
        return SMTP(self, hostname="livecheck", enable_SMTPUTF8=True, data_size_limit=_MOST_BYTES, loop=loop)


def _texts(message: EmailMessage) -> list[str]:
    """Return the text and HTML parts."""
    found: list[str] = []
    for kind in ("plain", "html"):
        part = message.get_body((kind,))
        if isinstance(part, EmailMessage):
            try:
                found.append(part.get_content())
            except (LookupError, ValueError):  # an unknown charset: not our mail
                continue
    return found
