"""Opens connections that are ready for mail: TCP, TLS, EHLO, login."""

import asyncio
import re
import socket
import ssl
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import idna

from otp_stream.core.outcome import Stage
from otp_stream.core.shown_secrets import ShownSecrets
from otp_stream.core.state import CredentialsState
from otp_stream.sockets import SMALL_BUFFER, Addresses, certificate_name
from otp_stream.tls import tls_failure
from otp_stream.urls import is_loopback

from .client_tls import ClientTls, certificate_hint
from .config import OAuthConfig, RelayConfig
from .envelope import Extensions
from .login import Login, TokenRefusedError
from .oauth import AccessTokens, access_tokens
from .parser import Answer
from .protocol import UNREQUESTED, RelayUnavailableError, SmtpProtocol, TlsFloodError
from .reply import handshake_reason, to_reply
from .tls_overhead import TlsOverhead

P = TypeVar("P", bound=SmtpProtocol)
_CERTIFICATE_ALERT = re.compile("ALERT_(.*CERTIFICATE|UNKNOWN_CA|HANDSHAKE_FAILURE)")


class Handshake:
    """Opens connections."""

    def __init__(self, config: RelayConfig, tokens: AccessTokens | None = None) -> None:
        self._config = config
        self._helo = config.helo or _domain(config.sender)
        self._tls = ClientTls(config) if config.tls != "none" else None
        self._context: ssl.SSLContext | None = None
        self._tokens = tokens or (access_tokens(config.oauth, self._oauth) if config.oauth is not None else None)
        self._shown = ShownSecrets()
        self._login = Login(config, self._tokens, self._shown)
        self._addresses = Addresses(SMALL_BUFFER)
        self.unready: set[SmtpProtocol] = set()
        """Connections before the end of the login."""
        self._certificate_end: str | None = None
        """When the relay's certificate expires, as OpenSSL writes it."""

    async def open(self, make: Callable[[], P]) -> tuple[P, Extensions]:
        """Return a connection that is ready for MAIL, and the relay's extensions. Raises `RelayUnavailableError`."""
        try:
            return await self._open_with_current_secrets(make)
        except RelayUnavailableError as error:
            # at the only way out, so that no text of the relay is forgotten: a reply, or the extensions that it offers
            error.args = (self._shown.redact(str(error)),)
            raise

    async def _open_with_current_secrets(self, make: Callable[[], P]) -> tuple[P, Extensions]:
        secrets = self._config.current.secrets
        try:
            await self._prepare()
            return await self._open(make)
        except TokenRefusedError as error:
            if self._tokens is None or not await self._tokens.replace(error.token):
                raise
        except RelayUnavailableError as error:
            if error.reason != "login_refused" or not await self._has_other_secrets(secrets):
                raise
            await self._prepare()
        return await self._open(make)  # relays end the session after a refused login

    def credentials(self) -> CredentialsState:
        """Return when the certificate and the access token end."""
        tokens, end = self._tokens, self._certificate_end
        ends_s = float(ssl.cert_time_to_seconds(end)) if end is not None else None
        if tokens is None:
            return CredentialsState(ends_s)
        return CredentialsState(ends_s, tokens.valid_s, tokens.failures)

    async def _has_other_secrets(self, before: tuple[str, ...]) -> bool:
        """Read the secrets again at once: they are usually changed at the relay and here at about the same time."""
        if self._config.rotation is not None:
            await self._config.rotation.refresh()
        return self._config.current.secrets != before

    def _oauth(self) -> OAuthConfig | None:
        return self._config.current.oauth

    async def close(self) -> None:
        """Fetch no more access tokens."""
        if self._tokens is not None:
            await self._tokens.close()

    async def _open(self, make: Callable[[], P]) -> tuple[P, Extensions]:
        protocol, sock = await self._connect(make)
        protocol.shown = self._shown
        self.unready.add(protocol)
        address = protocol.transport.get_extra_info("peername")
        try:
            offers = await self._greet(protocol, sock)
            self._addresses.succeeded(address)
            certificate: dict[str, str] | None = protocol.transport.get_extra_info("peercert")
            self._certificate_end = certificate.get("notAfter") if certificate else None
            return protocol, offers
        except BaseException as error:
            if isinstance(error, RelayUnavailableError):
                self._addresses.failed(address)
            protocol.transport.abort()
            await asyncio.sleep(0)  # the event loop closes the socket in its next iteration
            raise
        finally:
            self.unready.discard(protocol)

    async def _prepare(self) -> None:
        config = self._config
        if config.logs_in and config.tls == "none" and not is_loopback(config.host):
            raise RelayUnavailableError(
                "tls_failed", "SMTP_TLS=none: a login goes out without TLS to loopback only; use starttls or implicit"
            )
        if self._tls is not None:
            self._context = await self._tls.context()
        self._shown.add(config.current.password)  # the relay may know it from an earlier process
        if self._tokens is not None:
            self._shown.add(await self._tokens.get())  # before the connection, which would wait for it

    async def _connect(self, make: Callable[[], P]) -> tuple[P, socket.socket]:
        config = self._config
        context = self._context if config.tls == "implicit" else None
        loop = asyncio.get_running_loop()
        with _explained("connect", config):
            async with asyncio.timeout(config.limits.connect_s):
                sock = await self._addresses.connect(config.host, config.port)
                address = sock.getpeername()
                try:
                    _, protocol = await loop.create_connection(
                        make,
                        sock=sock,
                        ssl=context,
                        server_hostname=certificate_name(config.host) if context else None,
                    )
                except BaseException:
                    self._addresses.failed(address)  # TLS failed or timed out
                    raise
        return protocol, sock

    async def _greet(self, protocol: SmtpProtocol, sock: socket.socket) -> Extensions:
        if self._config.tls == "implicit":
            protocol.tls_overhead = TlsOverhead(sock)
        await self._ask(protocol, b"", "greeting", 220)
        offers = await self._ehlo(protocol)
        if self._config.tls == "starttls":
            await self._start_tls(protocol, offers)
            protocol.tls_overhead = TlsOverhead(sock)
            offers = await self._ehlo(protocol)
        if self._config.logs_in:
            ask = partial(self._ask, protocol, stage="auth")
            await self._login.run(ask, offers)
        if not protocol.quiet():
            raise RelayUnavailableError("unreachable", UNREQUESTED)
        return offers

    async def _ask(self, protocol: SmtpProtocol, command: bytes, stage: Stage, *wanted: int) -> Answer:
        try:
            answer = await protocol.execute(command, self._config.limits.handshake_s)
        except RelayUnavailableError as error:
            if isinstance(error, TlsFloodError):
                raise  # no hint is needed
            if (
                protocol.lost is not None
                and stage in {"greeting", "ehlo"}
                and protocol.transport.get_extra_info("cipher")
            ):
                hint = certificate_hint(self._config)  # the first step after TLS
            else:
                hint = "; does this port want SMTP_TLS=implicit?" if stage == "greeting" else ""
            raise RelayUnavailableError(error.reason, f"{error} (at {stage.upper()}){hint}") from None
        if wanted and answer[0] not in wanted:
            reply = to_reply(answer, stage, of_login=self._shown)
            raise RelayUnavailableError(handshake_reason(reply), str(reply))
        return answer

    async def _ehlo(self, protocol: SmtpProtocol) -> Extensions:
        name = self._helo
        if "." not in name and not name.startswith("["):
            # a host without a full name sends an address literal (RFC 5321 §4.1.3)
            address: str = protocol.transport.get_extra_info("sockname")[0]
            name = f"[IPv6:{address}]" if ":" in address else f"[{address}]"
        return Extensions.read(await self._ask(protocol, f"EHLO {name}\r\n".encode(), "ehlo", 250))

    async def _start_tls(self, protocol: SmtpProtocol, offers: Extensions) -> None:
        if not offers.starttls or self._context is None:
            raise RelayUnavailableError(
                "tls_failed", "the relay does not offer STARTTLS; use the port that does, or SMTP_TLS=implicit"
            )
        await self._ask(protocol, b"STARTTLS\r\n", "tls", 220)
        if not protocol.quiet():
            # an attacker may have injected it before TLS, so that it is read as a reply under TLS (CVE-2011-0411)
            raise RelayUnavailableError("tls_failed", "the relay sent more than its answer to STARTTLS")
        loop = asyncio.get_running_loop()
        with _explained("tls", self._config):
            async with asyncio.timeout(self._config.limits.handshake_s):
                name = certificate_name(self._config.host)
                transport = await loop.start_tls(protocol.transport, protocol, self._context, server_hostname=name)
        if transport is None:
            raise RelayUnavailableError("tls_failed", "the connection was lost (at TLS)")
        protocol.transport = transport


