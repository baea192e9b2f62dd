"""A mail relay that keeps the e-mails that it accepts, and shows them in a web page. Two addresses fail on purpose.

`later@…` is deferred once (451) and accepted the second time; `nobody@…` is rejected (550).
"""

import asyncio
import email
import email.policy
import itertools
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from functools import partial
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp

from otp_stream.asgi import FRAME, PAGE_WITH_FRAMES, get_route, text

_HERE = Path(__file__).parent
_KEPT = 500


@dataclass(frozen=True, slots=True)
class Received:
    """An accepted e-mail."""

    number: int
    recipient: str
    at: datetime
    message: EmailMessage

    def part(self, kind: str) -> str:
        """Return the `plain` or `html` text."""
        found = self.message.get_body((kind,))
        if not isinstance(found, EmailMessage):
            return ""
        try:
            return found.get_content()
        except LookupError:  # an unknown charset
            content: Any = found.get_payload(decode=True)
            return content.decode("ascii", "replace")


class Inbox:
    """An SMTP server on `host:port` from `start` to `stop`, without TLS and login, so use loopback only."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.mails: deque[Received] = deque(maxlen=_KEPT)
        self._numbers = itertools.count(1)
        self._deferred: set[str] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Start listening. Port 0 means any free port."""
        self._server = await asyncio.get_running_loop().create_server(self._protocol, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening. Open connections stay until their clients close them."""
        if self._server is not None:
            self._server.close()

    def routes(self) -> dict[str, ASGIApp]:
        """Return the inbox's pages by path."""
        return {
            "/inbox": get_route(self._list),
            "/inbox/mail": get_route(self._mail),
            "/inbox/newest": get_route(self._newest),
            "/inbox/inbox.css": get_route(partial(_file, "inbox.css", "text/css")),
            "/inbox/inbox.js": get_route(partial(_file, "inbox.js", "text/javascript")),
        }

    # aiosmtpd calls these by their names

    async def handle_RCPT(  # noqa: N802, D102
        self,
        server: SMTP,  # noqa: ARG002
        session: Session,  # noqa: ARG002
        envelope: Envelope,
        address: str,
        options: list[str],  # noqa: ARG002
    ) -> str:
        local = address.partition("@")[0].lower()
        if local == "nobody":
            return "550 5.1.1 no such user here"
        if local == "later" and address not in self._deferred:
            self._deferred.add(address)
            return "451 4.3.0 try again later"
        self._deferred.discard(address)
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 ok"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: ARG002, N802, D102
        message = email.message_from_bytes(envelope.original_content or b"", policy=email.policy.default)
        for recipient in envelope.rcpt_tos:
            self.mails.appendleft(Received(next(self._numbers), recipient, datetime.now(UTC), message))
        return "250 2.0.0 kept in the inbox"

    def _protocol(self) -> SMTP:
        return SMTP(self, hostname="inbox.localhost", enable_SMTPUTF8=True, loop=asyncio.get_running_loop())

    async def _list(self, request: Request) -> Response:
        chosen = self._selected(request)
        html = _PAGES.get_template("inbox.html").render(
            mails=self.mails,
            shown=chosen or next(iter(self.mails), None),
            chosen=chosen is not None,
            newest=self._newest_number,
        )
        return HTMLResponse(html, headers=PAGE_WITH_FRAMES)

    async def _newest(self, _: Request) -> Response:
        return text(str(self._newest_number))

    @property
    def _newest_number(self) -> int:
        return self.mails[0].number if self.mails else 0

    async def _mail(self, request: Request) -> Response:
        mail = self._selected(request)
        return text("no such mail\n", 404) if mail is None else HTMLResponse(mail.part("html"), headers=FRAME)

    def _selected(self, request: Request) -> Received | None:
        wanted = request.query_params.get("id", "")
        return next((mail for mail in self.mails if str(mail.number) == wanted), None)


async def _file(name: str, kind: str, _: Request) -> Response:
    return Response((_HERE / name).read_bytes(), media_type=kind)


_PAGES = Environment(
    loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
