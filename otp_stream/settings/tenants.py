"""The tenants of one deployment: what each sets in `TENANTS_FILE`, and what it inherits from the settings."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pydantic import BaseModel, ValidationError

from otp_stream.core.otp_job import MalformedError
from otp_stream.core.tenant import DEFAULT, tenant_name

from .load import explain
from .problems import find_problems, find_warnings
from .secret_files import place, read_secret, secret_names
from .settings import Settings
from .toml_file import read_toml

Unknown = Literal["default", "malformed"]
"""What happens to the jobs of a tenant that is not listed: the default tenant sends them, or they are dead-lettered."""
LONGEST_NAME = 64
"""Maximum characters of a tenant's name, and half the bytes that are left for it in the name of a queue."""
MAX_TENANTS = 1_000
BRAND_KEYS = tuple(it for it in Settings.model_fields if it.startswith("brand_"))
_MAIL_KEYS = (
    "sender_email", "envelope_sender", "reply_to", "default_locale", "default_time_zone", "templates_dir", *BRAND_KEYS,
    "subject_time",
)  # fmt: skip
_LIMIT_KEYS = ("recipient_limit", "domain_limit", "tenant_limit")
_NOT_BY_TENANT = {"smtp_uncertain"}
RELAY_KEYS = tuple(it for it in Settings.model_fields if it.startswith("smtp_") and it not in _NOT_BY_TENANT)
KEYS = (*_MAIL_KEYS, *RELAY_KEYS, *_LIMIT_KEYS)
"""What a tenant may set: settings, in lower case."""
_SECRETS = frozenset(secret_names()) & frozenset(KEYS)
FILE_KEYS = {f"{name}_file": name for name in sorted(_SECRETS)}
"""Keys that name a file with a secret, and the settings of these secrets."""
_INHERITED_BY_OWN_HOST = {"smtp_pool_size", "smtp_ehlo_name", "smtp_ca_file", "smtp_chunking"}
"""All that a tenant with another host inherits: no login may be sent to another host."""
_PATHS = ("templates_dir", "smtp_cert_file", "smtp_key_file", "smtp_ca_file", "smtp_oauth_key_file",
          "smtp_oauth_token_file")  # fmt: skip


