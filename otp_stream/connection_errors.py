"""TLS with RabbitMQ, and texts about a refused or failed connection, with the fix."""

import re
import shlex
import ssl
from base64 import b64decode
from urllib.parse import parse_qsl, unquote, urlsplit

from aiormq.exceptions import AuthenticationError, ConnectionClosed, ConnectionNotAllowed, ProbableAuthenticationError

from .core.shown_secrets import ShownSecrets
from .tls import client_context, tls_failure
from .urls import secrets_of

_MAX_TEXT = 200
"""Maximum characters of an error's own text."""
_shown = ShownSecrets()
"""The last passwords that this process has shown to RabbitMQ, which may quote them on any connection and channel."""
_CLOSED = re.compile(r"connection reset|unexpectedly closed|Connection lost|EOF occurred", re.IGNORECASE)
TLS_FILES = ("cafile", "certfile", "keyfile")
"""Options of RABBITMQ_URL that name PEM files."""
CERTIFICATE_USER = "<user of the certificate>"
"""Who logs in by a certificate: only RabbitMQ knows the name."""
_SET_CERTIFICATE = "set certfile=/path/client.pem&keyfile=/path/client.key in RABBITMQ_URL"
_ALERTS = {
    "CERTIFICATE_REQUIRED": ("requires a client certificate", _SET_CERTIFICATE),
    "HANDSHAKE_FAILURE": (
        "refuses TLS; it may require a client certificate, or offer only weak encryption",
        _SET_CERTIFICATE,
    ),
    "UNKNOWN_CA": (
        "refuses the client certificate: its authority is unknown there",
        "add that authority to ssl_options.cacertfile of RabbitMQ, or name another certfile in RABBITMQ_URL",
    ),
    "CERTIFICATE_EXPIRED": (
        "refuses the client certificate: it has expired",
        "renew the files in RABBITMQ_URL, certfile and keyfile: they are read for each connection",
    ),
}
"""By the alert of TLS that the broker sends (RFC 8446 §6.2)."""
_UNUSABLE_FILE = re.compile(
    r"Errno (2|13|20|21)\b|\[X509|\bPEM\b|KEY_VALUES_MISMATCH|bad decrypt|BAD_DECRYPT|BAD_PASSWORD|NO_CERTIFICATE"
)
"""In the text of an error of Python's ssl for a file that is missing, or holds no certificate or no such key."""


def virtual_host(url: str) -> str:
    """Return the virtual host in an AMQP URL."""
    return unquote(urlsplit(url).path[1:]) or "/"


def user(url: str) -> str:
    """Return the user who logs in."""
    return CERTIFICATE_USER if is_external(url) else unquote(urlsplit(url).username or "guest")


def options(url: str) -> dict[str, str]:
    """Return the options of a URL. Like aiormq, use the first of two values, and keep empty ones."""
    return dict(reversed(parse_qsl(urlsplit(url).query, keep_blank_values=True)))


def is_external(url: str) -> bool:
    """Return whether the client certificate is the login (SASL EXTERNAL)."""
    return options(url).get("auth", "").lower() == "external"


def refusal(error: BaseException, url: str) -> tuple[str, str] | None:
    """Return what the broker refuses, as a predicate whose subject is the broker, and the fix.

    Returns `None` if the error is not a refusal.
    """
    name = user(url)
    if found := _certificate_refusal(str(error), url):
        return found
    match error:
        case AuthenticationError():  # it is raised before the login
            fix = (
                "rabbitmq-plugins enable rabbitmq_auth_mechanism_ssl, and auth_mechanisms.1 = EXTERNAL in rabbitmq.conf"
            )
            return "offers no login by a certificate (SASL EXTERNAL)", fix
        case ProbableAuthenticationError() if is_external(url):
            fix = "rabbitmqctl add_user with the name in the certificate (ssl_cert_login_from), then clear_password"
            return "refuses the login by the client certificate", fix
        case ProbableAuthenticationError():
            fix = f"correct RABBITMQ_URL, or: {shlex.join(['rabbitmqctl', 'change_password', name])}"
            if name == "guest":
                fix += "; guest may log in over loopback only: create a user for otp-stream"
            return f"refuses the login of {name}", fix
        case ConnectionNotAllowed():
            text = f"has no virtual host {virtual_host(url)}, or {name} may not use it ({error_text(error, url)})"
            fix = f"correct RABBITMQ_URL, or: {shlex.join(['rabbitmqctl', 'add_vhost', virtual_host(url)])}"
            return text, f"{fix}, and set permissions for {name} there"
        case _:
            return None


