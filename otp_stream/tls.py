"""TLS of our connections to servers: the versions that we accept, and what a failed handshake means."""

import re
import ssl
from pathlib import Path
from typing import NamedTuple

OLDEST = ssl.TLSVersion.TLSv1_2
_REFUSED = re.compile(
    r"(?:certificate verify failed|CERTIFICATE_VERIFY_FAILED(?!\])|check failed with error: \w+)"
    r"(?:: ([^();\"\n]{1,150}))?"
)
_TOO_OLD = re.compile(r"UNSUPPORTED_PROTOCOL|PROTOCOL_VERSION|VERSION_TOO_LOW|WRONG_SSL_VERSION", re.IGNORECASE)
_WEAK = re.compile(r"NO_SHARED_CIPHER|KEY_TOO_SMALL|INSUFFICIENT_SECURITY|NO_CIPHERS_AVAILABLE", re.IGNORECASE)
"""In the text of an error of OpenSSL, as Python or gRPC shows it, with spaces or underscores."""


def client_context(
    cafile: str | Path | None = None, capath: str | None = None, cadata: str | bytes | None = None
) -> ssl.SSLContext:
    """Return a context that verifies the server, for TLS 1.2 and newer. Raises `OSError`, also as `ssl.SSLError`.

    It offers no Diffie-Hellman without elliptic curves in TLS 1.2.
    The version does not depend on the configuration of OpenSSL, which may allow older ones for other programs.
    """
    context = ssl.create_default_context(cafile=cafile, capath=capath, cadata=cadata)
    context.minimum_version = max(context.minimum_version, OLDEST)
    # in TLS 1.2 the server chooses the size of a Diffie-Hellman group: 10,000 bits take the client 1.8 s
    context.set_ciphers(":".join(it["name"] for it in context.get_ciphers() if not it["kea"].startswith("kx-dhe")))
    return without_common_name(context)


def without_common_name(context: ssl.SSLContext) -> ssl.SSLContext:
    """Have a context accept a host's name only as an alternative name of the certificate (RFC 9525 §2), and return it.

    By default, OpenSSL takes the common name if there is none. Authorities restrict and check alternative names only.
    """
    context.hostname_checks_common_name = False
    return context


class TlsFailure(NamedTuple):
    """Why there is no TLS with a server."""

    why: str
    """A predicate whose subject is the server."""
    fix: str


def tls_failure(error: str, *, authority: str, host: str) -> TlsFailure | None:
    """Return what the text of an error means; `None` if it is not about the server's TLS.

    `authority` is the setting for the file of the authority, `host` the one with the host's name.
    """
    if found := _REFUSED.search(error):
        why = (found[1] or "not verified").strip().rstrip(".")
        return TlsFailure(f"has a certificate that is not accepted: {why}", _fix(why, authority, host))
    text = error.replace(" ", "_")
    if _TOO_OLD.search(text):
        return TlsFailure("offers no TLS 1.2 or newer", "upgrade it, or enable TLS 1.2 or 1.3 there")
    if _WEAK.search(text):
        return TlsFailure("offers only weak encryption", "enable the usual cipher suites there, and use a longer key")
    if "HANDSHAKE_FAILURE" in text.upper():
        why = "refuses TLS; it may require a client certificate, or offer only weak encryption"
        return TlsFailure(why, "see its log")
    return None


def _fix(why: str, authority: str, host: str) -> str:
    if "expired" in why or "not yet valid" in why:
        return "the server needs a new one, or this machine's clock is wrong"
    if "ostname" in why or "IP address" in why:
        return f"{host} must be a name in it (subjectAltName)"
    if "purpose" in why:
        return "the server needs one for servers (extended key usage serverAuth)"
    if "too weak" in why or "too small" in why:
        return "the server needs one with a longer key and a newer signature"
    return f"set the CA that signed it: {authority}"
