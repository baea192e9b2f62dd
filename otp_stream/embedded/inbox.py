"""A mail relay that keeps the e-mails it accepts and shows them in a web page. Two addresses fail on purpose.

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
from urllib.parse import parse_qs

from aiosmtpd.smtp import SMTP, Envelope, Session
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from otp_stream.asgi import FRAME_POLICY, POLICY, Answer, Route, Scope, get_route

_HERE = Path(__file__).parent
_KEPT = 500


@dataclass(frozen=True, slots=True)
class Received:
    """One e-mail that was accepted."""

    number: int
    recipient: str
    at: datetime
    message: EmailMessage

    def part(self, kind: str) -> str:
        """Return the `plain` or `html` text."""
        found = self.message.get_body((kind,))
        return found.get_content() if isinstance(found, EmailMessage) else ""


class Inbox:
    """An SMTP server on `host:port` from `start` to `stop`, without TLS and login, so use loopback only."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.mails: deque[Received] = deque(maxlen=_KEPT)
        self._numbers = itertools.count(1)
        self._deferred: set[str] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Start listening; port 0 is any free port."""
        self._server = await asyncio.get_running_loop().create_server(self._protocol, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening; open connections stay until their clients close them."""
        if self._server is not None:
            self._server.close()

    def routes(self) -> dict[str, Route]:
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

    async def _list(self, scope: Scope) -> Answer:
        shown = self._selected(scope) or next(iter(self.mails), None)
        html = _PAGES.get_template("inbox.html").render(
            mails=self.mails, shown=shown, chosen=self._selected(scope) is not None, newest=self._newest_number
        )
        return Answer(html.encode(), "text/html; charset=utf-8", policy=f"{POLICY}; frame-src 'self'")

    async def _newest(self, _: Scope) -> Answer:
        return Answer(str(self._newest_number).encode(), "text/plain")

    @property
    def _newest_number(self) -> int:
        return self.mails[0].number if self.mails else 0

    async def _mail(self, scope: Scope) -> Answer:
        mail = self._selected(scope)
        if mail is None:
            return Answer(b"no such mail\n", "text/plain", 404)
        # sandboxed: an e-mail must run and load nothing, as in a mail program
        return Answer(mail.part("html").encode(), "text/html; charset=utf-8", policy=FRAME_POLICY)

    def _selected(self, scope: Scope) -> Received | None:
        wanted = parse_qs(scope["query_string"].decode("latin-1")).get("id", [""])[0]
        return next((mail for mail in self.mails if str(mail.number) == wanted), None)


async def _file(name: str, kind: str, _: Scope) -> Answer:
    return Answer((_HERE / name).read_bytes(), f"{kind}; charset=utf-8")


_PAGES = Environment(
    loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
