"""Strictly parses the URLs that operators set, and masks their secrets.

If a password is not percent-encoded, the part after its `@`, `/`, `?` or `#` is read as host, path or fragment. Such a
URL is refused, and no error message or masked URL contains any part of it.
"""

import ipaddress
import re
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

ESCAPE = "in a password write @ / ? # : [ ] % and spaces as %40 %2F %3F %23 %3A %5B %5D %25 %20"
_HOST = re.compile(r"([\w-]{1,63}\.)*[\w-]{1,63}\.?|\[[0-9A-Fa-f:.]+(%[\w.-]+)?\]")
_UNSAFE = re.compile(r"[\s\x00-\x1f\x7f\\]")


class AmbiguousUrlError(ValueError):
    """The end of user and password in the URL is ambiguous."""


def read_url(url: str, schemes: set[str], example: str) -> SplitResult:
    """Return the parts of a URL that names a host. Raises `ValueError`, whose text never quotes the URL."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in schemes:
        *others, last = (f"{name}://" for name in sorted(schemes))
        raise ValueError("must start with " + (f"{', '.join(others)} or {last}" if others else last))
    is_path = scheme.lower() == "unix"
    authority = re.split(r"[/?#]", rest)[0]
    sure = authority in {"", authority.partition("@")[0] + "@"} if is_path else rest.count("@") == authority.count("@")
    if not sure or authority.count("@") > 1 or "#" in rest or _UNSAFE.search(rest):
        raise AmbiguousUrlError(f"is ambiguous; {ESCAPE}, as in {example}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # from None, because its text quotes the URL
        raise ValueError(f"has a port that is not a number from 1 to 65535, or an invalid host; {ESCAPE}") from None
    if scheme.lower() == "memory" and not parts.netloc:
        return parts
    host = parts.netloc.rpartition("@")[2].removesuffix(f":{port}").removesuffix(":")
    if is_path:
        if not parts.path:
            raise ValueError(f"must contain the path of a socket, as in {example}")
    elif not host:
        raise ValueError(f"must contain a host, as in {example}")
    elif not _HOST.fullmatch(host) or port == 0:
        raise ValueError(f"has a port that is not a number from 1 to 65535, or an invalid host; {ESCAPE}")
    elif not host.isascii() and not scheme.lower().startswith("smtp"):  # SMTP hosts are converted by IDNA 2008
        # the clients would convert it by IDNA 2003, to another host
        raise ValueError("has a host with non-ASCII characters; write it in the form xn--…, as at the registrar")
    return parts


def without_secrets(url: str) -> str:
    """Return a URL for logs and pages, without password and query, and without any part of an ambiguous URL."""
    scheme = url.partition("://")[0].lower()
    try:
        parts = read_url(url, {scheme}, "")
    except ValueError:
        return f"{scheme}://***" if re.fullmatch(r"[a-z]{1,10}", scheme) and "://" in url else "***"
    login, at, host = parts.netloc.rpartition("@")
    name, _, password = login.partition(":")
    # a name without a password may be a password: redis://secret@host
    shown = f"{name}:***" if password and name else "***"
    return f"{parts.scheme}://{shown if at else ''}{at}{host}{parts.path}"


def amqp_server(url: str) -> tuple[str, int]:
    """Return host and port of RabbitMQ."""
    parts = urlsplit(url)
    return parts.hostname or "localhost", parts.port or (5671 if parts.scheme.lower() == "amqps" else 5672)


def secrets_of(url: str) -> tuple[str, ...]:
    """Return the secrets in a URL: as they are written, and decoded."""
    parts = urlsplit(url)
    name, password = parts.username or "", parts.password or ""
    if not password and not parts.scheme.startswith("amqp"):
        password = name  # as in redis://secret@host
    elif unquote(password) == unquote(name):
        password = ""  # such as guest: redacting it would hide the name as well
    given = [it for key, it in parse_qsl(parts.query) if key == "password"]
    return tuple(dict.fromkeys(filter(None, (password, unquote(password), *given))))


def is_loopback(host: str) -> bool:
    """Return whether `host` is certainly this machine. A name below `localhost` may be another one by DNS."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
