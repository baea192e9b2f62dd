"""Finds connections to other hosts without TLS, or with TLS that does not protect them."""

import os
import ssl
from collections.abc import Iterator
from urllib.parse import parse_qsl, urlsplit

from otp_stream.otlp import COLLECTOR_URLS
from otp_stream.urls import is_loopback

from .settings import Settings

OFF = frozenset({"0", "f", "false", "n", "no"})
"""Values of `ssl_check_hostname` by which redis-py does not check it."""
_STRONG_BITS = 112


def unprotected(settings: Settings) -> Iterator[str]:
    """Yield what is never right, each with its fix: production refuses it."""
    if os.environ.get("SSLKEYLOGFILE"):
        yield "SSLKEYLOGFILE: anyone who reads that file can decrypt passwords and codes; unset it"
    for name, url in remote_servers(settings).items():
        parts = urlsplit(url)
        given = options(url)
        if parts.scheme == "amqps" and given.get("no_verify_ssl", "0") != "0":
            yield f"{name}: no_verify_ssl accepts any certificate, also an attacker's; use cafile=/path/ca.pem"
        if given.get("ssl_cert_reqs", "required") != "required" or given.get("ssl_check_hostname", "").lower() in OFF:
            yield (
                f"{name}: ssl_cert_reqs and ssl_check_hostname accept any certificate, also an attacker's; "
                "use ssl_ca_certs=/path/ca.pem"
            )
        if is_weak(given.get("ssl_ciphers", "")):
            yield f"{name}: ssl_ciphers allows ciphers that do not protect, or short keys; leave it out"


def unencrypted_mail(settings: Settings) -> Iterator[str]:
    """Yield relays on other hosts that get codes without TLS: production refuses them."""
    if settings.smtp_host and settings.smtp_tls == "none" and not is_loopback(settings.smtp_host):
        yield "SMTP_TLS: none sends codes unencrypted to another host; use starttls or implicit"
    for relay in settings.fallbacks:
        if relay.tls == "none" and not is_loopback(relay.host):
            yield f"SMTP_FALLBACK_URLS: tls=none sends codes unencrypted to {relay.host}; leave it out"


def unencrypted_servers(settings: Settings) -> Iterator[str]:
    """Yield connections without TLS to other hosts that are common inside a cluster, and allowed."""
    for name, url in remote_servers(settings).items():
        if (scheme := urlsplit(url).scheme) in {"amqp", "redis"}:
            yield f"{name}: {scheme}:// sends passwords and codes unencrypted to another host; use {scheme}s://"
    for name in COLLECTOR_URLS:
        scheme, host = _scheme_and_host(os.environ.get(name, "").strip())
        if scheme == "http" and not is_loopback(host):
            what = "telemetry and OTEL_EXPORTER_OTLP_HEADERS"
            yield f"{name}: http:// sends {what} unencrypted to another host; use https://"


def _scheme_and_host(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname or ""
    except ValueError:  # reported as a problem
        return "", ""


def remote_servers(settings: Settings) -> dict[str, str]:
    """Return the URLs of servers on other machines, by setting."""
    urls = {"RABBITMQ_URL": settings.rabbitmq_url, "REDIS_URL": settings.redis_url}
    return {
        name: url.get_secret_value()
        for name, url in urls.items()
        if url and not is_loopback(urlsplit(url.get_secret_value()).hostname or "localhost")
    }


def options(url: str) -> dict[str, str]:
    """Return the options of a URL, empty ones too: aiormq does not verify a certificate with `no_verify_ssl=`."""
    return dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))


def is_weak(ciphers: str) -> bool:
    """Return whether a list of ciphers lowers OpenSSL's level, or allows one without encryption or authentication."""
    if not ciphers:
        return False
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    usual = context.security_level
    try:
        context.set_ciphers(ciphers)
    except ssl.SSLError:  # the validator reports it
        return False
    weak = any(it["strength_bits"] < _STRONG_BITS or it.get("auth") == "auth-null" for it in context.get_ciphers())
    return weak or context.security_level < usual