def _domain(address: str) -> str:
    domain = address.rpartition("@")[2]
    try:
        return domain if domain.isascii() else idna.encode(domain, uts46=True).decode()
    except idna.IDNAError:
        return ""


@contextmanager
def _explained(stage: Stage, config: RelayConfig) -> Generator[None]:
    """Raise errors of the network and of TLS as `RelayUnavailableError`, with the fix."""
    try:
        yield
    except ssl.SSLError as error:
        alert = _CERTIFICATE_ALERT.search(str(error.reason))
        found = None if alert else tls_failure(str(error), authority="SMTP_CA_FILE", host="SMTP_HOST")
        if found is not None:
            raise RelayUnavailableError("tls_failed", f"{config.host} {found.why}; {found.fix}") from None
        hint = "; does this port want SMTP_TLS=starttls?" if config.tls == "implicit" else ""
        hint = certificate_hint(config) if alert else hint
        hint += "; or it may offer only weak encryption" if alert and alert[1] == "HANDSHAKE_FAILURE" else ""
        raise RelayUnavailableError("tls_failed", f"TLS failed: {error.reason or type(error).__name__}{hint}") from None
    except TimeoutError:
        raise RelayUnavailableError(
            "unreachable", f"{config.name}: no connection in time (at {stage.upper()})"
        ) from None
    except socket.gaierror:
        raise RelayUnavailableError(
            "unreachable", f"the name {config.host} is not known to DNS; check SMTP_HOST"
        ) from None
    except OSError as error:
        why = error.strerror or type(error).__name__
        reason = "tls_failed" if stage == "tls" else "unreachable"
        raise RelayUnavailableError(reason, f"{config.name}: {why} (at {stage.upper()})") from None
