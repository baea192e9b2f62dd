"""Reads the settings, and finds all problems at once."""

import os
import stat
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from otp_stream.otlp import COLLECTOR_URLS
from otp_stream.urls import read_url

from .base_fields import ENV_FILE
from .problems import REQUIRED_FOR_LOGIN, find_problems
from .secret_files import read_secret_files
from .settings import Settings

_OAUTH = "smtp_oauth_"
_DELAYS = {"base_delay_ms", "max_delay_ms"}
_TEXTS = {
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "bool_parsing": "must be true or false",
    "too_short": "must have {min_length} characters or more",
    "string_too_short": "must have {min_length} characters or more",
    "string_too_long": "must have {max_length} characters or fewer",
    "string_unicode": "must be text in UTF-8",
    "string_pattern_mismatch": "has a character that is not allowed; the pattern is {pattern}",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "less_than_equal": "must be {le:g} or less",
    "finite_number": "must be a number",
}
"""By pydantic's type of error. Other types keep pydantic's text."""


def load(**values: Any) -> tuple[Settings, list[str]]:
    """Read the settings from the environment and `.env`. `values` by field name take precedence.

    Returns the settings with all problems. Invalid values are replaced by the defaults, so that documents can still be
    generated; check the problems before you start anything else.
    """
    problems = _env_file_problems()
    if problems:
        values = {"_env_file": None, **values}
    problems += _collector_problems(os.environ)
    secrets, files, unreadable = read_secret_files(env_file=values.get("_env_file", ENV_FILE) is not None)
    files = {name: file for name, file in files.items() if name not in values}
    values = secrets | values
    # no second problem for what is missing because its file cannot be used
    unread = {problem.partition("_FILE:")[0] for problem in unreadable}
    try:
        settings = Settings(**values)
    except ValidationError as error:
        invalid = error.errors(include_input=False)
        settings, more = _with_defaults(invalid, values)
        more = [*map(explain, invalid), *more]
    else:
        more = find_problems(settings)
    settings.set_secret_files(files)
    return settings, [*problems, *unreadable, *(it for it in more if it.partition(":")[0] not in unread)]


def _env_file_problems() -> list[str]:
    """Return why `.env` cannot be read. Pydantic-settings would misread other encodings, or raise an exception."""
    content = b""
    try:
        if not ENV_FILE.is_file():
            return []
        if problem := _foreign_env_file():
            return [problem]
        content = ENV_FILE.read_bytes()
        if "\0" in content.decode("utf-8-sig"):  # UTF-16 without its mark
            return [f"{ENV_FILE}: is not encoded as UTF-8; save it as UTF-8"]
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        return [f"{ENV_FILE}: line {line} is not encoded as UTF-8; save the file as UTF-8"]
    except OSError as error:
        return [f"{ENV_FILE}: cannot be read ({error.strerror})"]
    return []


def _foreign_env_file() -> str | None:
    """Return why `.env` may be another user's: its settings choose commands that run, and where passwords are sent."""
    found, folder = ENV_FILE.stat(), ENV_FILE.absolute().parent
    if found.st_uid not in {0, os.geteuid()}:
        return f"{ENV_FILE}: belongs to another user, so it is not read; run this as that user, or chown {ENV_FILE}"
    if found.st_mode & stat.S_IWOTH:
        return f"{ENV_FILE}: every user can change it, so it is not read; if its content is yours: chmod 600 {ENV_FILE}"
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        return f"{ENV_FILE}: every user can replace it, so it is not read; chmod o-w {folder}"
    return None


def _collector_problems(environ: Mapping[str, str]) -> list[str]:
    """Check the endpoints, which OpenTelemetry's SDK itself reads from the environment."""
    found: list[str] = []
    for name in COLLECTOR_URLS:
        if url := environ.get(name, "").strip():
            try:
                read_url(url, {"http", "https"}, "http://collector.example.com:4318")
            except ValueError as error:
                found.append(f"{name}: {error}")
    return found


def _with_defaults(invalid: list[ErrorDetails], values: dict[str, Any]) -> tuple[Settings, list[str]]:
    """Return the settings, with defaults instead of invalid values, and the other problems."""
    bad = {str(item["loc"][0]).lower() for item in invalid if item["loc"]}
    if not _DELAYS.isdisjoint(bad):
        bad |= _DELAYS  # a delay must not be compared with the default of the other one
    defaults = {name: field.default for name, field in Settings.model_fields.items() if name in bad}
    try:
        settings = Settings(**{**values, **defaults})
    except ValidationError as error:  # two valid settings contradict each other
        more = error.errors(include_input=False)
        return Settings.model_construct(), [explain(item) for item in more] if more != invalid else []
    # another problem of a setting that is already reported would be about its default
    bad |= {name.lower() for name in REQUIRED_FOR_LOGIN} if "smtp_auth" in bad else set()
    bad |= {"brand_logo_url"} if "brand_name" in bad else set()
    if any(name.startswith(_OAUTH) for name in bad):
        bad |= {"smtp_auth", *(name for name in Settings.model_fields if name.startswith(_OAUTH))}
    return settings, [it for it in find_problems(settings) if it.partition(":")[0].lower() not in bad]


def explain(item: ErrorDetails) -> str:
    """Return what is wrong with a value, after the name of its setting, and nothing of the value."""
    name = ".".join(map(str, item["loc"])).upper().replace("APP_ENV", "NODE_ENV (or APP_ENV)")
    text = _TEXTS.get(item["type"], "").format(**item.get("ctx", {}))
    text = text or item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{name}: {text}" if name else text
