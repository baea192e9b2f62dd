"""Checks a mail relay: everything up to the login, without MAIL."""

import asyncio
import base64
import contextlib
import shlex
import time
from collections.abc import Mapping
from dataclasses import replace

from otp_stream.core.check_result import CheckResult, Report, check_tls
from otp_stream.core.masking import scrub
from otp_stream.core.outcome import UnavailableReason
from otp_stream.relay.access_token import TokenError
from otp_stream.relay.config import RelayConfig, RelayLimits
from otp_stream.relay.envelope import Extensions
from otp_stream.relay.handshake import Handshake
from otp_stream.relay.oauth import AccessTokens, access_tokens
from otp_stream.relay.protocol import RelayUnavailableError, SmtpProtocol
from otp_stream.sockets import certificate_name

from .tls import check_token_server

_LIMITS = RelayLimits(connect_s=5, handshake_s=8)  # short, because a person waits, but a relay may delay its greeting
_TOKEN_S = 11.0
"""A little longer than a token server may be silent, and so short that the whole check has time to report it."""
_LOGIN_FIXES = (
    (
        "5.7.139",
        (
            "Microsoft 365 has SMTP AUTH switched off for this mailbox or organisation: have the administrator run "
            "Set-CASMailbox -SmtpClientAuthenticationDisabled $false, and check the security defaults"
        ),
    ),
    ("5.7.30 ", "Microsoft 365 no longer accepts passwords: use SMTP_AUTH=oauth2"),
    (
        "535 5.7.3 ",
        (
            "check SMTP_USER; for Microsoft 365 with SMTP_AUTH=oauth2, also check that the app has the permission "
            "SMTP.SendAsApp with admin consent, that SMTP_OAUTH_SCOPE is https://outlook.office365.com/.default, and "
            "that Exchange knows the app (New-ServicePrincipal) and lets it use the mailbox (Add-MailboxPermission)"
        ),
    ),
    (
        "google.com",
        (
            "Google requires an app password, or SMTP_AUTH=oauth2 with SMTP_OAUTH_SCOPE=https://mail.google.com/; a "
            "service account also needs domain-wide delegation of that scope"
        ),
    ),
)
"""By a part of the reply, in this order."""
_SMALL = 65_536
"""A relay with a lower limit refuses e-mails with a picture."""


async def check_relay(config: RelayConfig, report: Report, *, loopback: bool, login: bool = True) -> bool:
    """Report on one relay. Returns whether it accepts the login, which is tried unless `login` is false.

    Connects twice, so that a refused login does not hide problems of TLS. `loopback`: whether it is on this machine.
    """
    config = replace(config, limits=_LIMITS)
    try:
        await _check_greeting(
            replace(config, user=None, password=None, oauth=None, mechanism=None), report, loopback=loopback
        )
        if not login:
            return False
        if not config.logs_in:
            text = f"{config.name}: no login is configured (SMTP_AUTH=none, or a URL without a user)"
            report(CheckResult("ok", text))
            return True
        await _check_login(config, report)
    except TokenError as error:
        report(CheckResult("problem", f"{config.name}: {error}"))
        return False
    except RelayUnavailableError as error:
        text = _text(config, error)
        report(CheckResult("problem", text, _fix_of_login(text) or _fixes(config)[error.reason]))
        return False
    report(CheckResult("ok", f"{config.name}: the login is accepted"))
    return True


async def _check_login(config: RelayConfig, report: Report) -> None:
    tokens = access_tokens(config.oauth) if config.oauth is not None else None
    try:
        if tokens is not None:
            if config.oauth is not None and config.oauth.token_url is not None:
                await check_token_server(config.oauth.token_url, report)
            await _get_token(tokens)
            report(CheckResult("ok", f"{config.name}: an access token was granted for {tokens.valid_s / 60:.0f} min"))
        protocol, _ = await Handshake(config, tokens).open(SmtpProtocol)
        await _quit(protocol)
    finally:
        if tokens is not None:
            await tokens.close()


async def _get_token(tokens: AccessTokens) -> None:
    try:
        async with asyncio.timeout(_TOKEN_S):
            await tokens.get()
    except TimeoutError:
        text = f"no access token within {_TOKEN_S:g} s: its token server, command or file does not answer"
        raise TokenError("unreachable", text) from None


async def _check_greeting(config: RelayConfig, report: Report, *, loopback: bool) -> None:
    protocol, extensions = await Handshake(config).open(SmtpProtocol)
    tls = protocol.transport.get_extra_info("ssl_object")
    version = f"{tls.version()} ({config.tls})" if tls else "no TLS"
    result = tls and check_tls(tls, config.name, time.time())
    await _quit(protocol)
    text = f"{config.name} answers, {version}, {_described(extensions)}"
    if tls is None and not loopback:
        report(CheckResult("warning", f"{text}: codes are sent unencrypted", "set SMTP_TLS=starttls or implicit"))
    elif 0 < extensions.size_limit < _SMALL:
        fix = "ask the relay's operator for a higher limit, or keep templates small"
        report(CheckResult("warning", f"{text}: larger e-mails are refused", fix))
    else:
        report(CheckResult("ok", text))
    if result is not None:
        report(result)


async def _quit(protocol: SmtpProtocol) -> None:
    with contextlib.suppress(RelayUnavailableError):  # a relay that does not answer QUIT may still accept mail
        await protocol.execute(b"QUIT\r\n", _LIMITS.quit_s)
    protocol.transport.abort()
    await protocol.closed


def _described(extensions: Extensions) -> str:
    size = "no size limit"
    if extensions.size_limit:
        size = f"messages up to {extensions.size_limit:,} bytes".replace(",", " ")
    return f"{size}, {'' if extensions.pipelining else 'no '}PIPELINING"


def _text(config: RelayConfig, error: RelayUnavailableError) -> str:
    user, password = config.user or "", config.password or ""
    tokens = [base64.b64encode(it.encode()).decode() for it in (user, password, f"\0{user}\0{password}")]
    text = scrub(str(error), *(secret for secret in (password, *tokens) if secret), user)
    return text if config.name in text else f"{config.name}: {text}"


def _fix_of_login(text: str) -> str | None:
    """Return the fix for a refusal in the words of Microsoft or Google."""
    return next((fix for part, fix in _LOGIN_FIXES if part in text), None)


def _fixes(config: RelayConfig) -> Mapping[UnavailableReason, str]:
    starttls = ["-starttls", "smtp"] if config.tls == "starttls" else []
    name = certificate_name(config.host)
    openssl = ["openssl", "s_client", "-connect", config.address, "-servername", name, *starttls, "-showcerts"]
    return {
        "unreachable": "check that it is running and that no firewall blocks it: "
        f"{shlex.join(['nc', '-vz', config.host])} {config.port}; correct SMTP_HOST, SMTP_PORT or SMTP_FALLBACK_URLS",
        "tls_failed": f"show its certificates: {shlex.join(openssl)} </dev/null",
        "login_refused": "correct SMTP_USER and SMTP_OAUTH_SCOPE, and let the app use that mailbox"
        if config.oauth is not None
        else "correct user and password: SMTP_USER and SMTP_PASS, or those in SMTP_FALLBACK_URLS",
        "sender_refused": "have the relay accept SENDER_EMAIL and this host: verification, reverse DNS, block lists",
        "throttled": "it limits us: use fewer connections (SMTP_POOL_SIZE), or set SMTP_RATE_PER_SECOND to its quota",
    }