def _certificate_refusal(text: str, url: str) -> tuple[str, str] | None:
    """Return the same for TLS that fails, or a client certificate that is missing, refused, or cannot be read here."""
    if urlsplit(url).scheme != "amqps":
        return None
    given = options(url)
    if alert := re.search(r"ALERT_(\w+)", text):
        if found := _ALERTS.get(alert[1]):
            return found
        if "CERTIFICATE" in alert[1]:
            fix = "check the files in RABBITMQ_URL, certfile and keyfile, and RabbitMQ's log"
            return f"refuses the client certificate ({alert[1].replace('_', ' ').lower()})", fix
    if found := tls_failure(text, authority="cafile=/path/ca.pem in RABBITMQ_URL", host="the host in RABBITMQ_URL"):
        return found
    files = [f"{name}={given[name]}" for name in TLS_FILES if name in given]
    if files and _UNUSABLE_FILE.search(text):
        fix = "the files must be PEM, readable, and the key that of the certificate and not encrypted"
        return f"was not asked: the files of RABBITMQ_URL cannot be used ({', '.join(files)})", fix
    if _CLOSED.search(text):  # the alert gets lost if the broker closes a connection on which it has not read all
        if "certfile" not in given:
            return "closes the connection after TLS; it may require a client certificate", _SET_CERTIFICATE
        fix = "compare ssl_options.cacertfile of RabbitMQ with certfile in RABBITMQ_URL, and see RabbitMQ's log"
        return "closes the connection after TLS; it may refuse the client certificate", fix
    return None


def tls_context(url: str) -> ssl.SSLContext | None:
    """Return the context for a URL as aiormq makes it, for TLS 1.2 and newer; `None` without TLS. Raises `OSError`."""
    if urlsplit(url).scheme != "amqps":
        return None
    given = options(url)
    context = client_context(given.get("cafile"), given.get("capath"), b64decode(given.get("cadata", "")) or None)
    if certificate := given.get("certfile"):
        context.load_cert_chain(certificate, given.get("keyfile"), password="")  # else OpenSSL asks at the terminal
    if given.get("no_verify_ssl", "0") != "0":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def no_connection(error: BaseException, url: str) -> str:
    """Return why there is no connection, as a predicate whose subject is the broker."""
    if found := refusal(error, url):
        return "; ".join(found)
    if isinstance(error, ConnectionClosed):
        return f"closes the connection ({error_text(error, url)}); see RabbitMQ's log"
    if isinstance(error, TimeoutError) and not str(error):
        return "does not answer in time; is the port right, does a firewall drop packets?"
    return f"does not answer ({error_text(error, url)})"


def error_text(error: BaseException, url: str) -> str:
    """Return the text of an error without the password of `url`, or the name of its type if it has no text."""
    remember_secrets(url)
    return broker_text(str(error) or type(error).__name__)


def remember_secrets(url: str) -> None:
    """Redact the password of `url` from now on. Must be called before a connection to it."""
    _shown.add(*secrets_of(url))


def broker_text(text: object) -> str:
    """Return a text of RabbitMQ, such as why it closes a channel, on one line and without passwords of ours.

    What the worker does may depend on the text, so it is redacted where it is shown.
    """
    return _shown.redact(str(text), _MAX_TEXT)
