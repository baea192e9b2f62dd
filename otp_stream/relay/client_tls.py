"""Our side of TLS to a relay: the authorities that we trust, and our certificate."""

import asyncio
import ssl
from pathlib import Path

import structlog

from otp_stream.tls import client_context

from .config import RelayConfig
from .protocol import RelayUnavailableError

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class ClientTls:
    """Loads the files of a relay's configuration in a thread, and again when one of them has changed."""

    def __init__(self, config: RelayConfig) -> None:
        self._config = config
        files = (config.ca_file, *(config.certificate or ()))
        self._files = sorted({file for file in files if file is not None})
        self._context: ssl.SSLContext | None = None
        self._versions: list[tuple[int, ...]] = []
        """Of the files, when they were last loaded, or could not be."""

    async def context(self) -> ssl.SSLContext:
        """Return the context for a new connection. Raises `RelayUnavailableError`.

        If changed files cannot be used, for example because only one of two has been replaced, the earlier ones stay in
        use.
        """
        if self._context is None or self._files:
            self._context = await asyncio.to_thread(self._load)
        return self._context

    def _load(self) -> ssl.SSLContext:
        versions = [_version(file) for file in self._files]
        before = self._context
        if before is not None and versions == self._versions:
            return before
        try:
            context = _new_context(self._config)
        except RelayUnavailableError as error:
            if before is None:
                raise
            text = "changed certificate files cannot be used: the earlier ones stay in use"
            _log.warning(text, relay=self._config.name, error=str(error))
            context = before
        else:
            if before is not None:
                _log.info("new certificate files: new connections use them", relay=self._config.name)
        self._versions = versions
        return context


def certificate_hint(config: RelayConfig) -> str:
    """Return what a connection that ends with or after TLS may mean."""
    if config.certificate is None:
        return "; it may require a client certificate: SMTP_CERT_FILE"
    return "; it may refuse the certificate in SMTP_CERT_FILE"


def _version(file: Path) -> tuple[int, ...]:
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _new_context(config: RelayConfig) -> ssl.SSLContext:
    try:
        context = client_context(config.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise RelayUnavailableError("tls_failed", f"SMTP_CA_FILE cannot be read: {type(error).__name__}") from None
    if config.certificate is not None:
        try:
            context.load_cert_chain(*config.certificate, password="")  # else OpenSSL asks at the terminal
        except (OSError, ssl.SSLError) as error:
            why = getattr(error, "reason", None) or type(error).__name__
            text = (
                f"SMTP_CERT_FILE and SMTP_KEY_FILE cannot be used: {why}; they must be PEM, and the key not encrypted"
            )
            raise RelayUnavailableError("tls_failed", text) from None
    return context
