"""Finds settings that prevent a start, and unsafe settings that are allowed."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import assert_never
from urllib.parse import parse_qsl, unquote, urlsplit

from .secret_files import exists, place
from .settings import Settings
from .transport import options, remote_servers, unencrypted_mail, unencrypted_servers, unprotected
from .validators import MAKE_KEY, listed

REQUIRED = ("SENDER_EMAIL", "SMTP_HOST")
REQUIRED_FOR_LOGIN = ("SMTP_USER", "SMTP_PASS")
_FROM_TOKEN_SERVER = ("SMTP_OAUTH_TOKEN_URL", "SMTP_OAUTH_KEY_FILE")
_TOKEN_SOURCES = ("TOKEN_URL", "KEY_FILE", "TOKEN_COMMAND", "TOKEN_FILE")
_TLS_FILES = ("cafile", "certfile", "keyfile", "ssl_certfile", "ssl_keyfile")
_FILES = (
    "smtp_ca_file",
    "smtp_cert_file",
    "smtp_key_file",
    "smtp_oauth_key_file",
    "templates_dir",
    "tenants_file",
    "http_tokens_file",
)
_FEW = 8
"""A random token of 16 characters has at least this many different ones."""
_WORDS = ("admin", "change", "example", "letmein", "otp-stream", "otpstream", "passw", "qwert", "secret", "token")
_PLACEHOLDERS = {
    "admin", "changeit", "changeme", "default", "example", "guest", "letmein", "pass", "passwd", "password",
    "placeholder", "rabbitmq", "redis", "replaceme", "root", "secret", "yourpassword",
}  # fmt: skip
_KEYBOARD = (
    "1234567890 qwertyuiop asdfghjkl zxcvbnm qwertzuiop yxcvbnm azertyuiop qsdfghjklm wxcvbn "
    "abcdefghijklmnopqrstuvwxyz "
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9ol0p qazwsxedcrfvtgbyhnujm 1q2w3e4r5t6y7u8i9o0p q1w2e3r4t5y6u7i8o9p0"
)
_NEIGHBOURS = f"{_KEYBOARD} {_KEYBOARD[::-1]}"
_SHORTEST_PATTERN = 6
"""Shorter passwords are not checked for patterns."""


def find_problems(settings: Settings) -> list[str]:
    """Return the problems that prevent a start, each with its fix."""
    found: list[str] = []
    if settings.worker:
        for name in REQUIRED + required_for_login(settings):
            if getattr(settings, name.lower()) is None:
                alternative = " (or set SMTP_AUTH=none)" if name not in REQUIRED else ""
                found.append(f"{name}: is required when WORKER=true{alternative}")
    found += _oauth_problems(settings) if settings.smtp_auth == "oauth2" else []
    if settings.smtp_key_file is not None and settings.smtp_cert_file is None:
        found.append("SMTP_CERT_FILE: is required with SMTP_KEY_FILE")
    if settings.smtp_cert_file is not None and settings.smtp_tls == "none":
        found.append("SMTP_CERT_FILE: needs TLS; set SMTP_TLS to starttls or implicit")
    found += _missing_files(settings)
    if settings.brand_logo_url is not None and settings.brand_name is None:
        found.append("BRAND_LOGO_URL: needs BRAND_NAME, which mail programs show in place of a logo they do not load")
    found += _missing_tls_files(settings)
    found += _unicode_addresses(settings)
    if settings.app_env == "production":
        found += _unsafe_in_production(settings)
    elif settings.http_tokens_file is not None and settings.secret_key is None:
        found.append(f"SECRET_KEY: is required with HTTP_TOKENS_FILE, because it signs the sessions; {MAKE_KEY}")
    return found


def _missing_files(settings: Settings) -> Iterator[str]:
    for name in _FILES:
        path: Path | None = getattr(settings, name)
        if path is None or exists(path):
            continue
        if name == "http_tokens_file":  # easily confused with HTTP_TOKEN_FILE or HTTP_TOKEN
            yield f"HTTP_TOKENS_FILE: does not exist{place(path)}"
        else:
            yield f"{name.upper()}: {path} does not exist"


def _missing_tls_files(settings: Settings) -> Iterator[str]:
    for name, url in (("RABBITMQ_URL", settings.rabbitmq_url), ("REDIS_URL", settings.redis_url)):
        given = dict(parse_qsl(urlsplit(url.get_secret_value()).query)) if url else {}
        for option in _TLS_FILES:
            if option in given and not Path(given[option]).exists():
                yield f"{name}: {option} {given[option]} does not exist"


def _unicode_addresses(settings: Settings) -> Iterator[str]:
    """Find addresses that need SMTPUTF8 in a mail whose envelope does not (RFC 6531 §3.4)."""
    reply_to, sender = settings.reply_address, settings.sender[1]
    if reply_to is not None and not reply_to[1].isascii():
        yield "REPLY_TO: must be in ASCII before the @; relays without SMTPUTF8 refuse other addresses"
    if settings.envelope_sender is not None and settings.envelope_sender.isascii() and not sender.isascii():
        yield "ENVELOPE_SENDER: must not be set if SENDER_EMAIL is not in ASCII before the @"


def required_for_login(settings: Settings) -> tuple[str, ...]:
    """Return the settings that the login at the relay requires."""
    match settings.smtp_auth:
        case "login" | "scram-sha-256" | "plain" | "cram-md5":
            return REQUIRED_FOR_LOGIN
        case "oauth2":
            return ("SMTP_USER",)
        case "external":
            return ("SMTP_CERT_FILE",)
        case "none":
            return ()
        case _:
            assert_never(settings.smtp_auth)


def _oauth_problems(settings: Settings) -> list[str]:
    """Return what is missing or too much among the settings of SMTP_AUTH=oauth2."""
    sources = {f"SMTP_OAUTH_{name}": getattr(settings, f"smtp_oauth_{name.lower()}") for name in _TOKEN_SOURCES}
    given = [name for name, value in sources.items() if value is not None]
    if "SMTP_OAUTH_KEY_FILE" in given and "SMTP_OAUTH_TOKEN_URL" in given:
        given.remove("SMTP_OAUTH_TOKEN_URL")  # the key file names one, too
    if len(given) != 1:
        text = f"one of them, not {' and '.join(given)}" if given else f"one of {', '.join(sources)}"
        return [f"SMTP_AUTH: oauth2 needs {text}"]
    if given == ["SMTP_OAUTH_KEY_FILE"] and settings.smtp_oauth_scope is None:
        return ["SMTP_OAUTH_SCOPE: is required with SMTP_OAUTH_KEY_FILE; Gmail's is https://mail.google.com/"]
    found: list[str] = []
    if given == ["SMTP_OAUTH_TOKEN_URL"]:
        if settings.smtp_oauth_client_id is None:
            found.append("SMTP_OAUTH_CLIENT_ID: is required with SMTP_OAUTH_TOKEN_URL")
        if settings.smtp_oauth_client_secret is None and settings.smtp_oauth_refresh_token is None:
            found.append(
                "SMTP_OAUTH_CLIENT_SECRET: is required with SMTP_OAUTH_TOKEN_URL unless a refresh token is set"
            )
    if given[0] in _FROM_TOKEN_SERVER and find_spec("authlib") is None:
        found.append("SMTP_AUTH: oauth2 with a token server needs a package: pip install 'otp-stream[oauth]'")
    return found


def _unsafe_in_production(settings: Settings) -> list[str]:
    found = [f"{text}; this is refused in production" for text in _unsafe_everywhere(settings)]
    if settings.secret_key is None:
        found.append(f"SECRET_KEY: is required in production; {MAKE_KEY}")
    parts = urlsplit(settings.rabbitmq_url.get_secret_value())
    if settings.embedded:
        found.append("RABBITMQ_URL: memory:// loses all jobs at a stop; it is refused in production")
    elif (parts.username or "guest") == "guest" and "auth=external" not in parts.query.lower().split("&"):
        found.append("RABBITMQ_URL: the user guest is refused in production; create a user for otp-stream")
    return found


def _unsafe_everywhere(settings: Settings) -> list[str]:
    """Return settings that are unsafe in every environment, each with its fix."""
    found = [*unprotected(settings), *unencrypted_mail(settings)]
    found += [text for name, url in remote_servers(settings).items() for text in _unsafe_in_url(name, url)]
    if settings.smtp_pass and is_placeholder(settings.smtp_pass.get_secret_value(), settings.smtp_user or ""):
        found.append("SMTP_PASS: is a placeholder or easy to guess; set the relay's password")
    found += [
        f"SMTP_FALLBACK_URLS: the password of entry {number} is easy to guess; set the relay's password"
        for number, relay in enumerate(settings.fallbacks, 1)
        if is_placeholder(relay.password or "", relay.user or "")
    ]
    if settings.http_token and is_guessable(settings.http_token.get_secret_value()):
        found.append("HTTP_TOKEN: is guessable; make a random one: openssl rand -hex 32")
    if any(map(is_guessable, listed(settings.intake_token))):
        found.append(f"INTAKE_TOKEN: is guessable; {MAKE_KEY}")
    if any(map(is_guessable, listed(settings.secret_key))):
        found.append(f"SECRET_KEY: is guessable; {MAKE_KEY}")
    return found


def _unsafe_in_url(name: str, url: str) -> Iterator[str]:
    parts, given = urlsplit(url), options(url)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    logins = ((user, password), (given.get("username", user), given.get("password", "")))
    if any(is_placeholder(password, user) for user, password in logins):
        yield f"{name}: its password is easy to guess; use a random one"


def find_warnings(settings: Settings) -> list[str]:
    """Return unsafe settings that are allowed, each with its fix, for the log at start and `otp-stream check`."""
    found = _unsafe_everywhere(settings) if settings.app_env != "production" else []
    return [*found, *unencrypted_servers(settings)]


def is_guessable(token: str) -> bool:
    """Return whether a token contains a word, or is a sequence or a repetition, instead of random characters."""
    text = token.lower()
    if _is_pattern(text):
        return True
    steps = {ord(after) - ord(before) for before, after in pairwise(text)}
    return len(set(text)) < _FEW or len(steps) < _FEW // 2 or any(word in text for word in _WORDS)


def is_placeholder(password: str, user: str) -> bool:
    """Return whether a password is a well-known default, the user's name, or a pattern. A short one may be random."""
    text = password.lower()
    word = re.sub(r"[\W_]", "", text)
    return bool(
        word.rstrip("0123456789") in _PLACEHOLDERS
        or (text and text == user.lower())
        or (len(text) >= _SHORTEST_PATTERN and _is_pattern(text))
    )


def _is_pattern(text: str) -> bool:
    """Return whether the whole text is a repetition, or more than half of it are neighbouring keys of a keyboard."""
    if any(text[size:] == text[:-size] for size in range(1, len(text) // 2 + 1)):
        return True
    neighbours = {at + more for at in range(len(text) - 3) if text[at : at + 4] in _NEIGHBOURS for more in range(4)}
    return 2 * len(neighbours) >= len(text)