class _TenantSettings(Settings):
    """Settings that are not read from the environment, whose values they are given."""

    def __init__(self, **values: Any) -> None:
        BaseModel.__init__(self, **values)  # not the one of pydantic-settings, which takes 5 ms


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant."""

    name: str
    settings: Settings = field(repr=False)
    """What it sets, and what it inherits."""
    given: frozenset[str]
    """The settings that it sets."""
    group: str
    """The first tenant with the same relays; empty for the relays of the default tenant."""

    def origin(self, key: str) -> Literal["tenant", "environment", "default"]:
        """Return where the value of a setting is from."""
        if key in self.given:
            return "tenant"
        return "default" if key in _not_inherited(self.given) else "environment"

    def limit_is_own(self, name: str) -> bool:
        """Return whether it sets the limit of this name, which then counts its own jobs only."""
        return f"{name}_limit" in self.given


@dataclass(frozen=True, slots=True)
class Tenants:
    """All tenants but the default one."""

    listed: Mapping[str, Tenant] = field(default_factory=dict[str, Tenant])
    unknown: Unknown = "default"
    files: tuple[Path, ...] = ()
    """The files with their secrets."""

    @property
    def groups(self) -> dict[str, Settings]:
        """The settings of each group of relays but the default one, by its name."""
        return {it.name: it.settings for it in self.listed.values() if it.group == it.name}

    def find(self, value: object) -> str:
        """Return the tenant that `metadata.tenant` names; empty for the default one.

        Raises `MalformedError` for a tenant that is not listed, if such jobs are dead-lettered.
        """
        name = tenant_name(value)
        if not name or name in self.listed:
            is_unknown = not name and value is not None and not isinstance(value, str)  # such as a list
        else:
            is_unknown = name != DEFAULT
            name = ""
        if is_unknown and self.unknown == "malformed":
            # without the name, because a producer may write anything there
            raise MalformedError("metadata.tenant: names no tenant of TENANTS_FILE; add it there, or correct the job")
        return name


def read_tenants(settings: Settings) -> tuple[Tenants, list[str]]:
    """Read `TENANTS_FILE`. Returns the tenants and the problems of the file; with problems, there are no tenants."""
    path = settings.tenants_file
    if path is None:
        return Tenants(), []
    try:
        content = read_toml(path)
        return _Reader(settings, path.parent).read(content)
    except ValueError as error:
        return Tenants(), [f"TENANTS_FILE: {path}: {error}"]


class _Reader:
    """Reads the tenants, and finds all problems at once."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._base = settings
        self._folder = folder
        self._values: dict[str, Any] = {it: getattr(settings, it) for it in Settings.model_fields}
        self._base_problems = set(find_problems(settings))
        self._problems: list[str] = []
        self._files: list[Path] = []
        self._groups: dict[tuple[object, ...], str] = {relay_values(settings): ""}

    def read(self, content: dict[str, Any]) -> tuple[Tenants, list[str]]:
        for key in content.keys() - {"unknown", "tenants"}:
            self._problem("", f"{key}: is not known here; the file has unknown and [tenants.NAME]")
        unknown = content.get("unknown", "default")
        if unknown not in get_args(Unknown):
            self._problem("", 'unknown: must be "default" or "malformed"')
        tables = content.get("tenants")
        listed: dict[str, Tenant] = {}
        if not isinstance(tables, dict) or not tables:  # an empty file may be one that a program is writing
            self._problem("", "tenants: must be one or more tables such as [tenants.shop-17]")
        elif len(cast("dict[str, object]", tables)) > MAX_TENANTS:
            self._problem("", f"tenants: has more than {MAX_TENANTS} entries")
        else:
            for name, table in cast("dict[str, object]", tables).items():
                if tenant := self._tenant(name, table):
                    listed[name] = tenant
        if self._problems:
            return Tenants(files=tuple(self._files)), self._problems
        return Tenants(listed, cast("Unknown", unknown), tuple(self._files)), []

    def _tenant(self, name: str, table: object) -> Tenant | None:
        if fault := _fault_of_name(name):
            self._problem("", f"tenants: {fault}")
            return None
        if not isinstance(table, dict):
            self._problem(name, "must be a table of settings")
            return None
        given = self._given(name, cast("dict[str, object]", table))
        if given is None:
            return None
        try:
            settings = _TenantSettings(**self._inherited(given), **given)
        except ValidationError as error:
            for it in error.errors(include_input=False):
                self._problem(name, _lowered(explain(it)))
            return None
        problems = [it for it in find_problems(settings) if it not in self._base_problems]
        for problem in problems:
            self._problem(name, _lowered(problem))
        group = self._groups.setdefault(relay_values(settings), name)
        return None if problems else Tenant(name, settings, frozenset(given), group)

    def _inherited(self, given: Mapping[str, object]) -> dict[str, object]:
        without = _not_inherited(given)
        return {key: value for key, value in self._values.items() if key not in given and key not in without}

    def _given(self, name: str, table: Mapping[str, object]) -> dict[str, object] | None:
        """Return what a tenant sets, with secrets read from their files, or `None` if it cannot be used."""
        before = len(self._problems)
        given: dict[str, object] = {}
        for key, value in table.items():
            if key in KEYS:
                if isinstance(value, dict | list) or value == "":
                    self._problem(name, f"{key}: must be one value; leave the key out to inherit it")
                given[key] = self._folder / value if key in _PATHS and isinstance(value, str) else value
            elif key in FILE_KEYS:
                given[FILE_KEYS[key]] = self._secret(name, key, value, table)
            else:
                close = get_close_matches(key.lower(), (*KEYS, *FILE_KEYS), 1, 0.8)
                fix = f"; did you mean {close[0]}?" if close else "; see docs/tenants.md for the keys"
                self._problem(name, f"{key}: cannot be set for a tenant{fix}")
        return given if len(self._problems) == before else None

    def _secret(self, name: str, key: str, value: object, table: Mapping[str, object]) -> str:
        if FILE_KEYS[key] in table:
            self._problem(name, f"{key}: {FILE_KEYS[key]} is set, too; set one of them")
        elif not isinstance(value, str) or not value:
            self._problem(name, f"{key}: must be the path of a file")
        else:
            path = self._folder / value
            self._files.append(path)
            try:
                return read_secret(path)
            except ValueError as error:
                self._problem(name, f"{key}: {error}{place(path, value)}")
        return ""

    def _problem(self, tenant: str, text: str) -> None:
        where = f"[tenants.{tenant}] " if tenant else ""
        self._problems.append(f"TENANTS_FILE: {where}{text}")


def _not_inherited(given: Container[str]) -> set[str]:
    """Return the settings of the default tenant that must not apply to a tenant that sets those `given`."""
    without = set(RELAY_KEYS) - _INHERITED_BY_OWN_HOST if "smtp_host" in given else set[str]()
    if "brand_name" in given:
        without |= set(BRAND_KEYS)
    # bounces and answers go to the default tenant's people
    return without | {"envelope_sender", "reply_to"} if "sender_email" in given else without


def tenant_warnings(settings: Settings, tenants: Tenants) -> list[str]:
    """Return unsafe settings of tenants' own relays that are allowed, as `find_warnings` does."""
    known = set(find_warnings(settings))
    return [
        f"TENANTS_FILE: [tenants.{name}] {_lowered(warning)}"
        for name, its in tenants.groups.items()
        for warning in find_warnings(its)
        if warning not in known
    ]


def relay_values(settings: Settings) -> tuple[object, ...]:
    """Return everything that defines the relays of a tenant: tenants with equal values share their relays."""
    return tuple(getattr(settings, key) for key in RELAY_KEYS)


def _fault_of_name(name: str) -> str | None:
    if name == DEFAULT:
        return "default is the name for jobs without a tenant, which the environment's settings describe"
    if not name or not name.isprintable() or name != name.strip() or len(name) > LONGEST_NAME:
        return f"a name must have 1 to {LONGEST_NAME} printable characters, without spaces around it"
    if len(name.encode(errors="replace")) > 2 * LONGEST_NAME:
        return f"a name must have at most {2 * LONGEST_NAME} bytes"
    return None


def _lowered(problem: str) -> str:
    """Return a problem with the setting's name as the file writes it."""
    name, colon, text = problem.partition(":")
    return f"{name.lower()}{colon}{text}" if name.lower() in KEYS else problem
