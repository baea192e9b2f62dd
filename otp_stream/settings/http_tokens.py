"""The tokens of the web pages and of the HTTP intake: `HTTP_TOKEN`, `INTAKE_TOKEN`, and those of `HTTP_TOKENS_FILE`."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, cast, get_args

from otp_stream.core.http_token import HttpToken, Role, digest_of
from otp_stream.core.tenant import DEFAULT, tenant_name

from .problems import is_guessable
from .secret_files import exists
from .settings import Settings
from .tenants import LONGEST_NAME
from .toml_file import read_toml
from .validators import listed

OWN_NAME = "token"
"""The name of `HTTP_TOKEN`."""
INTAKE_NAME = "intake"
"""The name of each token in `INTAKE_TOKEN`: they are one producer, so that a new one can replace an old one."""
RESERVED = (OWN_NAME, INTAKE_NAME)
"""Names that no token in the file may have."""
SHORTEST = 16
"""Minimum characters of a token."""
TOKEN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
"""Fits into a cookie, a header and a log line."""
_MAX_TOKENS = 1_000
_KEYS = {"role", "token", "expires", "user_header", "tenant"}
_DIGEST = re.compile(r"sha256:([0-9A-Fa-f]{64})")
_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")
_NEW = "otp-stream tokens new NAME makes one"


def read_http_tokens(settings: Settings) -> tuple[tuple[HttpToken, ...], list[str]]:
    """Return all tokens, and the problems of the file; with problems, without those of the file.

    No problem quotes a token.
    """
    value = settings.http_token.get_secret_value() if settings.http_token else None
    own = (HttpToken(OWN_NAME, "operator", digest_of(value)),) if value else ()
    path = settings.http_tokens_file
    if path is None or not exists(path):  # a missing file is a problem of the settings
        return own, []
    try:
        entries, problems = _read(read_toml(path), {"HTTP_TOKEN": own, "INTAKE_TOKEN": intake_tokens(settings)})
    except ValueError as error:
        entries, problems = [], [f"{path}: {_position(str(error))}"]
    return (own if problems else (*own, *entries)), [f"HTTP_TOKENS_FILE: {it}" for it in problems]


def intake_tokens(settings: Settings) -> list[HttpToken]:
    """Return the tokens in `INTAKE_TOKEN`."""
    return [HttpToken(INTAKE_NAME, "producer", digest_of(it)) for it in listed(settings.intake_token)]


def _read(content: Mapping[str, Any], own: Mapping[str, Sequence[HttpToken]]) -> tuple[list[HttpToken], list[str]]:
    tables = content.get("tokens")
    if set(content) != {"tokens"} or not isinstance(tables, dict):  # an empty file may be one that is being written
        return [], ["must have tables such as [tokens.ada] and nothing else; [tokens] alone for no token"]
    entries = cast("dict[str, object]", tables)
    if len(entries) > _MAX_TOKENS:
        return [], [f"has more than {_MAX_TOKENS} tokens"]
    known = {it.digest: setting for setting, tokens in own.items() for it in tokens}
    found: list[HttpToken] = []
    problems: list[str] = []
    for number, (name, table) in enumerate(entries.items(), 1):
        if not TOKEN_NAME.fullmatch(name) or name in RESERVED:  # not quoted: it may be the token
            problems.append(
                f"entry {number}: its name must have 1 to 64 letters, digits and . _ @ + -, and not be "
                f"{' or '.join(RESERVED)}"
            )
            continue
        try:
            found.append(_token(name, table))
        except ValueError as error:
            problems.append(f"[tokens.{name}] {error}")
            continue
        if (other := known.setdefault(found[-1].digest, name)) != name:
            problems.append(f"[tokens.{name}] token: is the same as that of {other}; {_NEW}")
    return found, problems


def _token(name: str, table: object) -> HttpToken:
    if not isinstance(table, dict):
        raise ValueError("must be a table with role and token")  # noqa: TRY004 - reported with the other problems
    fields = cast("dict[str, object]", table)
    if not fields.keys() <= _KEYS:
        raise ValueError("has a key other than role, token, expires, user_header and tenant")
    role = fields.get("role")
    if role not in get_args(Role):
        raise ValueError('role: must be "viewer", "operator" or "producer"')
    header = fields.get("user_header")
    if header is not None and not (isinstance(header, str) and _HEADER.fullmatch(header)):
        raise ValueError("user_header: must be the name of a header, such as X-Forwarded-User")
    digest, expires_ms = _digest(fields.get("token")), _expires_ms(fields.get("expires"))
    return HttpToken(name, cast("Role", role), digest, expires_ms, header, _tenant(fields, role))


def _tenant(fields: Mapping[str, object], role: object) -> str:
    """Return the tenant of a producer; empty for the default one."""
    if "tenant" not in fields:
        return ""
    if role != "producer":
        raise ValueError('tenant: needs role = "producer"; the pages show all tenants')
    name = tenant_name(fields["tenant"])
    if not name or not name.isprintable() or len(name) > LONGEST_NAME or name == DEFAULT:
        raise ValueError("tenant: must be the name of a tenant, such as shop-17; without it, the default tenant")
    return name


def _digest(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError(f"token: is required, as text; {_NEW}")  # noqa: TRY004 - as above
    if found := _DIGEST.fullmatch(value):
        digest = bytes.fromhex(found[1])
        if digest == digest_of(""):
            raise ValueError(f"token: is the hash of an empty text; {_NEW}")
        return digest
    if value.startswith("sha256:"):
        raise ValueError("token: must have 64 hexadecimal digits after sha256:")
    if len(value) < SHORTEST or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError(f"token: must have {SHORTEST} ASCII characters or more, without spaces; {_NEW}")
    if is_guessable(value):
        raise ValueError(f"token: is guessable; {_NEW}")
    return digest_of(value)


def _expires_ms(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError("expires: must be a date, such as 2027-01-31, or a time with its zone: 2027-01-31T18:00:00Z")
    return int(value.timestamp() * 1000)


def _position(error: str) -> str:
    """Return the reason why the file is not valid TOML without what it quotes of the file."""
    found = re.search(r"\(at [^()]*\)$", error)
    return f"is not valid TOML {found[0]}" if found else error.partition(": ")[0]
