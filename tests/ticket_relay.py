"""A relay that sends TLS session tickets without end: records that cost OpenSSL time, and contain no data."""

import contextlib
import hashlib
import hmac
import socket
import ssl
import struct
import threading
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Literal, Self

from certificates import Authority
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_TICKET = b"\x04\x00\x00\x0f" + struct.pack(">II", 7200, 1) + b"\x01n\x00\x01t\x00\x00"
"""RFC 8446 §4.6.1: its lifetime, its age, a nonce of one byte, a ticket of one byte, and no extension."""
_RECORD = _TICKET * (16_000 // len(_TICKET)) + b"\x16"
"""With the type of its content: handshake."""
_REPLIES = {b"EHLO": b"250 relay.example\r\n", b"DATA": b"354 go ahead\r\n", b"STAR": b"220 go ahead\r\n"}


@dataclass
class TicketRelay:
    """Serves connections in threads, with TLS 1.3 from the start.

    `after`: whether to send tickets in place of the greeting, or once a mail was accepted.
    """

    authority: Authority
    after: Literal["handshake", "mail"] = "handshake"
    starttls: bool = False
    limit: int = 1 << 62
    """Bytes of tickets on each connection; then it waits until the client closes."""
    port: int = 0
    sent: list[int] = field(default_factory=list)
    """Bytes of tickets that were sent on each connection."""
    accepted: int = 0
    """Number of mails."""
    _sockets: list[socket.socket] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._files = self.authority.issue("localhost", "127.0.0.1")
        listening = socket.create_server(("127.0.0.1", 0))
        self._sockets.append(listening)
        self.port = listening.getsockname()[1]
        threading.Thread(target=self._accept, args=(listening,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for it in self._sockets:
            with contextlib.suppress(OSError):
                it.shutdown(socket.SHUT_RDWR)
            it.close()

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                self.sent.append(0)
                threading.Thread(target=self._serve, args=(connection, len(self.sent) - 1), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        key_log = Path(f"{self._files[1]}.{number}")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self._files)
        context.minimum_version, context.num_tickets = ssl.TLSVersion.TLSv1_3, 0
        context.keylog_filename = str(key_log)
        with contextlib.suppress(OSError):
            if self.starttls:
                connection.sendall(b"220 relay.example\r\n")
                for reply in (b"250-relay.example\r\n250 STARTTLS\r\n", b"220 go ahead\r\n"):
                    connection.recv(4096)
                    connection.sendall(reply)
            tls = context.wrap_socket(connection, server_side=True)
            self._sockets.append(tls)
            records = self._converse(tls) if self.after == "mail" else 0
            self._flood(tls, number, key_log, records)

    def _converse(self, tls: ssl.SSLSocket) -> int:
        """Accept one mail, and return the number of records that were sent."""
        sent = 0
        if not self.starttls:
            tls.sendall(b"220 relay.example\r\n")
            sent += 1
        content = False
        for line in tls.makefile("rb"):
            if content and line != b".\r\n":
                continue
            tls.sendall(b"250 ok\r\n" if content else _REPLIES.get(line[:4], b"250 ok\r\n"))
            sent += 1
            if content:
                self.accepted += 1
                break
            content = line.startswith(b"DATA")
        return sent

    def _flood(self, tls: ssl.SSLSocket, number: int, key_log: Path, records: int) -> None:
        """Send our own records under the key of the server, of which `records` were sent."""
        lines = (line.split() for line in key_log.read_text().splitlines())
        secret = next(bytes.fromhex(line[2]) for line in lines if line[0] == "SERVER_TRAFFIC_SECRET_0")
        assert tls.cipher() == ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)
        cipher = AESGCM(_expand(secret, b"key", 32))
        vector = int.from_bytes(_expand(secret, b"iv", 12), "big")
        header = struct.pack(">BHH", 23, 0x0303, len(_RECORD) + 16)
        raw = socket.socket(fileno=tls.detach())
        self._sockets.append(raw)
        for at in count(records):
            if self.sent[number] >= self.limit:
                raw.recv(1)
                return
            raw.sendall(header + cipher.encrypt((vector ^ at).to_bytes(12, "big"), _RECORD, header))
            self.sent[number] += len(_RECORD)


def _expand(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label of RFC 8446 §7.1, for up to one hash."""
    name = b"tls13 " + label
    info = struct.pack(">HB", length, len(name)) + name + b"\0"
    return hmac.digest(secret, info + b"\1", hashlib.sha384)[:length]
