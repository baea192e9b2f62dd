"""Checks the TLS of servers that are used by HTTPS: the token server, and the collector of traces."""

import asyncio
import os
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from requests.utils import DEFAULT_CA_BUNDLE_PATH

from otp_stream.core.check_result import CheckResult, Report, check_tls
from otp_stream.otlp import SIGNALS, is_exported, setting
from otp_stream.sockets import certificate_name, connect
from otp_stream.tls import client_context, tls_failure
from otp_stream.urls import is_loopback

_CONNECT_S = 5.0


async def check_token_server(url: str, report: Report) -> None:
    """Report on the TLS of a token server. Through a proxy, it is left to the request for a token."""
    if not (set(getproxies()) & {"https", "all"}) or proxy_bypass(urlsplit(url).hostname or ""):
        authority = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or DEFAULT_CA_BUNDLE_PATH
        await _check(url, "token server", authority, "REQUESTS_CA_BUNDLE", "the token server's URL", report)


def collectors(environ: Mapping[str, str]) -> list[str]:
    """Return the endpoints to which spans, metrics and log lines are exported."""
    found = [setting(it, "ENDPOINT", environ) for it in SIGNALS if is_exported(it, environ)]
    return list(dict.fromkeys(filter(None, found)))


async def check_collector(url: str, report: Report) -> None:
    """Report on the TLS of the collector."""
    names = ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE")
    authority = next(filter(None, map(os.environ.get, names)), DEFAULT_CA_BUNDLE_PATH)
    await _check(url, "collector", authority, names[1], "the host of the endpoint", report)


async def _check(url: str, name: str, authority: str, setting: str, host_setting: str, report: Report) -> None:
    parts = urlsplit(url)
    host = parts.hostname or ""
    server = f"{name} {host}"
    if parts.scheme != "https":
        level = "ok" if is_loopback(host) else "warning"
        report(CheckResult(level, f"{server}: no TLS", "use https://"))
        return
    try:
        async with asyncio.timeout(_CONNECT_S):
            context = await asyncio.to_thread(_context, authority)
            sock = await connect(host, parts.port or 443)
            _, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname=certificate_name(host))
    except (OSError, TimeoutError) as error:  # also of TLS
        found = tls_failure(str(error), authority=setting, host=host_setting)
        why, fix = found or (f"does not answer ({type(error).__name__})", f"check its URL, and {setting}")
        report(CheckResult("problem", f"{server} {why}", fix))
        return
    report(check_tls(writer.get_extra_info("ssl_object"), server, time.time()))
    writer.transport.abort()


def _context(authority: str) -> ssl.SSLContext:
    return client_context(capath=authority) if Path(authority).is_dir() else client_context(authority)
