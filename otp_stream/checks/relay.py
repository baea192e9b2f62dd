"""Looks whether a relay would take our mail: everything up to the login, and no MAIL."""

import base64
import contextlib
import shlex
import time
from collections.abc import Mapping
from dataclasses import replace

from otp_stream.core.check_result import Finding, Tell, certificate
from otp_stream.core.masking import scrub
from otp_stream.core.outcome import Trouble
from otp_stream.relay.config import RelayConfig, RelayLimits
from otp_stream.relay.envelope import Extensions
from otp_stream.relay.handshake import Handshake
from otp_stream.relay.wire import TroubleError, Wire
from otp_stream.settings import is_loopback
from otp_stream.sockets import certificate_name

_LIMITS = RelayLimits(connect_s=5, handshake_s=8)  # somebody waits; a relay may let strangers wait for its greeting
_SMALL = 65_536
"""A relay that takes no larger message refuses e-mails with a picture in them."""


async def checkup(config: RelayConfig, tell: Tell, *, login: bool = True) -> bool:
    """Tell what there is to know of a relay; returns whether it would take mail. `login` is whether to try that.

    Twice it is connected to, so that a login that is refused hides nothing of TLS.
    """
    config = replace(config, limits=_LIMITS)
    try:
        await _look(replace(config, user=None, password=None), tell)
        if not login:
            return False
        if config.user is None:
            tell(Finding("ok", f"{config.name}: no login is asked for here (SMTP_AUTH=none, or a URL without a user)"))
            return True
        wire, _ = await Handshake(config).open(Wire)
        await _leave(wire)
    except TroubleError as error:
        tell(Finding("problem", _text(config, error), _cures(config)[error.trouble]))
        return False
    tell(Finding("ok", f"{config.name}: the login is accepted"))
    return True


async def _look(config: RelayConfig, tell: Tell) -> None:
    wire, offers = await Handshake(config).open(Wire)
    tls = wire.transport.get_extra_info("ssl_object")
    version = f"{tls.version()} ({config.tls})" if tls else "no TLS"
    found = tls and tls.getpeercert()
    await _leave(wire)
    text = f"{config.name} answers, {version}, {_offered(offers)}"
    if tls is None and not is_loopback(config.host):
        tell(Finding("warning", f"{text}: codes go out in the clear", "SMTP_TLS=starttls, or implicit"))
    elif 0 < offers.size_limit < _SMALL:
        tell(
            Finding("warning", f"{text}: larger e-mails are refused", "ask who runs the relay, or keep templates small")
        )
    else:
        tell(Finding("ok", text))
    if tls is not None:
        tell(certificate(found, config.name, time.time()))


async def _leave(wire: Wire) -> None:
    with contextlib.suppress(TroubleError):  # who does not say goodbye may still take mail
        await wire.ask(b"QUIT\r\n", _LIMITS.quit_s)
    wire.transport.abort()
    await wire.closed


def _offered(offers: Extensions) -> str:
    size = f"messages up to {offers.size_limit:,} bytes".replace(",", " ") if offers.size_limit else "no limit of size"
    return f"{size}, {'' if offers.pipelining else 'no '}PIPELINING"


def _text(config: RelayConfig, error: TroubleError) -> str:
    user, password = config.user or "", config.password or ""
    tokens = [base64.b64encode(it.encode()).decode() for it in (user, password, f"\0{user}\0{password}")]
    text = scrub(str(error), *(secret for secret in (password, *tokens) if secret), user)
    return text if config.name in text else f"{config.name}: {text}"


def _cures(config: RelayConfig) -> Mapping[Trouble, str]:
    starttls = ["-starttls", "smtp"] if config.tls == "starttls" else []
    name = certificate_name(config.host)
    words = ["openssl", "s_client", "-connect", config.name, "-servername", name, *starttls, "-showcerts"]
    return {
        "unreachable": f"is it up, and does no firewall stand between? {shlex.join(['nc', '-vz', config.host])} "
        f"{config.port}; mend SMTP_HOST, SMTP_PORT or SMTP_FALLBACK_URLS",
        "tls_failed": f"see its certificates: {shlex.join(words)} </dev/null",
        "login_refused": "mend user and password: SMTP_USER and SMTP_PASS, or those in SMTP_FALLBACK_URLS",
        "sender_refused": "have the relay accept SENDER_EMAIL and this host: verification, reverse DNS, block lists",
        "throttled": "it limits us: fewer connections (SMTP_POOL_SIZE), or its quota in SMTP_RATE_PER_SECOND",
    }
