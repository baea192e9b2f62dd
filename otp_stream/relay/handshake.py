"""Opens connections that are ready for mail: TCP, TLS, EHLO, login."""

import asyncio
import re
import socket
import ssl
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

import idna

from otp_stream.core.outcome import Stage
from otp_stream.sockets import Addresses, certificate_name
from otp_stream.urls import is_loopback

from .client_tls import ClientTls, certificate_hint
from .config import OAuthConfig, RelayConfig
from .envelope import Extensions
from .login import Login, TokenRefusedError
from .oauth import AccessTokens, access_tokens
from .parser import Answer
from .protocol import RelayUnavailableError, SmtpProtocol
from .reply import handshake_reason, to_reply

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
        self._login = Login(config, self._tokens)
        self._addresses = Addresses()

    async def open(self, make: Callable[[], P]) -> tuple[P, Extensions]:
        """Return a connection that is ready for MAIL, and the relay's extensions. Raises `RelayUnavailableError`."""
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
        protocol = await self._connect(make)
        address = protocol.transport.get_extra_info("peername")
        try:
            offers = await self._greet(protocol)
            self._addresses.succeeded(address)
            return protocol, offers
        except BaseException as error:
            if isinstance(error, RelayUnavailableError):
                self._addresses.failed(address)
            protocol.transport.abort()
            await asyncio.sleep(0)  # the event loop closes the socket in its next iteration
            raise

    async def _prepare(self) -> None:
        config = self._config
        if config.logs_in and config.tls == "none" and not is_loopback(config.host):
            raise RelayUnavailableError(
                "tls_failed", "SMTP_TLS=none: a login goes out without TLS to loopback only; use starttls or implicit"
            )
        if self._tls is not None:
            self._context = await self._tls.context()
        if self._tokens is not None:
            await self._tokens.get()  # before the connection, which would wait for it

    async def _connect(self, make: Callable[[], P]) -> P:
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
        return protocol

    async def _greet(self, protocol: SmtpProtocol) -> Extensions:
        await self._ask(protocol, b"", "greeting", 220)
        offers = await self._ehlo(protocol)
        if self._config.tls == "starttls":
            await self._start_tls(protocol, offers)
            offers = await self._ehlo(protocol)
        if self._config.logs_in:
            await self._login.run(lambda command: self._ask(protocol, command, "auth"), offers)
        return offers

    async def _ask(self, protocol: SmtpProtocol, command: bytes, stage: Stage, *wanted: int) -> Answer:
        try:
            answer = await protocol.execute(command, self._config.limits.handshake_s)
        except RelayUnavailableError as error:
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
            reply = to_reply(answer, stage)
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
    except ssl.SSLCertVerificationError as error:
        raise RelayUnavailableError("tls_failed", _certificate_text(error, config)) from None
    except ssl.SSLError as error:
        hint = "; does this port want SMTP_TLS=starttls?" if config.tls == "implicit" else ""
        hint = certificate_hint(config) if _CERTIFICATE_ALERT.search(str(error.reason)) else hint
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


def _certificate_text(error: ssl.SSLCertVerificationError, config: RelayConfig) -> str:
    why = error.verify_message
    if "expired" in why or "not yet valid" in why:
        fix = "the relay needs a new one, or this machine's clock is wrong"
    elif "ostname" in why or "IP address" in why:
        fix = "SMTP_HOST must be a name in it"
    else:
        fix = "name the authority that signed it in SMTP_CA_FILE"
    return f"the certificate of {config.host} is not accepted: {why}; {fix}"
