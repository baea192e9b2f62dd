"""The bytes of one mail in SMTP: its envelope, which depends on the relay's extensions, and its content."""

import re
from dataclasses import dataclass, field

from otp_stream.core.address import wire_address
from otp_stream.core.mail import Mail
from otp_stream.core.outcome import Reply

from .parser import Answer

_MAX_SENDERS = 1_000
_LONE_CR_OR_LF = re.compile(rb"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class Extensions:
    """The extensions in the relay's reply to EHLO (RFC 5321 §4.1.1.1)."""

    pipelining: bool = False
    starttls: bool = False
    size: bool = False
    size_limit: int = 0
    """Maximum size of a message in bytes (RFC 1870); 0 if the relay names no limit."""
    eight_bit: bool = False
    utf8: bool = False
    chunking: bool = False
    logins: frozenset[str] = field(default_factory=frozenset[str])

    @classmethod
    def read(cls, answer: Answer) -> "Extensions":
        """Parse the reply. Its first line contains the relay's name only."""
        lines = [line.upper().replace("=", " ").split() for line in answer[1].split("\n")[1:]]
        offered = {words[0] for words in lines if words}
        return cls(
            pipelining="PIPELINING" in offered,
            starttls="STARTTLS" in offered,
            size="SIZE" in offered,
            size_limit=next((int(it[1]) for it in lines if it[0:1] == ["SIZE"] and it[1:] and it[1].isdecimal()), 0),
            eight_bit="8BITMIME" in offered,
            utf8="SMTPUTF8" in offered,
            chunking="CHUNKING" in offered,
            logins=frozenset(word for words in lines if words and words[0] == "AUTH" for word in words[1:]),
        )


class Envelopes:
    """Writes envelopes for one connection; `sender` is the MAIL FROM address of mails that have none of their own."""

    def __init__(self, sender: str, extensions: Extensions) -> None:
        self._offers = extensions
        # built once, because it is the same for many mails
        self._own = self._from(sender)
        self._of_mails: dict[str, tuple[bytes, bytes | None]] = {}

    def write(self, mail: Mail) -> tuple[bytes, bytes] | Reply:
        """Return the MAIL and the RCPT command, or a refusal in the relay's place."""
        recipient = mail.recipient
        if not _is_writable(recipient):
            return Reply(553, "5.1.3", "the address cannot be written in SMTP", "rcpt")
        path = self._path(recipient)
        its = mail.sender
        command, sender = self._own if its is None else self._of_mails.get(its) or self._add(its)
        if path is None or sender is None:
            whose = "sender's" if sender is None else "recipient's"
            return Reply(553, "5.6.7", f"the {whose} address needs SMTPUTF8, which the relay does not offer", "rcpt")
        if self._offers.size:
            command += b" SIZE=%d" % len(mail.content)
        if self._offers.eight_bit and not mail.content.isascii():
            command += b" BODY=8BITMIME"
        if self._offers.utf8 and not (path.isascii() and sender.isascii()):
            command += b" SMTPUTF8"
        return command + b"\r\n", b"RCPT TO:<" + path + b">\r\n"

    def _add(self, sender: str) -> tuple[bytes, bytes | None]:
        if len(self._of_mails) >= _MAX_SENDERS:
            self._of_mails.clear()
        added = self._of_mails[sender] = self._from(sender)
        return added

    def _from(self, sender: str) -> tuple[bytes, bytes | None]:
        """Return the beginning of the MAIL command, and the address in it."""
        path = self._path(sender) if _is_writable(sender) else None
        return b"" if path is None else b"MAIL FROM:<" + path + b">", path

    def _path(self, address: str) -> bytes | None:
        """Return the address in its wire form, or `None` if its local part needs an extension that is not offered."""
        try:
            wire = wire_address(address)
        except ValueError:
            return None
        return wire.encode() if self._offers.utf8 or wire.isascii() else None


def _is_writable(address: str) -> bool:
    """Return whether an address ends where its command says, and adds no other command."""
    return address.isprintable() and ">" not in address and " " not in address


def data_form(mail: Mail) -> bytes:
    """Return the content as DATA takes it: dots doubled at line starts (RFC 5321 §4.5.2), the final dot at its end."""
    if mail.dot_safe:
        return mail.content + b".\r\n"
    content = _lines(mail.content)
    if b"\r\n." in content:
        content = content.replace(b"\r\n.", b"\r\n..")
    if content.startswith(b"."):
        content = b"." + content
    return content + b".\r\n"


def bdat_form(mail: Mail) -> bytes:
    """Return the content as one chunk (RFC 3030 §2): its size, then its bytes as they are."""
    content = mail.content if mail.dot_safe else _lines(mail.content)
    return b"BDAT %d LAST\r\n" % len(content) + content


def _lines(content: bytes) -> bytes:
    """Return the content with CRLF at the end of each line."""
    ends = content.count(b"\r\n")
    if content.count(b"\n") != ends or content.count(b"\r") != ends:
        # at a relay that reads a lone CR or LF as a line end, it could end the message early
        content = _LONE_CR_OR_LF.sub(b"\r\n", content)
    return content if content.endswith(b"\r\n") else content + b"\r\n"
