"""One validator for each setting. It returns the value to use, or raises `ValueError` with the fix and no secret."""

import ipaddress
import re
import shlex
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl

from pydantic import SecretStr, TypeAdapter, ValidationError

from otp_stream.core.address import is_address, wire_address, wire_domain
from otp_stream.core.admission import read_limits
from otp_stream.core.retention import read_period
from otp_stream.core.sealing_keys import read_keys
from otp_stream.urls import ESCAPE, AmbiguousUrlError, is_loopback, read_url

from .fallback_relay import FallbackRelay

_INTEGER = TypeAdapter(int)
_RABBITMQ_EXAMPLE = "amqp://user:password@rabbitmq.example.com:5672/vhost"
_REDIS_EXAMPLE = "redis://user:password@redis.example.com:6379/0"
MIN_KEY = 16
_MIN_VARIETY = 6
"""Minimum number of different characters in a key."""
MAKE_KEY = "make one with: openssl rand -hex 32"
_RABBITMQ_TLS_OPTIONS = {"cafile", "certfile", "keyfile"}
_TLS_EXAMPLE = "?cafile=/path/ca.pem&certfile=/path/client.pem&keyfile=/path/client.key&auth=external"
_TLS_VERSIONS = {"771", "772"}
"""TLS 1.2 and 1.3, as `ssl.TLSVersion` has them."""
_BOOLEANS = {"0", "1", "f", "false", "n", "no", "t", "true", "y", "yes"}
_REDIS_OPTIONS = {"db", "username", "password", "client_name"}
_REDIS_TLS_OPTIONS = {
    "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_cert_reqs",
    "ssl_check_hostname", "ssl_min_version", "ssl_ciphers",
}  # fmt: skip
_HOST_NAME = re.compile(r"(?!_)(?!-)([\w-]{1,63}\.)*[\w-]{0,62}[^\W_]\.?")
_SENDER = re.compile(r"([^\x00-\x1f\x7f<>]*)<([^<>]+)>|(\S+)")
LONGEST_QUEUE_NAME = 200
"""Maximum bytes. AMQP allows 255 for the name of a queue, and names that are derived from this one are longer."""
_LEVELS = {
    "warn": "warning", "http": "info", "verbose": "debug", "silly": "debug", "trace": "debug", "fatal": "critical",
}  # fmt: skip


def log_level(value: object) -> object:
    """Accept the names that Node loggers use."""
    return _LEVELS.get(value.lower(), value.lower()) if isinstance(value, str) else value


def smtp_port(value: object) -> object:
    """Refuse the URL that Kubernetes sets for a Service named smtp."""
    if isinstance(value, str) and "://" in value:
        raise ValueError(
            "is an address, as Kubernetes sets it for a Service named smtp: set SMTP_PORT to a number, or "
            "enableServiceLinks: false in the pod"
        )
    return value


