"""A server with good or bad TLS that records what a client sends to it after the handshake, and never answers."""

import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from certificates import Authority
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

HOST = "localhost"
OTHER_ADDRESS = x509.IPAddress(ipaddress.ip_address("192.0.2.1"))
_LAX = "ALL:eNULL:@SECLEVEL=0"
_WEAK = "eNULL:@SECLEVEL=0"


@dataclass
class TlsServer:
    """Takes connections in threads, with blocking sockets, so that OpenSSL sends its alerts."""

    context: ssl.SSLContext | None
    received: bytes = b""
    """All bytes that clients have sent, decrypted."""
    version: str | None = None
    """The version of TLS of the last handshake that was completed."""
    port: int = 0
    _sockets: list[socket.socket] = field(default_factory=list)

    def __enter__(self) -> Self:
        listening = socket.create_server((HOST, 0))
        self._sockets.append(listening)
        self.port = listening.getsockname()[1]
        threading.Thread(target=self._accept, args=(listening,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for it in self._sockets:
            with suppress(OSError):
                it.shutdown(socket.SHUT_RDWR)
            it.close()

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                self._sockets.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError):
            if self.context is not None:
                connection = self.context.wrap_socket(connection, server_side=True)
                self._sockets.append(connection)
                self.version = connection.version()
            while more := connection.recv(65_536):
                self.received += more
        connection.close()


@dataclass(frozen=True)
class Tls:
    """Contexts of servers by the fault that a client has to find."""

    authority: Authority
    other: Authority
    """An authority that clients do not trust."""

    def context(self, name: str) -> ssl.SSLContext:
        faults: dict[str, Callable[[], ssl.SSLContext]] = {
            "good": lambda: self._of(self.authority.issue(HOST)),
            "1.2": lambda: self._of(self.authority.issue(HOST), newest=ssl.TLSVersion.TLSv1_2),
            "1.3": lambda: self._of(self.authority.issue(HOST), oldest=ssl.TLSVersion.TLSv1_3),
            "1.1": lambda: self._of(self.authority.issue(HOST), newest=ssl.TLSVersion.TLSv1_1, ciphers=_LAX),
            "1.0": lambda: self._of(self.authority.issue(HOST), newest=ssl.TLSVersion.TLSv1, ciphers=_LAX),
            "ciphers": lambda: self._of(self.authority.issue(HOST), newest=ssl.TLSVersion.TLSv1_2, ciphers=_WEAK),
            "expired": lambda: self._of(self.authority.issue(HOST, expired=True)),
            "name": lambda: self._of(self.authority.issue("other.example")),
            "no alternative name": lambda: self._of(self.authority.issue(HOST, names=())),
            "another address": lambda: self._of(self.authority.issue(HOST, names=(OTHER_ADDRESS,))),
            "authority": lambda: self._of(self.other.issue(HOST)),
            "purpose": lambda: self._of(self.authority.issue(HOST, purpose=ExtendedKeyUsageOID.CLIENT_AUTH)),
        }
        return faults[name]()

    def _of(
        self,
        files: tuple[Path, Path],
        *,
        oldest: ssl.TLSVersion = ssl.TLSVersion.TLSv1,
        newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        ciphers: str = "",
    ) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if ciphers:
            context.set_ciphers(ciphers)
        context.minimum_version, context.maximum_version = oldest, newest
        context.load_cert_chain(*files)
        context.set_alpn_protocols(["h2", "http/1.1"])  # gRPC needs h2
        return context