def implicit_tls(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Use implicit TLS on port 465: RFC 8314 §7.3 says so, and so did the worker that this one replaces."""
    keys = {key.lower(): key for key in data}
    if "smtp_tls" not in keys and "smtp_port" in keys:
        with suppress(ValidationError):  # the field's own check reports it
            # 0465 and 465.0 are the same port
            if _INTEGER.validate_python(unquoted(str(data[keys["smtp_port"]]))) == 465:
                return {**data, "smtp_tls": "implicit"}
    return data


def http_token(value: SecretStr | None) -> SecretStr | None:
    """Accept ASCII only, because clients encode other characters in a header differently."""
    if value is not None and not value.get_secret_value().isascii():
        raise ValueError("must have ASCII characters only; make a random one: openssl rand -hex 32")
    return value


def sealing_keys(value: SecretStr | None) -> SecretStr | None:
    """Accept a JWK Set of keys that can open codes."""
    if value is not None:
        read_keys(value.get_secret_value())
    return value


def smtp_host(value: str | None) -> str | None:
    """Accept only a host. An internationalised one is converted by IDNA 2008."""
    if value is None:
        return None
    if not value.isascii():
        # the standard library would convert it by IDNA 2003, to another host
        value = wire_domain(value)
    bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    if _is_ip(bare):
        return bare
    name, colon, port = value.rpartition(":")
    if colon and port.isdecimal() and _HOST_NAME.fullmatch(name.strip("[]")):
        raise ValueError(f"must be a host without a port: set SMTP_PORT={int(port)}")
    if not _HOST_NAME.fullmatch(value):
        raise ValueError("must be a host without scheme, user, port or path, such as smtp.example.com")
    return value


def smtp_oauth_token_url(value: str | None) -> str | None:
    """Accept `https://`, and `http://` on loopback: the request carries the client's secret."""
    if value is not None:
        parts = read_url(value, {"http", "https"}, "https://login.example.com/oauth2/token")
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise ValueError("must start with https://: the request carries the client's secret")
        if "@" in parts.netloc:
            raise ValueError("must not contain a user: set SMTP_OAUTH_CLIENT_ID and SMTP_OAUTH_CLIENT_SECRET")
    return value


def smtp_oauth_token_command(value: SecretStr | None) -> SecretStr | None:
    """Accept a command as a shell would split it."""
    if value is not None:
        try:
            words = shlex.split(value.get_secret_value())
        except ValueError:  # its text may quote the command
            raise ValueError("has a quote that is not closed") from None
        if not words or not words[0].strip():
            raise ValueError("names no command")
    return value


def sender_email(value: str | None) -> str | None:
    """Accept one address, with or without a display name."""
    if value is not None:
        read_sender(value)
    return value


def envelope_sender(value: str | None) -> str | None:
    """Accept one address without a display name, and return its wire form."""
    if value is None:
        return None
    name, address = read_sender(value)
    if name:
        raise ValueError("must be an address without a name, such as bounces@example.com")
    return address


def rabbitmq_url(value: SecretStr) -> SecretStr:
    """Accept `amqp://`, `amqps://`, and `memory://` on loopback."""
    parts = read_url(value.get_secret_value(), {"amqp", "amqps", "memory"}, _RABBITMQ_EXAMPLE)
    options = _options(parts.query)
    auth = options.get("auth", "plain").lower()
    if auth not in {"plain", "external"}:
        raise ValueError("has an auth other than plain, external")
    if parts.scheme != "amqps" and (auth == "external" or options.keys() & _RABBITMQ_TLS_OPTIONS):
        raise ValueError(f"has no TLS, but an option of TLS ({_TLS_EXAMPLE}); write amqps://")
    if "certfile" not in options and (auth == "external" or "keyfile" in options):
        raise ValueError(f"must name the client certificate: certfile=/path/client.pem ({_TLS_EXAMPLE})")
    if parts.scheme == "memory" and not is_loopback(parts.hostname or "localhost"):
        raise ValueError("memory:// accepts any user and password, so it listens on loopback only: leave the host out")
    return value


def smtp_fallback_urls(value: SecretStr | None) -> SecretStr | None:
    """Accept a comma list of relay URLs."""
    for number, url in enumerate(listed(value), 1):
        try:
            FallbackRelay.read(url)
        except ValueError as error:
            raise ValueError(f"entry {number} {error}") from None
    return value


def secret_key(value: SecretStr | None) -> SecretStr | None:
    """Accept a comma list of keys that are long enough and not uniform."""
    if value is None:
        return None
    keys = listed(value)
    if not keys or min(map(len, keys)) < MIN_KEY:
        raise ValueError(f"must have {MIN_KEY} characters or more, in each key of a comma list; {MAKE_KEY}")
    if min(len(set(key)) for key in keys) < _MIN_VARIETY:
        raise ValueError(f"can be guessed; {MAKE_KEY}")
    return value


def rabbitmq_queue_name(value: str) -> str:
    """Limit the number of bytes, because pydantic counts characters."""
    if len(value.encode()) > LONGEST_QUEUE_NAME:
        raise ValueError(f"must have {LONGEST_QUEUE_NAME} bytes or fewer in UTF-8")
    return value


def redis_url(value: SecretStr | None) -> SecretStr | None:
    """Accept a URL of Redis with options that the client knows."""
    if value is None:
        return None
    try:
        parts = read_url(value.get_secret_value(), {"redis", "rediss", "unix"}, _REDIS_EXAMPLE)
    except AmbiguousUrlError:
        raise ValueError(f"must end with a database number, as in {_REDIS_EXAMPLE}; {ESCAPE}") from None
    if parts.scheme != "unix" and parts.path.strip("/0123456789"):
        raise ValueError(f"must end with a database number, as in /0; {ESCAPE}")
    options = _options(parts.query)
    known = _REDIS_OPTIONS | (_REDIS_TLS_OPTIONS if parts.scheme == "rediss" else set[str]())
    if not options.keys() <= known:
        raise ValueError(f"has an option other than {', '.join(sorted(known))}; {ESCAPE}")
    if not re.fullmatch("[0-9]{1,9}", options.get("db", "0")):
        raise ValueError("has a db that is not a database number, as in ?db=1")
    _check_redis_tls(options)
    # redis-py knows the scheme in lower case only
    return SecretStr(f"{parts.scheme}{value.get_secret_value()[len(parts.scheme) :]}")


def _check_redis_tls(options: Mapping[str, str]) -> None:
    if options.get("ssl_cert_reqs", "required") not in {"none", "optional", "required"}:
        raise ValueError("has an ssl_cert_reqs other than none, optional, required")
    if options.get("ssl_check_hostname", "true").lower() not in _BOOLEANS:
        raise ValueError("has an ssl_check_hostname other than true, false")
    if options.get("ssl_min_version", "771") not in _TLS_VERSIONS:
        raise ValueError("has an ssl_min_version other than 771 (TLS 1.2) and 772 (TLS 1.3)")
    if "ssl_ciphers" in options:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_ciphers(options["ssl_ciphers"])
        except ssl.SSLError:
            raise ValueError("has ssl_ciphers that OpenSSL does not know") from None


def _options(query: str) -> dict[str, str]:
    """Return the options of a URL. Of two values of one option, libraries use the first one, and others the last."""
    given = parse_qsl(query, keep_blank_values=True)
    options = dict(given)
    if len(options) < len(given):
        raise ValueError("names an option twice; leave one of them out")
    return options


def dead_letter_retention(value: str) -> str:
    """Accept a period such as `7d`, or `off`."""
    read_period(value)
    return value


def limit(value: str | None) -> str | None:
    """Accept limits such as `5/10m,20/1d`."""
    if value:
        read_limits("total", value)
    return value


def read_sender(text: str) -> tuple[str, str]:
    """Return (display name, wire address) of `Name <a@b.c>` or `a@b.c`. Raises `ValueError`.

    The standard library would accept the first of several addresses, and change a domain beside other text.
    """
    found = _SENDER.fullmatch(text)
    name, address = (found[1] or "", found[2] or found[3]) if found else ("", "")
    wire = wire_address(address) if is_address(address) else ""
    if not is_address(wire):
        raise ValueError("must be one address such as no-reply@example.com or Name <no-reply@example.com>")
    return re.sub(r"\\(.)", r"\1", unquoted(name)), wire


def listed(value: SecretStr | None) -> list[str]:
    """Return the entries of a comma list."""
    return [it for entry in value.get_secret_value().split(",") if (it := entry.strip())] if value else []


def unquoted(value: str) -> str:
    """Return `value` without surrounding spaces, quotes and byte order mark."""
    text = value.strip().strip("\ufeff")
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
